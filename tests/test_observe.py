"""What a run measures in passing: right numbers, the same gradient, no model pass more, and absent where unknown."""

import math

import pytest
import torch

from opd import maths, recipes
from opd.cli.methods import toy_build
from opd.contract import anatomy, distance, gradients, toy_cast, toy_groups
from opd.dist import TableDist, TopDist
from opd.lab.toy import ToyModel
from opd.measure import Measures
from opd.parts.observe import Against, Chosen, Supports, WhereShown, measured
from opd.parts.reshape import LIMITS
from opd.rows import Rows
from opd.step import gradient, prepare

GIVEN = {"gkd": {"lam": 1.0}}

STUDENT = {"student.chosen", "student.entropy"}
SUPPORT = {"support.advantage", "support.mass", "support.outside", "support.overlap"}
WHOLE = {"entropy.gap", "reverse_kl", "teacher.entropy"} | SUPPORT
MEASURED = {  # what a local teacher, which can answer everything, lets a run measure
    "constant_negative": STUDENT,
    "gkd": STUDENT | WHOLE | {"teacher.chosen"},
    "local_support": STUDENT | SUPPORT,
    "extrapolated": STUDENT | SUPPORT | {*LIMITS, "weight.cut"},
    "rethinking": STUDENT | WHOLE | {"teacher.chosen"},
    "stable_opd": STUDENT | WHOLE | {"clipped"},
    "opsd": STUDENT | WHOLE | {"teacher.chosen", "entries.cut"},
    "representation": STUDENT | WHOLE | {"teacher.chosen"},
    "sampled_token": STUDENT | WHOLE,
    "sequence_kl": STUDENT | WHOLE,
    "shuffled": STUDENT | WHOLE,
    "sft": STUDENT,
}


def built(name):
    return toy_build(name, GIVEN.get(name, {}))()


def one_update(method, cast):
    rows, sequences = prepare(toy_groups(method, cast), method, cast, 0)
    return rows.plus(**gradient(cast["student"], rows, sequences, method, chunk=3).observed)


def example():
    """Student and teacher over four tokens in two rows, and which token was written."""
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    q = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    token = torch.tensor([0, 3])
    return TableDist(p.log(), token), TableDist(q.log(), token), token


@pytest.mark.parametrize("stored", [False, True])
def test_supports_by_hand(stored):
    student, teacher, token = example()
    if stored:
        ids = teacher.top(2)
        teacher = TopDist(ids, teacher.at(ids), token)
    rows = Rows({"token": token, "keep": token >= 0, "teacher": teacher})
    found = {name: values.tolist() for name, values in Supports(2)(student, rows).items()}
    assert found["support.overlap"] == [0.5, 1.0]  # {0, 1} and {1, 2}; {2, 3} twice
    assert found["support.mass"] == pytest.approx([0.5, 0.7])
    assert found["support.outside"] == [1.0, 0.0]
    assert found["support.advantage"] == pytest.approx([0.0, 0.0])  # one shared token is always matched


def test_the_advantage_on_shared_tokens():
    student, teacher, token = example()
    rows = Rows({"token": token, "keep": token >= 0, "teacher": teacher})
    found = Supports(3)(student, rows)  # {0, 1, 2} and {1, 2, 3}
    distance = 0.6 * math.log(0.6 / (4 / 7)) + 0.4 * math.log(0.4 / (3 / 7))
    assert found["support.advantage"].tolist() == pytest.approx([-distance, 0.0])
    opposite = rows.plus(teacher=TableDist(student.table.flip(-1), token))
    assert Supports(2)(student, opposite)["support.advantage"].isnan().all(), "nothing is shared"
    hidden = opposite.plus(**{"teacher.shown": torch.tensor([True, False])})
    assert WhereShown(Supports(2), "teacher")(student, hidden)["support.mass"].isnan().tolist() == [False, True]


def test_distances_by_enumeration():
    student, teacher, token = example()
    rows = Rows({"token": token, "keep": token >= 0, "teacher": teacher})
    found = Against()(student, rows)
    p, q = student.table, teacher.table
    assert torch.allclose(found["reverse_kl"], (p.exp() * (p - q)).sum(-1), atol=1e-15)
    assert torch.allclose(found["teacher.entropy"], -(q.exp() * q).sum(-1), atol=1e-15)
    assert torch.allclose(found["entropy.gap"], ((p.exp() * p).sum(-1) - (q.exp() * q).sum(-1)).abs(), atol=1e-15)
    assert found["teacher.chosen"].exp().tolist() == pytest.approx([0.1, 0.4])
    known = rows.plus(**{"teacher.chosen": token.double()})
    assert "teacher.chosen" not in Against()(student, known) | Chosen("teacher")(student, known)


@pytest.mark.parametrize("name", MEASURED)
def test_every_method_is_measured_as_far_as_its_teacher_answers(name):
    seen = anatomy(lambda: built(name))
    assert set(seen.measures) == MEASURED[name]
    assert name != "sampled_token" or "teacher" not in seen.reads, "what is measured is no need of the method"


@pytest.mark.parametrize("name", recipes.names())
def test_log_ratios_exist_wherever_a_teacher_is_asked(name):
    cast = toy_cast(built(name))
    method = measured(built(name), cast)
    rows = one_update(method, cast)
    assert ("ratio" in Measures()(rows)) == bool(method.teach)


@pytest.mark.parametrize("name", recipes.names())
def test_measuring_does_not_move_the_gradient(name):
    plain, cast = built(name), toy_cast(built(name))
    groups = toy_groups(plain, cast)
    method = measured(plain, cast)
    one = gradients(plain, cast["student"], *prepare(groups, plain, cast, 0), chunk=3)
    other = gradients(method, cast["student"], *prepare(groups, method, cast, 0), chunk=3)
    assert distance(one, other) == 0


@pytest.mark.parametrize(
    ("name", "can", "gone"),
    [
        ("sampled_token", {"chosen"}, WHOLE),
        ("local_support", {"topk"}, {"teacher.chosen"}),
        ("representation", {"inner"}, WHOLE | {"teacher.chosen"}),
    ],
)
def test_a_teacher_that_can_do_less_is_asked_for_no_more(name, can, gone):
    cast = toy_cast(built(name))
    cast["teacher"].can = frozenset(can)
    method = measured(built(name), cast)
    assert method.teach[0].want.needs == can
    rows = one_update(method, cast)
    assert not set(rows.columns) & gone and "student.entropy" in rows


def test_values_are_those_of_a_pass_of_their_own():
    """Measured on chunks of three rows in passing, against both models' distributions as a whole."""
    cast = toy_cast(built("gkd"))
    method = measured(built("gkd"), cast)
    rows = one_update(method, cast)
    contexts = [r for g in toy_groups(method, cast) for r in g.rollouts]
    p, q = (cast[who].read(contexts, method.teach[0].want).dist.logprobs() for who in ("student", "teacher"))
    assert torch.allclose(rows["reverse_kl"], maths.reverse_kl(p, q), atol=1e-12)
    assert torch.allclose(rows["student.entropy"], -(p.exp() * p).sum(-1), atol=1e-12)
    for who, logprobs in (("student", p), ("teacher", q)):
        assert torch.allclose(rows[f"{who}.chosen"], logprobs.gather(1, rows["token"][:, None])[:, 0], atol=1e-12)


def test_looking_up_is_for_every_row_and_the_rest_for_a_few(monkeypatch):
    monkeypatch.setattr("opd.step.OBSERVED_ELEMENTS", (5 * 7, 0))
    cast = toy_cast(built("gkd"))
    rows = one_update(measured(built("gkd"), cast), cast)
    known = {name: int((~rows[name].isnan()).sum()) for name in MEASURED["gkd"]}
    assert {known.pop("student.chosen"), known.pop("teacher.chosen")} == {len(rows)}
    assert len(rows) > 12 and all(2 <= n <= 8 for n in known.values())


def test_a_wrong_engine_shows():
    """Rollouts of one model, learned from by another: the sampler and the trainer do not agree."""
    cast = toy_cast(built("sampled_token"))
    method = measured(built("sampled_token"), cast)
    assert Measures()(one_update(method, cast))["engine.gap.max"] < 1e-12
    groups = toy_groups(method, cast)
    other = {**cast, "student": ToyModel(seed=3)}
    rows, sequences = prepare(groups, method, other, 0)
    seen = gradient(other["student"], rows, sequences, method).observed
    assert Measures()(rows.plus(**seen))["engine.gap"] > 0.1
