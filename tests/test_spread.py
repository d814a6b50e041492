"""What a teacher says of its best tokens is spread over all others: always a distribution, never a guess uncounted."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opd import recipes, supports
from opd.contract import toy_cast, toy_groups
from opd.errors import Unanswered
from opd.lab.toy import ToyModel
from opd.parts.observe import measured
from opd.protocols import Want
from opd.rollout import Problem, Rollout
from opd.step import gradient, prepare
from opd.teachers.fake import FakeTeacher
from opd.teachers.routed import Routed
from opd.teachers.spread import Spread

V = 9


def told(q, k, token=None):
    """All log-probs of one distribution of which the K best and one token are known."""
    token = torch.arange(V) if token is None else token
    best = q.topk(k).indices.expand(len(token), k)
    ids = torch.arange(V).expand(len(token), V)
    return supports.spread(best, q[best], token, q[token], ids, V)


def drawn(seed, dtype=torch.float64):
    return (
        (2 * torch.randn(V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        .log_softmax(-1)
        .to(dtype)
    )


@pytest.mark.parametrize("k", range(1, V + 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_distribution_that_agrees_with_all_that_was_said(k, dtype):
    for seed in range(5):
        q = drawn(seed, dtype)
        found, guessed, rounded = told(q, k)
        near = 1e-6 if dtype == torch.float32 else 1e-14
        assert found.dtype == dtype and (found.double().exp().sum(-1) - 1).abs().max() < 3 * near
        assert torch.equal(found[~guessed], q.expand(V, V)[~guessed])
        assert (found[guessed] <= q.topk(k).values[-1]).all() and not rounded.any()
        tokens = [V - len({*q.topk(k).indices.tolist(), token}) for token in range(V)]
        assert guessed.sum(-1).tolist() == tokens and (k < V) == guessed.any()
        if guessed.any() and dtype == torch.float64:  # too kind in the mean of logs, by Jensen
            true = q.expand(V, V)[guessed]
            assert found[guessed].mean() > true.mean() - 1e-9


def test_what_is_alike_is_exact():
    q = torch.tensor([0.5, 0.2, 0.06, 0.06, 0.06, 0.06, 0.06], dtype=torch.float64).log()
    ids = torch.arange(7)[None]
    found, guessed, _ = supports.spread(ids[:, :2], q[None, :2], ids[0, :1], q[:1], ids, 7)
    assert torch.allclose(found[0], q, atol=1e-14) and guessed[0].tolist() == [False] * 2 + [True] * 5


def test_a_rest_that_rounding_took_is_small_and_counted():
    """One token has nearly everything: in float32 nothing is left over, or less than nothing."""
    for best in (torch.tensor([[-1e-9, -25.0]]), torch.tensor([[1e-6, -16.0]])):
        ids = torch.arange(V)[None]
        found, guessed, rounded = supports.spread(ids[:, :2], best, ids[0, :1], best[:, 0], ids, V)
        assert rounded.tolist() == [True] and guessed.sum() == V - 2
        assert found.isfinite().all() and (found[guessed] <= best[0, 1]).all()
        assert abs(float(found.double().exp().sum()) - 1) < 1e-5
    exact = told(drawn(0).float(), V)
    assert not exact[2].any() and not exact[1].any(), "where all is known nothing is lost"


# ---- a teacher


class Telling(FakeTeacher):
    """A table that gives `most` best tokens, as a vLLM server does."""

    def __init__(self, table, most):
        super().__init__(table, can=frozenset({"chosen", "topk"}))
        self.most = {"topk": most}

    def meet(self, student):
        """It knows no tokens."""


TABLE = torch.stack([drawn(seed) for seed in range(V)])


def text(*ids):
    author = np.array([0, *[1] * (len(ids) - 1)], np.int8)
    named = np.arange(2 * (len(ids) - 1)).reshape(-1, 2) % V
    return Rollout(np.array(ids, np.int32), author, Problem("p", ""), columns={"mine": named})


TEXTS = [text(1, 2, 3, 4), text(5, 6, 7)]


def teacher(k, misses=1.0):
    found = Spread(Telling(TABLE, k), misses)
    found.meet(SimpleNamespace(vocab=V))
    return found


def test_a_teacher_of_all_tokens_gathers_exactly():
    whole = FakeTeacher(TABLE).read(TEXTS, Want(chosen=True, gather="mine"))
    for k in (V, V + 5):
        found = teacher(k, 0.0).read(TEXTS, Want(chosen=True, gather="mine"))
        assert torch.equal(found.gathered, whole.gathered) and torch.equal(found.chosen, whole.chosen)
        assert not found.guessed.any() and found.dist is None


def test_what_was_not_said_is_marked_and_everything_else_is_as_it_was():
    spread = teacher(4)
    assert spread.can == {"chosen", "topk", "gather"} and spread.name == "teacher" and spread.most == {"topk": 4}
    found = spread.read(TEXTS, Want(gather="mine", topk=2))
    whole = FakeTeacher(TABLE).read(TEXTS, Want(chosen=True, topk=4, gather="mine"))
    assert found.chosen is None and torch.equal(found.dist.ids, whole.dist.ids[:, :2])
    known = ~found.guessed
    assert torch.equal(found.gathered[known], whole.gathered[known]) and found.guessed.any() and known.any()
    assert (found.gathered <= torch.where(known, 0.0, whole.dist.values[:, -1:])).all()
    assert spread.asked.asked[-1] == (2, Want(chosen=True, topk=4))
    plain = spread.read(TEXTS, Want(topk=3))
    assert plain.gathered is None and spread.asked.asked[-1] == (2, Want(topk=3))
    assert spread.tell() == {"teacher.missed.rounded": 0.0}


def test_more_misses_than_are_allowed_stop_the_run():
    share = float(teacher(4).read(TEXTS, Want(gather="mine")).guessed.double().mean())
    assert 0 < share < 1
    teacher(4, share).read(TEXTS, Want(gather="mine"))
    with pytest.raises(Unanswered, match=r"outside its K=4 best.*teacher_misses = .*--max-logprobs.*--resume") as error:
        teacher(4, share - 1e-9).read(TEXTS, Want(gather="mine"))
    assert "\n" not in str(error.value)


def test_of_several_teachers_one_may_guess():
    texts = [
        Rollout(t.tokens, t.author, Problem(str(i), "", data={"teacher_id": name}), columns=t.columns)
        for i, (t, name) in enumerate(zip(TEXTS, ("sure", "guess"), strict=True))
    ]
    found = Routed({"sure": FakeTeacher(TABLE), "guess": teacher(2)}).read(texts, Want(gather="mine"))
    assert not found.guessed[:3].any() and found.guessed[3:].any()
    assert torch.equal(found.gathered[3:], teacher(2).read(texts[1:], Want(gather="mine")).gathered)


def test_misses_are_measured_with_what_the_student_gives_them():
    method = recipes.load("rethinking")(k=3, only_named=True)
    cast = toy_cast(method)
    whole = ToyModel(2)
    reader = ToyModel(2)
    reader.can, reader.most, reader.meet = frozenset({"chosen", "topk"}), {"topk": 2}, lambda student: None
    cast["teacher"] = Spread(reader, 1.0)
    cast["teacher"].meet(cast["student"])
    method = measured(method, cast)
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    contexts = [r for g in toy_groups(method, cast) for r in g.rollouts]
    own = cast["student"].read(contexts, Want(dist=True)).dist.logprobs()
    theirs = whole.read(contexts, Want(topk=2)).dist.ids
    missed = torch.stack([
        torch.tensor([token not in {*best.tolist(), int(decided)} for token in ids.tolist()])
        for ids, best, decided in zip(rows["own.ids"], theirs, rows["token"], strict=True)
    ])  # fmt: skip
    assert torch.equal(missed, rows["teacher.guessed"]) and missed.any() and not missed.all()
    seen = gradient(cast["student"], rows, sequences, method, chunk=3).observed
    assert torch.allclose(seen["teacher.missed"].double(), missed.double().mean(-1))
    mass = (own.gather(-1, rows["own.ids"]).exp() * missed).sum(-1)
    assert torch.allclose(seen["teacher.missed.mass"], mass, atol=1e-14)
    assert math.isfinite(float(seen["student.chosen"].sum()))
    plain = measured(recipes.load("rethinking")(k=3, only_named=True), toy_cast(method))
    cast = toy_cast(method)
    rows, sequences = prepare(toy_groups(plain, cast), plain, cast, 0)
    assert "teacher.missed" not in gradient(cast["student"], rows, sequences, plain).observed
