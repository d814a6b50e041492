"""A served teacher gives the loss of a local one, and every fault is survived bit for bit or stops with a sentence."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from serving import ENVIRONMENT, TOKEN, Serve, blocks, through, written

from opd import Run, Settings
from opd import cast as casting
from opd.build import build
from opd.cli.main import main
from opd.errors import ModelError, SettingError, TeacherError, Unanswered
from opd.loop import train
from opd.protocols import Want
from opd.rollout import Sampling
from opd.serve import wire
from opd.teachers.replicas import Question, Replicas
from opd.teachers.served import Served

SMALL = {"steps": 4, "batch": 4, "lr": 1e-3, "max_new": 12, "eval_problems": 2, "drafts": 1, "doctor": "off"}
PATIENT = {"teacher_timeout": 30.0, "teacher_patience": 120.0}
HASTY = {"teacher_timeout": 1.0, "teacher_patience": 0.6}


pytestmark = pytest.mark.usefixtures("token")


@pytest.fixture(scope="module")
def server():
    served = Serve("embedded:teacher", "--port", "0", "--threads", "1")
    assert served.url, served.lines
    yield served
    served.kill()


def settings(teacher, **more):
    return Settings.of(**{"method": "gkd", "parameters": {"lam": 1.0}, **SMALL, **PATIENT, "teacher": teacher, **more})


def trained(folder, teacher, **more):
    """A run to its end: its losses and its student."""
    Run.new(settings(teacher, out=str(folder), **more)).train()
    return outcome(folder)


def outcome(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], load_file(folder / "model" / "model.safetensors")


def same(first, second):
    return first[0] == second[0] and all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("undisturbed") / "run", server.url)


# ---- the same loss


FAMILIES = {
    "one log-prob": ("sampled_token", {}),
    "top K of the teacher": ("local_support", {"k": 8, "source": "teacher"}),
    "top K and tail": ("local_support", {"k": 8, "source": "teacher", "outside": "tail"}),
    "top K of the student": ("local_support", {"k": 8, "source": "student", "only_named": True, "sampled": True}),
    "top K of the student, each as if drawn": ("rethinking", {"form": "released", "k": 8, "only_named": True}),
    "the whole distribution": ("gkd", {"lam": 1.0}),
    "a text of the teacher": ("gkd", {"lam": 0.0}),
    "states of a layer": ("representation", {"bridge": 8}),
    "a reference that is asked for ids of the teacher": ("extrapolated", {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_served_and_local_teachers_give_the_same_loss(server, family):
    method, given = FAMILIES[family]
    found = []
    for teacher in ("embedded:teacher", server.url):
        chosen = settings(teacher, method=method, parameters=given, batch=6)
        if method == "extrapolated":
            chosen = chosen.model_copy(update={"reference": teacher, "teacher": "embedded:student"})
        batch = next(train(build(chosen)))
        found.append((batch.metrics["loss"], batch.metrics["grad_norm"], batch.rows))
    (loss, norm, ours), (served, its, theirs) = found
    assert abs(loss - served) < 1e-6 and abs(norm - its) < 1e-4 * max(1, abs(norm))
    assert len(ours) == len(theirs)
    assert np.isfinite(loss)


def test_named_tokens_are_fewer_bytes_than_hidden_states_and_the_same_loss(server):
    """In both directions; the head that hidden states need is not even counted."""
    k, found = 8, {}
    for only_named in (False, True):
        given = {"k": k, "updates": 1, "source": "student", "only_named": only_named}
        training = build(settings(server.url, method="local_support", parameters=given, batch=6))
        teacher, batches = training.cast["teacher"], train(training)
        assert only_named or teacher.head is not None
        teacher.tell()
        batch = next(batches)
        cost = teacher.tell()
        found[only_named] = batch.metrics["loss"], cost["served.bytes.sent"], cost["served.bytes.received"]
    (loss, sent, received), (named, its, theirs) = found[False], found[True]
    rows, width = len(batch.rows), teacher.width
    assert abs(loss - named) < 1e-6
    assert received > 4 * width * rows and theirs < 4 * (k + 2) * rows + 4096, "float32, and the decided token's"
    assert its + theirs < 0.7 * (sent + received)


def test_a_run_with_a_served_teacher_is_the_run_with_a_local_one(undisturbed, tmp_path):
    losses, weights = trained(tmp_path / "run", "embedded:teacher")
    assert max(abs(ours - theirs) for ours, theirs in zip(losses, undisturbed[0], strict=True)) < 1e-6
    assert max(float((weights[name] - x).abs().max()) for name, x in undisturbed[1].items()) < 1e-5


def test_every_answer_is_the_local_one(server):
    """All of them in one question; so is what the teacher writes, and how it renders and decodes."""
    student = casting.open_model("embedded:student", settings(""), "float32", "cpu")
    local = casting.open_model("embedded:teacher", settings(""), "float32", "cpu")
    teacher = Served([server.url], max_new=7)
    assert casting.share_tokens(student, teacher, local) == teacher.vocab == student.vocab
    texts = [t.with_columns(mine=np.arange(3 * t.n).reshape(t.n, 3)) for t in written(student)]
    want = Want(chosen=True, topk=5, gather="mine", dist=True, layers=(0,))
    ours, theirs = local.read(texts, want), teacher.read(texts, want)
    for a, b in [
        (ours.chosen, theirs.chosen),
        (ours.gathered, theirs.gathered),
        (ours.dist.hidden, theirs.dist.hidden),
        (ours.dist.logprobs(), theirs.dist.logprobs()),
        *zip(ours.dist.inner.values(), theirs.dist.inner.values(), strict=True),
    ]:
        assert a.shape == b.shape and (a - b).abs().max() < 2e-5
    top, mine = local.read(texts, Want(topk=5)).dist, teacher.read(texts, Want(topk=5)).dist
    assert (top.ids == mine.ids).all() and mine.ids.dtype == torch.int64
    prompts = [student.render(({"role": "user", "content": text},)) for text in ("12+3=", "4+55=")]
    seeds = [[1, 2], [3]]
    for a, b in zip(
        local.write(prompts, Sampling(max_new=7), seeds), teacher.write(prompts, Sampling(), seeds), strict=True
    ):
        for one, other in zip(a, b, strict=True):
            assert (one.tokens == other.tokens).all() and one.end == other.end
            assert np.abs(one.behaviour - other.behaviour).max() < 1e-5
    assert (
        teacher.render(({"role": "user", "content": "1+1="},)) == local.render(({"role": "user", "content": "1+1="},))
    ).all()
    assert teacher.decode(prompts[0]) == local.decode(prompts[0]) and teacher.stops == local.stops


def test_what_travels_is_small(server):
    """Bytes per row: 4 for a log-prob, 8 K for the K best, 4 D for the whole distribution."""
    student = casting.open_model("embedded:student", settings(""), "float32", "cpu")
    teacher = Served([server.url])
    texts = written(student, 20)
    rows, each = sum(text.n for text in texts), {}
    teacher.read(texts, Want(dist=True))  # the head comes with the first question for whole distributions, once
    for name, want in {"one": Want(chosen=True), "top": Want(topk=16), "whole": Want(dist=True)}.items():
        before = teacher.replicas.counts["bytes.received"]
        teacher.read(texts, want)
        each[name] = (teacher.replicas.counts["bytes.received"] - before) / rows
    assert each["one"] < 8 and each["top"] < 16 * 8 + 8 and each["whole"] < 4 * teacher.width + 8


# ---- faults that pass


def once(at, what):
    """The fault `what` for question number `at`, as for every third one after it."""
    return lambda number, path, status, body: what if number >= at and (number - at) % 3 == 0 else None


PASSING = {
    "an answer of 500": once(8, (500, b'{"error": "a fault"}')),
    "an answer of 503": once(8, (503, b"<html>busy</html>")),
    "a connection cut in the middle of an answer": once(8, "cut"),
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass_change_no_bit(server, undisturbed, tmp_path, name):
    with through(server, PASSING[name]) as proxy:
        assert same(trained(tmp_path / "run", proxy.url), undisturbed)
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert sum(line.get("served.retries", 0) for line in lines) >= 2 and proxy.count > 12


def test_an_answer_that_is_too_slow_is_asked_for_again(server, tmp_path, undisturbed):
    with through(server, lambda number, *_: "slow" if number == 9 else None) as proxy:
        assert same(trained(tmp_path / "run", proxy.url, teacher_timeout=1.0), undisturbed)


def test_of_two_servers_a_dead_one_is_left_out(server, tmp_path):
    """The second one answers nothing after its probe."""
    dead = lambda number, path, status, body: (500, b"") if number >= 3 else None
    with through(server, dead) as broken, through(server, lambda *_: None) as whole:
        clean = trained(tmp_path / "clean", f"{server.url},{whole.url}")
        assert whole.count > 6  # both were asked
        assert same(trained(tmp_path / "run", f"{server.url},{broken.url}"), clean)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("served.left_out", 0) for line in lines) == 1


# ---- faults that stop


def poisoned(change):
    """The answer with its first block changed."""

    def fault(number, path, status, body):
        if number < 8 or path == "/v1/text":
            return None
        first, *rest = blocks(body)
        tensors = change(safetensors.torch.load(first))
        return 200, b"".join([wire.packed(wire.Block(tensors)), *(wire.struct.pack("<Q", len(b)) + b for b in rest)])

    return fault


def filled(value):
    def change(tensors):
        name = next(name for name in ("chosen", "hidden", "top") if name in tensors)
        tensors[name].view(-1)[1] = value
        return tensors

    return poisoned(change)


STOPPING = {
    "a number that is none": (filled(float("nan")), "not finite"),
    "an infinite number": (filled(float("inf")), "not finite"),
    "a log-prob above 0": (filled(2.5), "log-prob of 2.5"),
    "answers for fewer rows": (poisoned(lambda t: t | {"chosen": t["chosen"][:-1]}), "shape"),
    "answers for fewer texts": (poisoned(lambda t: t | {"texts": t["texts"][:-1]}), "shape"),
    "answers twice for one text": (poisoned(lambda t: t | {"texts": torch.zeros_like(t["texts"])}), ""),
    "an answer that nobody asked": (poisoned(lambda t: t | {"more": t["chosen"] + 1}), "more"),
    "another model": (
        lambda n, *_: (409, b'{"error": "Another model is served here."}') if n >= 8 else None,
        "another",
    ),
    "rubbish": (lambda n, *_: (200, b"\x10\0\0\0\0\0\0\0" + b"x" * 16) if n >= 8 else None, "cannot be read"),
    "a refusal": (lambda n, *_: (403, b"no JSON") if n >= 8 else None, "status 403"),
    "500 for ever": (lambda n, *_: (500, b'{"error": "broken"}') if n >= 8 else None, "broken"),
}


@pytest.fixture(scope="module")
def scored(server, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("scored") / "run", server.url, method="sampled_token", parameters={})


@pytest.mark.parametrize("name", STOPPING)
def test_faults_that_stay_stop_at_a_checkpoint_from_which_the_run_continues(server, scored, tmp_path, name, capsys):
    fault, sentence = STOPPING[name]
    out, broken = tmp_path / "run", [True]
    with through(server, lambda *what: fault(*what) if broken[0] else None) as proxy:
        chosen = settings(
            proxy.url, method="sampled_token", parameters={}, out=str(out), **{**HASTY, "teacher_timeout": 30.0}
        )
        with pytest.raises(Unanswered, match=sentence) as error:
            Run.new(chosen).train()
        assert str(error.value).count("\n") == 0
        steps = len([line for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line])
        assert (out / "checkpoints" / f"step-{steps:06d}").is_dir()
        broken[0] = False
        Run.resume(out).train()
    assert same(outcome(out), scored)


def test_no_rest_after_a_failure_outlasts_the_patience(server):
    """However often a server has failed before, whoever asks again is told soon."""
    with through(server, lambda *_: (503, b'{"error": "busy"}')) as proxy:
        replicas = Replicas([proxy.url], timeout=5.0, patience=0.2)
        for _ in range(5):
            begun = time.monotonic()
            with pytest.raises(Unanswered, match="busy"):
                replicas.ask([Question("/v1/score", b"?", 100)])
            assert 0.2 < time.monotonic() - begun < 1.5
        replicas.close()


def test_mistakes_at_the_start_are_one_sentence(server, monkeypatch):
    def refused(kind, *words, url=server.url):
        with pytest.raises(kind) as error:
            Served(url.split(","), timeout=5.0, patience=0.0)
        assert all(word in str(error.value) for word in words), str(error.value)

    refused(SettingError, "OPD_TEACHER_TOKEN", url="http://me:secret@127.0.0.1:1")
    refused(SettingError, "given twice", "every server once", url=f"{server.url}, {server.url}/")
    for url in ("http://", "http://here:99999", "http://here:port", "http://here:8750;http://there:8750"):
        refused(SettingError, "http://HOST:PORT", url=url)
    refused(Unanswered, "nobody answers", "Start it", url="http://127.0.0.1:9")
    with through(server, lambda number, path, status, body: (200, b"hello")) as proxy:
        refused(Unanswered, "no address of opd serve", url=proxy.url)
    with through(server, lambda number, path, status, body: (200, b'{"weights": 1}')) as proxy:
        refused(Unanswered, "is no opd serve", url=proxy.url)
    other = lambda n, path, status, body: (
        (200, body.replace(b'"vocab":284', b'"vocab":285')) if "info" in path else None
    )
    with through(server, other) as proxy:
        refused(Unanswered, "different models", url=f"{server.url},{proxy.url}")
    few = lambda n, path, status, body: (200, body.replace(b'"k":1024', b'"k":4')) if "info" in path else None
    with through(server, few) as proxy, pytest.raises(TeacherError, match="fewer best tokens"):
        build(settings(proxy.url, method="local_support", parameters={"k": 8, "source": "teacher"}))
    flat = lambda n, path, status, body: (200, body.replace(b'"layers":3', b'"layers":1')) if "info" in path else None
    with through(server, flat) as proxy, pytest.raises(ModelError, match=r"no such layer: got \[2\], expected 1 to 1"):
        build(settings(proxy.url, method="representation", parameters={"layers": (2,)}))
    moody = lambda n, path, status, body: filled(-9.0)(n + 8, path, status, body) if n == 1 else None
    with through(server, moody) as proxy:
        refused(Unanswered, "the same twice", url=proxy.url)
    turning = lambda n, path, status, body: filled(-9.0)(n + 8, path, status, body) if n == 2 else None
    with through(server, turning) as proxy:
        refused(Unanswered, "another order", url=proxy.url)
    monkeypatch.setenv("OPD_TEACHER_TOKEN", "the-token-of-another")
    refused(Unanswered, "token", "OPD_TEACHER_TOKEN")


@pytest.mark.parametrize(
    "spec",
    ["localhost:8750", "127.0.0.1:8750/v1", "htp://here:8750", "http//here:8750", "HTTP://here:8750", "slef:live"],
)
def test_a_misspelled_kind_is_no_model_folder(spec):
    with pytest.raises(SettingError, match="http://HOST:PORT"):
        casting.member(spec, settings(spec), None)


def test_another_tokenizer_is_refused_by_its_first_token(server, tmp_path):
    import models

    student = models.engine(tmp_path / "student")
    with pytest.raises(ModelError, match="first at id"):
        casting.share_tokens(student, Served([server.url]))


# ---- processes that end


def started(out, url, *words):
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "opd", "train", "gkd", "--lam", "1", *small, "--teacher", url, "--out", str(out)]
    environment = {**ENVIRONMENT, "OPD_TEACHER_TOKEN": TOKEN}
    return subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def steps_done(folder):
    file = folder / "metrics.jsonl"
    return file.read_text().count('"loss"') if file.is_file() else 0


def until(true, process, seconds=120):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    assert true(), process.communicate()[0]


def test_a_second_ctrl_c_does_not_wait_for_a_teacher(server, undisturbed, tmp_path):
    """The first one lets the step finish, and a teacher that never answers would keep it from that."""
    free, held, out = threading.Event(), threading.Event(), tmp_path / "run"

    def hold(*_):
        if steps_done(out) and not free.is_set():
            held.set()
            free.wait(60)

    with through(server, hold) as proxy:
        run = started(out, proxy.url, "--checkpoint-every", "1")
        until(held.is_set, run)
        run.send_signal(signal.SIGINT)
        time.sleep(1)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        output, _ = run.communicate(timeout=30)
        assert run.returncode == 130 and "Traceback" not in output, output
        assert (out / "checkpoints" / "step-000001").is_dir() and steps_done(out) == 1
        free.set()
        Run.resume(out).train()
    assert same(outcome(out), undisturbed)


def test_a_killed_server_comes_back_and_another_one_is_refused(undisturbed, tmp_path, monkeypatch, capsys):
    """One server, killed in the middle of a run and started again; then for good; then with another model."""
    first = Serve("embedded:teacher", "--port", "0", "--threads", "1")
    port, url, out = first.port, first.url, tmp_path / "run"
    run = started(out, url, "--steps", "40", "--checkpoint-every", "0", "--teacher-patience", "100")
    until(lambda: steps_done(out) >= 2, run)
    first.kill()
    again = Serve("embedded:teacher", "--port", port, "--threads", "1")
    seen = steps_done(out)
    until(lambda: steps_done(out) > seen + 1, run)  # it went on
    again.kill()
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)  # nobody answers: Ctrl-C does not wait for the patience of 100 s
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "continue with: opd train --resume" in output, output
    kept = steps_done(out)
    assert 2 <= kept < 40 and (out / "checkpoints" / f"step-{kept:06d}").is_dir()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines if '"loss"' in line][:3] == undisturbed[0][:3]
    assert main(["train", "--resume", str(out)]) == 2
    assert "nobody answers" in capsys.readouterr().err
    other = Serve("embedded:student", "--port", port, "--threads", "1")
    try:
        assert main(["train", "--resume", str(out)]) == 2
        assert "another one than the run began with" in capsys.readouterr().err
        file = out / "run.toml"
        file.write_text(
            file.read_text()
            .replace("another_teacher = false", "another_teacher = true")
            .replace("steps = 40", f"steps = {kept + 1}")
        )
        assert main(["train", "--resume", str(out)]) == 0
        assert json.loads((out / "teachers.json").read_text())["teacher"]["model"] == "embedded:student"
    finally:
        other.kill()
    assert os.path.isfile(out / "summary.json")
