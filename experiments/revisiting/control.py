"""One-dimensional control with two mirror tasks: a point walks from its start to a target in twenty Gaussian steps.

What arXiv 2603.25562 does not give is chosen here: 60 hidden units (4,022 parameters), tanh, a step's mean between -.5
and .5 and its standard deviation between .1 and .5 (or a teacher jumps to its target at once), the teachers' reward
(minus the distance to the target after every step) and their training.

Axes: B paths, T steps, N = B T rows in the order of paths, then steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opd.parts.credit import ReturnToGo
from opd.parts.losses import PolicyGradient
from opd.parts.means import token_mean
from opd.rows import Rows

LENGTH = 20
HIDDEN = 60
FARTHEST = 0.5
STD = 0.1, 0.5
TEACHER = {"updates": 600, "batch": 64, "lr": 3e-3}


@dataclass(frozen=True)
class Task:
    """Where a walk begins and where it should end; `sign` is how a policy is told the task."""

    sign: float
    start: float
    target: float


TASKS = {"left": Task(-1.0, 2.0, -3.0), "right": Task(1.0, -2.0, 3.0)}


class Policy(nn.Module):
    """Task, position, time [N, 3] -> what the last layer sees [N, 60], and raw mean and deviation of a step [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(inputs)
        return hidden, self.head(hidden)


def moments(out: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [N] of the step; both move smoothly between their two ends."""
    low, high = (math.log(end) for end in STD)
    return FARTHEST * out[:, 0].tanh(), (low + (high - low) * out[:, 1].sigmoid()).exp()


def logprob(out: Tensor, step: Tensor) -> Tensor:
    """[N] log-density of a step."""
    mean, std = moments(out)
    return -0.5 * ((step - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Chosen:
    """All that a policy gradient asks of a policy: the log-prob [N] of what was decided."""

    chosen: Tensor


@dataclass(frozen=True)
class Walks:
    """B paths of T steps: inputs [N, 3], steps [N], positions after each step [B, T], and their table of rows."""

    inputs: Tensor
    steps: Tensor
    places: Tensor
    rows: Rows


@torch.no_grad()
def walk(policy: Policy, task: Task, count: int, generator: torch.Generator) -> Walks:
    """Lets a policy walk, and writes down the table that any method starts from."""
    noise = torch.randn(LENGTH, count, generator=generator)
    place, sign = torch.full((count,), task.start), torch.full((count,), task.sign)
    inputs, steps, outs = list[Tensor](), list[Tensor](), list[Tensor]()
    for t in range(LENGTH):
        inputs.append(torch.stack([sign, place, torch.full_like(place, t / LENGTH)], 1))
        outs.append(policy(inputs[-1])[1])
        mean, std = moments(outs[-1])
        steps.append(mean + std * noise[t])
        place = place + steps[-1]
    taken, flat = torch.stack(steps, 1), torch.stack(inputs, 1).flatten(0, 1)
    own, numbers = logprob(torch.stack(outs, 1).flatten(0, 1), taken.flatten()), torch.arange(count * LENGTH)
    columns = {"row": numbers % LENGTH, "episode": numbers // LENGTH, "untruncated": own, "behaviour": own}
    rows = Rows({**columns, "keep": torch.ones(count * LENGTH, dtype=torch.bool)})
    return Walks(flat, taken.flatten(), task.start + taken.cumsum(1), rows)


def distance(walks: Walks, task: Task) -> float:
    """Mean distance between where the walks ended and the target."""
    return float((walks.places[:, -1] - task.target).abs().mean())


def teacher(task: Task, seed: int, progress: Callable[[str], None] = print) -> Policy:
    """A policy that learned its one task by REINFORCE: return-to-go, centred and scaled at each time of the batch."""
    torch.manual_seed(seed)
    policy, generator = Policy(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), TEACHER["lr"])
    for _ in range(int(TEACHER["updates"])):
        walks = walk(policy, task, int(TEACHER["batch"]), generator)
        rows = ReturnToGo(1.0)(walks.rows.plus(advantage=-(walks.places - task.target).abs().flatten()))
        returns = rows["advantage"].view(-1, LENGTH)
        centred = (returns - returns.mean(0)) / returns.std(0).clamp(min=1e-6)  # no two walks end alike: a guard only
        rows = rows.plus(advantage=centred.flatten())
        student = Chosen(logprob(policy(walks.inputs)[1], walks.steps))
        optimizer.zero_grad()
        (token_mean(rows) * PolicyGradient()(student, rows)).sum().backward()
        optimizer.step()
    end = distance(walk(policy, task, 512, generator), task)
    progress(f"teacher of seed {seed}, from {task.start:+g} to {task.target:+g}: ends {end:.2f} from its target")
    return policy.requires_grad_(False)
