"""The teacher behind a real vLLM server: the loss of a local one, limits that it finds out, a server that is killed."""

import json
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from serving import Proxy, written
from vllm_server import VLLM

from opd import Run, Settings
from opd import cast as casting
from opd.build import build
from opd.cli.main import main
from opd.errors import TeacherError, Unanswered
from opd.loop import train
from opd.protocols import Want
from opd.rollout import TEACHER, Problem, Sampling, continued
from opd.teachers.vllm import VLLMTeacher

SMALL = {"steps": 4, "batch": 8, "lr": 1e-3, "max_new": 12, "eval_problems": 2, "drafts": 1, "doctor": "off"}
PATIENT = {"teacher_timeout": 120.0, "teacher_patience": 600.0}
NEAR = 1e-5  # nats between two implementations in float32, of log-probs down to -20


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return str(models.folder(tmp_path_factory.mktemp("student") / "student", seed=5))


def settings(student, teacher, **more):
    return Settings.of(
        **{"method": "sampled_token", **SMALL, **PATIENT, "student": student, "teacher": teacher, **more}
    )


def losses(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


FAMILIES = {
    "one log-prob": ("sampled_token", {}),
    "top K": ("local_support", {"k": 8}),
    "top K and tail": ("local_support", {"k": 8, "outside": "tail"}),
    "top K and the sampled token": ("local_support", {"k": 20, "sampled": True}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_and_local_teachers_give_the_same_gradient(untied, student, family):
    method, given = FAMILIES[family]
    found = []
    for teacher in (str(untied.folder), f"vllm:{untied.url}"):
        training = build(settings(student, teacher, method=method, parameters=given))
        batch = next(train(training))
        gradient = torch.cat([p.grad.flatten() for p in training.student.parameters()])
        found.append((batch.metrics["loss"], gradient))
    (loss, ours), (served, theirs) = found
    assert abs(loss - served) < 1e-6 and (ours - theirs).norm() < 1e-5 * ours.norm()


def test_a_run_is_that_with_the_local_teacher(untied, student, tmp_path):
    found = []
    for teacher in (str(untied.folder), f"vllm:{untied.url}"):
        out = tmp_path / str(len(found))
        Run.new(settings(student, teacher, method="local_support", parameters={"k": 8}, out=str(out))).train()
        found.append(losses(out))
    assert np.abs(np.subtract(*found)).max() < 1e-5
    told = json.loads((out / "teachers.json").read_text())["teacher"]
    assert told["version"] == "0.32.0" and told["best"] == 20 and told["context"] == 256 and told["kind"] == "vllm"
    assert max(told["probe"].values()) < 1e-4


def test_every_answer_is_the_local_one_and_so_are_the_texts(untied, student):
    chosen = settings(student, "")
    reader = casting.open_model(student, chosen, "float32", "cpu")
    local = casting.open_model(str(untied.folder), chosen, "float32", "cpu")
    teacher = VLLMTeacher.of(f"vllm:{untied.url}#tiny", reader, 120.0, 0.0)
    assert casting.share_tokens(reader, teacher, local) == models.VOCAB
    texts = written(reader)
    for k in (0, 1, 20):
        want = Want(chosen=True, topk=k)
        ours, theirs = local.read(texts, want), teacher.read(texts, want)
        assert (ours.chosen - theirs.chosen).abs().max() < 5 * NEAR
        if k:
            assert (ours.dist.ids == theirs.dist.ids).all()
            assert (ours.dist.values - theirs.dist.values).abs().max() < 5 * NEAR
    prompts = [reader.render(({"role": "user", "content": text},)) for text in ("12+3=", "4+55=")]
    for prompt, some in zip(prompts, teacher.write(prompts, Sampling(max_new=9), [[1, 2], [3]]), strict=True):
        for piece in some:
            text = continued(prompt, piece, Problem("p", ""), Sampling(), TEACHER)
            known = local.read([text], Want(chosen=True)).chosen.double().numpy()
            assert np.abs(known - piece.behaviour).max() < 5 * NEAR


def test_what_it_cannot_do_is_refused_before_the_run(untied, student):
    for method, given, words in (("local_support", {"k": 30}, "at most K=20"), ("gkd", {"lam": 1.0}, "'dist'")):
        with pytest.raises(TeacherError, match=words):
            build(settings(student, f"vllm:{untied.url}", method=method, parameters=given))


def test_named_tokens_are_what_it_says_of_its_best_and_a_distribution_with_the_rest(untied, student):
    """vLLM gives 20 best tokens of 45 by itself: the others are guessed, and are counted."""
    chosen = settings(
        student, f"vllm:{untied.url}", method="local_support", teacher_misses=0.9,
        parameters={"k": 12, "source": "student", "only_named": True},
    )  # fmt: skip
    training = build(chosen)
    teacher, reader = training.cast["teacher"], training.student
    local = casting.open_model(str(untied.folder), chosen, "float32", "cpu")
    texts = [t.with_columns(all=np.tile(np.arange(models.VOCAB), (t.n, 1))) for t in written(reader)]
    asked = Want(gather="all")
    teacher.misses = 1.0
    ours, theirs = local.read(texts, asked).gathered, teacher.read(texts, asked)
    known = ~theirs.guessed
    assert known.sum(1).unique().tolist() == [20, 21] and (ours - theirs.gathered)[known].abs().max() < 5 * NEAR
    assert (theirs.gathered.double().exp().sum(1) - 1).abs().max() < NEAR
    teacher.misses = 0.9
    metrics = next(train(training)).metrics
    assert np.isfinite(metrics["loss"]) and 0 < metrics["teacher.missed"] < 0.9


def test_another_model_behind_the_address_is_noticed(untied, tied, student, tmp_path):
    """Both are called alike and have the same tokens; only their numbers tell."""
    proxy, out = Proxy(untied.url, lambda *_: None), tmp_path / "run"
    try:
        run = Run.new(settings(student, f"vllm:{proxy.url}", out=str(out)))
        proxy.target = tied.url
        with pytest.raises(Unanswered, match="another model answers"):
            run.train()
        assert main(["train", "--resume", str(out)]) == 2
        proxy.target = untied.url
        Run.resume(out).train()
        assert len(losses(out)) == SMALL["steps"]
    finally:
        proxy.close()


def test_a_killed_server_that_comes_back_is_asked_again(untied, student, tmp_path):
    """SIGKILL with its engine: the run stops, goes on when it is back, and has the losses of an undisturbed one."""
    first = VLLM(models.folder(tmp_path / "untied", seed=1, width=64, layers=2, context=256))
    whole, out = tmp_path / "whole", tmp_path / "run"
    Run.new(settings(student, f"vllm:{untied.url}", out=str(whole))).train()
    training = Run.new(settings(student, f"vllm:{first.url}", out=str(out)))
    first.kill()
    with pytest.raises(Unanswered, match="tries"):
        hasty(training).train()
    again = VLLM(first.folder, port=first.port)
    try:
        Run.resume(out).train()
    finally:
        again.stop()
    assert np.abs(np.subtract(losses(whole), losses(out))).max() < 1e-4


def hasty(run):
    """The run, whose teacher is waited for no longer than a second."""
    run.training.cast["teacher"].replicas.patience = 1.0
    return run
