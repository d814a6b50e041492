"""Texts that have ended go to a served teacher while others are being written: the same run, only sooner."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from serving import ENVIRONMENT, TOKEN, Serve, through, written

from opd import Run, Settings, recipes
from opd import cast as casting
from opd.ahead import Telling
from opd.build import build
from opd.errors import Unanswered
from opd.loop import train
from opd.method import Ask
from opd.protocols import Sample, Want
from opd.rollout import Problem, Sampling
from opd.teach import as_written
from opd.teachers.renamed import Renamed
from opd.teachers.routed import Routed
from opd.teachers.served import Served

SMALL = {"steps": 3, "batch": 12, "lr": 1e-3, "max_new": 90, "eval_problems": 2, "drafts": 1, "doctor": "off"}
METHOD = {"method": "gkd", "parameters": {"lam": 1.0}, "teacher_timeout": 30.0, "teacher_patience": 60.0}
TIMED = ("seconds.", "served.seconds", "served.bytes", "served.requests", "served.retries")


pytestmark = pytest.mark.usefixtures("token")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {name: str(models.folder(base / name, seed=i)) for i, name in enumerate(("student", "teacher"))}


@pytest.fixture(scope="module")
def server(folders):
    served = Serve(folders["teacher"], "--port", "0", "--threads", "1")
    assert served.url, served.lines
    yield served
    served.kill()


def settings(folders, teacher, **more):
    return Settings.of(**{**METHOD, **SMALL, "student": folders["student"], "teacher": teacher, **more})


def steps(folder):
    """What every step wrote, seconds and the cost of asking aside."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in lines if "loss" in line]


def outcome(folder):
    return steps(folder), load_file(folder / "model" / "model.safetensors")


def same(first, second):
    return first[0] == second[0] and all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.fixture(scope="module")
def undisturbed(folders, server, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    Run.new(settings(folders, server.url, out=str(out))).train()
    return outcome(out)


def listening(training, then):
    """The training, whose student calls `then` after it has told of some texts, and goes on writing afterwards."""
    student, aloud = training.student, training.student.write_aloud

    def told(ended):
        def tell(texts):
            ended(texts)
            then(texts)

        return tell

    student.write_aloud = lambda *asked: aloud(*asked[:-1], asked[-1] and told(asked[-1]))
    return training


# ---- what is told, and what is passed on


def telling(lengths, n=1):
    """Which texts are passed on together where those of each hand-over have ended, as (number of prompt, length)."""
    found, count = [], 1 + max(i for some in lengths for i, _ in some)
    problems, prompts = [Problem(str(i), "") for i in range(count)], [np.full(4, i, np.int32) for i in range(count)]
    tell = Telling(problems, prompts, [n] * count, lambda texts: found.append([(t.problem.id, t.n) for t in texts]))
    for some in lengths:
        tell([(i, np.zeros(length, np.int32)) for i, length in some])
    return found


def test_what_ends_last_is_left_to_the_reading():
    assert telling([[(0, 3), (2, 3)], [(1, 5)], [(3, 9)]]) == [[("0", 3), ("2", 3)], [("1", 5)]]
    assert telling([[(0, 3), (1, 3)]]) == []  # all at once: nobody was still writing


def test_a_text_waits_for_its_siblings_where_their_prompt_would_be_read_for_it_alone():
    """Of two texts after a prompt of p tokens, p of 2 (p + n) are read once more: too much from n = p down."""
    late = [(1, 99), (1, 99)]
    assert telling([[(0, 4)], [(0, 9)], late], n=2) == [[("0", 4), ("0", 9)]]
    assert telling([[(0, 5)], [(0, 9)], late], n=2) == [[("0", 5)], [("0", 9)]]
    assert telling([[(0, 4)], [(1, 50), (0, 4)], [(1, 60)]], n=2) == [[("1", 50), ("0", 4), ("0", 4)]]


def test_every_text_is_told_once_whatever_is_written_together(folders):
    student = casting.open_model(folders["student"], settings(folders, ""), "float32", "cpu")
    prompts = [student.render(({"role": "user", "content": f"{i}1+{i + 3}2="},)) for i in range(9)]
    asked = prompts, Sampling(max_new=90), [[3 * i + j for j in range(1 + i % 3)] for i in range(9)]
    texts = [(i, p.tokens.tobytes()) for i, some in enumerate(student.write(*asked)) for p in some]
    for most in (256, 7):
        student.max_sequences, told = most, []
        aloud = student.write_aloud(*asked, told.append)
        assert [(i, p.tokens.tobytes()) for i, some in enumerate(aloud) for p in some] == texts
        assert len(told) >= 3 and Counter((i, x.tobytes()) for some in told for i, x in some) == Counter(texts)


NAMED = Ask("teacher", "teacher", Want(gather="own.ids"))
ASKED = {
    "gkd": ((), [Want(dist=True)]),
    "sampled_token": ((), [Want(chosen=True)]),
    "grpo": ((NAMED,), []),  # the student names tokens once all is written
    "opsd": ((), []),  # the teacher is shown the solution
    "sdft": ((), []),
    "sft": ((), []),
}


@pytest.mark.parametrize("name", ASKED)
def test_only_what_can_be_known_while_writing_is_asked_ahead(name):
    more, expected = ASKED[name]
    assert [want for who, want in as_written((*recipes.load(name)().teach, *more)) if who == "teacher"] == expected


# ---- the same run


def test_the_question_leaves_before_the_writing_ends(folders, server):
    """The student stops in the middle of its writing until the question has arrived."""
    arrived, seen = threading.Event(), []

    def arriving(number, path, *_):
        if path == "/v1/hidden":
            arrived.set()

    with through(server, arriving) as proxy:
        training = build(settings(folders, proxy.url))
        listening(training, lambda texts: seen.append(arrived.wait(20)))
        batch = next(train(training))
    assert len(seen) > 3 and all(seen)
    assert 0.3 < batch.metrics["ahead"] < 1 and training.cast["teacher"].tell()["served.vain"] == 0


@pytest.mark.parametrize("n", [1, 3])
def test_asked_ahead_the_run_is_the_local_one(folders, server, n):
    """Every metric but those of time and asking, and each token is counted once."""
    more = {"parameters": {"lam": 1.0, "n": n}, "steps": 2, "batch": 12 // n}
    ours = list(train(build(settings(folders, folders["teacher"], **more))))
    theirs = list(train(build(settings(folders, server.url, **more))))
    for local, served in zip(ours, theirs, strict=True):
        assert (served.metrics.pop("ahead") > 0.3 or n > 1) and "ahead" not in local.metrics
        assert set(local.metrics) == set(served.metrics)
        for name, value in local.metrics.items():
            if not name.startswith("seconds."):
                assert abs(value - served.metrics[name]) <= 1e-5 * max(1, abs(value)), name
        assert abs(local.metrics["loss"] - served.metrics["loss"]) < 1e-6
        assert served.metrics["teacher_tokens"] == local.metrics["teacher_tokens"]


def test_one_seed_gives_one_run(folders, server, undisturbed, tmp_path):
    Run.new(settings(folders, server.url, out=str(tmp_path / "run"))).train()
    assert same(outcome(tmp_path / "run"), undisturbed)
    assert all(step["ahead"] > 0.3 and step["served.vain"] == 0 for step in undisturbed[0])


# ---- what is asked for nothing


@dataclass(frozen=True)
class Half:
    """Every second group that another sample writes."""

    sample: Sample

    def __call__(self, cast, visits, step):
        return self.sample(cast, visits, step)[::2]


def test_what_nobody_needs_is_counted_and_changes_nothing(folders, server):
    told = []
    training = listening(build(settings(folders, server.url)), told.append)
    training.method = replace(training.method, sample=Half(training.method.sample))
    batch = next(train(training))
    vain = [i for some in told[:-1] for i, _ in some if i % 2]
    assert training.cast["teacher"].tell()["served.vain"] == len(vain) > 0
    local = build(settings(folders, folders["teacher"]))
    local.method = replace(local.method, sample=Half(local.method.sample))
    assert abs(batch.metrics["loss"] - next(train(local)).metrics["loss"]) < 1e-6


def test_a_method_with_another_view_asks_nothing_ahead(folders, server):
    training = build(settings(folders, server.url))
    shown = lambda rollout, group: [rollout.reworded(np.r_[rollout.tokens[:1], rollout.tokens[: rollout.positions[0]]])]
    (ask,) = (ask for ask in training.method.teach if ask.who == "teacher")
    training.method = replace(training.method, teach=(replace(ask, view=shown),))
    batch = next(train(training))
    assert "ahead" not in batch.metrics and training.cast["teacher"].tell()["served.vain"] == 0


def test_a_text_is_asked_about_once_and_the_answer_is_everybodys(folders, server):
    """Repetitions in one hand-over and over several, and then texts that were not asked about ahead."""
    student = casting.open_model(folders["student"], settings(folders, ""), "float32", "cpu")
    teacher, want = Served([server.url]), Want(chosen=True, topk=3)
    texts = written(student, n=4)
    plain = Served([server.url]).read(texts, want)
    hear, before = teacher.hearing(want), teacher.replicas.counts["requests"]
    hear([texts[0], texts[0], texts[1]])
    hear([texts[1]])
    hear([texts[1], texts[2]])
    ahead = teacher.read([*texts, texts[0]], want)
    assert teacher.replicas.counts["requests"] - before == 3  # the second one says nothing new; then comes the rest
    assert (ahead.chosen[: len(plain.chosen)] - plain.chosen).abs().max() < 1e-6
    assert torch.equal(ahead.chosen[len(plain.chosen) :], ahead.chosen[: texts[0].n])
    hear([texts[3]])
    teacher.read(texts[:1], Want(chosen=True))  # another question
    assert teacher.early.waiting and teacher.tell()["served.vain"] == 0
    teacher.hearing(want)  # another batch
    assert not teacher.early.waiting and teacher.tell()["served.vain"] == 1


def test_whoever_stands_before_the_teacher_passes_it_on(folders, server):
    """Several teachers in one role, and one that ends a text otherwise."""
    student = casting.open_model(folders["student"], settings(folders, ""), "float32", "cpu")
    local = casting.open_teacher(folders["teacher"], settings(folders, ""), student)
    want, texts = Want(chosen=True), written(student)
    texts = [replace(t, problem=replace(t.problem, data={"teacher_id": "ab"[i % 2]})) for i, t in enumerate(texts)]
    cases = (lambda one: Renamed(one, 2, 5), texts[:5]), (lambda one: Routed({"a": one, "b": local}), texts[:5:2])
    for wrap, own in cases:
        served = Served([server.url])
        teacher, expected = wrap(served), wrap(local).read(texts, want).chosen
        teacher.hearing(want)(texts[:5])
        (asked,) = served.early.waiting
        assert len(asked.keys) == len({text.tokens.tobytes() for text in own})
        assert (teacher.read(texts, want).chosen - expected).abs().max() < 1e-5
        assert served.tell()["served.vain"] == 0
    assert Routed({"a": local, "b": local}).hearing(want) is None
    assert Renamed(local, 2, 5).hearing(want) is None


# ---- faults


def run_with(folders, url, out, then, **more):
    run = Run.new(settings(folders, url, out=str(out), **more))
    listening(run.training, lambda texts: then(run))
    return run


def test_a_server_that_is_away_while_it_is_asked_ahead_changes_no_bit(folders, server, undisturbed, tmp_path):
    """Away from the first text of step 1 on, back a second later."""
    away, gone = threading.Event(), []
    fault = lambda *_: (503, b'{"error": "away"}') if away.is_set() else None

    def then(run):
        if run.training.step == 1 and not gone:
            gone.append(True)
            away.set()
            threading.Timer(1.0, away.clear).start()

    with through(server, fault) as proxy:
        run_with(folders, proxy.url, tmp_path / "run", then).train()
    assert same(outcome(tmp_path / "run"), undisturbed)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("served.retries", 0) for line in lines) > 0


def test_a_server_that_goes_for_good_stops_the_run_at_a_checkpoint(folders, server, undisturbed, tmp_path):
    away, out = threading.Event(), tmp_path / "run"
    fault = lambda *_: (503, b'{"error": "gone"}') if away.is_set() else None
    then = lambda run: away.set() if run.training.step == 1 else None
    with through(server, fault) as proxy:
        with pytest.raises(Unanswered, match="gone") as error:
            run_with(folders, proxy.url, out, then, teacher_patience=0.6).train()
        assert str(error.value).count("\n") == 0 and len(steps(out)) == 1
        assert (out / "checkpoints" / "step-000001").is_dir()
        away.clear()
        Run.resume(out).train()
    assert same(outcome(out), undisturbed)


def started(folders, url, out, *words):
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "opd", "train", "gkd", "--lam", "1", *small, "--student", folders["student"]]
    return subprocess.Popen(
        [*command, "--teacher", url, "--out", str(out), "--checkpoint-every", "1", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**ENVIRONMENT, "OPD_TEACHER_TOKEN": TOKEN},
    )  # fmt: skip


@pytest.mark.parametrize("how", ["killed", "asked to stop"])
def test_a_run_that_ends_while_it_asks_ahead_goes_on_as_if_it_had_not(folders, server, undisturbed, tmp_path, how):
    """The server says nothing any more once step 1 asks; the process gets SIGKILL, or Ctrl-C."""
    out, asked, free = tmp_path / "run", threading.Event(), threading.Event()

    def fault(number, path, *_):
        if (out / "checkpoints" / "step-000001").is_dir() and not free.is_set():
            asked.set()
            return 503, b'{"error": "busy"}'
        return None

    with through(server, fault) as proxy:
        run = started(folders, proxy.url, out)
        end = time.monotonic() + 120
        while not asked.wait(0.05) and run.poll() is None and time.monotonic() < end:
            pass
        assert asked.is_set(), run.communicate()[0]
        run.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
        output, _ = run.communicate(timeout=30)  # no thread keeps it
        assert run.returncode == (-signal.SIGKILL if how == "killed" else 130), output
        assert "Traceback" not in output and len(steps(out)) == 1
        free.set()
        Run.resume(out).train()
    assert same(outcome(out), undisturbed)
