"""What a person sees of a policy in an environment: pictures, the page, the terminal, the doctor, comparisons."""

import base64
import json
import os
import re
from io import BytesIO
from pathlib import Path

import fake_comparison
import gymnasium
import numpy as np
import pytest

from opd import film as filming
from opd.cli.main import main
from opd.compare import verdicts
from opd.compare.outcome import Field, look
from opd.compare.table import results
from opd.engines.world import World
from opd.film import FRAMES, film
from opd.report import acting, reading, result
from opd.rollout import Problem, Rollout
from opd.words import said

WALK = "opd/Walk-v0"
TASK = f"gymnasium:{WALK},success=1,held_out=20"


class Walk(gymnasium.Env):
    """Ten places in a row: action 1 goes on, 0 back; the last place pays 1 and ends. Drawn as one bright column."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None, broken=False):
        self.observation_space, self.action_space = gymnasium.spaces.Discrete(10), gymnasium.spaces.Discrete(2)
        self.render_mode, self.broken = render_mode, broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(2))
        return self.place, {}

    def step(self, action):
        self.place = max(0, self.place + 2 * int(action) - 1)
        return self.place, float(self.place == 9), self.place == 9, False, {}

    def render(self):
        if self.broken:
            raise RuntimeError("no brush\nat all")
        pixels = np.zeros((300, 1000, 3), np.uint8)
        pixels[:, 100 * self.place : 100 * (self.place + 1)] = 255
        return pixels


gymnasium.register(id=WALK, entry_point=Walk, max_episode_steps=60)


def episode(*actions, seed=3):
    tokens = np.r_[seed, actions].astype(np.int32)
    author = np.r_[0, np.ones(len(actions))].astype(np.int8)
    return Rollout(tokens, author, Problem("p", f"from seed {seed}"), tags={"reward": 1.0, "return": 1.0})


def places(filmed):
    """Where the bright column of every picture is."""
    from PIL import Image

    images = [Image.open(BytesIO(base64.b64decode(frame["png"]))).convert("L") for frame in filmed["frames"]]
    assert all(max(image.size) <= filming.LONGEST for image in images)
    return [int(np.asarray(image)[0].argmax() * 10 // image.width) for image in images]


# ---- pictures


def test_an_episode_is_played_again_and_seen_from_start_to_end():
    world = World(WALK)
    start = int(world.reset([3])[0])
    found = film(world, [episode(0, 1, 1), episode(*[1] * 40), episode(1)])
    assert found["why"] == "" and len(found["episodes"]) == filming.EPISODES
    short, long = found["episodes"]
    assert places(short) == [start, max(0, start - 1), max(0, start - 1) + 1, max(0, start - 1) + 2]
    assert [frame["at"] for frame in short["frames"]] == [0, 1, 2, 3]
    assert [frame["action"] for frame in short["frames"]] == ["", "0", "1", "1"]
    assert len(long["frames"]) == FRAMES and long["frames"][-1]["at"] == 40
    assert len(json.dumps(found)) < 40_000
    assert world.steps == 0, "what is played again for a picture is no step of the task"


def test_what_cannot_be_drawn_says_why_and_ends_no_run(monkeypatch):
    before = dict(os.environ)
    assert film(World(WALK, {"broken": True}), [episode(1)]) == {
        "why": f"{WALK} cannot be drawn here: no brush",
        "episodes": [],
    }
    assert dict(os.environ) == before
    monkeypatch.setattr(filming, "find_spec", lambda name: None)
    assert "need the package Pillow" in film(World(WALK), [episode(1)])["why"]


# ---- a run and its page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A policy that learned to walk on, with its page and what the terminal said."""
    folder = tmp_path_factory.mktemp("walk")
    (folder / "on.py").write_text("import torch\ndef on(x):\n    return torch.tensor([[0.0, 1.0]]).repeat(len(x), 1)\n")
    words = (
        f"train dagger --task {TASK} --teacher python:{folder}/on.py:on --student table --steps 6 --batch 4 --lr 0.5"
    )
    more = f"--eval-problems 8 --eval-every 3 --drafts 3 --max-new 60 --out {folder}/run"
    assert main([*words.split(), *more.split()]) == 0
    assert main(["report", f"{folder}/run"]) == 0
    return folder / "run"


def shown(page):
    """The page's text without scripts, styles, data and settings."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"<[^>]+>", " ", text.split('<section id="settings">')[0])


def test_the_page_shows_the_student_acting_before_and_after(run):
    page = (run / "report.html").read_text()
    found = acting.acting(reading.read(run))
    assert [len(scene.strips) for scene in found.scenes] == [2, 2] and not found.why
    first, last = found.scenes[0].strips
    assert (first.step, last.step) == (0, 6)
    assert re.fullmatch("success, return 1 after [89] decisions", last.ending)
    assert found.scenes[0].is_wide
    pictures = [picture for scene in found.scenes for strip in scene.strips for picture in strip.pictures]
    assert page.count('<img src="data:image/png;base64,') == len(pictures)
    assert len(page) < 400_000


def test_the_page_speaks_of_decisions_and_episodes(run):
    text = shown((run / "report.html").read_text())
    odd = r"(?i).{0,20}(?<![\w-])(?:token|answer|draft|word|wrote|accuracy|problem)s?(?![\w-]).{0,20}"
    assert not re.findall(odd, text)
    for words in (
        "Sampled success",
        "Sampled return",
        "nats per decision",
        "What the student did",
        "held-out episodes",
    ):
        assert words in text


def test_returns_stand_beside_success(run):
    read = reading.read(run)
    rows = result.rows(read, [])
    titles = [column.title for column in result.measured(rows)]
    assert titles == ["Sampled accuracy", "Sampled return", "Greedy accuracy", "Greedy return"]
    after = next(row for row in rows if row.role == "run").exam.returns["sampled"]
    assert after.value == read.summary["student_after"]["sampled"]["returned"]["value"] > 0.9
    column = result.measured(rows)[1]
    assert 0 <= column.at(after.low) <= column.at(after.value) <= column.at(after.high) <= 1


def test_a_success_that_did_not_move_leaves_the_headline_to_the_return():
    def row(role, success, total):
        share = lambda value: {"value": value, "low": value, "high": value}
        drawn = {"accuracy": share(success), "returned": share(total)}
        return result.Row(role, role, "", result.from_json({"sampled": drawn, "greedy": drawn}))

    said_of = lambda *rows: result.headline(rows)
    found = said_of(row("before", 0.0, -20.0), row("run", 0.0, 150.0))
    assert (found.what, found.start, found.end) == ("Sampled return", "−20", "150")
    assert said_of(row("before", 0.0, 0.0), row("run", 0.5, 0.5)).what == "Sampled accuracy"


def test_pictures_that_are_none_stay_off_the_page(run):
    frame = {"at": 0, "action": "", "width": 2, "height": 2, "png": '"><script>'}
    table = {"episodes": [{"id": "a", "prompt": "b", "frames": [frame]}]}
    folder = reading.replace(reading.read(run), films=[(0, table)])
    assert acting.acting(folder).scenes == []


# ---- words


def test_sentences_for_texts_are_told_anew_for_episodes():
    assert said("20 held-out problems, nats per token", "gymnasium:X") == "20 held-out episodes, nats per decision"
    assert said("Point at a word", "gymnasium:X") == "Point at an action"
    assert said("Sampled accuracy, token_mean, sampled_token, --drafts", "gymnasium:X") == (
        "Sampled success, token_mean, sampled_token, --drafts"
    )
    assert said("nats per token", "sums") == "nats per token"


# ---- the doctor


def findings(capsys, *words):
    main(["doctor", "gkd", "--json", *words])
    return {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}


def test_the_doctor_examines_a_policy(capsys):
    found = findings(capsys, "--task", "gymnasium:FrozenLake-v1", "--teacher", "values", "--answers", "16")
    assert {one["verdict"] for one in found.values()} == {"pass"}
    assert {"capabilities", "time", "success", "return", "log-probs", "another opinion"} <= set(found)
    assert found["return"]["numbers"]["teacher"] > found["return"]["numbers"]["student"]
    assert "decisions" in found["log-probs"]["evidence"]


def test_the_doctor_sees_too_little_time_and_a_teacher_that_is_worse(capsys, tmp_path):
    (tmp_path / "back.py").write_text(
        "import torch\ndef back(x):\n    return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)"
    )
    teacher, task = f"python:{tmp_path}/back.py:back", f"gymnasium:{WALK}"
    found = findings(capsys, "--task", task, "--teacher", teacher, "--max-new", "40", "--answers", "60")
    assert (found["time"]["verdict"], found["time"]["remedy"]) == ("warn", "Give --max-new 60")
    assert (found["success"]["verdict"], found["success"]["remedy"]) == ("warn", "Give success=RETURN in --task")
    assert "the student is better than its teacher" in found["return"]["evidence"]
    found = findings(capsys, "--task", f"{task},success=2", "--teacher", teacher, "--answers", "4")
    assert found["success"]["verdict"] == "pass" and found["return"]["verdict"] == "warn"
    found = findings(capsys, "--task", task, "--teacher", "self:frozen", "--answers", "0")
    assert found["another model"]["verdict"] == "warn"


# ---- comparisons


@pytest.mark.parametrize("graded", [True, False])
def test_a_comparison_shows_the_return(tmp_path, graded):
    shared = {"task": TASK, "teacher": "values", "student": "table"}
    contest = fake_comparison.contest(tmp_path, "dagger", "gkd", shared=shared)
    for trial in contest.reported({"dagger": 1e-3, "gkd": 1e-3}, 0):
        fake_comparison.finish(trial, 0.5, graded=graded)
        file = trial.folder / "summary.json"
        summary = json.loads(file.read_text())
        for who, total in (("student_before", -50.0), ("student_after", 10.0 if "gkd" in trial.name else 2.0)):
            summary[who]["sampled"]["returned"] = {"value": total + trial.seed, "low": total, "high": total}
        file.write_text(json.dumps(summary))
    field = Field(tuple(look(trial, {}) for trial in contest.reported({"dagger": 1e-3, "gkd": 1e-3}, 0)))
    found = fake_comparison.concluded(contest, field, [], 0)
    assert field.measure == ("sampled" if graded else "return")
    gap = next(gap for gap in found.differences if gap.measure == "return")
    assert verdicts.worded(gap, field).startswith("+8.00 of return (95 % interval +8.00 to +8.00")
    headings = [column.header for column in results(found).columns]
    assert "return" in headings and "decisions" in headings and "tokens" not in headings
    assert any("points of sampled success" in verdicts.worded(gap, field) for gap in found.differences) == graded


# ---- success


def test_an_episode_that_is_cut_off_has_not_paid_its_whole_price():
    cliff, pole = World("CliffWalking-v1"), World("CartPole-v1")
    assert (cliff.graded(-60, False), cliff.graded(-60, True), cliff.graded(-120, True)) == (0, 1, 0)
    assert (pole.graded(500, False), pole.graded(400, True)) == (1, 0)
    assert np.isnan(World("Blackjack-v1").graded(1, True))


# ---- the methods on texts


@pytest.mark.parametrize("method", ["aggrevate", "policy_distillation"])
def test_what_needs_an_environment_says_so_of_texts(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", method, "--steps", "1"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and not out and "--teacher values" in err and not Path("runs").exists()
