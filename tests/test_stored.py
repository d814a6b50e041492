"""Answers that were computed once are the answers of the teacher, are found damaged when they are, and no others."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from opd import Run, Settings, recipes
from opd import cast as casting
from opd.build import build
from opd.cli.main import main
from opd.contract import distance
from opd.doctor import Case, examine
from opd.errors import DataError, MethodError, ModelError, SettingError, TeacherError
from opd.lab.toy import ToyModel
from opd.parts.offline import from_store
from opd.protocols import Want
from opd.rollout import OTHER, Visit
from opd.shards import Kept, Manifest, check, read_manifest, read_shard
from opd.step import gradient, prepare
from opd.teach import check_capabilities
from opd.teachers.fake import FakeTeacher
from opd.teachers.stored import StoredTeacher

K, PROBLEMS = 6, 12
ORDER = ["--k", str(K), "--per-shard", "5", "--max-new", "24", "--task", f"sums,train={PROBLEMS}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of the embedded pair: three shards of twelve problems."""
    made = tmp_path_factory.mktemp("stored") / "store"
    assert main(["store", str(made), *ORDER]) == 0
    return made


def copied(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def settings(folder, method="lightning", **more):
    how = {"task": f"sums,train={PROBLEMS}", "max_new": 24, "batch": PROBLEMS, "doctor": "off"}
    return Settings.of(method=method, **(how | {"teacher": f"stored:{folder}"} | more))


def gradient_of(training, groups):
    rows, sequences = prepare(groups, training.method, training.cast, 0)
    outcome = gradient(training.student, rows, sequences, training.method)
    found = {name: p.grad.clone() for name, p in training.student.weights().items() if p.grad is not None}
    for p in training.student.parameters():
        p.grad = None
    return outcome.loss, found


# ---- the same answers


def test_lightning_from_a_store_is_lightning_with_the_teacher_at_hand(folder):
    stored, live = build(settings(folder)), build(settings(folder, teacher="embedded:teacher"))
    visits = [Visit(problem, 0, 0) for problem in stored.task.train]
    ours, theirs = (t.method.sample(t.cast, visits, 0) for t in (stored, live))
    texts = lambda groups: [(r.tokens.tolist(), str(r.end), r.text, r.author.max()) for g in groups for r in g.rollouts]
    assert texts(ours) == texts(theirs) and ours[0].rollouts[0].author.max() == OTHER
    loss, found = gradient_of(stored, ours)
    expected, exact = gradient_of(live, theirs)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert distance(found, exact) < 1e-6 * max(float(g.abs().max()) for g in exact.values())


@pytest.mark.parametrize(
    "method, parameters",
    [
        ("local_support", {"k": 4, "n": 1, "outside": "tail"}),
        ("local_support", {"k": K, "n": 1, "sampled": True}),
        ("sampled_token", {"n": 1, "gamma": 0.5}),
        ("power", {"n": 1}),
    ],
)
def test_any_method_that_needs_no_more_learns_the_same(folder, method, parameters):
    """Another K than was stored included; a store's texts are given to the live teacher too."""
    stored = build(settings(folder, method, parameters=parameters, texts="stored"))
    live = build(settings(folder, method, parameters=parameters, teacher="embedded:teacher"))
    groups = stored.method.sample(stored.cast, [Visit(problem, 0, 0) for problem in stored.task.train], 0)
    loss, found = gradient_of(stored, groups)
    expected, exact = gradient_of(live, groups)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert distance(found, exact) < 1e-6 * max(float(g.abs().max()) for g in exact.values())


def test_stable_opd_without_its_terms_is_clipped_distillation_on_stored_texts_too(folder):
    """Their author is not the student; neither did they come with the problem."""
    given = {"sampled_token": {"clip": 0.2, "n": 1}, "stable_opd": {"gold": 0.0, "near": 0.0, "n": 1}}
    ours, theirs = (build(settings(folder, name, parameters=p, texts="stored")) for name, p in given.items())
    groups = ours.method.sample(ours.cast, [Visit(problem, 0, 0) for problem in ours.task.train], 0)
    (loss, found), (expected, exact) = gradient_of(ours, groups), gradient_of(theirs, groups)
    assert loss == expected and any(g.any() for g in found.values()) and distance(found, exact) == 0


def test_what_is_kept_is_what_the_teacher_said(folder):
    teacher = StoredTeacher(folder)
    live = casting.build(settings(folder, teacher="embedded:teacher"), settings(folder).build_method())["teacher"]
    kept = [one for shard in teacher.store.shards for one in read_shard(folder, shard)]
    assert len(kept) == PROBLEMS
    for one in kept:
        dist = live.read([one.rollout], Want(dist=True)).dist
        assert torch.allclose(one.chosen, dist.chosen, atol=1e-5)
        assert torch.equal(one.ids, dist.top(K)) and torch.allclose(one.top, dist.at(one.ids), atol=1e-5)
        rest = dist.logprobs().double().exp().scatter(-1, one.ids, 0).sum(-1)
        assert torch.allclose(one.rest.double().exp(), rest, atol=1e-6)
    held = load_file(folder / "shard-00000.safetensors")
    assert set(held) == {
        "tokens", "length", "prompt", "end", "seed", "behaviour", "untruncated", "chosen", "ids", "top", "rest",
    }  # fmt: skip


def test_a_store_says_who_answered_about_whose_texts(folder, capsys):
    made = read_manifest(folder).made
    assert made["teacher"]["teacher"]["name"] == "embedded:teacher" and made["student"]["step"] is None
    assert made["teacher"]["teacher"]["weights"] != made["student"]["weights"]
    assert (made["k"], made["n"], made["seed"], made["temperature"]) == (K, 1, 0, 1.0)


@pytest.mark.parametrize(
    "student, more, odd",
    [("embedded:student", {}, False), ("embedded:student", {"lora": 2}, False), ("embedded:teacher", {}, True)],
)
def test_a_run_says_once_that_another_student_wrote_its_texts(folder, tmp_path, student, more, odd):
    """Adapters begin at zero, so that a student with them is still the one that wrote."""
    run = Run.new(settings(folder, student=student, out=str(tmp_path / "run"), **more | {"doctor": "on"}))
    said = [found.evidence for found in run.findings if found.name == "stored texts"]
    told = json.loads((tmp_path / "run" / "teachers.json").read_text())["teacher"]
    wrote, learns = told["made"]["student"], told["learner"]
    assert (wrote["name"], learns["name"]) == ("embedded:student", student)
    assert (wrote["weights"] != learns["weights"]) == odd == bool(said)
    assert all(one["name"] in text and one["weights"][:12] in text for text in said for one in (wrote, learns))
    (seen,) = [found for found in examine(Case.open(run.settings), 0) if found.name == "stored texts"]
    assert seen.verdict == ("warn" if odd else "pass")


def test_texts_that_come_with_the_task(tmp_path):
    """Nobody knows how likely they were, and a policy gradient with weights has no number for them."""
    assert main(["store", str(tmp_path / "s"), "--given", "solution", "--task", "sums,train=4", "--k", "3"]) == 0
    t = build(settings(tmp_path / "s", task="sums,train=4", batch=4))
    groups = t.method.sample(t.cast, [Visit(problem, 0, 0) for problem in t.task.train], 0)
    assert [g.rollouts[0].text for g in groups] == [problem.data["solution"] for problem in t.task.train]
    assert all(r.columns["behaviour"][0] != r.columns["behaviour"][0] for g in groups for r in g.rollouts)
    assert gradient_of(t, groups)[0] > 0


def test_a_store_can_be_asked_about_named_tokens_within_a_share_of_guesses(folder):
    given = {"k": 3, "n": 1, "source": "student", "only_named": True}
    stored = build(settings(folder, "local_support", parameters=given, texts="stored", teacher_misses=0.99))
    whole = build(settings(folder, "local_support", parameters=given, teacher="embedded:teacher"))
    groups = stored.method.sample(stored.cast, [Visit(problem, 0, 0) for problem in stored.task.train], 0)
    rows, _ = prepare(groups, stored.method, stored.cast, 0)
    theirs, _ = prepare(groups, whole.method, whole.cast, 0)
    known = ~rows["teacher.guessed"]
    assert 0 < known.double().mean() < 1 and torch.equal(rows["own.ids"], theirs["own.ids"])
    assert (rows["teacher.gathered"] - theirs["teacher.gathered"])[known].abs().max() < 1e-4
    assert np.isfinite(gradient_of(stored, groups)[0])


# ---- what it is not asked


@pytest.mark.parametrize(
    "method, parameters, texts, why",
    [
        ("sampled_token", {}, "method", "has new texts written.*--texts stored"),
        ("sft", {}, "method", "has new texts written"),
        ("sampled_token", {"n": 4}, "stored", "1 texts for problem.*n=4"),
        ("rethinking", {"n": 1}, "stored", "can't answer.*dist"),
        ("stable_opd", {"n": 1}, "stored", "learns from more than answers"),
        ("representation", {}, "stored", "can't answer.*inner"),
        ("local_support", {"k": K + 1, "n": 1}, "stored", f"fewer best tokens.*K={K}"),
        ("opsd", {}, "stored", "shows the teacher more"),
    ],
)
def test_a_method_that_needs_more_is_refused_before_the_first_step(folder, tmp_path, method, parameters, texts, why):
    with pytest.raises((SettingError, TeacherError), match=why):
        Run.new(settings(folder, method, parameters=parameters, texts=texts, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def served(can):
    """The methods whose questions somebody can answer who can do so much, of those that ask the teacher anything."""
    for name in recipes.names():
        method = recipes.load(name)()
        asks = [ask for ask in method.teach if ask.who == "teacher"]
        if not (asks or "teacher" in getattr(method.sample, "writers", ())):
            continue
        teacher = FakeTeacher(torch.zeros(7, 7), can=frozenset(can))
        try:
            method = from_store(method, True) if "text" not in can else method
            cast = {"student": ToyModel(), "teacher": teacher, "reference": ToyModel()}
            check_capabilities(method, cast)
            if check := getattr(method.sample, "check", None):
                check(cast)
        except (MethodError, SettingError, TeacherError):
            continue
        yield name


def test_the_page_names_the_methods_that_each_kind_of_teacher_serves():
    page = (Path(__file__).parents[1] / "docs" / "teachers.md").read_text(encoding="utf-8")
    kinds = {"vllm:": {"chosen", "topk", "text"}, "stored:": {"chosen", "topk"}, "chat:": {"text"}}
    for kind, can in kinds.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{kind}")]
        assert re.findall(r"`(\w+)`", row.split("|")[-2]) == sorted(served(can)), kind


def test_texts_of_a_store_need_a_store():
    with pytest.raises(SettingError, match="--texts stored"):
        build(Settings.of(method="lightning", texts="stored"))


def test_another_text_of_the_same_problem_is_not_answered(folder):
    teacher = StoredTeacher(folder)
    (text,) = teacher.texts(build(settings(folder)).task.train[0])
    assert len(teacher.read([text], Want(chosen=True)).chosen) == text.n
    other = text.tokens.copy()
    other[-1] = other[-2]
    later = text.reworded([*text.tokens[: text.positions[0]], 5])
    for odd in (replace(text, tokens=other), later, replace(text, problem=replace(text.problem, id="x"))):
        with pytest.raises(TeacherError, match="holds no answer about this text"):
            teacher.read([odd], Want(chosen=True))
    with pytest.raises(TeacherError, match="cannot answer"):
        teacher.read([text], Want(topk=K + 1))


def test_a_problem_that_was_not_stored_is_named(folder):
    with pytest.raises(DataError, match="no text for problem"):
        build(settings(folder, task=f"sums,train={PROBLEMS + 1}"))


def test_a_store_has_no_end_of_text_that_could_be_renamed(folder):
    with pytest.raises(SettingError, match="nobody knows with which token"):
        build(settings(folder, stop_token="map"))


def test_another_tokenizer_is_refused(folder, tmp_path):
    models.folder(tmp_path / "student")
    with pytest.raises(TeacherError, match="another tokenizer"):
        build(settings(folder, student=str(tmp_path / "student")))


# ---- damage


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda f: flip(f / "shard-00001.safetensors", -1), "shard-00001.safetensors is not as it was written"),
        (lambda f: flip(f / "shard-00000.safetensors", 40), "shard-00000.safetensors is not as it was written"),
        (lambda f: os.truncate(f / "shard-00002.safetensors", 100), "shard-00002.safetensors is not as it was written"),
        (lambda f: (f / "shard-00001.safetensors").unlink(), "shard-00001.safetensors cannot be read"),
        (lambda f: flip(f / "manifest.json", 60), "manifest.json"),
        (lambda f: os.truncate(f / "manifest.json", 60), "manifest.json cannot be read"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read: got no such file"),
        (lambda f: os.replace(f / "shard-00001.safetensors", f / "shard-00000.safetensors"), "shard-00000.safetensors"),
    ],
)
def test_damage_is_found_when_it_is_loaded_and_the_file_is_named(folder, tmp_path, damage, named, capsys):
    broken = copied(folder, tmp_path / "store")
    damage(broken)
    words = ["train", "lightning", "--teacher", f"stored:{broken}", "--task", f"sums,train={PROBLEMS}"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said
    assert not (tmp_path / "run").exists()


def test_the_same_command_makes_a_damaged_shard_again_and_nothing_else(folder, tmp_path):
    broken = copied(folder, tmp_path / "store")
    flip(broken / "shard-00001.safetensors", -1)
    before = (broken / "shard-00000.safetensors").stat().st_mtime_ns
    assert main(["store", str(broken), *ORDER]) == 0
    assert {f.name: f.read_bytes() for f in broken.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}
    assert (broken / "shard-00000.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("more, odd", [(["--k", "3"], "k"), (["--seed", "1"], "seed"), (["--temperature", "0.5"], "t")])
def test_a_folder_holds_one_store(folder, tmp_path, more, odd, capsys):
    assert main(["store", str(copied(folder, tmp_path / "s")), *ORDER, *more]) == 2
    assert f"a store of something else: {odd}" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert main(["store", str(tmp_path / "mine"), *ORDER]) == 2
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5])
def test_what_is_no_log_prob_is_neither_stored_nor_learned_from(folder, value):
    kept = read_shard(folder, read_manifest(folder).shards[0])[0]
    wrong = kept.chosen.clone()
    wrong[0] = value
    with pytest.raises(DataError, match="no log-prob of the decided token of problem"):
        check(Kept(kept.rollout, wrong), "a teacher")
    with pytest.raises(DataError, match="more than all probability"):
        check(Kept(kept.rollout, kept.chosen, kept.ids, torch.zeros_like(kept.top)), "a teacher")


# ---- real processes that are killed, and a disk that is full


def storing(folder, order=ORDER, **how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "opd", "store", str(folder), *order]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **how)


def test_a_store_that_was_killed_goes_on_and_ends_with_the_same_bytes(folder, tmp_path):
    half = tmp_path / "store"
    process = storing(half)
    while process.poll() is None and not (half / "shard-00000.safetensors").is_file():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (half / "shard-00000.safetensors").is_file()
    if not read_manifest(half).complete:  # else it was faster than we are
        with pytest.raises(TeacherError, match="not finished"):
            StoredTeacher(half)
    assert main(["store", str(half), *ORDER]) == 0
    assert {f.name: f.read_bytes() for f in half.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}


def test_ctrl_c_twice_ends_a_store_with_one_sentence(tmp_path):
    """The second one comes while the process ends."""
    folder = tmp_path / "store"
    process = storing(folder, order=["--per-shard", "1", "--task", "sums,train=4000"])
    while process.poll() is None and not (folder / "shard-00001.safetensors").is_file():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "opd: interrupted" and "Traceback" not in said
    assert not read_manifest(folder).complete


def test_a_full_disk_stops_with_one_sentence_and_the_store_goes_on_from_there(folder, tmp_path):
    size = max((folder / f"shard-0000{i}.safetensors").stat().st_size for i in range(3)) - 100
    limited = storing(tmp_path / "s", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    _, said = limited.communicate(timeout=240)
    assert limited.returncode == 2 and said.count("\n") == 1, said
    assert "could not write" in said and "shard-0000" in said and "Free some space" in said
    assert not list((tmp_path / "s").glob(".*")), "nothing half-written is left"
    assert main(["store", str(tmp_path / "s"), *ORDER]) == 0
    assert read_manifest(tmp_path / "s").digest() == read_manifest(folder).digest()


# ---- runs


def test_a_run_is_resumed_without_a_teacher_and_ends_as_it_would_have(folder, tmp_path):
    def run(out, steps):
        how = {"batch": 4, "eval_problems": 4, "lr": 1e-3, "checkpoint_every": 2}
        return settings(folder, steps=steps, out=str(tmp_path / out), **how)

    whole = Run.new(run("whole", 4))
    whole.train()
    torn = Run.new(run("torn", 4))
    torn.training.steps = 2
    torn.train()
    (tmp_path / "torn" / "summary.json").unlink()
    again = Run.resume(tmp_path / "torn")
    assert again.training.step == 2
    again.train()
    ours, theirs = (run.training.student.state_dict() for run in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any("teacher.chosen" in line for line in lines) and not any("eval.reverse_kl" in line for line in lines)


def test_a_run_does_not_go_on_with_other_answers(folder, tmp_path):
    own = copied(folder, tmp_path / "store")
    run = Run.new(settings(own, steps=2, batch=4, checkpoint_every=1, eval_problems=4, out=str(tmp_path / "run")))
    run.train()
    manifest = read_manifest(own)
    Manifest({**manifest.made, "task": "another"}, manifest.shards, True).save(own)
    with pytest.raises(ModelError, match="another one than the run began with"):
        Run.resume(tmp_path / "run")


def test_the_doctor_says_that_a_store_reads_nothing_else(folder, capsys):
    words = ["doctor", "lightning", "--teacher", f"stored:{folder}", "--task", f"sums,train={PROBLEMS}", "--answers=4"]
    assert main([*words, "--max-new", "24"]) in (0, 1)
    assert "a store answers about its own texts alone" in " ".join(capsys.readouterr().out.split())
