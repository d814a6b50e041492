"""Comparisons: what is refused before anything starts, what is concluded, and real processes that break and go on."""

import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tomli_w
from fake_comparison import comparison, contest, finish

from opd import recipes
from opd.cast import teacher_spec
from opd.cli import comparing, options
from opd.cli.main import main
from opd.cli.training import settings_of
from opd.compare import verdicts
from opd.compare.check import check_folders
from opd.compare.course import possible, tuned
from opd.compare.curves import mean
from opd.compare.outcome import look
from opd.compare.plan import TUNING_SEED, Entrant
from opd.compare.pool import EVERY, Pool, command, log_of, nursery, words
from opd.compare.tuning import better, choose, outward, rates
from opd.compare.watching import Pace
from opd.errors import SettingError
from opd.examined import examined, split
from opd.lab.toy import problems
from opd.record import resolved
from opd.settings import Settings

# ---- what was typed


def test_parameters_of_a_method():
    entrant = Entrant.of("gkd:lam=1,mean=token_mean")
    assert (entrant.method, entrant.parameters) == ("gkd", {"lam": 1.0, "mean": "token_mean"})
    listed = Entrant.of("decoupled:ladder=7,14,20,every=10")
    assert (
        listed.parameters == {"ladder": (7, 14, 20), "every": 10} and listed.slug == "decoupled-ladder=7-14-20-every=10"
    )


REFUSED = [
    (["gdk"], [], "unknown method"),
    (["gkd:lamb=1"], [], "unknown parameter of gkd"),
    (["gkd:lam=much"], [], "expected a number"),
    (["gkd:1"], [], "expected gkd:name=value"),
    (["decoupled:ladder=7,much"], [], "got 'much', expected a whole number"),
    (["gkd:lam=1,lam=0"], [], "given twice"),
    (["gkd", "gkd:lam=0.5"], [], "two methods are the same"),
    (["sft", "sft"], [], "two methods are the same"),
    (["sft"], ["--seeds", "0"], "seeds: got 0"),
    (["sft"], ["--seeds", "some"], "expected a whole number"),
    (["sft"], ["--jobs", "-1"], "jobs"),
    (["sft"], ["--budget", "hours=2"], "unknown unit of a budget"),
    (["sft"], ["--budget", "tokens=0"], "expected a whole number above 0"),
    (["sft"], ["--budget", "tokens=9", "--steps", "3"], "a run ends once"),
    (["sft"], ["--tune", "batch=1,2"], "expected lr= and numbers"),
    (["sft"], ["--tune", "lr=1e-3,-1"], "expected a number above 0"),
    (["sft"], ["--tune", "lr=1e-3,1e-3"], "tried twice"),
    (["sft"], ["--tune", "lr=1e-3", "--lr", "1"], "given together"),
    (["sft"], ["--tuning-seeds", "3"], "without rates to choose from"),
    (["sft"], ["--further-rates", "2"], "without rates to choose from"),
    (["sft"], ["--tune", "lr=1e-3", "--further-rates", "2"], "rates to begin with: got 1, expected two at least"),
    (["sft"], ["--tune", "lr=1e-3,1e-2", "--further-rates", "-1"], "further rates: got -1"),
    (["sft"], ["--tune", "lr=1e-3", "--tuning-seeds", "0"], "tuning seeds"),
    (["sft", "gkd"], ["--baseline", "sfd"], "one of sft, gkd"),
    (["sft"], ["--seed", "3"], "no option '--seed'"),
    ([], [], "needs methods"),
    # what only the models and the task can tell
    (["sft", "gkd"], ["--budget", "teacher_tokens=100"], "sft asks the teacher nothing"),
    (["sft", "local_support:k=100000"], [], "larger than the vocabulary"),
    (["sft", "gkd"], ["--tune", "lr=1e-3", "--tuning-problems", "512"], "no problem would be left"),
    (["sft"], ["--task", "jsonl:nothing.jsonl"], "nothing.jsonl"),
]


@pytest.mark.parametrize(("methods", "given", "said"), REFUSED)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(methods, given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *methods, *given, "--device", "cpu"]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_every_setting_reaches_the_run_as_it_was():
    settings = Settings.of(
        method="gkd", parameters={"lam": 1, "mean": "token_mean"}, teacher="embedded:teacher", task="sums,train=64",
        budget="tokens=500", lr=3e-4, betas=(0.8, 0.9), gradient_checkpointing=True, out="a/b", eval_on="tuning",
        tuning_problems=5,
    )  # fmt: skip
    known = [*options.of_method("gkd"), *options.of_settings()]
    places, given = options.parse(words(settings), known, "train gkd")
    assert settings_of(places[0], "gkd", given) == settings


def test_a_run_beside_others_has_one_thread(tmp_path):
    (trial,) = contest(tmp_path, "sft", seeds=1).reported({"sft": 1e-3}, 0)
    assert "--threads=1" in command(trial, 2) and "--threads=1" not in command(trial, 1)


# ---- the plan


def test_all_runs_share_everything_but_method_rate_and_seed(tmp_path):
    made = contest(tmp_path, "sft", "gkd:lam=1", seeds=2, rates=(1e-3, 3e-3))
    tuning, reported = made.tuning(7), made.reported({"sft": 1e-3, "gkd:lam=1": 3e-3}, 7)
    assert len(tuning) == 4 and len(reported) == 4
    assert len({trial.folder for trial in [*tuning, *reported]}) == 8
    apart = {"method", "parameters", "lr", "seed", "out"}
    shared = [trial.settings.model_dump(exclude=apart) for trial in reported]
    assert all(one == shared[0] for one in shared)
    assert {trial.seed for trial in reported} == {0, 1} and {trial.seed for trial in tuning} == {TUNING_SEED}
    assert {trial.settings.eval_on for trial in tuning} == {"tuning"}


def test_tuning_problems_are_none_of_the_reported_ones():
    held_out = problems(20)
    aside, reported = split(held_out, 6)
    assert len(aside) == 6 and {p.id for p in aside} | {p.id for p in reported} == {p.id for p in held_out}
    assert not {p.id for p in aside} & {p.id for p in reported}
    assert split(held_out, 6) == (aside, reported)
    assert examined(held_out, 0, "reported", 5) == held_out[:5]
    for tuning, part in ((20, "reported"), (0, "tuning")):
        with pytest.raises(SettingError):
            examined(held_out, tuning, part, 5)


def test_a_folder_with_another_run_is_refused(tmp_path):
    made = contest(tmp_path, "sft", seeds=2)
    trials = possible(made, 0)
    finish(trials[0], 0.5)
    check_folders(trials)
    other = contest(tmp_path, "sft", seeds=2, shared={"batch": 3})
    with pytest.raises(SettingError, match="another batch: got 16, expected 3"):
        check_folders(possible(other, 0))


def test_a_finished_run_without_a_teacher_is_left(tmp_path):
    """Its folder names nobody as the teacher, which the settings of the comparison do not."""
    words = ("grpo", "sft:solution=solution", "constant_negative")
    trials = possible(contest(tmp_path, *words, seeds=1, shared={"student": "somewhere"}), 0)
    for trial in trials:
        finish(trial, 0.5)
        nobody = resolved(trial.settings) | {"teacher": teacher_spec(trial.settings, trial.settings.build_method())}
        assert nobody["teacher"] == "none"
        (trial.folder / "run.toml").write_text(tomli_w.dumps(nobody))
    check_folders(trials)


def test_seconds_are_not_shared_unless_asked():
    assert comparing.contest_of(["sft"], {"budget": "seconds=5"})[1] == 1
    assert comparing.contest_of(["sft"], {"budget": "seconds=5", "jobs": "3"})[1] == 3


# ---- conclusions


def test_a_control_is_beaten_or_not(tmp_path):
    made = contest(tmp_path, "sampled_token", "shuffled", "gkd", "constant_negative")
    found = {"sampled_token": 0.5, "gkd": 0.9, "shuffled": 0.1, "constant_negative": 0.5}
    said = comparison(made, found).verdicts
    assert [text.partition(":")[0] for text in said] == [
        "sampled_token beats the control shuffled",
        "sampled_token does not beat the control constant_negative",
        "gkd beats the control shuffled",
        "gkd beats the control constant_negative",
    ]


def test_every_control_is_a_method():
    assert set(verdicts.CONTROLS) <= set(recipes.names())


def test_without_a_control_that_is_said(tmp_path):
    said = comparison(contest(tmp_path, "sft", "gkd"), {"sft": 0.5, "gkd": 0.9}).verdicts
    assert "Nothing here was held against a control" in said[0]


def test_a_method_that_moved_nothing_is_named(tmp_path):
    said = comparison(contest(tmp_path, "sft", "gkd"), {"sft": 0.3, "gkd": 0.9}).verdicts
    assert sum("cannot be told from the student before training" in text for text in said) == 1
    assert any(text.startswith("sft cannot be told") for text in said)


def test_one_seed_is_said_to_be_one(tmp_path):
    made = comparison(contest(tmp_path, "sft", "gkd", seeds=1), {"sft": 0.5, "gkd": 0.9})
    assert any(note.startswith("One seed: intervals are over problems only") for note in made.notes)
    assert made.differences[0].interval.is_above


def test_a_task_without_grades_is_judged_by_its_reverse_kl(tmp_path):
    made = comparison(contest(tmp_path, "shuffled", "gkd"), {"shuffled": 0.2, "gkd": 0.9}, graded=False)
    assert made.field.measure == "reverse_kl"
    assert made.verdicts[0].startswith("gkd beats the control shuffled: −0.700 nats of reverse KL")


def test_a_broken_run_costs_nobody_else(tmp_path):
    why = "3 updates in a row had no finite gradient"
    made = comparison(contest(tmp_path, "sft", "gkd"), {"sft": 0.5, "gkd": 0.9}, {"gkd, lr 0.001, seed 1": why})
    lines = {line.label: line for line in made.lines}
    assert lines["gkd"].seeds == (0, 2) and lines["gkd"].errors == (f"seed 1: {why}",)
    assert lines["sft"].seeds == (0, 1, 2)
    assert {gap.seeds for gap in made.differences} == {2} and not made.is_whole
    assert any("Broken" in note for note in made.notes)


def test_nothing_at_all_finished(tmp_path):
    names = [f"{label}, lr 0.001, seed {seed}" for label in ("sft", "gkd") for seed in range(3)]
    made = comparison(contest(tmp_path, "sft", "gkd"), {}, dict.fromkeys(names, "no memory"))
    assert [line.numbers for line in made.lines] == [{}, {}] and made.differences == []
    json.dumps(made.to_json())


def test_the_best_rate_on_the_tuning_problems_is_chosen(tmp_path):
    made = contest(tmp_path, "sft", "gkd", seeds=1, rates=(1e-3, 0.5))
    found = comparison(made, {"sft": 0.8, "gkd": 0.9}, {"gkd, lr 0.5": "not finite"})
    chosen = {one.label: one.lr for one in found.tried if one.is_chosen}
    assert chosen == {"sft": 1e-3, "gkd": 1e-3}
    assert [one.error for one in found.tried] == ["", "", "", "not finite"]
    assert not any("see --tune" in note for note in found.notes)


def test_a_rate_is_chosen_by_what_the_comparison_is_about(tmp_path):
    trials = contest(tmp_path, "sft", seeds=1, rates=(1e-3, 1e-2)).tuning(20)
    for trial, (accuracy, kl) in zip(trials, ((1.0, 0.9), (0.0, 0.1)), strict=True):
        finish(trial, accuracy, kl)
    runs = [look(trial, {}) for trial in trials]
    goals = ("sampled", "greedy", "reverse_kl")
    assert [rates(choose(runs, goal))["sft"] for goal in goals] == [1e-3, 1e-3, 1e-2]
    graded = runs[0].summary["student_after"]["greedy"]
    graded["grade"] = -1.0
    assert rates(choose(runs, "greedy"))["sft"] == 1e-2 and rates(choose(runs))["sft"] == 1e-3


def test_the_better_half_of_the_rates_is_tried_with_more_seeds_and_their_means_decide(tmp_path):
    made = contest(tmp_path, "sft", seeds=1, rates=(1e-3, 3e-3, 1e-2, 3e-2), tuning_seeds=3)
    first = made.tuning(20)
    for trial, accuracy in zip(first, (0.5, 0.6, 0.7, 0.2), strict=True):
        finish(trial, accuracy, 0.5)
    once = [look(trial, {}) for trial in first]
    assert better(once, "sampled") == {"sft": [1e-2, 3e-3]} and rates(choose(once)) == {"sft": 1e-2}
    again = made.tuning_again(better(once, "sampled"), 20)
    assert [(trial.lr, trial.seed - TUNING_SEED) for trial in again] == [(1e-2, 1), (3e-3, 1), (1e-2, 2), (3e-3, 2)]
    for trial, accuracy in zip(again, (0.0, 0.4, 0.1, 0.4), strict=True):
        finish(trial, accuracy, 0.5)
    tried = choose([*once, *(look(trial, {}) for trial in again)])
    assert rates(tried) == {"sft": 3e-3}  # 1e-3 had more with its one seed
    assert [one.seeds for one in tried] == [1, 3, 3, 1]
    assert tried[1].accuracy == pytest.approx((0.6 + 0.4 + 0.4) / 3, abs=0.03)
    assert made.most_runs == 4 + 4 + 1


def test_a_grid_goes_on_beyond_its_best_rate_until_a_worse_one_is_outside(tmp_path):
    made = contest(tmp_path, "sft", "gkd", "shuffled", seeds=1, rates=(3e-3, 1e-3, 1e-2), further_rates=2)
    assert made.reachable_rates == (1.11e-4, 3.33e-4, 1e-3, 3e-3, 1e-2, 3.33e-2, 0.111)
    done = {
        "sft": {1e-3: 0.1, 3e-3: 0.2, 1e-2: 0.3, 3.33e-2: 0.2},  # the third of four
        "gkd": {1e-3: 0.1, 3e-3: 0.3, 1e-2: 0.2},  # inside from the start
        "shuffled": {1e-3: 0.3, 3e-3: 0.2, 1e-2: 0.1, 3.33e-4: 0.4, 1.11e-4: 0.5},  # and no further than asked
    }
    wanted = [made.tuning_further({label: rate}, 20) for label, rates in done.items() for rate in rates]
    for (trial,) in wanted:
        finish(trial, done[trial.entrant.label][trial.lr], 0.5)
    runs = tuned(made, 20, 1, seen := Seen())
    assert {label: [r.trial.lr for r in runs if r.trial.entrant.label == label] for label in done} == {
        "sft": [3e-3, 1e-3, 1e-2, 3.33e-2], "gkd": [3e-3, 1e-3, 1e-2], "shuffled": [3e-3, 1e-3, 1e-2, 3.33e-4, 1.11e-4],
    }  # fmt: skip
    assert seen.started == [] and rates(choose(runs)) == {"sft": 1e-2, "gkd": 3e-3, "shuffled": 1.11e-4}
    assert made.most_runs == 3 * (1 + 3 + 2)
    folders = [trial.folder for trial in possible(made, 20)]
    assert all(trial.folder in folders for trial in made.reported({"sft": 0.111, "shuffled": 1.11e-4}, 20))


def test_a_method_whose_every_rate_broke_tries_a_lower_one(tmp_path):
    made = contest(tmp_path, "sft", seeds=1, rates=(1e-3, 1e-2), further_rates=1)
    broken = {trial.folder: "not finite" for trial in made.tuning(20)}
    assert outward([look(trial, broken) for trial in made.tuning(20)], "sampled") == {"sft": 1e-4}


@pytest.mark.parametrize("best", [0, 1, 2])
def test_where_every_rate_does_harm_a_lower_one_is_tried_whichever_is_the_best(tmp_path, best):
    made = contest(tmp_path, "sft", seeds=1, rates=(1e-3, 3e-3, 1e-2), further_rates=2)
    first = made.tuning(20)
    for number, trial in enumerate(first):
        finish(trial, 0.1 if number == best else 0.0)  # the untaught student had about 0.3
    assert outward([look(trial, {}) for trial in first], "sampled") == {"sft": 3.33e-4}
    (lower,) = made.tuning_further({"sft": 3.33e-4}, 20)
    finish(lower, 0.05)
    assert outward([look(trial, {}) for trial in [*first, lower]], "sampled") == {"sft": 1.11e-4}
    finish(lower, 0.8)
    (lowest,) = made.tuning_further({"sft": 1.11e-4}, 20)
    finish(lowest, 0.6)
    assert outward([look(trial, {}) for trial in [*first, lower, lowest]], "sampled") == {}


@pytest.mark.parametrize(("goal", "graded"), [("reverse_kl", True), ("sampled", False)])
@pytest.mark.parametrize(("kl", "wanted"), [(1.6, {}), (1.8, {"sft": 3.33e-4})])
def test_harm_is_judged_by_what_rates_are_chosen_by(tmp_path, goal, graded, kl, wanted):
    trials = contest(tmp_path, "sft", seeds=1, rates=(1e-3, 3e-3, 1e-2)).tuning(20)
    for trial, its in zip(trials, (2.0, kl, 2.0), strict=True):
        finish(trial, 0.9 if kl > 1.7 else 0.0, its, graded)  # the untaught student had 1.7
    assert outward([look(trial, {}) for trial in trials], goal) == wanted


def test_a_rate_that_breaks_with_another_tuning_seed_is_not_chosen(tmp_path):
    made = contest(tmp_path, "sft", seeds=1, rates=(1e-3, 1e-2), tuning_seeds=2)
    first = made.tuning(20)
    for trial, accuracy in zip(first, (0.3, 0.9), strict=True):
        finish(trial, accuracy, 0.5)
    once = [look(trial, {}) for trial in first]
    low, high = sorted(made.tuning_again(better(once, "sampled"), 20), key=lambda trial: trial.lr)
    finish(low, 0.3, 0.5)
    tried = choose([*once, look(low, {}), look(high, {high.folder: "not finite"})])
    assert rates(tried) == {"sft": 1e-3} and tried[1].error == "tuning seed 1: not finite"


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_rate_is_chosen_by_reverse_kl_where_the_task_grades_nothing(tmp_path, seeds):
    made = contest(tmp_path, "sft", seeds=1, rates=(1e-3, 1e-2), tuning_seeds=seeds)
    first = made.tuning(20)
    again = made.tuning_again({"sft": [1e-3, 1e-2]}, 20)
    for trial in [*first, *again]:
        finish(trial, 0.5, {1e-3: 0.9, 1e-2: 0.1}[trial.lr], graded=False)
    tried = choose([look(trial, {}) for trial in [*first, *again]])
    assert rates(tried) == {"sft": 1e-2} and {(one.accuracy, one.greedy) for one in tried} == {(None, None)}
    assert [one.reverse_kl for one in tried] == pytest.approx([0.9, 0.1])


def test_more_tuning_seeds_leave_the_runs_that_are_there_as_they_are(tmp_path):
    folders = [
        [t.folder for t in contest(tmp_path, "sft", seeds=1, rates=(1e-3,), tuning_seeds=n).tuning(20)] for n in (1, 3)
    ]
    assert folders[0] == folders[1]


def test_means_of_curves_of_different_lengths_end_at_their_ends():
    assert mean([[(0, 1.0), (10, 3.0)], [(0, 2.0), (6, 9.0), (12, 5.0)]]) == [(0, 1.5), (11, 4.0)]


def test_pace_reads_what_was_written_since(tmp_path):
    (trial,) = contest(tmp_path, "sft", seeds=1).reported({"sft": 1e-3}, 0)
    pace = Pace(trial)
    assert pace.share() == 0
    trial.folder.mkdir(parents=True)
    file = trial.folder / "metrics.jsonl"
    file.write_text('{"step": 0, "eval.greedy": 1}\n{"step": 0, "loss": 1}\n{"step": 1, "lo')
    assert pace.share() == 1 / 20
    with file.open("a") as opened:
        opened.write('ss": 1}\n')
    assert pace.share() == 2 / 20
    file.write_text('{"step": 0, "loss": 1}\n')
    assert pace.share() == 1 / 20


# ---- real processes


class Seen:
    """An onlooker that remembers what was started."""

    def __init__(self):
        self.started = []

    def begun(self, trial):
        self.started.append(trial.name)

    def looked(self, running): ...
    def ended(self, trial, error): ...


def test_a_run_that_another_process_is_making_is_waited_for(tmp_path):
    (trial,) = contest(tmp_path, "sft", seeds=1, common=tmp_path / "runs").reported({"sft": 1e-3}, 0)
    log_of(trial).parent.mkdir(parents=True)
    held = log_of(trial).open("ab")
    fcntl.flock(held, fcntl.LOCK_EX)  # as a run does for as long as it lives

    def end():
        finish(trial, 0.5)
        held.close()

    threading.Timer(3 * EVERY, end).start()
    pool = Pool(1, seen := Seen())
    pool.run([trial])
    assert seen.started == [] and not pool.errors and (trial.folder / "summary.json").is_file()


def test_comparisons_that_share_runs_mean_the_same_by_the_same_folder(tmp_path):
    common = tmp_path / "runs"
    one, again, other = (
        contest(tmp_path / name, "sft", seeds=1, common=common, shared={"batch": batch}).reported({"sft": 1e-3}, 0)[0]
        for name, batch in (("a", 4), ("b", 4), ("c", 5))
    )
    assert one.folder == again.folder != other.folder and one.folder.parent == other.folder.parent == common


FAST = [
    *("--budget", "steps=60", "--batch", "4", "--max-new", "16", "--eval-problems", "8", "--drafts", "0"),
    *("--eval-every", "0", "--checkpoint-every", "0", "--jobs", "2", "--lr", "1e-3"),
]


METHODS = ["sft", "gkd:lam=1"]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ends(pid: int) -> bool:
    """Whether it ends by itself within half a minute."""
    for _ in range(600):
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_stopped_broken_and_continued(tmp_path, capsys):
    folder = tmp_path / "versus"
    words = ["compare", *METHODS, *FAST, "--out", str(folder)]
    runs = [folder / "runs" / name for name in ("sft-lr0.001-seed0", "gkd-lam=1-lr0.001-seed0")]
    stop_in_the_middle(words, runs)
    stopped = [run for run in runs if not (run / "summary.json").is_file()]
    (saved,) = (stopped[0] / "checkpoints").iterdir()
    moving = (saved / "moving.json").read_text()
    (saved / "moving.json").write_text("half of it")

    assert main(words) == 1, "one run is broken, the other comes to its end"
    assert "cannot be read" in capsys.readouterr().out
    found = json.loads((folder / "comparison.json").read_text())
    assert sorted(bool(run["error"]) for run in found["runs"]) == [False, True]
    done = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/summary.json")}

    (saved / "moving.json").write_text(moving)
    assert main(words) == 0, "the broken one goes on, the other is left"
    assert len(done) == 1 and all(file.stat().st_mtime_ns == then for file, then in done.items())
    found = json.loads((folder / "comparison.json").read_text())
    assert [line["label"] for line in found["table"]] == ["student before", *METHODS, "teacher"]
    assert all((folder / run["folder"] / "report.html").is_file() for run in found["runs"])


@pytest.mark.slow
def test_a_forked_run_has_the_bits_of_one_that_was_started_by_itself(tmp_path):
    order = ["train", "sft", "--batch", "4", "--max-new", "16", "--eval-problems", "8", "--threads=1"]
    with (tmp_path / "log").open("wb") as log:
        forked = nursery().start([*order, "--steps=3", f"--out={tmp_path / 'forked'}"], log)
        broken = nursery().start(["train", "sft", "--steps=none"], log)
        killed = nursery().start([*order, f"--out={tmp_path / 'killed'}"], log)
        killed.kill()
    subprocess.run([sys.executable, "-m", "opd", *order, "--steps=3", f"--out={tmp_path / 'alone'}"], check=True)
    while None in (codes := [run.poll() for run in (forked, broken, killed)]):
        time.sleep(0.05)
    assert codes == [0, 2, -signal.SIGKILL]
    assert "steps" in (tmp_path / "log").read_text()
    one, other = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("forked", "alone"))
    assert one == other


def stop_in_the_middle(words: list[str], runs: list[Path]) -> None:
    """Ctrl-C when both runs have learned: they save, and no process is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "opd", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    files = [run / "metrics.jsonl" for run in runs]
    while process.poll() is None and not all(file.is_file() and '"loss"' in file.read_text() for file in files):
        time.sleep(0.05)
    (nursery,) = children(process.pid)
    running = children(nursery)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 130 and "the same command goes on from there" in said, said
    assert len(running) == 2 and not any(map(is_alive, running))
    assert ends(nursery)
    assert all(list((run / "checkpoints").iterdir()) for run in runs)
