"""A real vLLM server writes for a student: weights follow it, log-probs agree, a tied head that stays is found."""

import json

import models
import numpy as np
import pytest
import torch
from vllm_server import VLLM as Server

from opd import Run, Settings
from opd.cli.main import main
from opd.engines import vllm_folder
from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.engines.sampled import Sampled
from opd.engines.vllm import VLLM
from opd.errors import SettingError, Unanswered
from opd.rollout import Sampling

SHAPE = {"width": 64, "layers": 2, "context": 128, "vocab": models.VOCAB + 5}  # five rows of the head are no tokens
DEV = {"VLLM_SERVER_DEV_MODE": "1"}
PROMPTS = [np.array([1, 5, 9, 12], np.int32), np.array([1, 7], np.int32)]
SEEDS = [[1, 2, 3], [4, 2**64 - 1]]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    place = tmp_path_factory.mktemp("students")
    return {name: models.folder(place / name, tied=name == "tied", seed=3, **SHAPE) for name in ("tied", "untied")}


@pytest.fixture(scope="module")
def server(students, tmp_path_factory):
    """Started as `opd sampler` says, from the copy of a tied student."""
    folder = tmp_path_factory.mktemp("sampler") / "served"
    assert main(["sampler", str(folder), "--student", str(students["tied"])]) == 0
    started = Server(folder, "--logprobs-mode", "processed_logprobs", environment=DEV)
    yield started
    started.stop()


def student_of(folder):
    return HFModel(load_model(str(folder), torch.float32, "cpu"), load_tokenizer(str(folder)), "student", 12)


def sampled(student, server, step=lambda: 0):
    return Sampled(student, VLLM(server.url), server.folder, step, tolerance=1e-4)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_the_server_follows_and_its_log_probs_are_the_students(server, students, kind):
    student, step = student_of(students[kind]), [0]
    writer = sampled(student, server, lambda: step[0])
    writer.start()
    for sampling in (Sampling(), Sampling(0.7, 0.9), Sampling(top_k=5), Sampling(temperature=0.0)):
        with torch.no_grad():
            for p in student.parameters():
                p.mul_(1.05)
        step[0] += 1
        pieces = [piece for some in writer.write(PROMPTS, sampling, SEEDS) for piece in some]
        assert max(np.abs(piece.columns["sampler.ratio"]).max() for piece in pieces) < 1e-4
        assert all(piece.tokens.max() < models.VOCAB and len(piece.tokens) <= 12 for piece in pieces)
        assert {piece.tags["sampler.version"] for piece in pieces} == {float(step[0])}
        assert writer.server.tell()["sampler.push.gap"] < 1e-4


def test_a_text_does_not_depend_on_its_company(server, students):
    """In float32 on a processor; nobody promises it elsewhere."""
    writer = sampled(student_of(students["tied"]), server)
    seeds = list(range(24))
    (together,) = writer.write(PROMPTS[:1], Sampling(max_new=40), [seeds])
    alone = [writer.write(PROMPTS[:1], Sampling(max_new=40), [[seed]])[0][0] for seed in seeds]
    assert [piece.tokens.tolist() for piece in together] == [piece.tokens.tolist() for piece in alone]


class Killing:
    """Looks on, and after the second step kills the server and starts it again."""

    def __init__(self, server):
        self.server = server

    def stepped(self, metrics):
        if metrics["step"] == 1:
            self.server.kill()
            flags = ("--logprobs-mode", "processed_logprobs")
            self.server.process = Server(self.server.folder, *flags, environment=DEV, port=self.server.port).process

    def __getattr__(self, name):
        return lambda *_: None


def test_a_run_learns_from_its_texts_and_outlives_its_server(server, students, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i}+{i + 1}"}) + "\n" for i in range(12)))
    teacher = models.folder(tmp_path / "teacher", seed=9, **SHAPE)
    out = tmp_path / "run"
    chosen = Settings.of(
        method="sampled_token", student=str(students["tied"]), teacher=str(teacher), task=f"jsonl:{prompts},held_out=4",
        sampler=f"vllm:{server.url}", sampler_tolerance=1e-3, steps=4, batch=4, lr=1e-2, max_new=12, drafts=0,
        doctor="off", out=str(out),
    )  # fmt: skip
    Run.new(chosen, Killing(server)).train()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["sampler.version"] for line in lines] == [0, 1, 2, 3]
    assert all(line["sampler.gap.max"] < 1e-4 and line["sampler.push.gap"] < 1e-4 for line in lines)
    assert all(abs(line["sampler.weight"] - 1) < 1e-4 and line["engine.gap.max"] < 1e-5 for line in lines)


def test_a_tied_head_that_stays_behind_is_found(students, tmp_path, monkeypatch):
    """Pushed plainly, a tied server keeps its head; pushed as we do, it takes the new one (vLLM 0.32)."""
    student, folder = student_of(students["tied"]), tmp_path / "served"
    student.save(folder)
    (folder / vllm_folder.MARK).write_text("{}")  # as if opd sampler had made it
    started = Server(folder, environment=DEV)
    try:
        with monkeypatch.context() as patch, pytest.raises(Unanswered, match="keeps the old one"):
            patch.setattr(vllm_folder, "write", lambda student, folder: student.save(folder))
            sampled(student, started).start()
        with pytest.raises(SettingError, match="processed_logprobs"):  # which comes after the weights
            sampled(student, started).start()
    finally:
        started.stop()


def test_a_stock_server_is_refused(untied, students):
    """No weights can be pushed to one that was started as any other."""
    with pytest.raises(Unanswered, match="VLLM_SERVER_DEV_MODE=1"):
        Sampled(student_of(students["untied"]), VLLM(untied.url), untied.folder, lambda: 0, 1e-4)._sync()
