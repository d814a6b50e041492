"""The doctor's estimate of a teacher's noise: planted noise is found, a clean teacher is left alone."""

import json
from dataclasses import replace
from functools import cache

import models
import pytest
import torch

from opd.doctor import Case, examine
from opd.parts.channel import Channel
from opd.rows import Rows
from opd.settings import Settings
from opd.teachers.fake import FakeTeacher

LENGTH = 8


class Planted(FakeTeacher):
    """After every letter the next one of the alphabet, seen through a channel."""

    def __init__(self, rate, can=frozenset({"chosen", "topk", "dist", "text"})):
        clean = torch.eye(models.VOCAB, dtype=torch.float64).roll(1, 1)
        super().__init__(Channel(rate)((clean + 1e-9).log().log_softmax(-1), Rows({})), can=can)


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """The finding about a teacher of this noise; every problem asks for the next letters."""
    folder = tmp_path_factory.mktemp("noise")
    student = str(models.folder(folder / "student"))
    letters = models.LETTERS[10:36]

    @cache
    def look(rate, method="local_support", answers=200, graded=True, **how):
        starts = [letters[i % 8] for i in range(answers + 8)]
        rows = [{"prompt": f"{'.' * (i // 8)}{a}", "answer": after(a)} for i, a in enumerate(starts)]
        (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = f"jsonl:{folder}/task.jsonl,held_out=8" + ("" if graded else ",grader=none")
        case = Case.open(Settings.of(
            method=method, student=student, teacher="self:frozen", task=task, max_new=LENGTH, device="cpu"
        ))  # fmt: skip
        case = replace(case, cast={**case.cast, "teacher": Planted(rate, **how)})
        (found,) = [one for one in examine(case, answers) if one.name == "teacher's noise"]
        return found

    def after(letter):
        place = letters.index(letter) + 1
        return letters[place : place + LENGTH]

    return look


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_planted_noise_is_estimated(examined, rate):
    found = examined(rate)
    wrong = rate * (1 - 1 / models.VOCAB)  # a noisy token may be the right one by chance
    assert found.numbers["decisions"] == LENGTH
    assert found.numbers["rate"] == pytest.approx(wrong, rel=0.2)
    assert found.numbers["low"] < (1 - wrong) ** LENGTH < found.numbers["high"]
    assert found.numbers["unsure"] == pytest.approx(wrong, rel=0.01)  # every distribution has the same noise


def test_noise_that_spoils_most_answers_is_a_warning_with_what_to_do(examined):
    found = examined(0.2)
    assert found.verdict == "warn"
    assert "right where its greedy answer is" in found.evidence
    clean, rate = found.numbers["clean"], found.numbers["rate"]
    assert f"about {1 / clean:.1f} times" in found.remedy and f"nail --rate {rate:.2g}" in found.remedy


def test_a_method_that_walks_greedily_is_left_alone(examined):
    assert examined(0.2, "nail", answers=40).verdict == "pass"
    assert examined(0.2, "sft", answers=40).verdict == "warn"


def test_little_noise_is_no_fault_and_no_noise_is_none(examined):
    assert examined(0.05).verdict == "pass"
    clean = examined(0.0, answers=40)
    assert (clean.verdict, clean.numbers["rate"], clean.numbers["clean"]) == ("pass", 0.0, 1.0)


def test_without_a_grader_it_says_how_often_the_samples_agree_and_what_that_cannot_tell(examined):
    found = examined(0.2, graded=False)
    assert found.verdict == "pass" and not found.remedy
    assert "end as its greedy answer does" in found.evidence and "diversity as well as noise" in found.evidence
    assert found.numbers["rate"] == pytest.approx(0.2 * (1 - 1 / models.VOCAB), rel=0.2)


def test_a_teacher_that_is_all_noise_and_one_that_gives_no_distribution(examined):
    found = examined(0.9, answers=40)
    assert found.verdict == "warn" and found.numbers["clean"] == 0 and "nailgun" in found.remedy
    assert "unsure" not in examined(0.05, answers=8, can=frozenset({"chosen", "dist", "text"}), method="gkd").numbers
