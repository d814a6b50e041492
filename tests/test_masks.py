"""What a run leaves out, and a teacher that ends its texts differently: real models of a few hundred numbers."""

import json

import models
import numpy as np
import pytest
import tomli_w
import torch

from opd import maths
from opd.build import build
from opd.dist import TableDist
from opd.errors import OpdError
from opd.loop import one_step
from opd.masks import token_id
from opd.parts.credit import LastOnly, LogRatio, SkipFirst, SkipTokens
from opd.parts.losses import PolicyGradient
from opd.parts.means import token_mean
from opd.parts.support_losses import OnSupport
from opd.protocols import Want
from opd.record import resolved
from opd.rollout import Problem, Rollout, Sampling
from opd.rows import Rows
from opd.run import Run
from opd.settings import Settings
from opd.teachers.fake import FakeTeacher
from opd.teachers.local import LocalTeacher
from opd.teachers.renamed import Renamed

DOT, STOP = models.tokenizer().convert_tokens_to_ids("."), 2


def table():
    """Two answers, of five and four tokens."""
    token = torch.tensor([7, 5, 7, 5, 9, 5, 5, 7, 9])
    row = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    sequence = torch.tensor([0, 0, 0, 0, 0, 4, 4, 4, 4])
    return Rows({"keep": torch.ones(9, dtype=torch.bool), "token": token, "row": row, "sequence": sequence})


@pytest.mark.parametrize(("which", "hit"), [("first", [0, 1, 5, 7]), ("all", [0, 1, 2, 3, 5, 6, 7])])
def test_tokens_are_left_out_where_they_come_first_or_always(which, hit):
    rows = SkipTokens((7, 5), which)(table())
    assert rows["masked.special"].nonzero()[:, 0].tolist() == hit
    assert torch.equal(rows["keep"], ~rows["masked.special"])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SkipTokens((7, 5), which)(table().index(order))["keep"], rows["keep"][order])


def test_masks_add_up_and_remember_why():
    rows = SkipFirst(1)(SkipFirst(2)(SkipTokens((9,), why="stop")(table())))
    assert rows["masked.first"].nonzero()[:, 0].tolist() == [0, 1, 5, 6]
    assert rows["masked.stop"].nonzero()[:, 0].tolist() == [4, 8]
    assert rows["keep"].nonzero()[:, 0].tolist() == [2, 3, 7]


def test_what_stands_before_the_last_tokens_is_left_out_and_counted():
    length = torch.tensor([5] * 5 + [4] * 4)
    rows = LastOnly(2)(SkipTokens((9,), why="stop")(table().plus(length=length)))
    assert rows["masked.early"].nonzero()[:, 0].tolist() == [0, 1, 2, 5, 6]
    assert rows["masked.stop"].nonzero()[:, 0].tolist() == [4, 8] and rows["keep"].nonzero()[:, 0].tolist() == [3, 7]
    assert not LastOnly(5)(table().plus(length=length))["masked.early"].any()


# ---- what a mask mends (2603.25562, third failure)


def test_a_marker_that_the_teacher_spells_differently():
    """The first token has a synonym that the teacher writes instead: the sampled token's gradient is blown up, that of
    a local support is not, and masking the token brings the first back."""
    states, v, k, seeds = 12, 50, 8, 10
    losses = {"sampled": PolicyGradient(), "local": OnSupport(maths.reverse_kl, k)}
    norms = {name: np.zeros(4) for name in losses}  # like, unlike, and both with a mask
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        logits = torch.randn(states, v, dtype=torch.float64, generator=draw) * 1.5
        marker, synonym = int(logits[0].argmax()), int(logits[0].argmin())
        others = torch.cat([logits[0, :marker], logits[0, marker + 1 :]])
        logits[0, marker] = others.logsumexp(0)  # written half of the time
        like = logits + 0.5 * torch.randn(states, v, dtype=torch.float64, generator=draw)
        like[0, marker] += 4
        unlike = like.clone()
        unlike[0, [marker, synonym]] = like[0, [synonym, marker]]
        token = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0]
        token[0] = marker
        for name, loss in losses.items():
            cases = ((like, False), (unlike, False), (like, True), (unlike, True))
            norms[name] += [_norm(loss, logits, q.log_softmax(-1), token, mask) / seeds for q, mask in cases]
    plain, swapped, masked, mended = norms["sampled"]
    assert swapped > 2 * plain
    assert mended == masked < 1.2 * plain
    plain, swapped, _, _ = norms["local"]
    assert swapped < 1.2 * plain


def _norm(loss, logits, lq, token, mask):
    """The norm of the gradient of one answer's mean loss."""
    z = logits.clone().requires_grad_()
    student, teacher = TableDist(z.log_softmax(-1), token), TableDist(lq, token)
    own, n = student.chosen.detach(), len(token)
    columns = {"keep": torch.ones(n, dtype=torch.bool), "token": token, "teacher": teacher, "behaviour": own}
    columns |= {"row": torch.arange(n), "sequence": torch.zeros(n, dtype=torch.long)}
    rows = Rows(columns | {"teacher.chosen": teacher.chosen, "untruncated": own})
    rows = LogRatio()(SkipTokens((int(token[0]),), "first")(rows) if mask else rows)
    (slope,) = torch.autograd.grad((token_mean(rows) * loss(student, rows)).sum(), z)
    return float(slope.norm())


# ---- naming tokens


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A student, a teacher that ends its texts with a dot, one that never does, and a task."""
    folder = tmp_path_factory.mktemp("masks")
    for seed, name in enumerate(("student", "teacher", "dotted", "endless")):
        models.folder(folder / name, seed=seed)
    for name, end in (("dotted", "."), ("endless", None)):
        file = folder / name / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": end}))
    for file in ("config.json", "generation_config.json"):
        values = json.loads((folder / "endless" / file).read_text())
        (folder / "endless" / file).write_text(json.dumps(values | {"eos_token_id": None}))
    lines = [json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) for i in range(40)]
    (folder / "good.jsonl").write_text("\n".join(lines))
    return folder


def settings(place, teacher="teacher", method="sampled_token", **how):
    task = f"jsonl:{place / 'good.jsonl'}"
    shared = {"steps": 2, "batch": 3, "max_new": 6, "device": "cpu", "lr": 1e-2} | how
    return Settings.of(method=method, student=str(place / "student"), teacher=str(place / teacher), task=task, **shared)


def test_a_token_is_named_by_text_or_number(tmp_path):
    student = models.engine(tmp_path)
    assert [token_id(name, student) for name in ("</s>", ".", DOT, str(DOT))] == [STOP, DOT, DOT, DOT]
    with pytest.raises(OpdError, match=r"mask '\.-' is not one token.*'\.' \(43\), '-' \(41\).*Name the pieces"):
        token_id(".-", student)
    with pytest.raises(OpdError, match="no such token: got 45, expected an id from 0 to 44"):
        token_id(45, student)


# ---- a run


def test_a_run_counts_what_it_masks(place):
    t = build(settings(place, mask=(".", "5"), mask_which="all", stop_token="mask", skip_first=2))
    batch = one_step(t)
    rows, metrics = batch.rows, batch.metrics
    hits = {
        "special": (rows["token"] == DOT) | (rows["token"] == 5),
        "stop": rows["token"] == STOP,
        "first": rows["row"] < 2,
    }
    for why, hit in hits.items():
        assert torch.equal(rows[f"masked.{why}"], hit)
        assert metrics[f"masked.{why}"] == int(hit.sum())
    kept = ~torch.stack(list(hits.values())).any(0)
    assert torch.equal(rows["keep"], kept)
    assert metrics["kept"] == pytest.approx(float(kept.double().mean()))
    assert 0 < metrics["kept"] < 1
    assert metrics["empty"] == 0


def test_masks_are_written_down_and_read_again(place, tmp_path):
    chosen = settings(place, mask=(7, "."), mask_which="all", stop_token="mask", skip_first=1)
    (tmp_path / "run.toml").write_text(tomli_w.dumps(resolved(chosen)))
    again = Settings.read(tmp_path / "run.toml")
    assert (again.mask, again.mask_which, again.stop_token, again.skip_first) == ((7, "."), "all", "mask", 1)


def test_without_masks_nothing_is_counted(place):
    batch = one_step(build(settings(place)))
    assert bool(batch.rows["keep"].all()) and not [name for name in batch.metrics if name.startswith("masked.")]


def test_a_run_counts_what_its_method_leaves_out(place):
    batch = one_step(build(settings(place, method="representation", parameters={"last": 2})))
    early = batch.rows["length"] - batch.rows["row"] > 2
    assert 0 < batch.metrics["masked.early"] == int(early.sum()) and torch.equal(batch.rows["keep"], ~early)


@pytest.mark.parametrize("method", ["sampled_token", "local_support", "shuffled", "sequence_kl", "representation"])
def test_a_mask_of_everything_teaches_nothing_and_shows(place, method):
    t = build(settings(place, method=method, skip_first=100))
    before = [p.detach().clone() for p in t.student.parameters()]
    metrics = [one_step(t).metrics for _ in range(2)][-1]
    assert metrics["kept"] == 0 and metrics["masked.first"] == metrics["tokens"]
    assert metrics["empty"] == t.method.updates.parts
    assert all(torch.equal(a, b) for a, b in zip(before, t.student.parameters(), strict=True))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"mask": ("ab",)}, "not one token"),
        ({"stop_token": "map"}, r"nothing to map: got token 2 \('</s>'\) for both"),
        ({"stop_token": "map", "teacher": "endless"}, "no end of text"),
        ({"mask_which": "last"}, "'first' or 'all'"),
        ({"skip_first": -1}, "greater than or equal to 0"),
    ],
)
def test_masks_that_cannot_be_are_refused_before_step_1(place, how, sentence):
    with pytest.raises(OpdError, match=sentence):
        build(settings(place, **how))


def test_a_copy_of_the_student_ends_its_texts_alike(place):
    values = settings(place, stop_token="map").model_dump() | {"teacher": "self:frozen"}
    with pytest.raises(OpdError, match="nothing to map"):
        build(Settings.of(**values))


# ---- one end of text for another


def bigrams(seed=0, v=6):
    return torch.randn(v, v, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def exchanged(x, a, b, dim):
    order = list(range(x.shape[dim]))
    order[a], order[b] = b, a
    return x.index_select(dim, torch.tensor(order))


@pytest.mark.parametrize("want", [Want(dist=True), Want(topk=3, chosen=True), Want(chosen=True), Want(gather="ask")])
def test_a_renamed_teacher_is_the_same_world_under_other_names(want):
    table = bigrams()
    names = exchanged(exchanged(table, 1, 4, 0), 1, 4, 1)  # the same bigrams where 1 is called 4
    tokens, author = np.array([0, 1, 4, 2, 1], np.int32), np.array([0, 1, 1, 1, 1], np.int8)
    ask = np.array([[1, 2], [4, 1], [0, 4], [5, 3]])
    contexts = [Rollout(tokens, author, Problem("p", "0"), columns={"ask": ask})]
    ours = FakeTeacher(table).read(contexts, want)
    theirs = Renamed(FakeTeacher(names), 1, 4).read(contexts, want)
    for a, b in ((ours.chosen, theirs.chosen), (ours.gathered, theirs.gathered)):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    if want.dist:
        assert torch.equal(ours.dist.logprobs(), theirs.dist.logprobs())
    if want.dist or want.topk:
        assert torch.equal(ours.dist.top(3), theirs.dist.top(3))
        assert torch.equal(ours.dist.chosen, theirs.dist.chosen)
    assert contexts[0].tokens.tolist() == [0, 1, 4, 2, 1], "the rollout itself keeps its names"


def test_prompts_are_untouched():
    seen = []
    teacher = FakeTeacher(lambda context: seen.append(context.tokens.tolist()) or bigrams()[context.decisions])
    context = Rollout(np.array([1, 4, 1, 4]), np.array([0, 0, 1, 1], np.int8), Problem("p", "0"))
    Renamed(teacher, 1, 4).read([context], Want(chosen=True))
    assert seen == [[1, 4, 4, 1]]


def test_a_renamed_writer_ends_as_the_student_does():
    """4 ends a text for the teacher, and so does 5; for us it is 1."""
    table = torch.full((6, 6), -30.0, dtype=torch.float64)
    for before, after in ((0, 3), (3, 1), (1, 4), (2, 5)):
        table[before, after] = 0
    teacher = Renamed(FakeTeacher(table, stops=(4, 5)), 1, 4)
    prompts, greedy = [np.array([0]), np.array([2])], Sampling(temperature=0)
    (first,), (second,) = teacher.write(prompts, greedy, [[0], [0]])
    assert [piece.tokens.tolist() for piece in (first, second)] == [[3, 4, 1], [1]]
    (cut,) = teacher.write(prompts[:1], Sampling(temperature=0, stop=(4,)), [[0]])
    assert cut[0].tokens.tolist() == [3, 4], "our 4 is the teacher's 1"
    assert teacher.decode(np.array([3, 4, 1])) == "3 1 4"


def test_a_renamed_model_answers_with_its_own_head(tmp_path):
    model, twin = models.engine(tmp_path / "a"), models.engine(tmp_path / "b")
    with torch.no_grad():
        for weight in (twin.model.get_input_embeddings().weight, twin.head):
            weight[[STOP, DOT]] = weight[[DOT, STOP]]
    ours, theirs = LocalTeacher(model), Renamed(LocalTeacher(twin), STOP, DOT)
    prompt = model.render([{"role": "user", "content": "1+2="}])
    context = Rollout(
        np.concatenate([prompt, [5, DOT, STOP]]), np.array([0] * len(prompt) + [1] * 3, np.int8), Problem("p", "")
    )
    for want in (Want(dist=True), Want(topk=5, chosen=True)):
        a, b = ours.read([context], want).dist, theirs.read([context], want).dist
        assert torch.equal(a.top(5), b.top(5))
        assert (a.chosen - b.chosen).abs().max() < 1e-14
    again = theirs.read([context], Want(dist=True)).dist
    assert again.head is theirs.read([context], Want(dist=True)).dist.head, "two rows are exchanged once, not per read"


def test_a_run_with_a_mapped_end_of_text(place):
    plain, mapped = (build(settings(place, "dotted", stop_token=how)) for how in ("keep", "map"))
    assert isinstance(mapped.cast["teacher"], Renamed)
    problem = Problem("p", "1+1=")
    prompt = plain.student.render(problem.messages)
    context = Rollout(np.concatenate([prompt, [5, STOP]]), np.array([0] * len(prompt) + [1, 1], np.int8), problem)
    swapped = Rollout(np.concatenate([prompt, [5, DOT]]), context.author, problem)
    as_it_is = plain.cast["teacher"].read([swapped], Want(chosen=True)).chosen
    assert torch.equal(mapped.cast["teacher"].read([context], Want(chosen=True)).chosen, as_it_is)
    assert np.isfinite(one_step(mapped).metrics["loss"])
    sft = build(settings(place, "dotted", method="sft", stop_token="map", max_new=40))
    ends = [r.tokens[-1] for g in one_step(sft).groups for r in g.rollouts if r.end == "stop"]
    assert set(ends) <= {STOP}


def test_a_mapped_teacher_is_examined_and_marks_drafts(place, tmp_path):
    chosen = settings(place, "dotted", method="local_support", stop_token="map", out=str(tmp_path / "run"))
    small = {"steps": 1, "eval_problems": 3, "drafts": 2, "parameters": {"k": 4, "n": 2, "source": "student"}}
    summary = Run.new(Settings.of(**chosen.model_dump() | small)).train()
    assert np.isfinite(summary["student_after"]["kl"]["per_token"]) and summary["teacher"]
