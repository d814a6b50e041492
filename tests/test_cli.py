"""What a person types and sees: mostly in this process, in a real one where only that proves something."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
import pytest
from rich.console import Console

from opd import contract, recipes
from opd.cli import display, loggers, options
from opd.cli import main as entry
from opd.cli.main import main
from opd.cli.training import settings_of
from opd.errors import MethodError, SettingError
from opd.settings import Settings

ROOT = Path(entry.__file__).parents[2]
PROBLEMS = [{"prompt": f"{i}+{j}=", "answer": str(i + j)} for i in range(8) for j in range(8)]
FAST = ["--steps", "3", "--batch", "2", "--max-new", "4", "--eval-problems", "4", "--drafts", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a student, a teacher and a task."""
    folder = tmp_path_factory.mktemp("cli")
    models.folder(folder / "student")
    models.folder(folder / "teacher", seed=1)
    (folder / "sums.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def opd(capsys):
    """Runs a command line in this process: exit code, stdout, stderr."""

    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


WHO = ["--student", "student", "--teacher", "teacher", "--task", "jsonl:sums.jsonl"]


def start(*words, **how):
    """The same in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "opd", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


# ---- help


def test_help_and_lists_import_no_torch():
    code = """
import sys
from opd.cli.main import main
for words in [["--version"], ["--help"], ["list"], ["train", "--help"], ["train", "gkd", "--help"], ["eval", "--help"],
              ["show", "--help"], ["check", "--help"], ["check", "gkd", "--help"], ["report", "--help"],
              ["compare", "--help"]]:
    assert main(words) == 0, words
heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_word_at_all_is_help(opd):
    code, out, err = opd()
    assert code == 0 and not err
    assert all(f"opd {name}" in out for name in entry.COMMANDS)
    assert opd("help", "train")[1] == opd("train", "--help")[1]


def test_list_names_every_method(opd):
    _, out, _ = opd("list")
    lines = out.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.names())
    found = {line.split()[0]: line for line in lines}
    assert "  inferred  " in found["raps_da"] and "  open      " in found["power"] and "  known     " in found["gkd"]
    assert all(len(line.split()) > 3 for line in lines)


def test_help_of_train_names_every_option(opd):
    _, out, _ = opd("train", "gkd", "--help")
    assert "--lam X" in out and "Parameters of gkd" in out
    for name in set(Settings.model_fields) - {"method", "parameters"}:
        assert f"--{name.replace('_', '-')}" in out


@pytest.mark.parametrize("name", recipes.names())
def test_parameters_are_told_apart_from_settings(name):
    described = recipes.describe(name)
    assert not {p.name for p in described.parameters} & {*Settings.model_fields, "resume", "help", "debug"}
    assert all(p.help for p in described.parameters), "every parameter has a line of help"


def test_groups_begin_at_fields_of_settings():
    assert set(options.GROUPS) <= set(Settings.model_fields)


# ---- options

OPTIONS = [
    options.Option("top_p", "float", 1.0, "nucleus"),
    options.Option("fresh", "bool", False, "new ones"),
    options.Option("layers", "tuple[int, ...]", (0,), "blocks"),
    options.Option("kind", "Literal['a', 'b']", "a", "which"),
]


@pytest.mark.parametrize(
    ("words", "places", "values"),
    [
        ("x --top-p 0.9", ["x"], {"top_p": "0.9"}),
        ("--top_p=0.9 x", ["x"], {"top_p": "0.9"}),
        ("--fresh x", ["x"], {"fresh": True}),
        ("--no-fresh", [], {"fresh": False}),
        ("--fresh=false", [], {"fresh": "false"}),
        ("--layers -1,2", [], {"layers": ["-1", "2"]}),
        ("--layers 3", [], {"layers": ["3"]}),
        ("--top-p -1", [], {"top_p": "-1"}),
        ("--top-p 1 --top-p 2", [], {"top_p": "2"}),
    ],
)
def test_parse(words, places, values):
    assert options.parse(words.split(), OPTIONS, "x") == (places, values)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--top-q 1", "Did you mean '--top-p'"),
        ("--zzzzzzzz 1", "See opd x --help"),
        ("--top-p", "--top-p needs a value"),
        ("--top-p --fresh", "got '--fresh'"),
        ("--no-top-p", "no option '--no-top-p'"),
        ("-f", "no option '-f'"),
    ],
)
def test_parse_refuses(words, sentence):
    with pytest.raises(SettingError) as error:
        options.parse(words.split(), OPTIONS, "x")
    assert sentence in str(error.value)


def test_usage_of_options():
    assert [option.usage for option in OPTIONS] == ["--top-p X", "--fresh", "--layers N,N", "--kind NAME"]
    assert OPTIONS[3].explained == "which: a or b [a]"


def test_words_and_toml_give_the_same_settings(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'method = "representation"\nlr = 0.001\nbetas = [0.9, 0.95]\n[parameters]\nlayers = [-1, 2]\nn = 3\n'
    )
    words = {"layers": ["-1", "2"], "n": "3", "lr": "1e-3", "betas": ["0.9", "0.95"]}
    typed = settings_of("representation", "representation", words)
    assert settings_of(str(file), "representation", {}) == typed
    assert typed.parameters == {"layers": (-1, 2), "n": 3} and typed.betas == (0.9, 0.95)
    over = settings_of(str(file), "representation", {"n": "4", "lr": "0.5"})
    assert over.parameters == {"layers": (-1, 2), "n": 4} and over.lr == 0.5


# ---- methods


@pytest.mark.parametrize("name", recipes.names())
def test_show_says_what_a_method_is_made_of(opd, name):
    code, out, err = opd("show", name)
    assert code == 0 and not err
    for word in (
        "sample",
        "teach",
        "credit",
        "loss",
        "mean",
        "updates",
        "student learns",
        "Equation:",
        "Parameters of",
    ):
        assert word in out
    assert " at 0x" not in out and "<function" not in out


def test_check_ticks_every_line(opd):
    code, out, _ = opd("check", "gkd", "--lam", "1")
    assert code == 0 and out.count("✓") == 8 and "keeps the contract" in out


def test_check_of_a_broken_method_ends_with_1(opd, monkeypatch):
    def check(build):
        yield "something", "fine"
        raise MethodError("contract broken: something else", got=1)

    monkeypatch.setattr(contract, "check", check)
    code, out, _ = opd("check", "gkd")
    assert code == 1 and "✓ something: fine\n✗ contract broken: something else" in out


# ---- a run, from the shell's point of view


@pytest.fixture(scope="module")
def finished(place):
    """A run in a real process, asked to stop in its middle by Ctrl-C: its folder, what it said, its exit code."""
    words = ["train", "gkd", *WHO, *FAST, "--lam", "1", "--steps", "2000", "--out", "run"]
    process = start(*words, cwd=place)
    assert process.stdout and process.stderr
    seen = list[str]()
    for line in process.stdout:
        seen.append(line)
        if line.startswith("step 1/"):
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    return place / "run", "".join(seen), error, process.wait()


def test_ctrl_c_saves_and_says_how_to_go_on(finished):
    folder, out, error, code = finished
    assert code == 130 and not error
    assert out.rstrip().endswith("continue with: opd train --resume run")
    step = int(out.rstrip().splitlines()[-1].split("stopped after step ")[1].split(";")[0])
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert "held out" in out and "tokens/s" in out


def test_resume_goes_on_to_the_end(finished, here, opd):
    run = here / "run" / "run.toml"
    done = max(int(path.name[5:]) for path in (here / "run" / "checkpoints").iterdir())
    run.write_text(run.read_text().replace("steps = 2000", f"steps = {done + 2}"))
    code, out, err = opd("train", "--resume", "run")
    assert code == 0 and not err
    assert f"continuing after step {done}" in out and "reverse KL:" in out
    assert (here / "run" / "model" / "model.safetensors").is_file()
    assert opd("train", "--resume", "run")[1].startswith("run is finished")


def test_a_run_can_be_made_again_from_its_own_toml(here, opd):
    assert opd("train", "gkd", *WHO, *FAST, "--lam", "1", "--out", "first")[0] == 0
    assert opd("train", "first/run.toml", "--out", "second")[0] == 0

    def numbers(name):
        lines = [json.loads(line) for line in (here / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]

    assert numbers("first") == numbers("second")


def test_eval_in_words_and_in_json(here, opd):
    words = ("eval", "student", "--task", "jsonl:sums.jsonl", "--problems", 4, "--samples", 2, "--max-new", 4)
    code, out, err = opd(*words, "--teacher", "teacher")
    assert code == 0 and not err
    assert all(word in out for word in ("greedy", "avg@2", "pass@2", "cut off", "reverse KL to the teacher"))
    found = json.loads(opd(*words, "--json")[1])
    assert found["problems"] == 4 and found["sampled"]["samples"] == 2 and found["model"] == "student"


def test_report_prints_where_the_page_is(here, opd):
    assert opd("train", "gkd", *WHO, *FAST, "--out", "reported")[0] == 0
    code, out, err = opd("report", "reported")
    assert code == 0 and not err and Path(out.strip()).is_file()


# ---- how it ends


def test_nobody_reads_any_more():
    process = start("list")
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait() == 141 and not process.stderr.read()


def test_a_bug_is_called_one(opd, monkeypatch):
    def fail(words):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("opd.cli.methods.list_", fail)
    code, _, err = opd("list")
    assert code == 1 and err.startswith("opd: a bug of opd") and "--debug" in err and "Traceback" not in err
    assert "Traceback" in opd("list", "--debug")[2]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "opd: interrupted\n"),
        (OSError(28, "No space left on device", "metrics.jsonl"), 2, "opd: No space left on device: metrics.jsonl.\n"),
        (SettingError("a thing", got=1), 2, "opd: a thing: got 1.\n"),
    ],
)
def test_exit_codes(opd, monkeypatch, error, code, sentence):
    def fail(words):
        raise error

    monkeypatch.setattr("opd.cli.methods.list_", fail)
    assert opd("list") == (code, "", sentence)


# ---- display


def metrics(step, **more):
    seconds = {f"seconds.{phase}": 0.5 for phase in display.PHASES}
    return {"step": step, "loss": 2.0 - step / 100, "tokens": 100.0, "length": 7.0, "truncated": 0.0, **seconds, **more}


EXAM = {
    "step": 0, "eval.greedy": 0.5, "eval.greedy.low": 0.4, "eval.greedy.high": 0.6, "eval.greedy.length": 12.0,
    "eval.greedy.truncated": 0.25, "eval.reverse_kl": 1.25,
}  # fmt: skip


def test_plain_lines_are_about_twenty(capsys):
    lines = display.Lines()
    lines.steps = 150
    for step in range(150):
        lines.stepped(metrics(step))
    out = capsys.readouterr().out.splitlines()
    assert 15 <= len(out) <= 21 and out[0].startswith("step 1/150") and out[-1].startswith("step 150/150")
    assert "tokens/s: sample 200, teach 200, learn 200" in out[0] and "left 3:44" in out[0]
    lines.examined(EXAM)
    assert (
        capsys.readouterr().out
        == "step 0  held out: greedy 50.0% (40.0 to 60.0)  reverse KL 1.25  length 12  cut off 25%\n"
    )


def test_a_warning_is_given_once(capsys):
    lines = display.Lines()
    lines.steps = 1000
    for step in range(1, 9):
        lines.stepped(metrics(step, truncated=0.75, refused=1.0))
    out = capsys.readouterr().out
    assert out.count("75% of the answers of step 2 are cut off") == 1 and out.count("without a finite gradient") == 1


def test_the_panel_shows_the_same_numbers():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    panel = display.LivePanel(console)
    console.print(panel.panel())
    panel.title, panel.steps = "gkd on [sums]", 10
    panel.phase("examining student", 3, 8)
    panel.examined(EXAM)
    panel.examined({**EXAM, "step": 4, "eval.greedy": 0.75})
    panel.stepped(metrics(4))
    console.print(panel.panel())
    out = console.file.getvalue()
    assert all(word in out for word in ("gkd on [sums]", "step 5/10", "1.96", "greedy 75.0%", "at first", "teach 200"))


def test_words_for_numbers():
    assert (
        display.spark([0, 1, 2, float("nan")]) == "▁▅█ " and display.spark([]) == "" and display.spark([3, 3]) == "▁▁"
    )
    assert [display.clock(s) for s in (5, 65, 3700)] == ["0:05", "1:05", "1:01:40"]
    assert [display.counted(n) for n in (7, 73_800, 596_000_000, 4 * 10**9)] == ["7", "73.8k", "596M", "4B"]


# ---- loggers


def test_a_logger_that_is_not_installed_is_missed_before_anything_is_built(here, opd, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    code, out, err = opd("train", "gkd", *WHO, *FAST, "--logger", "trackio", "--out", "unlogged")
    assert (code, out) == (2, "") and "pip install opd[loggers]" in err and not (here / "unlogged").exists()


def test_loggers_get_the_finite_numbers_by_their_path():
    line = {"loss": 1.0, "lr": float("nan"), "ok": True, "who": "x", "eval": {"by_problem": {"a": 1.0}, "kl": {"x": 2}}}
    assert dict(loggers.flat(line)) == {"loss": 1.0, "eval.kl.x": 2.0}


class Service:
    """Stands for wandb and trackio, which share an interface."""

    def __init__(self):
        self.seen = []

    def login(self, prompt):
        return False

    def init(self, **how):
        self.seen.append(how)
        return self

    def log(self, numbers, step):
        self.seen.append((step, numbers))

    def finish(self):
        self.seen.append("finish")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_count_steps_from_the_first_learned_one(here, opd, monkeypatch, name):
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: type("Spec", (), {"origin": "file"}))
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert opd("train", "gkd", *WHO, *FAST, "--logger", name, "--out", f"logged-{name}")[0] == 0
    first, *logged, last = service.seen
    assert first["project"] == "opd" and first["config"]["method"] == "gkd" and last == "finish"
    assert (
        [step for step, _ in logged] == [0, 1, 2, 3, 3] and "loss" in logged[1][1] and "eval.reverse_kl" in logged[0][1]
    )


def test_wandb_without_a_key_is_told_before_anything_is_built(here, opd, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Service())
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: type("Spec", (), {"origin": "file"}))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    code, _, err = opd("train", "gkd", *WHO, *FAST, "--logger", "wandb", "--out", "keyless")
    assert code == 2 and "WANDB_MODE=offline" in err and not (here / "keyless").exists()


def test_tensorboard_files_hold_the_numbers(here, opd):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert opd("train", "gkd", *WHO, *FAST, "--logger", "tensorboard", "--out", "boarded")[0] == 0
    events = accumulator.EventAccumulator(str(here / "boarded" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
