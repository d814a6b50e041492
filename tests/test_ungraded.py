"""An answer that nobody could grade is none for whatever lives on rewards, and nothing else in its batch notices."""

import math
from dataclasses import replace

import pytest
import torch
from test_loop import ToyTask, training

from opd.contract import distance, gradients, toy_cast, toy_groups
from opd.loop import train
from opd.metrics import METRICS
from opd.parts.hints import ByRightAnswers
from opd.parts.views import Sibling
from opd.recipes import load
from opd.step import prepare

NAN = math.nan
GRADES = [(1, 0, 1, 0), (0, 1, 0, 0), (0.5, 1, 1, 0), (0, 0, 0, 0)]
ALONE = [
    ("grpo", {}),
    ("grpo", {"spread": "batch"}),
    ("dapo", {"updates": 1}),
    ("reinforce", {}),
    ("reinforce", {"baseline": "siblings"}),
    ("rlsd", {}),
    ("rlcsd", {"updates": 1}),
    ("rlsd_ectr", {}),
    ("sc_grpo", {}),
    ("opsd_ectr", {"k": 3}),
    ("kickstarting", {}),
]


def given(name, parameters, change=lambda groups: groups):
    """The gradient and the table of a method on a graded batch that `change` has changed before anybody read it."""
    method = load(name)(n=4, **parameters)
    cast = toy_cast(method)
    groups = change([regraded(group, some) for group, some in zip(toy_groups(method, cast, 4), GRADES, strict=True)])
    rows, sequences = prepare(groups, method, cast, 0)
    return gradients(method, cast["student"], rows, sequences), rows


def regraded(group, grades):
    rollouts = zip(group.rollouts, grades, strict=True)
    return replace(group, rollouts=tuple(rollout.tagged(reward=float(grade)) for rollout, grade in rollouts))


def whole_group(groups):
    """Of the second problem no answer could be graded."""
    return [groups[0], regraded(groups[1], [NAN] * 4), *groups[2:]]


def without_group(groups):
    return [groups[0], *groups[2:]]


def single_answer(groups):
    """Of the first problem the last answer could not be graded."""
    return [regraded(groups[0], [1, 0, 1, NAN]), *groups[1:]]


def without_answer(groups):
    return [replace(groups[0], rollouts=groups[0].rollouts[:3]), *groups[1:]]


def less(a, b):
    return {name: a[name] - b[name] for name in a}


def scaled(a, factor):
    return {name: factor * values for name, values in a.items()}


@pytest.mark.parametrize("name, parameters", [one for one in ALONE if one[0] != "opsd_ectr"])
@pytest.mark.parametrize("there, gone", [(whole_group, without_group), (single_answer, without_answer)])
def test_a_batch_with_ungraded_answers_is_the_batch_without_them(name, parameters, there, gone):
    found, rows = given(name, parameters, there)
    expected, fewer = given(name, parameters, gone)
    assert distance(found, expected) < 1e-15 < distance(found, given(name, parameters)[0])
    assert torch.equal(rows["masked.ungraded"], rows["reward"].isnan()) and "masked.ungraded" not in fewer
    assert int(rows["keep"].sum()) == int(fewer["keep"].sum())


@pytest.mark.parametrize("name, parameters", ALONE)
def test_a_batch_that_nobody_could_grade_teaches_nothing(name, parameters):
    found, rows = given(name, parameters, lambda groups: [regraded(group, [NAN] * 4) for group in groups])
    assert not rows["keep"].any() and all(not values.any() for values in found.values())


def test_a_group_with_one_graded_answer_is_trivial():
    found, rows = given("dapo", {"updates": 1}, lambda groups: [regraded(groups[0], [1, NAN, NAN, NAN]), *groups[1:]])
    first = rows["group"] == 0
    assert torch.equal(rows["masked.trivial"], (first | (rows["group"] == 3)) & ~rows["reward"].isnan())
    assert distance(found, given("dapo", {"updates": 1}, lambda groups: groups[1:])[0]) < 1e-15


@pytest.mark.parametrize("there, gone", [(whole_group, without_group), (single_answer, without_answer)])
@pytest.mark.parametrize("name, own_mean", [("sampled_token", False), ("rethinking", True)])
def test_beside_a_teacher_only_the_reward_is_not_learned_from(name, own_mean, there, gone):
    """A term of its own has a mean over the graded answers; where both are one signal, the mean is over all tokens."""
    more = {} if name == "sampled_token" else {"k": 3}
    parts = []
    for change in (there, gone):
        both, rows = given(name, {"reward": 0.5, **more}, change)
        parts.append(scaled(less(both, given(name, more, change)[0]), 1 if own_mean else len(rows)))
        assert rows["keep"].all() and ("masked.ungraded" in rows) == (change is there)
    assert distance(*parts) < 1e-13 and max(float(values.abs().max()) for values in parts[0].values()) > 1e-3


def test_a_pair_with_an_ungraded_answer_is_left_out():
    method = load("pbsd")(n=2, pair_label="reward")
    cast = toy_cast(method)
    groups = [regraded(group, [1, 0, 0, 1]) for group in toy_groups(method, cast, 3)]  # two of the teacher, two others
    odd = [regraded(groups[0], [NAN, 0, 0, 1]), *groups[1:]]
    fewer = [replace(groups[0], rollouts=groups[0].rollouts[1::2]), *groups[1:]]
    (rows, sequences), (less_rows, less_sequences) = (prepare(some, method, cast, 0) for some in (odd, fewer))
    found = gradients(method, cast["student"], rows, sequences)
    assert distance(found, gradients(method, cast["student"], less_rows, less_sequences)) < 1e-15
    assert torch.equal(rows["masked.ungraded"], rows["sequence"] == 0)
    assert torch.equal(rows["masked.unpaired"] & ~rows["masked.ungraded"], rows["sequence"] == 2)
    assert rows["pair.loss"].nansum() == pytest.approx(float(less_rows["pair.loss"].nansum()))


def test_an_ungraded_answer_is_neither_right_nor_wrong():
    method = load("grpo")(n=4)
    group = regraded(toy_groups(method, toy_cast(method), 1)[0], [1, 0, NAN, NAN])
    group = replace(group, rollouts=tuple(replace(r, text=str(i)) for i, r in enumerate(group.rollouts)))
    seen = []

    def shows(rollout):
        seen.append(rollout.text)
        return None

    for outcome, fits in (("right", ["0"]), ("wrong", ["1"]), ("any", ["0", "1", "2", "3"])):
        seen.clear()
        Sibling("{context}", outcome, shows=shows)(group.rollouts[2], group)
        assert seen == fits
    said = {name: lambda rollout, group, name=name: [name] for name in ("none", "one", "several", "every")}
    ways = {(1, 0, NAN, NAN): "one", (1, 1, NAN, NAN): "every", (0, 0, 0, NAN): "none", (1, 1, 0, NAN): "several"}
    for grades, way in ways.items():
        graded = regraded(group, grades)
        assert ByRightAnswers(**said)(graded.rollouts[3], graded) == [way]


class Unsure(ToyTask):
    """Can't grade one of its problems."""

    def grade(self, problem, text):
        return None if problem.id == "toy-3" else float(len(text) % 2)


def test_a_run_goes_on_with_what_could_be_graded_and_says_what_could_not():
    for method in (load("grpo")(n=4), load("sampled_token")(n=4, reward=0.5)):
        t = training(method, steps=4)
        t.task = Unsure()
        batches = list(train(t))
        assert [batch.metrics["refused"] for batch in batches] == [0] * 4
        for batch in batches:
            rows = sum(r.n for group in batch.groups for r in group.rollouts if math.isnan(r.tags["reward"]))
            assert batch.metrics.get("masked.ungraded", 0) == rows
        assert any("masked.ungraded" in batch.metrics for batch in batches)
    assert "masked.ungraded" in METRICS
