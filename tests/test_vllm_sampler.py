"""A student whose texts a server writes: what is verified, what is weighed, and what stops a run."""

import json
from itertools import chain
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from vllm_writing import StandIn

from opd import Run, Settings, maths
from opd.cli.main import main
from opd.dist import TableDist
from opd.engines import vllm_folder
from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.engines.sampled import Sampled
from opd.engines.sampling import truncate
from opd.engines.vllm import VLLM
from opd.errors import MethodError, SettingError, Unanswered
from opd.parts.losses import CrossEntropy, Everywhere, PolicyGradient, Raise, Reweighted, TruncatedGradient
from opd.rollout import Sampling
from opd.rows import Rows
from opd.sampler import Weighted, numbers

SMALL = {"steps": 2, "batch": 2, "lr": 3e-3, "max_new": 12, "eval_problems": 1, "drafts": 0, "doctor": "off"}
HASTY = {"sampler_timeout": 5.0, "teacher_patience": 0.5}


# ---- the correction


VOCAB, BIG = 6, 1e9


def world(seed=0):
    """What one decision of a student and of a sampler that differs may be: [V] logits, log-probs, advantages."""
    made = torch.Generator().manual_seed(seed)
    student, server, teacher = (
        torch.randn(VOCAB, generator=made, dtype=torch.float64).log_softmax(-1) for _ in range(3)
    )
    return student, server, teacher, torch.randn(VOCAB, generator=made, dtype=torch.float64)


def table(student, server, teacher, advantage, drawn):
    """One row for every token that could be drawn; `chance` is how probable that is."""
    tokens = torch.arange(VOCAB)
    return Rows({
        "token": tokens, "keep": torch.ones(VOCAB, dtype=torch.bool), "advantage": advantage,
        "behaviour": student, "untruncated": student, "chance": drawn.exp(), "sampler.ratio": student - drawn,
        "teacher": TableDist(teacher.expand(VOCAB, VOCAB), tokens),
    })  # fmt: skip


def expected(loss, student, rows, cap):
    """The gradient [V] in the student's logits, summed over whatever the sampler may draw."""
    mean = lambda rows: rows["chance"]
    logits = student.clone().requires_grad_()
    dist = TableDist(logits.log_softmax(-1).expand(VOCAB, VOCAB), rows["token"])
    (Weighted(mean, cap)(rows) * loss(dist, rows)).sum().backward()
    return logits.grad


LOSSES = {
    "a score function": Raise(),
    "a ratio to what drew the token": PolicyGradient(old="behaviour"),
    "PPO's ratio to the start of the batch": PolicyGradient(0.2, "untruncated"),
    "a truncated ratio of its own": TruncatedGradient(1.5),
    "another loss with a ratio of its own": Reweighted(CrossEntropy(), 1.5),
    "cross-entropy": CrossEntropy(),
    "the whole distribution": Everywhere(maths.reverse_kl),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_expected_gradient_is_the_students_own_where_the_cap_does_not_bind(loss):
    for seed in range(5):
        student, server, teacher, advantage = world(seed)
        own = expected(LOSSES[loss], student, table(student, server, teacher, advantage, student), BIG)
        theirs = expected(LOSSES[loss], student, table(student, server, teacher, advantage, server), BIG)
        assert (own - theirs).abs().max() < 1e-12
        if loss != "the whole distribution":  # which token was drawn makes no difference to it
            wrong = table(student, server, teacher, advantage, server).plus(**{"sampler.ratio": torch.zeros(VOCAB)})
            assert (expected(LOSSES[loss], student, wrong, BIG) - own).abs().max() > 1e-2


def test_a_cap_that_binds_bounds_the_weight_and_is_counted():
    student, server, teacher, advantage = world(3)
    rows = table(student, server, teacher, advantage, server)
    rows = rows.plus(**{"sampler.version": torch.zeros(VOCAB)})
    exact = (student - server).exp()
    assert exact.max() > 2 and exact.min() < 0.5
    assert torch.equal(Weighted(lambda rows: rows["chance"], 2.0)(rows), rows["chance"] * exact.clamp(max=2.0))
    found = numbers(rows, 2.0)
    assert found["sampler.cut"] == pytest.approx(float((exact > 2).double().mean()))
    assert found["sampler.weight"] == pytest.approx(float(exact.clamp(max=2.0).mean()))
    assert found["sampler.gap"] == pytest.approx(float((student - server).abs().mean()))
    assert found["sampler.outside"] == 0


def test_what_no_server_wrote_counts_as_it_is_and_is_in_no_number():
    student, server, teacher, advantage = world(4)
    rows = table(student, server, teacher, advantage, server)
    rows = rows.plus(**{"sampler.ratio": torch.zeros(VOCAB), "sampler.version": torch.full((VOCAB,), torch.nan)})
    assert torch.equal(Weighted(lambda rows: rows["chance"], 2.0)(rows), rows["chance"])
    assert numbers(rows, 2.0) == {}


# ---- a server that is another process


def student_of(folder, **how):
    return HFModel(load_model(str(folder), torch.float32, "cpu"), load_tokenizer(str(folder)), "student", 12, **how)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tied model whose head has 5 rows more than there are tokens."""
    return models.folder(tmp_path_factory.mktemp("tiny") / "model", vocab=models.VOCAB + 5, tied=True)


@pytest.fixture
def served(tiny, tmp_path):
    """A student and a server of it."""
    student = student_of(tiny)
    vllm_folder.write(student, tmp_path / "served")
    server = StandIn(tmp_path / "served")
    yield student, server
    server.close()


def sampled(student, server, tolerance=0.05, step=lambda: 0):
    return Sampled(student, VLLM(server.url, 5.0, 0.5), server.folder, step, tolerance)


def test_a_server_of_two_models_or_of_none_is_no_sampler(served):
    _, server = served
    card = {"root": "r", "max_model_len": 8}
    for cards, words in (([card | {"id": "a"}, card | {"id": "b"}], "serves 2 models: got a, b"), ([{}], "no vLLM")):
        server.fault = lambda path, body, cards=cards: (200, {"data": cards}) if path == "/v1/models" else None
        with pytest.raises(SettingError, match=words):
            VLLM(server.url, 5.0, 0.5)


PROMPTS = [np.array([1, 5, 9, 12], np.int32), np.array([1, 7], np.int32)]
SEEDS = [[1, 2, 3], [4, 2**64 - 1]]


def test_the_folder_has_a_head_of_its_own_and_gives_the_same_log_probs(tiny, tmp_path):
    student = student_of(tiny)
    vllm_folder.write(student, tmp_path / "f")
    state = load_file(tmp_path / "f" / "model.safetensors")
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "f" / "config.json").read_text())["tie_word_embeddings"] is False
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad():
        again = load_model(str(tmp_path / "f"), torch.float32, "cpu")(ids).logits
        assert torch.equal(again, student.model(ids).logits)


def test_the_folder_of_adapters_is_that_of_the_merged_model(tiny, tmp_path):
    student = student_of(tiny, lora=2)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    vllm_folder.write(student, tmp_path / "f")
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad():
        again = load_model(str(tmp_path / "f"), torch.float32, "cpu")(ids).logits
        assert (again - student.model(ids).logits).abs().max() < 1e-4


def test_a_folder_that_was_not_made_for_this_is_not_replaced(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(SettingError, match="not made by opd sampler"):
        vllm_folder.write(student_of(tiny), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "important"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 0.8, max_new=6), Sampling(top_k=4), Sampling(0.0)])
def test_texts_come_with_the_students_own_log_probs(served, sampling):
    student, server = served
    writer = sampled(student, server)
    writer.start()
    seeds = [[seed % 2**63 for seed in own] for own in SEEDS]
    local, remote = student.write(PROMPTS, sampling, seeds), writer.write(PROMPTS, sampling, SEEDS)
    for ours, theirs in zip(chain(*local), chain(*remote), strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist() and ours.end == theirs.end
        assert np.abs(ours.behaviour - theirs.behaviour).max() < 1e-5
        assert np.abs(ours.untruncated - theirs.untruncated).max() < 1e-5
        assert np.abs(theirs.columns["sampler.ratio"]).max() < 1e-5
        assert theirs.tags == {"sampler.version": 0.0}


def test_a_server_that_differs_is_held_against_the_student(served):
    student, server = served
    writer, sampling = sampled(student, server, tolerance=5.0), Sampling(0.7, 0.9)
    server.noise = 0.2
    pieces = writer.write(PROMPTS, sampling, SEEDS)
    unlike = 0
    for prompt, some in zip(PROMPTS, pieces, strict=True):
        for piece in some:
            whole = np.concatenate([prompt, piece.tokens])
            positions = [np.arange(len(prompt), len(whole))]

            def own(model, whole=whole, positions=positions, piece=piece):
                with torch.no_grad():
                    forward = model.trunk([whole], positions)
                    logits = (forward.hidden @ forward.head.T)[:, : student.vocab]
                drawn = truncate(logits, sampling)
                return drawn.gather(1, torch.tensor(piece.tokens)[:, None].long())[:, 0].numpy()

            ours, theirs = own(student), own(server.model)
            assert np.allclose(piece.columns["sampler.ratio"], ours - theirs, atol=1e-4)
            inside = np.isfinite(ours)
            assert np.allclose(piece.behaviour[inside], ours[inside], atol=1e-4)
            assert np.isfinite(piece.behaviour).all()
            unlike += (~inside).sum() + (np.abs(ours[inside] - theirs[inside]) > 0.05).sum()
    assert unlike > 5


def test_adapters_are_pushed_as_part_of_the_weights(tiny, served):
    _, server = served
    student, step = student_of(tiny, lora=2), [0]
    writer = sampled(student, server, step=lambda: step[0])
    writer.start()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    step[0] = 1
    pieces = [piece for some in writer.write(PROMPTS, Sampling(), SEEDS) for piece in some]
    assert max(np.abs(piece.columns["sampler.ratio"]).max() for piece in pieces) < 1e-4


def test_weights_are_pushed_when_the_student_has_learned_and_not_before(served):
    student, server = served
    step = [0]
    writer = sampled(student, server, step=lambda: step[0])
    writer.start()
    pushes = server.asked["/collective_rpc"]
    writer.write(PROMPTS, Sampling(), SEEDS)
    assert server.asked["/collective_rpc"] == pushes
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(1.3)
    step[0] = 7
    written = writer.write(PROMPTS, Sampling(), SEEDS)
    assert server.asked["/collective_rpc"] == pushes + 1
    assert {piece.tags["sampler.version"] for some in written for piece in some} == {7.0}
    told = writer.server.tell()
    assert told["sampler.push.gap"] < 1e-5 and told["sampler.push.seconds"] > 0


def test_a_server_that_comes_back_in_the_middle_is_given_the_weights_again(served):
    student, server = served
    other = server.folder.with_name("other")
    vllm_folder.write(student, other)
    with torch.no_grad():
        student.head.mul_(1.2)
    writer = sampled(student, server)
    writer.start()
    at = [3]

    def restarts(path, body):
        at[0] -= path == "/v1/completions"
        if at[0] == 0:
            server.restart(other)

    undisturbed = writer.write(PROMPTS, Sampling(), SEEDS)
    server.fault = restarts
    again = writer.write(PROMPTS, Sampling(), SEEDS)
    assert at[0] < 0
    assert [p.tokens.tolist() for s in again for p in s] == [p.tokens.tolist() for s in undisturbed for p in s]


# ---- what is refused


def test_a_head_that_stays_behind_is_found_before_the_first_text(served):
    student, server = served
    server.keeps = ("lm_head.weight",)
    with pytest.raises(Unanswered, match="does not take all of the weights"):
        sampled(student, server).start()


def test_log_probs_from_before_the_temperature_are_refused(served):
    student, server = served
    server.raw = True
    with pytest.raises(SettingError, match="processed_logprobs"):
        sampled(student, server).start()


def test_a_server_that_takes_no_weights_is_refused(served):
    student, server = served
    server.dev = False
    with pytest.raises(Unanswered, match="VLLM_SERVER_DEV_MODE=1"):
        sampled(student, server).start()


def test_a_text_that_does_not_fit_the_server_is_refused(served):
    student, server = served
    server.context = 40
    with pytest.raises(SettingError, match="--max-model-len 128"):
        sampled(student, server).write(PROMPTS, Sampling(max_new=500), SEEDS)


NONSENSE = {
    "a token that is none": {"token_ids": [99] * 12, "logprobs": {"token_logprobs": [-1.0] * 12}},
    "a log-prob above 0": {"token_ids": [9] * 12, "logprobs": {"token_logprobs": [0.5] * 12}},
    "a log-prob that is no number": {"token_ids": [9] * 12, "logprobs": {"token_logprobs": [float("nan")] * 12}},
    "fewer log-probs than tokens": {"token_ids": [9] * 12, "logprobs": {"token_logprobs": [-1.0] * 11}},
    "a text that was cut off": {"token_ids": [9] * 5, "logprobs": {"token_logprobs": [-1.0] * 5}},
    "a text that goes on after its end": {"token_ids": [9, 2, 9], "logprobs": {"token_logprobs": [-1.0] * 3}},
    "no text": {"message": "hello"},
}


@pytest.mark.parametrize("what", NONSENSE)
def test_answers_that_cannot_be_stop_the_run(served, what):
    student, server = served
    writer = sampled(student, server)
    writer.start()
    server.fault = lambda path, body: (200, {"choices": [NONSENSE[what]]}) if "seed" in body else None
    with pytest.raises(Unanswered, match="go on with opd train --resume"):
        writer.write(PROMPTS, Sampling(max_new=12), SEEDS)


def test_a_server_that_drifts_away_stops_the_run(served):
    student, server = served
    writer = sampled(student, server)
    writer.start()
    with torch.no_grad():
        server.model.head.mul_(1.5)
    with pytest.raises(Unanswered, match="differ on what it wrote"):
        writer.write(PROMPTS, Sampling(), SEEDS)


def test_a_server_that_does_not_follow_a_push_stops_the_run(served):
    student, server = served
    step = [0]
    writer = sampled(student, server, step=lambda: step[0])
    writer.start()
    server.keeps = ("model.norm.weight", "lm_head.weight", "model.embed_tokens.weight")
    with torch.no_grad():
        student.head.mul_(1.5)
    step[0] = 1
    with pytest.raises(Unanswered, match="differ after new weights were pushed"):
        writer.write(PROMPTS, Sampling(), SEEDS)


def test_two_runs_that_push_to_one_server_do_not_learn_from_one_anothers_texts(served):
    student, server = served
    mine, others = sampled(student, server), sampled(student, server)
    mine.start()
    others.start()
    undisturbed = mine.write(PROMPTS, Sampling(), SEEDS)
    server.fault = lambda path, body: setattr(server, "version", others._due) if "seed" in body else None
    with pytest.raises(Unanswered, match="is another run using it"):
        mine.write(PROMPTS, Sampling(), SEEDS)
    server.fault = lambda path, body: None
    again = mine.write(PROMPTS, Sampling(), SEEDS)
    assert [p.tokens.tolist() for s in again for p in s] == [p.tokens.tolist() for s in undisturbed for p in s]


def test_weights_that_cannot_be_saved_stop_the_run_and_the_folder_is_as_it_was(served):
    student, server = served
    writer = sampled(student, server)
    before = (server.folder / "model.safetensors").read_bytes()
    server.folder.with_name(f".{server.folder.name}.writing").write_text("in the way, as a full disk is")
    with pytest.raises(Unanswered, match="could not be saved"):
        writer.write(PROMPTS, Sampling(), SEEDS)
    assert (server.folder / "model.safetensors").read_bytes() == before


def test_a_server_of_another_model_is_refused(tmp_path, served):
    _, server = served
    wider = student_of(models.folder(tmp_path / "wider", width=32, vocab=models.VOCAB + 5, tied=True))
    with pytest.raises(Unanswered, match="refused /collective_rpc"):
        sampled(wider, server).start()


# ---- runs


@pytest.fixture
def embedded(tmp_path):
    folder = tmp_path / "sampler"
    assert main(["sampler", str(folder)]) == 0
    server = StandIn(folder)
    yield server
    server.close()


def settings(server, **more):
    given = {"method": "sampled_token", "sampler": f"vllm:{server.url}", **SMALL, **HASTY, **more}
    return Settings.of(**given)


def lines(folder):
    read = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "loss" in line]


def test_a_run_says_which_weights_wrote_and_how_far_they_were(embedded, tmp_path):
    out = tmp_path / "run"
    Run.new(settings(embedded, out=str(out))).train()
    found = lines(out)
    assert [line["sampler.version"] for line in found] == [0, 1]
    assert all(line["sampler.stale"] == 0 and line["sampler.gap"] < 1e-5 for line in found)
    assert all(line["sampler.cut"] == 0 and abs(line["sampler.weight"] - 1) < 1e-5 for line in found)
    assert all(line["sampler.push.gap"] < 1e-4 for line in found[1:])
    rows = load_file(out / "rows" / "step-000001.safetensors")
    assert set(rows["sampler.version"].tolist()) == {1.0}
    told = json.loads((out / "teachers.json").read_text())["sampler"]
    assert told["kind"] == "vllm sampler" and told["folder"] == str(embedded.folder)


@pytest.mark.parametrize(
    ("method", "given"),
    [("gkd", {"lam": 0.5}), ("stable_opd", {"n": 2}), ("local_support", {"k": 8, "n": 2}), ("sdft", {})],
)
def test_methods_of_every_kind_learn_from_it(embedded, tmp_path, method, given):
    """Some mix its texts with others, which no server wrote; some look again at what it wrote after another prompt."""
    Run.new(settings(embedded, method=method, parameters=given, out=str(tmp_path / "run"))).train()
    found = lines(tmp_path / "run")
    assert len(found) == 2 and all(line.get("sampler.gap", 0.0) < 1e-4 for line in found)


REFUSED = {
    "two who take turns": ({"method": "minillm"}, "cannot take turns"),
    "a student that writes nothing": ({"method": "sft"}, "Leave --sampler out"),
    "texts that came along": ({"method": "sft", "parameters": {"solution": "solution"}}, "texts by nobody in the run"),
    "another kind of sampler": ({"sampler": "http://127.0.0.1:8000"}, "vllm:http://HOST:PORT"),
    "more room than the server has": ({"max_new": 600}, "--max-model-len 512"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(embedded, tmp_path, what):
    given, sentence = REFUSED[what]
    embedded.context = 100 if "room" in what else 512
    with pytest.raises((SettingError, MethodError), match=sentence):
        Run.new(settings(embedded, out=str(tmp_path / "run"), **given))
    assert not (tmp_path / "run").exists()


def test_a_server_that_was_started_from_another_folder_is_refused(embedded, tmp_path):
    (embedded.folder / vllm_folder.MARK).unlink()
    with pytest.raises(SettingError, match="opd sampler FOLDER"):
        Run.new(settings(embedded, out=str(tmp_path / "run")))


def test_a_server_that_is_gone_stops_at_a_checkpoint_and_the_run_goes_on_later(embedded, tmp_path):
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    one = {"batch": 1, "parameters": {"n": 1}}
    Run.new(settings(embedded, out=str(undisturbed), **one)).train()
    run = Run.new(settings(embedded, out=str(out), **one))
    embedded.fault = lambda path, body: (
        (503, {"error": {"message": "gone"}}) if "seed" in body and run.training.step == 1 else None
    )
    with pytest.raises(Unanswered, match="did not answer"):
        run.train()
    embedded.fault = lambda path, body: None
    embedded.restart()
    Run.resume(out).train()
    assert [line["loss"] for line in lines(out)] == [line["loss"] for line in lines(undisturbed)]
