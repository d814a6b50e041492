"""A probe says the right thing about a student that can be its teacher, one that can't, and a teacher that misleads."""

import json

import models
import numpy as np
import pytest
import torch

from opd.bootstrap import Interval, crossed, resampled
from opd.cli.main import main
from opd.errors import DataError, SettingError, TeacherError
from opd.lab.policy import Policy
from opd.lab.world import World
from opd.measure import spearman
from opd.probe import Plan, probe
from opd.probe.alignment import Alignment, alignments, auc, partial
from opd.probe.fit import Fit, climb
from opd.probe.texts import Read
from opd.probe.verdict import verdict
from opd.rollout import Problem
from opd.settings import Settings
from opd.tasks.graders import Graded, exact, none
from opd.teachers.fake import FakeTeacher

ACTIONS, CONTEXTS, LEARNED = 5, 450, 300  # every context is a problem, of one of two kinds
FIT = {"steps": 30, "batch": 64, "schedule": "linear", "device": "cpu"}
PLAN = Plan(problems=LEARNED, held_out=CONTEXTS - LEARNED, rates=(0.3,))

# Two decisions in the same context: action 0 is always right, 1 in the even ones, 2 in the odd ones.
WORLD = World(
    moves=np.tile(np.arange(CONTEXTS)[:, None], (1, ACTIONS)),
    rewards=np.zeros((CONTEXTS, ACTIONS)),
    horizon=2,
    starts=tuple(range(CONTEXTS)),
)
TEACHER = np.array([[0.4, 0.597, 0.001, 0.001, 0.001], [0.4, 0.001, 0.597, 0.001, 0.001]])
PROBLEMS = [Problem(f"context-{i}", str(i)) for i in range(CONTEXTS)]


def right(problem, text):
    return float(set(text.split()) <= {"0", str(1 + int(problem.prompt) % 2)})


def wrong(problem, text):
    return 1 - right(problem, text)


def task(grader=right, learned=LEARNED):
    return Graded("kinds", PROBLEMS[:learned], PROBLEMS[LEARNED:], grader)


def pair(rows):
    """The untaught student, contexts spread over so many rows of logits; the teacher knows the two kinds."""
    shares = [i % rows for i in range(CONTEXTS)]
    teacher = Policy(WORLD, torch.from_numpy(TEACHER).log(), [i % 2 for i in range(CONTEXTS)], "teacher")
    return {"student": Policy(WORLD, torch.zeros(rows, ACTIONS), shares), "teacher": teacher.requires_grad_(False)}


def probed(cast, grader=right, plan=PLAN, **given):
    return probe(Settings.of(method="sft", **FIT | given), plan, cast, task(grader))


# ---- the three pairs


@pytest.fixture(scope="module")
def cannot():
    """What is found of a student with one row for both kinds."""
    return probed(pair(rows=1))


def test_a_student_that_can_be_its_teacher():
    cast = pair(rows=2)
    before = cast["student"].logits.detach().clone()
    found = probed(cast)
    assert found.verdict.favoured == "SFT"
    assert torch.equal(cast["student"].logits, before), "the student is the user's"
    entropy = -(TEACHER * np.log(TEACHER)).sum(1).mean()
    assert found.entropy.low < entropy < found.entropy.high
    assert found.gap_before.low < np.log(ACTIONS) - entropy < found.gap_before.high  # it begins uniform
    assert abs(found.gap.value) < 0.02 and found.grades["teacher"].value > 0.98
    assert found == probed(pair(rows=2)), "the same at every call"


def test_a_student_that_cannot_but_is_told_the_right_things(cannot):
    found = cannot
    assert found.verdict.favoured == "OPD"
    mixed = TEACHER.mean(0)  # the best that one row can do
    least = (TEACHER * (np.log(TEACHER) - np.log(mixed))).sum(1).mean()
    assert found.gap.low < least + 0.01 and least < found.gap.high and found.gap.low > PLAN.nats
    assert found.alignments[0].within.low > 0.5 and found.alignments[0].auc.value > 0.9
    assert any("Even on text that it learned from" in note for note in found.notes)


def test_a_teacher_whose_scores_go_against_the_grades(cannot):
    with_it, against = cannot, probed(pair(rows=1), wrong)
    assert against.verdict.favoured == "neither" and "worse answers" in against.verdict.because
    for one, other in zip(with_it.alignments, against.alignments, strict=True):
        for ours, theirs in ((one.within, other.within), (one.overall, other.overall)):
            assert ours is theirs is None or ours.value == pytest.approx(-theirs.value)
    assert with_it.alignments[0].auc.value == pytest.approx(1 - against.alignments[0].auc.value)


def test_little_text_is_not_little_ability():
    """Every context has a row of its own: what is learned about one says nothing about another."""
    found = probed(pair(rows=CONTEXTS))
    assert found.verdict.favoured == "OPD"
    assert found.gap.low > 0.8 and found.gap_learned < PLAN.nats
    assert any("more of it may do as well" in note for note in found.notes)


# ---- what it measures


def test_which_answers_are_compared():
    """Written by hand: two problems of three answers, three tokens at most."""
    answer = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])
    teacher = np.array([-1, -1, -1, -1, -1, -1, -2, -1, -3, -3.0])
    student = np.array([-2, -2, -1, -1, -1, -1, -1, -1, -1, -1.0])
    read = Read(2, 3, teacher, student, answer)
    assert read.sums(teacher - student).tolist() == [[2, 0, 0], [-1, 0, -4]]
    rewards = np.array([[1, 0, 0], [0, 1, np.nan]])
    ratio, *others = alignments(read, rewards)  # the second problem has an answer without a grade
    assert (ratio.score, ratio.ordered, ratio.within.value, ratio.auc.value) == (
        "log q - log pi",
        1,
        pytest.approx(1),
        1,
    )
    by_name = {one.score: one for one in others}
    assert by_name["log q"].within.value == pytest.approx(spearman(np.array([-2, -1, -3.0]), rewards[0]))
    assert by_name["log q per token"].within is None  # all -1: no order
    assert by_name["length"].auc.value == 0.5


def test_length_can_be_taken_out():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (60, 8))
    answer = np.repeat(np.arange(480), tokens.ravel())
    ours = np.full(len(answer), -1.0)
    rewards = np.clip(1 - (tokens + rng.normal(0, 2, tokens.shape)) / 16, 0, 1)  # short answers are better, somewhat,
    # and the teacher takes something off every token
    ratio, equal, *_ = alignments(Read(60, 8, ours - 0.1 * rng.random(len(answer)), ours, answer), rewards)
    assert ratio.within.low > 0.5 and equal.within.low < 0 < equal.within.high


def test_written_values():
    half = np.full((3, 3), 0.5) + np.eye(3) / 2
    assert partial(half) == pytest.approx(1 / 3)
    assert partial(half * np.outer([1, 2, 3], [1, 2, 3])) == pytest.approx(1 / 3)
    assert partial(np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]])) == pytest.approx(0.5)
    assert auc(np.array([3.0, 1, 2, 2]), np.array([1, 0, 1, 0])) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert auc(np.array([3.0, 1]), np.array([1, 1])) is None
    assert spearman(np.array([1, 2, 2, 4.0]), np.array([1, 3, 2, 4.0])) == pytest.approx(4.5 / 22.5**0.5)


def test_resampled_is_the_mean_s_own_interval():
    values = np.random.default_rng(0).standard_normal(300)
    found, known = resampled(lambda drawn: float(values[drawn].mean()), 300), crossed(values[None])
    assert found.value == pytest.approx(known.value)
    assert found.high - found.low == pytest.approx(known.high - known.low, rel=0.08)
    assert resampled(lambda drawn: float(drawn[0]) if len(set(drawn)) > 1 else None, 2).low is not None
    assert np.isnan(resampled(lambda drawn: None, 2).value)


def test_a_ladder_is_climbed_until_the_best_is_inside():
    tried = []

    def one(rate):
        tried.append(rate)
        return Fit(rate, 1, 1, abs(np.log(rate)), 0, 0)

    assert climb((1 / 27, 1 / 9, 1 / 3), one) and tried[3:] == pytest.approx([1, 3])
    tried.clear()
    assert not climb((1 / 27, 1 / 9), one, most=2) and len(tried) == 2


NEAR, FAR, ACROSS = Interval(0.01, 0, 0.02), Interval(0.3, 0.2, 0.4), Interval(0.06, 0.02, 0.1)
WITH, NONE = Interval(0.3, 0.2, 0.4), Interval(0, -0.05, 0.05)
AGAINST, WIDE = Interval(-0.3, -0.4, -0.2), Interval(0.1, -0.1, 0.3)


@pytest.mark.parametrize(
    ("gap", "shortfall", "within", "ordered", "favoured", "problems"),
    [
        (NEAR, NEAR, AGAINST, 50, "SFT", None),
        (FAR, NEAR, WITH, 50, "OPD", None),
        (NEAR, FAR, WITH, 50, "OPD", None),
        (ACROSS, FAR, NONE, 50, "neither", None),
        (FAR, FAR, AGAINST, 50, "neither", None),
        (FAR, FAR, WIDE, 50, "undecided", 480),  # 100 * (.2 / .1)^2, and a fifth more
        (FAR, FAR, WITH, 4, "undecided", 240),  # 8 where there are 4, and a fifth more
        (FAR, FAR, None, 0, "undecided", None),
        (ACROSS, NEAR, WITH, 50, "undecided", 1920),  # 100 * (.04 / .01)^2, and a fifth more
        (Interval(0.05, 0.02, 0.1), NEAR, WITH, 50, "undecided", None),
    ],
)
def test_verdicts(gap, shortfall, within, ordered, favoured, problems):
    found = verdict(gap, shortfall, Alignment("", within, None, None, ordered), PLAN, 100)
    assert found.favoured == favoured
    assert found.problems == (problems and pytest.approx(problems, abs=1))


# ---- what cannot be


def test_what_cannot_be_probed():
    with pytest.raises(DataError, match="does not grade these answers"):
        probed(pair(2), none)
    with pytest.raises(DataError, match="does not grade these answers"):
        probed(pair(2), exact)  # no problem has an answer
    mute = FakeTeacher(torch.zeros(2, ACTIONS), can=frozenset({"chosen"}))
    with pytest.raises(TeacherError, match="no text"):
        probed(pair(2) | {"teacher": mute})
    with pytest.raises(DataError, match="3 to learn from"):
        probe(Settings.of(method="sft", **FIT), PLAN, pair(2), task(learned=3))
    with pytest.raises(SettingError, match="--samples: got 2, expected at least 3"):
        probed(pair(2), plan=Plan(samples=2))


# ---- as a person types it


@pytest.fixture
def opd(capsys, tmp_path, monkeypatch):
    """Runs a command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def counting(folder, sure):
    """A tiny transformer that looks at one letter only and says the next one in the alphabet, as surely as `sure`."""
    model = models.build()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= 0 if "o_proj" in name or "down_proj" in name else 1
        letters = torch.nn.functional.normalize(model.model.embed_tokens.weight[3:], dim=-1)  # "?" is the last one
        model.lm_head.weight.zero_()
        model.lm_head.weight[[*range(4, models.VOCAB), 2]] = letters  # and the end comes after it
        model.model.norm.weight.fill_(sure)
    model.save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)


SIZE = {"problems": 64, "held-out": 60, "steps": 40, "rates": "1e-2,3e-2", "max-new": 8, "device": "cpu"}
SMALL = [f"--{name}={value}" for name, value in SIZE.items()]
COUNT = ["--student", "student", "--teacher", "teacher", "--task", "jsonl:count.jsonl,held_out=60", *SMALL]


def test_the_command(opd, tmp_path):
    """After "=" the alphabet goes on with ".?" and then ends; the student knows, and is not sure of it."""
    counting(tmp_path / "student", sure=1.0)
    counting(tmp_path / "teacher", sure=6.0)
    lines = [json.dumps({"prompt": f"{i}+1=", "answer": ".?"}) for i in range(130)]
    (tmp_path / "count.jsonl").write_text("\n".join(lines))
    before = (tmp_path / "student" / "model.safetensors").read_bytes()
    code, out, err = opd("probe", *COUNT, "--out", "new/probe.json")
    assert (code, err) == (0, "")
    assert "SFT is enough: fitted to the teacher's text" in out and max(map(len, out.splitlines())) <= 100
    found = json.loads((tmp_path / "new" / "probe.json").read_text())
    assert found["verdict"]["favoured"] == "SFT" and found["settings"]["teacher"] == "teacher"
    assert found["gap_before"]["low"] > 0.5 and found["gap"]["high"] < 0.05
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == before
    code, out, err = opd("probe", *COUNT, "--out", "new/probe.json")
    assert (code, out) == (2, "") and "exists" in err


def test_what_cannot_be_is_2(opd):
    for words, sentence in {
        "--student ./nowhere --teacher embedded:teacher": "there is no model folder",
        "--student ./nowhere": "sft needs a teacher",
        "--task sums,grader=none --held-out 24 --samples 3 --max-new 20": "does not grade these answers",
        "--task sums,train=5": "too few problems for a probe: got 5 to learn from",
        "--task sums,held_out=9": "expected at least 8 and 24",
        "--teacher self:frozen": "a copy of the student is one by construction",
        "--task gymnasium:FrozenLake-v1": "opd probe is about texts",
        "--problems many": "expected a whole number",
        "--rates 0": "expected numbers above 0",
        "--probelms 3": "Did you mean '--problems'?",
        "gkd": "takes no word",
    }.items():
        code, out, err = opd("probe", *words.split())
        assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1, (words, out, err)
