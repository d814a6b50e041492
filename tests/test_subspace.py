"""Learning held to a subspace: projections by hand, what Adam does to them, exact resume."""

import shutil

import pytest
import torch
from torch import nn

from opd import Run, Settings
from opd.cli.main import main
from opd.subspace import HeldToSubspace, projected


def basis(n, r, seed=0):
    return torch.linalg.qr(torch.randn(n, r, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q.T


def test_projecting_twice_is_projecting_once_and_all_directions_are_no_constraint():
    a, v = torch.randn(5, 6, dtype=torch.float64), basis(6, 2)
    assert torch.allclose(projected(projected(a, v), v), projected(a, v), atol=1e-14)
    assert torch.allclose(projected(a, basis(6, 6)), a, atol=1e-13)


def outside(change, rank=2):
    """How much of a change [M, N] lies outside its `rank` strongest directions, relative."""
    values = torch.linalg.svdvals(change)
    return float(values[rank:].norm() / values.norm())


def walked(kind, hold, steps=12, start=1):
    """A matrix that learns a random regression, held to two directions after its second, rank-two, step."""
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(6, 5, dtype=torch.float64, generator=generator))
    before = w.detach().clone()
    optimizer = HeldToSubspace(kind([w], lr=0.05), {"w": w}, rank=2, start=start, hold=hold)
    for step in range(steps):
        rows = 2 if step < start else 5
        x = torch.randn(rows, 5, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (x @ w.T).square().sum().backward()
        optimizer.step()
    return w.detach() - before


def test_plain_descent_stays_in_the_subspace_when_its_gradients_are_projected():
    assert outside(walked(torch.optim.SGD, "gradient")) < 1e-12


def test_adam_leaves_it_with_projected_gradients_and_stays_with_projected_updates():
    held = lambda hold: walked(torch.optim.Adam, hold, start=6)
    free = walked(torch.optim.Adam, "gradient", start=10**6)
    leaving, staying = held("gradient"), held("update")
    assert outside(leaving) > 1e-3
    first = walked(torch.optim.Adam, "update", steps=6, start=6)  # before it is held
    v = torch.linalg.svd(first, full_matrices=False).Vh[:2]
    later = staying - first
    assert torch.allclose(projected(later, v), later, atol=1e-12)
    assert not torch.allclose(free, staying)


COMMON = {
    "method": "sft", "steps": 5, "batch": 2, "max_new": 8, "eval_problems": 4, "drafts": 0, "checkpoint_every": 1,
    "keep_checkpoints": 9, "lr": 1e-2, "subspace_rank": 2, "subspace_after": 0.4,
}  # fmt: skip


@pytest.mark.parametrize("hold", ["gradient", "update"])
def test_a_resumed_run_is_held_to_the_same_directions(tmp_path, hold):
    whole = Run.new(Settings.of(**COMMON, subspace_hold=hold, out=str(tmp_path / "run")))
    whole.train()
    for step in (4, 5):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:06d}")
    again = Run.resume(tmp_path / "run")
    assert again.training.step == 3 and again.training.optimizer.directions
    again.train()
    ours, theirs = (run.training.student.state_dict() for run in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "words",
    [["--lora", "2"], ["--budget", "tokens=100"], ["--steps", "3"]],
)
def test_what_cannot_be_held_is_refused(words, tmp_path, capsys):
    steps = [] if "--steps" in words or "--budget" in words else ["--steps", "10"]
    assert main(["train", "sft", *words, *steps, "--subspace-rank", "2", "--out", str(tmp_path / "run")]) == 2
    assert "full weights" in capsys.readouterr().err
