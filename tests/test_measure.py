"""Numbers about a batch, on tables written by hand with answers known beforehand."""

import math

import numpy as np
import pytest
import torch

from opd.measure import KINDS, Kinds, Measures, concentration, kind, loops, rank, ranks, spearman, trivial_groups
from opd.rows import Rows


def table(answers, **columns):
    """One answer per list of tokens; a column is one number per row, in order."""
    sizes = [len(answer) for answer in answers]
    tokens = np.concatenate([np.asarray(answer) for answer in answers])
    own = {
        "token": tokens,
        "author": np.ones(len(tokens), int),
        "row": np.concatenate([np.arange(n) for n in sizes]),
        "sequence": np.repeat(np.arange(len(sizes)), sizes),
        "length": np.repeat(sizes, sizes),
        "keep": np.ones(len(tokens), bool),
        "untruncated": np.full(len(tokens), -1.0),
    }
    return Rows({name: torch.as_tensor(np.asarray(column)) for name, column in {**own, **columns}.items()})


def looping(*answers):
    rows = table(answers)
    return loops(*(rows[name].numpy() for name in ("token", "sequence", "row"))).tolist()


class Letters:
    """A student of which only the words are needed; token 0 ends a text."""

    texts = ("</s>", "12", " the", ",", "\n", "<think>", "3.", "x2")

    def decode_token(self, token):
        return self.texts[token]

    def decode(self, tokens):
        return "".join(self.texts[t] for t in tokens if t)


# ---- loops


def test_a_planted_loop_is_found_with_its_first_round_and_not_a_row_more():
    assert looping([7, 8, *[1, 2, 3] * 3, 9, 9]) == [False] * 2 + [True] * 9 + [False] * 2


def test_two_rounds_are_no_loop_and_neither_is_a_short_run():
    assert not any(looping([7, 8, *[1, 2, 3, 4, 5] * 2, 9]))
    assert not any(looping([5] * 7))
    assert all(looping([5] * 8))


def test_a_loop_may_end_in_the_middle_of_a_round():
    assert looping([*[1, 2, 3] * 3, 1, 2, 9]) == [True] * 11 + [False]


def test_a_loop_does_not_reach_into_the_next_answer():
    assert not any(looping([1, 2] * 2, [1, 2] * 2, [1, 2] * 2))


def test_loops_do_not_depend_on_the_order_of_rows():
    rows = table([[7, *[1, 2, 3] * 3], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    token, sequence, row = (rows[name][order].numpy() for name in ("token", "sequence", "row"))
    expected = np.array([False, *[True] * 9, *[False] * 9])[order.numpy()]
    assert loops(token, sequence, row).tolist() == expected.tolist()


def test_what_the_teacher_says_inside_loops():
    teacher = np.array([-4.0, *[-0.1] * 8, -2.0])
    numbers = Measures()(table([[1, *[5] * 8, 2]], **{"teacher.chosen": teacher}))
    assert numbers["loops"] == pytest.approx(0.8)
    assert numbers["loops.teacher.inside"] == pytest.approx(-0.1)
    assert numbers["loops.teacher.outside"] == pytest.approx(-3.0)
    assert numbers["loops.student.inside"] == numbers["loops.student.outside"] == -1.0
    assert not [name for name in Measures()(table([[1, 2, 3]])) if name.startswith("loops.")]


# ---- the advantage


def test_a_few_tokens_carry_the_advantage():
    advantage = np.array([-50.0, 9.0, *[-0.5] * 60, *[0.25] * 38])
    numbers = concentration(advantage)
    assert numbers["advantage.negative"] == pytest.approx(0.61)
    total = 50 + 9 + 30 + 9.5
    assert numbers["advantage.top1"] == pytest.approx(50 / total)
    assert numbers["advantage.top10"] == pytest.approx((50 + 9 + 8 * 0.5) / total)
    assert concentration(np.zeros(5)) == {"advantage.negative": 0.0}
    assert concentration(np.full(3, np.nan)) == {}


def test_the_advantage_of_the_method_counts_where_there_is_one_and_only_on_rows_that_are_kept():
    teacher = np.array([-3.0, -0.5, -0.5, -0.5])
    ratio = Measures()(table([[1, 2, 3, 4]], **{"teacher.chosen": teacher}))
    assert ratio["advantage.negative"] == 0.25
    own = {"teacher.chosen": teacher, "advantage": np.array([1.0, -1.0, -1.0, -1.0])}
    assert Measures()(table([[1, 2, 3, 4]], **own))["advantage.negative"] == 0.75
    kept = Measures()(table([[1, 2, 3, 4]], **own, keep=np.array([True, False, True, True])))
    assert kept["advantage.negative"] == pytest.approx(2 / 3)


# ---- where the log-ratio is


def test_log_ratio_by_position():
    numbers = Measures()(table([range(9), range(2)], **{"teacher.chosen": -1.0 - np.array([*range(9), 0.0, 3.0])}))
    found = {name: value for name, value in numbers.items() if name.startswith("ratio.at.")}
    assert found == {"ratio.at.1": 0.0, "ratio.at.2": -2.0, "ratio.at.4": -4.5, "ratio.at.8": -7.5}
    assert numbers["ratio"] == pytest.approx(-39 / 11)
    assert numbers["teacher.chosen"] == pytest.approx(-1 - 39 / 11)
    assert numbers["length.max"] == 9


def test_log_ratio_by_kind_of_token():
    kinds = Kinds(Letters())
    assert [KINDS[k] for k in kinds(np.arange(8))] == [
        "special", "digits", "words", "punctuation", "space", "special", "digits", "words",
    ]  # fmt: skip
    rows = table([[1, 6, 2, 0]], **{"teacher.chosen": np.array([-2.0, -4.0, -1.0, -9.0])})
    numbers = Measures(kinds)(rows)
    found = {name: value for name, value in numbers.items() if name.startswith("ratio.on.")}
    assert found == {"ratio.on.digits": -2.0, "ratio.on.words": 0.0, "ratio.on.special": -8.0}
    assert (numbers["kinds.digits"], numbers["kinds.words"], numbers["kinds.special"]) == (0.5, 0.25, 0.25)


def test_kinds_of_text():
    assert [kind(text) for text in ("é", "一", "7%", "…", "", "\t", "<|im_end|>", "< ", "<")] == [
        "words", "words", "digits", "punctuation", "space", "space", "special", "punctuation", "punctuation",
    ]  # fmt: skip


def test_rows_without_evidence_are_left_out():
    numbers = Measures()(table([[1, 2, 3]], **{"teacher.chosen": np.array([-2.0, np.nan, np.nan])}))
    assert numbers["ratio"] == numbers["ratio.at.1"] == -1.0
    assert "ratio.at.2" not in numbers
    assert not any(math.isnan(value) for value in numbers.values())


def test_without_a_teacher_nothing_is_said_about_one():
    assert set(Measures()(table([[1, 2, 3]]))) == {"length.max", "loops"}


def test_of_other_writers_the_student_is_asked_when_it_learns():
    """`untruncated` is the log-prob of whoever wrote; for teacher and data that says nothing about the student."""
    columns = {"author": np.array([2, 2]), "teacher.chosen": np.array([-1.0, -1.0])}
    assert "ratio" not in Measures()(table([[1, 2]], **columns))
    learned = {"student.chosen": np.array([-3.0, -5.0])}
    assert Measures()(table([[1, 2]], **columns, **learned))["ratio"] == 3.0


# ---- ranks


def test_ranks_share_ties():
    assert rank(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_with_ties_by_hand():
    """Ranks (1, 2.5, 2.5, 4) and (1.5, 1.5, 3.5, 3.5): covariance 3, sizes 4.5 and 4."""
    assert spearman(np.array([1, 5, 5, 9]), np.array([0, 0, 1, 1])) == pytest.approx(3.0 / math.sqrt(4.5 * 4))
    assert spearman(np.array([1, 2, 3]), np.array([30, 20, 10])) == pytest.approx(-1)


def test_an_order_that_is_none_is_absent():
    assert spearman(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
    assert spearman(np.array([1.0, 2.0, 3.0]), np.ones(3)) is None
    assert spearman(np.ones(3), np.array([1.0, 2.0, 3.0])) is None


def test_the_teachers_order_of_the_answers_against_the_reward():
    teacher = np.array([-1.0, -3.0, -4.0, -1.0, -9.0])  # means -2, -4, -5
    reward = np.array([1.0, 1.0, 0.5, 0.0, 0.0])
    sequence = np.array([0, 0, 1, 2, 2])
    assert ranks(teacher, reward, sequence) == {"reward.rank": pytest.approx(1.0)}
    assert ranks(teacher, np.full(5, np.nan), sequence) == {}
    assert ranks(teacher, np.ones(5), sequence) == {}


# ---- two engines


def test_trivial_are_the_groups_of_several_graded_answers_with_one_reward():
    def share(*groups):
        rewards = np.array([reward for group in groups for reward in group])
        group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return trivial_groups({"sequence": np.arange(len(rewards)), "group": group, "reward": rewards})

    assert share((1, 1), (1, 0), (0, 0), (1,)) == {"groups.trivial": pytest.approx(2 / 3)}
    assert share((1, 1, math.nan), (1, 0, math.nan), (1, math.nan)) == {"groups.trivial": 0.5}
    assert share((1, math.nan), (math.nan, math.nan)) == {}


def test_the_gap_between_writing_and_learning_before_the_first_step():
    learned = np.array([-1.0, -1.25, -7.0])
    rows = table([[1, 2, 3]], **{"student.chosen": learned, "update": np.array([0, 0, 1])})
    numbers = Measures()(rows)
    assert (numbers["engine.gap"], numbers["engine.gap.max"]) == (0.125, 0.25)
    foreign = table([[1, 2, 3]], **{"student.chosen": learned, "author": np.full(3, 2)})
    assert "engine.gap" not in Measures()(foreign)
