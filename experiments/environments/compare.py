"""Who should act while a policy is distilled, and what a gate on values saves: two tables over seeds.

    python -m experiments.environments.compare --part actors
    python -m experiments.environments.compare --part gate

actors: the same labels, loss, updates and number of environment steps; only who executes differs (the expert, a coin,
the student), for a near-perfect and a noisy expert, in three environments.
gate: a teacher that is wrong in one state of FrozenLake; cloning, reward alone, both, and both behind the value gate.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from opd import recipes
from opd.engines.policy import Policy, made
from opd.engines.world import World
from opd.evaluate import evaluate
from opd.loop import Source, Training, learn, one_step
from opd.method import Method
from opd.parts.rounds import Aggregate
from opd.step import prepare
from opd.tasks.gymnasium import Environment, load
from opd.teachers.exact import Table, expert, greedy, tabular
from opd.teachers.expert import Expert

WORLDS: dict[str, dict[str, Any]] = {
    "FrozenLake-v1": {"map_name": "8x8"},
    "Taxi-v4": {},
    "CliffWalking-v1": {},
}
BUDGETS = (500, 2000)  # environment steps
LONGEST = 100  # steps of an episode
ACTORS = {"expert": 1.0, "student": 0.0}  # who executes: share of the expert's decisions
STUDENTS = {"table": (0.3, 20), "mlp:3": (0.05, 60)}  # learning rate, updates on everything before an exam
EPSILONS = (0.001, 0.4)  # rate of random actions of the expert, labels included
EXAM = 50  # held-out episodes
EPISODES = 2  # fresh ones per batch
STUDENT_T = {3: 4.30, 5: 2.78, 10: 2.26}  # 97.5 % points for so many seeds


def training(
    task: Environment,
    teacher: Expert,
    method: Method,
    seed: int,
    batch: int,
    rate: float,
    kind: str = "table",
    longest: int = LONGEST,
) -> Training:
    """A run of the package without its folder: an untaught policy learns."""
    student = made(kind, task.world, seed, longest)
    optimizer = torch.optim.AdamW(list(student.parameters()), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    cast = {"student": student, "teacher": teacher}
    return Training(student, cast, task, method, optimizer, lambda step: rate, Source(task.train, seed), 10**6, batch)


def examined(writer: Any, task: Environment) -> float:
    """Mean return of the greedy policy on the held-out episodes, which do not count as steps."""
    before = task.world.steps
    found = evaluate(writer, task, task.held_out[:EXAM], samples=0, max_new=LONGEST, batch=EXAM).greedy
    task.world.steps = before
    assert found and found.returned
    return found.returned.value


def cloned(task: Environment, run: Training, kind: str) -> Policy:
    """A fresh policy fitted to everything that was gathered so far, by the same number of updates for everybody."""
    rate, fits = STUDENTS[kind]
    rounds = run.method.state["rounds"]
    assert isinstance(rounds, Aggregate)
    fresh = training(task, run.cast["teacher"], run.method, run.source.seed, 1, rate, kind)
    rows, sequences = prepare(rounds.groups, run.method, fresh.cast, 0)
    for _ in range(fits):
        learn(fresh, rows, sequences)
    return fresh.cast["student"]


def by_actor(name: str, kind: str, epsilon: float, share: float, seed: int) -> list[float]:
    """The clone's return at each budget of environment steps."""
    task = load(name, train=4096, held_out=EXAM, seed=seed, **WORLDS[name])
    teacher = expert(task.world, epsilon=epsilon, max_new=LONGEST)
    method = recipes.load("dagger")(beta=share, fade=10**9, epochs=2)
    run = training(task, teacher, method, seed, EPISODES, STUDENTS[kind][0], kind)
    found = []
    for budget in BUDGETS:
        while task.world.steps < budget:
            one_step(run)
        found.append(examined(cloned(task, run, kind), task))
    return found


def actors(seeds: int) -> None:
    steps = " | ".join(f"{budget} steps" for budget in BUDGETS)
    print(f"| environment | student | random actions of the expert | who acts | {steps} | expert |")
    print("|" + "---|" * (5 + len(BUDGETS)))
    for name in WORLDS:
        task = load(name, held_out=EXAM, **WORLDS[name])
        best = examined(expert(task.world, epsilon=0.001, max_new=LONGEST), task)
        for kind, epsilon, who in itertools.product(STUDENTS, EPSILONS, ACTORS):
            returns = [by_actor(name, kind, epsilon, ACTORS[who], seed) for seed in range(seeds)]
            cells = " | ".join(interval(column) for column in zip(*returns, strict=True))
            print(f"| {name} | {kind} | {epsilon:.1%} | {who} | {cells} | {best:.3g} |", flush=True)


def interval(values: Sequence[float], factor: float = 1.0) -> str:
    """Mean over seeds, and half the width of its 95 % interval (Student's t)."""
    half = STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{factor * statistics.mean(values):.3g} ± {float(f'{factor * half:.2g}'):g}"


# ---- the gate

WRONG = 14  # the state left of the goal
MARKS = (10, 20, 60, 150)  # updates
SHORT = 30  # steps of an episode
OPTIONS = {"is_slippery": False}


def mistaken(world: World) -> Expert:
    """Right with probability .9, but in one state, in which it turns back just as surely; its values are its own."""
    table = Table.of(world)
    policy = 0.9 * greedy(table.best()) + 0.1 / world.actions
    policy[WRONG] = 0.9 * np.eye(world.actions)[0] + 0.1 / world.actions
    return tabular(world, policy, table.values(policy), max_new=SHORT)


def kickstart(**how: Any) -> Callable[[], Method]:
    return lambda: recipes.load("kickstarting")(**{"fade": 10**9, "n": 1, **how})


GATE = {
    "clone": lambda: recipes.load("on_policy_distillation")(divergence="forward_kl", future=False),
    "reward": kickstart(weight=0.0),
    "reward and clone": kickstart(weight=0.5),
    "reward and clone, faded over 60 updates": kickstart(weight=0.5, fade=60),
    "reward and gated clone": kickstart(weight=0.5, gate=True),
}


def gated(name: str, seed: int) -> list[float]:
    """Success of the sampled policy after so many updates."""
    task = load("FrozenLake-v1", held_out=EXAM, seed=seed, **OPTIONS)
    run = training(task, mistaken(task.world), GATE[name](), seed, batch=16, rate=0.1, longest=SHORT)
    found = []
    for mark in MARKS:
        while run.step < mark:
            one_step(run)
        result = evaluate(run.student, task, samples=1, greedy=False, max_new=SHORT, batch=EXAM).sampled
        assert result and result.accuracy
        found.append(result.accuracy.value)
    return found


def gate(seeds: int) -> None:
    print("| learned from | " + " | ".join(f"{mark} updates" for mark in MARKS) + " |")
    print("|" + "---|" * (1 + len(MARKS)))
    for name in GATE:
        returns = [gated(name, seed) for seed in range(seeds)]
        print(f"| {name} | " + " | ".join(interval(c, 100) for c in zip(*returns, strict=True)) + " |", flush=True)
    task = load("FrozenLake-v1", held_out=EXAM, **OPTIONS)
    result = evaluate(mistaken(task.world), task, samples=1, greedy=False, max_new=SHORT).sampled
    assert result and result.accuracy
    print(f"teacher {result.accuracy.value:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("actors", "gate"), default="actors")
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT_T))
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"actors": actors, "gate": gate}[given.part](given.seeds)


if __name__ == "__main__":
    main()
