"""A run that is killed again and again ends with the same bits as one that never was: real processes, real SIGKILL."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

STEPS = 10
COMMON = [
    *("--steps", str(STEPS), "--batch", "6", "--lr", "1e-3", "--max-new", "16", "--checkpoint-every", "2"),
    *("--eval-problems", "3", "--drafts", "2", "--eval-every", "4"),
]
RUNS = {
    # a coin, traces that are written on the way, a teacher of its own
    "gkd": ["gkd", "--teacher", "embedded:teacher", "--lam", "0.5"],
    # a teacher that is an average of the student, several updates per batch
    "local_support": ["local_support", "--teacher", "self:ema=0.9", "--k", "4", "--n", "2", "--temperature", "1.3"],
}


def start(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "opd", "train", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count('"loss"') if file.is_file() else 0


def kill_somewhere(process: subprocess.Popen, folder: Path, rng: random.Random) -> bool:
    """SIGKILL a little after a random step; false if the run was faster."""
    goal = steps_done(folder) % STEPS + rng.randint(1, 4)
    while process.poll() is None:
        if steps_done(folder) >= goal:
            time.sleep(rng.random() * 0.3)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.02)
    process.communicate()
    return False


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_to_the_same_bits(name, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    finish(start(*RUNS[name], *COMMON, "--out", str(whole)))
    rng, kills = random.Random(name), 0
    process = start(*RUNS[name], *COMMON, "--out", str(torn))
    while kills < 3 and kill_somewhere(process, torn, rng):
        kills += 1
        process = start("--resume", str(torn))
    if process.returncode is None:
        finish(process)
    assert kills >= 2, "the run was too quick to be killed twice"
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (torn, whole))
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours), "weights differ"
    assert losses(torn) == losses(whole), "some step was done twice, left out, or went another way"
    assert (
        json.loads((torn / "summary.json").read_text())["student_after"]
        == json.loads((whole / "summary.json").read_text())["student_after"]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(number, tmp_path):
    folder = tmp_path / "run"
    process = start(*RUNS["gkd"], *COMMON, "--checkpoint-every", "0", "--steps", "400", "--out", str(folder))
    while steps_done(folder) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"opd train --resume {folder}" in output
    assert "Traceback" not in output
    (saved,) = (folder / "checkpoints").iterdir()
    assert saved.name == f"step-{steps_done(folder):06d}"
