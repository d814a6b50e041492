"""A teacher behind a chat endpoint: a real server, its moods, what it costs, and what is kept of its answers."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import chat_server
import models
import numpy as np
import pytest
import torch

from opd import Run, Settings
from opd.cast import open_model
from opd.errors import SettingError, TeacherError, Unanswered
from opd.metrics import about
from opd.rollout import End, Sampling, Visit
from opd.run import Stopped
from opd.tasks import load_task
from opd.teachers.chat import COUNTED, ChatTeacher

SECRET = "sk-nobody-may-read-this"
PRICES = "price_in=10,price_out=100"


@pytest.fixture(scope="module")
def engine():
    return chat_server.Chat()


@pytest.fixture
def chat(engine):
    """The server's model is loaded once; everything else about it is new."""
    fresh = chat_server.Chat.__new__(chat_server.Chat)
    fresh.__dict__.update(engine.__dict__)
    fresh.faults, fresh.bodies, fresh.headers, fresh.at = type(engine.faults)(), [], [], []
    fresh.key, fresh.pause, fresh.text, fresh.busy, fresh.busiest = "", 0.0, "", 0, 0
    fresh.app = chat_server.Starlette(
        routes=[chat_server.Route("/v1/chat/completions", fresh.complete, methods=["POST"])]
    )
    return fresh


@pytest.fixture
def url(chat):
    with chat_server.serving(chat) as found:
        yield found


@pytest.fixture(scope="module")
def student():
    settings = Settings(method="")
    return open_model("embedded:student", settings, "float32", "cpu")


@pytest.fixture
def quick(monkeypatch):
    """Pauses between attempts are short, so that a test of them is."""
    monkeypatch.setattr("opd.teachers.endpoint.FIRST", 0.01)


PROBLEMS = load_task("sums,train=6").train


def teacher_at(url, student, tmp_path, more="", timeout=20.0, patience=20.0):
    return ChatTeacher.of(f"chat:{url}#tiny,cache={tmp_path / 'cache'}{more}", student, timeout, patience)


def written(teacher, problems=PROBLEMS, sampling=Sampling(max_new=32), samples=1):  # noqa: B008
    prompts = [teacher.render(problem.messages) for problem in problems]
    seeds = [[Visit(problem, 0, 0).seed(i) for i in range(samples)] for problem in problems]
    return teacher.write_for(problems, prompts, sampling, seeds)


def tokens(pieces):
    return [[piece.tokens.tolist() for piece in some] for some in pieces]


# ---- what it writes


def test_it_writes_what_the_model_behind_the_endpoint_would_have_written(chat, url, student, tmp_path):
    """The same tokenizer on both sides, so that every text is spelled as it was written."""
    teacher = teacher_at(url, student, tmp_path, ",parallel=4")
    ours = written(teacher, samples=2)
    prompts = [student.render(problem.messages) for problem in PROBLEMS]
    seeds = [[Visit(problem, 0, 0).seed(i) % 2**31 for i in range(2)] for problem in PROBLEMS]
    theirs = [
        chat.engine.write([p], Sampling(max_new=32), [[s]])[0][0]
        for p, own in zip(prompts, seeds, strict=True)
        for s in own
    ]
    assert [piece.tokens.tolist() for some in ours for piece in some] == [piece.tokens.tolist() for piece in theirs]
    assert all(np.isnan(piece.behaviour).all() and piece.end == End.STOP for some in ours for piece in some)
    body = next(one for one in chat.bodies if one["messages"] == list(PROBLEMS[0].messages))
    assert body["model"] == "tiny" and body["max_tokens"] == 32 and body["temperature"] == 1.0
    assert {f"chat.{name}" for name in COUNTED} == set(teacher.tell())


def test_a_text_that_was_cut_has_no_end(url, student, tmp_path):
    teacher = teacher_at(url, student, tmp_path)
    for (piece,) in written(teacher, sampling=Sampling(temperature=0.0, max_new=3)):
        assert piece.end == End.LENGTH and len(piece.tokens) <= 3
        assert int(piece.tokens[-1]) not in student.stops


def test_a_text_that_the_student_cannot_spell_is_counted(chat, url, student, tmp_path):
    chat.text = " 5, 8 \u00fc\u4e2d\U0001f600"
    teacher = teacher_at(url, student, tmp_path)
    fits = student.decode(student.encode(chat.text)) == chat.text
    ((piece,),) = written(teacher, PROBLEMS[:1])
    assert teacher.tell()["chat.changed"] == (not fits)
    narrow = models.engine(tmp_path / "narrow", dtype=torch.float32)  # it knows no such letters
    other = teacher_at(url, narrow, tmp_path)
    ((piece,),) = written(other, PROBLEMS[:1])
    told = other.tell()
    assert (told["chat.changed"], told["chat.answers"], told["chat.cached"]) == (1, 1, 1)
    assert narrow.decode(piece.tokens) != chat.text and piece.end == End.STOP


def test_a_text_longer_than_the_room_is_cut(chat, url, student, tmp_path):
    chat.text = " 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15"
    ((piece,),) = written(teacher_at(url, student, tmp_path), PROBLEMS[:1], Sampling(max_new=5))
    assert len(piece.tokens) == 5 and piece.end == End.LENGTH


@pytest.mark.parametrize("sampling", [Sampling(top_k=5), Sampling(min_p=0.1), Sampling(stop=(3,))])
def test_what_such_an_endpoint_cannot_do_is_not_asked(student, tmp_path, sampling):
    with pytest.raises(TeacherError, match="temperature and top_p alone"):
        written(teacher_at("http://127.0.0.1:1/v1", student, tmp_path), sampling=sampling)


# ---- moods


@pytest.mark.parametrize("fault", ["status:500", "status:503", "status:429", "cut", "garbage"])
def test_what_passes_is_tried_again_and_gives_the_same(chat, url, student, tmp_path, quick, fault):
    exact = tokens(written(teacher_at(url, student, tmp_path / "calm")))
    chat.faults.extend([fault] * 4)
    teacher = teacher_at(url, student, tmp_path)
    assert tokens(written(teacher)) == exact
    told = teacher.tell()
    assert (told["chat.retried"], told["chat.requests"], told["chat.answers"]) == (4, 10, 6)


def test_everybody_waits_as_long_as_the_server_asks(chat, url, student, tmp_path, quick):
    chat.faults.append("status:429:1")
    teacher = teacher_at(url, student, tmp_path, ",parallel=1")
    start = time.monotonic()
    written(teacher)
    assert time.monotonic() - start >= 1
    assert chat.at[1] - chat.at[0] >= 0.95 and teacher.tell()["chat.retried"] == 1


def test_a_server_that_is_too_slow_is_asked_again(chat, url, student, tmp_path, quick):
    chat.pause = 1.0
    teacher = teacher_at(url, student, tmp_path, timeout=0.3, patience=1.5)
    with pytest.raises(Unanswered, match=r"gave nobody an answer for 1.5 s: got ReadTimeout"):
        written(teacher, PROBLEMS[:1])
    assert len(chat.bodies) > 1
    chat.pause = 0.0
    assert len(written(teacher, PROBLEMS[:1])) == 1


def test_a_wish_to_wait_for_hours_ends_the_run_instead(chat, url, student, tmp_path):
    chat.faults.append("status:429:7200")
    with pytest.raises(Unanswered, match="429 and the wish that we wait 7200 s"):
        written(teacher_at(url, student, tmp_path), PROBLEMS[:1])


def test_a_server_that_is_busy_for_ever_ends_the_run(chat, url, student, tmp_path, quick):
    chat.faults.extend(["status:429:0.2"] * 10**6)
    with pytest.raises(Unanswered, match="gave nobody an answer for 1 s: got 429 not now"):
        written(teacher_at(url, student, tmp_path, patience=1.0))


def test_a_server_that_is_not_there(student, tmp_path, quick):
    with pytest.raises(Unanswered, match=r"gave nobody an answer for 0.2 s: got ConnectError"):
        written(teacher_at("http://127.0.0.1:9/v1", student, tmp_path, patience=0.2), PROBLEMS[:1])


def test_what_will_not_pass_is_said_at_once(chat, url, student, tmp_path):
    for fault, said in (("status:404", "URL and at the model's name 'tiny'"), ("status:400", "400 not now")):
        chat.faults.append(fault)
        before = len(chat.bodies)
        with pytest.raises(Unanswered, match=said):
            written(teacher_at(url, student, tmp_path, ",parallel=1"), PROBLEMS[:1])
        assert len(chat.bodies) == before + 1
    chat.faults.append("filtered")
    with pytest.raises(Unanswered, match="finish_reason 'content_filter'"):
        written(teacher_at(url, student, tmp_path), PROBLEMS[:1])


def test_a_failure_keeps_what_was_answered(chat, url, student, tmp_path):
    chat.faults.extend(["", "", "", "status:400"])
    teacher = teacher_at(url, student, tmp_path, ",parallel=1")
    with pytest.raises(Unanswered):
        written(teacher)
    before = len(chat.bodies)
    assert before == 4, "nothing is sent after the first failure"
    written(teacher)
    assert len(chat.bodies) == before + 3 and teacher.tell()["chat.cached"] == 3


def test_no_more_requests_at_a_time_than_allowed(chat, url, student, tmp_path):
    chat.pause = 0.05
    written(teacher_at(url, student, tmp_path, ",parallel=3"), samples=2)
    assert 2 <= chat.busiest <= 3


# ---- the key


def test_the_key_comes_from_the_environment_and_is_shown_to_the_server_alone(
    chat, url, student, tmp_path, monkeypatch, caplog, capsys
):
    caplog.set_level("DEBUG")
    chat.key = SECRET
    monkeypatch.setenv("MY_KEY", SECRET)
    teacher = teacher_at(url, student, tmp_path, ",key=MY_KEY")
    written(teacher, PROBLEMS[:2])
    assert chat.headers[0]["authorization"] == f"Bearer {SECRET}"
    chat.key = "another"
    with pytest.raises(Unanswered, match=r"401 .*variable MY_KEY") as refused:
        written(teacher, PROBLEMS[2:3])
    kept = "".join(file.read_text() for file in (tmp_path / "cache").rglob("*.json"))
    everything = [str(refused.value), caplog.text, *capsys.readouterr(), kept, json.dumps(teacher.manifest)]
    assert not any(SECRET in text for text in [*everything, json.dumps(teacher.state_dict()), repr(vars(teacher))])


def test_a_key_that_is_named_must_be_there(student, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(SettingError, match="environment variable MY_KEY"):
        teacher_at("http://127.0.0.1:1/v1", student, tmp_path, ",key=MY_KEY")


@pytest.mark.parametrize(
    "spec, why",
    [
        ("chat:127.0.0.1:8000#m", "HOST/v1#MODEL"),
        ("chat:http://127.0.0.1:8000/v1", "HOST/v1#MODEL"),
        ("chat:http://me:secret@host/v1#m", "got a user or key in it"),
        ("chat:http://h/v1#m,parralel=2", "parralel"),
        ("chat:http://h/v1#m,parallel=0", "parallel"),
        ("chat:http://h/v1#m,budget=5", "price_in and price_out"),
    ],
)
def test_names_that_cannot_be(student, spec, why):
    with pytest.raises(SettingError, match=why):
        ChatTeacher.of(spec, student, 1.0, 1.0)


# ---- the disk


def test_an_answer_is_had_once_for_each_model_prompt_and_way_of_drawing(chat, url, student, tmp_path):
    teacher = teacher_at(url, student, tmp_path)
    first = tokens(written(teacher, PROBLEMS[:2]))
    assert tokens(written(teacher_at(url, student, tmp_path), PROBLEMS[:2])) == first and len(chat.bodies) == 2
    written(teacher, PROBLEMS[:2], Sampling(temperature=0.5, max_new=32))
    written(teacher, PROBLEMS[:2], Sampling(max_new=31))
    other = ChatTeacher.of(f"chat:{url}#other,cache={tmp_path / 'cache'}", student, 20.0, 20.0)
    written(other, PROBLEMS[:2])
    written(teacher, PROBLEMS[:2], samples=2)
    assert len(chat.bodies) == 10


@pytest.mark.parametrize("damage", [lambda t: t[: len(t) // 2], lambda t: t.replace(", ", ",  ", 1), lambda t: "[]"])
def test_a_damaged_answer_is_asked_for_again(chat, url, student, tmp_path, damage):
    chat.text = "5, 8"
    teacher = teacher_at(url, student, tmp_path)
    first = tokens(written(teacher, PROBLEMS[:1]))
    (file,) = (tmp_path / "cache").rglob("*.json")
    whole = json.loads(file.read_text())
    changed = damage(file.read_text())
    file.write_text(changed.replace("5, 8", "5, 9"))
    assert tokens(written(teacher, PROBLEMS[:1])) == first and len(chat.bodies) == 2
    assert json.loads(file.read_text()) == whole


# ---- runs


def sft(url, tmp_path, out="run", more="", **how):
    """A run of four steps that meets eight problems twice, and so asks for eight answers."""
    teacher = f"chat:{url}#tiny,cache={tmp_path / 'cache'},parallel=2{more}"
    settings = {"task": "sums,train=8", "batch": 4, "steps": 4, "lr": 1e-3, "max_new": 32, "eval_problems": 4}
    return Settings.of(method="sft", teacher=teacher, out=str(tmp_path / out), **(settings | how))


def lines(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines() if "loss" in line]


def same(ours, theirs):
    ours, theirs = (run.training.student.state_dict() for run in (ours, theirs))
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_student_learns_from_texts_and_every_number_is_told(chat, url, tmp_path):
    run = Run.new(sft(url, tmp_path, more=f",{PRICES}"))
    summary = run.train()
    assert len(chat.bodies) == 8 and summary["teacher"] is None, "nobody is examined at somebody's cost"
    told = lines(run)
    assert [line["chat.requests"] for line in told] == [4, 4, 0, 0]
    read, wrote = (sum(line[f"chat.{name}"] for line in told) for name in ("read", "written"))
    assert read > 0 and told[-1]["chat.spent"] == pytest.approx((10 * read + 100 * wrote) / 1e6)
    assert [about(name) for line in told for name in line if name != "step"].count(None) == 0
    texts = {group.problem.id: group.rollouts[0].decisions.tolist() for group in traces(run)}
    exact = {problem.id: tokens(written(run.teacher, [problem]))[0][0] for problem in run.task.train}
    assert texts == exact
    assert told[-1]["loss"] < told[0]["loss"]


def traces(run):
    visits = [Visit(problem, 7, 0) for problem in run.task.train]
    return run.training.method.sample(run.training.cast, visits, 9)


@pytest.mark.parametrize(
    "method, parameters, why",
    [
        ("gkd", {"lam": 0.5}, "can't answer.*dist"),
        ("sampled_token", {}, "can't answer.*chosen"),
        ("local_support", {}, "can't answer.*topk"),
        ("lightning", {}, "can't answer.*chosen"),
        ("distillm2", {}, "can't answer"),
    ],
)
def test_a_method_that_needs_numbers_is_refused_before_anything_is_asked(chat, url, tmp_path, method, parameters, why):
    with pytest.raises(TeacherError, match=why):
        Run.new(Settings.of(**{**sft(url, tmp_path).model_dump(), "method": method, "parameters": parameters}))
    assert not chat.bodies and not (tmp_path / "run").exists()


def test_a_spent_budget_stops_at_a_checkpoint_and_more_of_it_goes_on(chat, url, tmp_path):
    whole = Run.new(sft(url, tmp_path, "whole"))
    whole.train()
    for file in (tmp_path / "cache").rglob("*.json"):
        file.unlink()
    run = Run.new(sft(url, tmp_path, more=f",{PRICES},budget=0.006"))
    with pytest.raises(Unanswered, match="the budget of the teacher is spent"):
        run.train()
    assert run.training.step == 1 and list((run.folder / "checkpoints").iterdir())
    with pytest.raises(Unanswered, match="the budget of the teacher is spent"):
        Run.resume(run.folder).train()  # it is the whole run's
    file = run.folder / "run.toml"
    file.write_text(file.read_text().replace("budget=0.006", "budget=5"))
    before = len(chat.bodies)
    again = Run.resume(run.folder)
    again.train()
    assert same(again, whole) and len(chat.bodies) - before < 4, "what was paid for is not asked again"
    assert [line["step"] for line in lines(again)] == [0, 1, 2, 3]


def test_a_server_that_died_is_met_again_where_the_run_stood(chat, tmp_path, quick):
    with chat_server.serving(chat) as url:
        whole = Run.new(sft(url, tmp_path, "whole"))
        whole.train()
        for file in (tmp_path / "cache").rglob("*.json"):
            file.unlink()
        chat.faults.extend([""] * 5 + ["cut"] * 10**6)
        run = Run.new(sft(url, tmp_path, teacher_patience=0.5))
        with pytest.raises(Unanswered, match="gave nobody an answer"):
            run.train()
        assert run.training.step == 1
        chat.faults.clear()
        again = Run.resume(run.folder)
        again.train()
    assert same(again, whole)


def test_ctrl_c_does_not_wait_for_a_server_that_is_silent(chat, url, tmp_path, quick):
    chat.faults.extend([""] * 5 + ["status:503:15"] * 10**6)
    run = Run.new(sft(url, tmp_path))

    def interrupt():
        while len(chat.bodies) < 6:
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(Stopped):
        run.train()
    assert time.monotonic() - start < 12 and run.training.step == 1
    chat.faults.clear()
    Run.resume(run.folder).train()


def test_one_of_two_teachers_may_be_behind_an_endpoint(chat, url, tmp_path):
    rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i), "teacher_id": "ab"[i % 2] * 3} for i in range(1, 9)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = f"aaa=chat:{url}#tiny,bbb=embedded:teacher"
    cache = tmp_path / "home"
    settings = Settings.of(
        method="sft", teacher=teacher, task=f"jsonl:{tmp_path / 'p.jsonl'},held_out=2", steps=2, batch=6, max_new=8,
        eval_problems=2, out=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(cache))
        run = Run.new(settings)
        run.train()
    asked = {body["messages"][0]["content"] for body in chat.bodies}
    assert asked == {problem.prompt for problem in run.task.train if problem.data["teacher_id"] == "aaa"}
    for line in lines(run):
        assert line["teacher.aaa.rows"] + line["teacher.bbb.rows"] == pytest.approx(1)
    assert any(line["chat.answers"] for line in lines(run))


def test_a_full_disk_stops_with_one_sentence_and_a_checkpoint(url, tmp_path):
    """The cache lies on a disk of its own, which takes nothing."""
    words = ["train", "sft", "--teacher", f"chat:{url}#tiny,cache=/dev/full/cache", "--steps", "1", "--batch", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "opd", *words, "--eval-problems", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "could not be kept in /dev/full/cache" in done.stderr and "opd train --resume" in done.stdout
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000"]


def test_a_disk_that_is_full_in_the_middle_leaves_no_half_answer(chat, url, student, tmp_path):
    """A real limit on what a process may write."""
    chat.text = "5, 8, 11 " * 40
    teacher = teacher_at(url, student, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(Unanswered, match=r"could not be kept.*Free some space"):
            written(teacher, PROBLEMS[:1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
