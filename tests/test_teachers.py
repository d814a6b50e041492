"""Local teachers, copies of the student and the fake: one noun, told apart by `can`, `live` and `follow`."""

from itertools import pairwise

import models
import numpy as np
import pytest
import torch

from opd.cast import copy_of
from opd.dist import HeadDist, TableDist, TopDist
from opd.engines.hf import HFModel
from opd.errors import SettingError, TeacherError
from opd.protocols import Want
from opd.rollout import Problem, Rollout, Sampling, continued
from opd.teachers.copies import EMA, Frozen, Itself, Snapshot, TrustRegion
from opd.teachers.fake import FakeTeacher
from opd.teachers.local import LocalTeacher


def rollouts(model: HFModel) -> list[Rollout]:
    prompts = [model.render([{"role": "user", "content": text}]) for text in ("12+7", "abc")]
    pieces = model.write(prompts, Sampling(), [[1, 2], [3]])
    return [
        continued(prompt, piece, Problem("p", "p"), Sampling(), author=1)
        for prompt, own in zip(prompts, pieces, strict=True)
        for piece in own
    ]


def learn(model: HFModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def chosen(teacher, contexts) -> torch.Tensor:
    answer = teacher.read(contexts, Want(chosen=True)).chosen
    assert answer is not None
    return answer


def test_a_local_teacher_answers_as_its_model(tmp_path):
    student = models.engine(tmp_path / "s")
    teacher = LocalTeacher(models.engine(tmp_path / "t", "qwen3", seed=1, dtype=torch.float32), name="big")
    written = rollouts(student)
    assert torch.equal(chosen(teacher, written), chosen(teacher.engine, written))
    assert not teacher.live and "dist" in teacher.can and not teacher.engine.parameters()
    dist = teacher.read(written, Want(dist=True)).dist
    assert isinstance(dist, HeadDist) and dist.head.data_ptr() == teacher.engine.head.data_ptr()  # nothing is copied
    (piece,) = teacher.write([written[0].tokens[:3]], Sampling(max_new=4), [[0]])[0]
    assert len(piece.tokens) <= 4 and teacher.decode(teacher.render([{"role": "user", "content": "1+1"}])) == "1+1"


@pytest.mark.parametrize("lora", [None, 2])
def test_itself_is_the_student_now(tmp_path, lora):
    student = models.engine(tmp_path, lora=lora)
    teacher, written = Itself(student), rollouts(student)
    before = chosen(teacher, written)
    learn(student, 0)
    assert teacher.live and torch.equal(chosen(teacher, written), chosen(student, written))
    assert not torch.allclose(chosen(teacher, written), before) and teacher.state_dict() == {}


@pytest.mark.parametrize("lora", [None, 2])
def test_frozen_stays_what_the_student_was(tmp_path, lora):
    student = models.engine(tmp_path, lora=lora)
    teacher, written = Frozen(student), rollouts(student)
    before, piece = chosen(teacher, written), student.write([written[0].tokens[:3]], Sampling(), [[5]])[0][0]
    learn(student, 0)
    teacher.follow(student, 1)
    after = chosen(student, written)
    assert not teacher.live and torch.equal(chosen(teacher, written), before) and not torch.allclose(after, before)
    assert np.array_equal(teacher.write([written[0].tokens[:3]], Sampling(), [[5]])[0][0].tokens, piece.tokens)
    assert torch.equal(chosen(student, written), after)  # the student has its own weights back
    assert bool(teacher.weights) == (lora is None)  # with adapters there is no second copy


def test_what_a_copy_said_does_not_change_when_it_gives_the_module_back(tmp_path):
    student = models.engine(tmp_path, tied=True)
    teacher, written = Frozen(student), rollouts(student)
    before = chosen(teacher, written)
    learn(student, 0)
    dist = teacher.read(written, Want(dist=True)).dist
    assert dist is not None
    torch.testing.assert_close(dist.chosen, before, rtol=0, atol=1e-12)


def test_a_copy_may_read_between_forward_and_backward(tmp_path):
    """Answers of the last moment are asked while the student's graph is alive."""
    student = models.engine(tmp_path)
    teacher, written = Frozen(student), rollouts(student)
    learn(student, 0)

    def gradient(interrupted: bool) -> list[torch.Tensor]:
        out = student.trunk([r.tokens for r in written], [r.positions for r in written])
        loss = student.dist(out.hidden, torch.zeros(len(out.hidden), dtype=torch.long)).chosen.sum()
        if interrupted:
            chosen(teacher, written)
        return list(torch.autograd.grad(loss, student.parameters()))

    assert all(torch.equal(a, b) for a, b in zip(gradient(False), gradient(True), strict=True))


@pytest.mark.parametrize("lora", [None, 2])
def test_snapshots_are_taken_every_k_batches(tmp_path, lora):
    student = models.engine(tmp_path, lora=lora)
    teacher, written = Snapshot(student, every=2), rollouts(student)
    said, student_said = [chosen(teacher, written)], [chosen(student, written)]
    for step in range(1, 6):
        learn(student, step)
        teacher.follow(student, step)
        said.append(chosen(teacher, written))
        student_said.append(chosen(student, written))
    taken = [0, 0, 2, 2, 4, 4]
    assert all(torch.equal(said[step], student_said[taken[step]]) for step in range(6))
    assert teacher.live and all((".lora_" in name) == (lora is not None) for name in teacher.weights)
    with pytest.raises(SettingError):
        Snapshot(student, every=0)


@pytest.mark.parametrize("lora", [None, 2])
def test_the_average_has_its_closed_form(tmp_path, lora):
    student = models.engine(tmp_path, lora=lora)
    teacher, d = EMA(student, decay=0.9), 0.9
    history = [{k: p.detach().clone() for k, p in student.weights().items()}]
    for step in range(1, 5):
        learn(student, step)
        teacher.follow(student, step)
        history.append({k: p.detach().clone() for k, p in student.weights().items()})
    for key, value in teacher.weights.items():
        expected = d**4 * history[0][key] + sum((1 - d) * d ** (4 - i) * history[i][key] for i in range(1, 5))
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    with pytest.raises(SettingError):
        EMA(student, decay=1.1)


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_trust_region_lies_between_the_start_and_the_student(tmp_path, lora, rate):
    student = models.engine(tmp_path, lora=lora)
    teacher, start, written = TrustRegion(student, rate), Frozen(student), rollouts(student)
    learn(student, 0)
    teacher.follow(student, 1)
    then, now = (one.read(written, Want(dist=True)).dist.logprobs() for one in (start, student))
    expected = ((1 - rate) * then + rate * now).log_softmax(-1)
    answer = teacher.read(written, Want(chosen=True, dist=True, topk=4))
    torch.testing.assert_close(answer.dist.logprobs(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(answer.chosen, answer.dist.chosen, rtol=0, atol=1e-12)
    assert teacher.live and "text" not in teacher.can and (then - now).abs().max() > 0.1
    best = teacher.read(written, Want(topk=4)).dist
    torch.testing.assert_close(best.values, expected.topk(4).values, rtol=0, atol=1e-12)
    ids = [one.with_columns(ids=np.tile([5, 6], (one.n, 1))) for one in written]
    torch.testing.assert_close(teacher.read(ids, Want(gather="ids")).gathered, expected[:, 5:7], rtol=0, atol=1e-12)


def test_a_trust_region_has_a_rate_and_does_not_write(tmp_path):
    student = models.engine(tmp_path)
    with pytest.raises(SettingError):
        TrustRegion(student, 1.5)
    with pytest.raises(TeacherError):
        TrustRegion(student, 0.1).write([np.array([3])], Sampling(), [[0]])
    assert copy_of(student, "self:trust=0.05").rate == 0.05


def test_a_slow_average_moves_in_half_precision(tmp_path):
    student = models.engine(tmp_path, dtype=torch.bfloat16)
    teacher = EMA(student, decay=0.9999)
    start = {k: w.clone() for k, w in teacher.weights.items()}
    learn(student, 0)
    teacher.follow(student, 1)
    moved = [float((w - start[k]).abs().max()) for k, w in teacher.weights.items() if w.ndim == 2]
    assert min(moved) > 0 and all(w.dtype == torch.float32 for w in teacher.weights.values())
    assert chosen(teacher, rollouts(student)).isfinite().all()


@pytest.mark.parametrize(
    "make", [lambda s: Snapshot(s, every=2), lambda s: EMA(s, 0.7), Frozen, lambda s: TrustRegion(s, 0.3)]
)
def test_copies_are_restored_exactly(tmp_path, make):
    student = models.engine(tmp_path)
    teacher = make(student)
    for step in (1, 2, 3):
        learn(student, step)
        teacher.follow(student, step)
    saved = {k: v.clone() for k, v in teacher.state_dict().items()}
    restored = make(student)
    restored.load_state_dict(saved)
    written = rollouts(student)
    assert torch.equal(chosen(restored, written), chosen(teacher, written))
    assert all(torch.equal(v, saved[k]) for k, v in restored.state_dict().items())


def test_an_error_while_posing_gives_the_weights_back(tmp_path):
    student = models.engine(tmp_path)
    teacher, own = EMA(student, 0.5), {k: p.data_ptr() for k, p in student.weights().items()}
    with pytest.raises(KeyError):
        teacher.read(rollouts(student), Want(gather="nothing"))
    assert {k: p.data_ptr() for k, p in student.weights().items()} == own


# -- the fake ---------------------------------------------------------------------------------------------------------

TABLE = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
TOKENS, AUTHOR = np.array([1, 2, 3, 4, 5, 6], np.int32), np.array([0, 0, 1, 1, 0, 1], np.int8)


def test_the_fake_answers_from_its_table():
    context = Rollout(TOKENS, AUTHOR, Problem("a", "a"), columns={"ids": np.array([[0, 1], [2, 3], [4, 5]])})
    states = torch.arange(14.0).reshape(7, 2)
    teacher = FakeTeacher(TABLE, inner={1: states})
    before, decided = torch.tensor([2, 3, 5]), torch.tensor([3, 4, 6])
    answer = teacher.read([context, context], Want(chosen=True, gather="ids", dist=True, layers=(1,)))
    assert isinstance(answer.dist, TableDist) and len(answer.dist) == 6
    assert torch.equal(answer.chosen, TABLE[before, decided].repeat(2))
    assert torch.equal(answer.gathered[:3], TABLE[before[:, None], torch.tensor([[0, 1], [2, 3], [4, 5]])])
    assert torch.equal(answer.dist.logprobs()[:3], TABLE[before])
    assert torch.equal(answer.dist.inner[1][:3], states[decided])
    top = teacher.read([context], Want(topk=2)).dist
    assert isinstance(top, TopDist) and torch.equal(top.values, TABLE[before].topk(2).values)
    assert [n for n, _ in teacher.asked] == [2, 1]
    by_function = FakeTeacher(lambda c: TABLE[torch.from_numpy(c.tokens[c.positions - 1]).long()])
    assert torch.equal(chosen(by_function, [context]), answer.chosen[:3])
    with pytest.raises(TeacherError, match=r"cannot answer: got \['dist'\]"):
        FakeTeacher(TABLE, can=frozenset({"chosen"})).read([context], Want(dist=True))


def test_the_fake_with_hidden_states():
    hidden, head = torch.randn(7, 4).double(), torch.randn(7, 4).double()
    dist = FakeTeacher(hidden, head=head).read([Rollout(TOKENS, AUTHOR, Problem("a", "a"))], Want(dist=True)).dist
    assert isinstance(dist, HeadDist)
    torch.testing.assert_close(dist.logprobs(), (hidden[[2, 3, 5]] @ head.T).log_softmax(-1))


def test_the_fake_writes_what_its_table_says():
    teacher = FakeTeacher(TABLE, stops=(6,))
    (pieces,) = teacher.write([np.array([1])], Sampling(max_new=5), [list(range(200))])
    firsts = np.bincount([int(piece.tokens[0]) for piece in pieces], minlength=7) / 200
    assert np.abs(firsts - TABLE[1].exp().numpy()).max() < 0.12
    for piece in pieces:
        path = [1, *piece.tokens.tolist()]
        expected = [float(TABLE[a, b]) for a, b in pairwise(path)]
        np.testing.assert_allclose(piece.behaviour, expected, atol=1e-12)
        assert 6 not in path[:-1] and (path[-1] == 6) == (piece.end == "stop")
