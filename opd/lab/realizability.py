"""What on-policy distillation adds to SFT when the student cannot be the teacher, and that it adds nothing when it can.

Five findings: a bandit in which no number of the expert's answers is enough; the same with scores against the reward,
which mislead everybody; a student that can be its teacher, where SFT is as good; one that cannot, where the gap is
there after a single decision; and how far from its expert a good student may be. Theory: arXiv 2606.30445; worlds ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from opd import maths
from opd.lab import bandit
from opd.lab.drawing import Line, Panel
from opd.lab.learning import learn
from opd.lab.policy import Policy
from opd.lab.study import Result, Table, interval, spread
from opd.lab.world import World, contexts, slippery_chain
from opd.method import Method
from opd.recipes.gkd import gkd
from opd.recipes.sft import sft

OUTCOMES, FAVOUR, AGAINST = 20, 5.0, 0.2
INSIDE = (0.1, 0.01, 0.001, 0.0001)  # d
ANSWERS = (10, 100, 1000, 10_000)  # n
REPEATS = 100  # bandits per seed
BATCH, RATE = 16, 4.0  # of the learners below; the rate falls to 0
LENGTHS = (8, 32, 96)  # batches of BATCH walks


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    seeds: int = Field(30, ge=2, description="independent repetitions")
    out: str = Field("runs/lab-realizability", description="new folder for the tables, the numbers and the picture")


def check(options: Options) -> None:
    """Nothing here can contradict itself."""


def run(options: Options, say: Callable[[str], None]) -> Result:
    say("bandits")
    with_reward = {d: _bandit(FAVOUR, d, options.seeds) for d in INSIDE}
    against = {d: _bandit(AGAINST, d, options.seeds) for d in INSIDE}
    chain, expert = slippery()
    able = _compared(chain, expert, None, LENGTHS, options.seeds, lambda line: say(f"able student, {line}"))
    pair, double = two_contexts()
    weak = _compared(pair, double, (0, 0), LENGTHS[:2], options.seeds, lambda line: say(f"weak student, {line}"))
    far = distances()
    tables = [
        _bandit_table(f"Scores with the reward ({FAVOUR:g} times as likely)", with_reward),
        _bandit_table(f"Scores against the reward ({AGAINST:g} times as likely)", against),
        _compared_table("A student that can be its teacher, H = 8", able, _level(chain, expert)),
        _compared_table("A student that cannot: two contexts share their logits, H = 1", weak, _level(pair, double)),
        _distance_table(far),
    ]
    raw = {
        "options": options.model_dump(),
        "with_reward": with_reward,
        "against": against,
        "able": able | {"expert": _level(chain, expert)},
        "weak": weak | {"expert": _level(pair, double), "limits": limits(pair, double)},
        "distances": far,
    }
    panels = [
        _bandit_panel(with_reward),
        _panel("Can be its teacher, H = 8", able, _level(chain, expert)),
        _panel("Cannot: shared logits, H = 1", weak, _level(pair, double)),
    ]
    return Result(tables, raw, panels)


def summary(raw: dict[str, Any]) -> str:
    """One sentence on what was found."""
    walks = LENGTHS[1] * BATCH
    gaps = [interval([o - s for s, o in zip(*raw[k][walks].values(), strict=True)]) for k in ("able", "weak")]
    able, weak = (f"{mean:+.3f} ± {half:.3f}" for mean, half in gaps)
    return f"On-policy learning earns {able} beyond SFT where the student can be its teacher, {weak} where it cannot."


# ---- the bandit


def _bandit(favour: float, inside: float, seeds: int) -> dict[str, Any]:
    q = bandit.expert(OUTCOMES, favour, inside)
    return {
        "online": float(bandit.online(q)),
        "offline": {n: bandit.offline(q, n, seeds, REPEATS).tolist() for n in ANSWERS},
        "reweighted": {n: bandit.reweighted(q, n, seeds, REPEATS).tolist() for n in ANSWERS},
    }


def _bandit_table(title: str, found: dict[float, dict[str, Any]]) -> Table:
    lines = [
        [f"{d:g}", way, *(spread(row[way][n], ".2f") for n in ANSWERS)]
        for d, row in found.items()
        for way in ("offline", "reweighted")
    ]
    lines += [["any", f"online, {OUTCOMES} queries", *[f"{found[INSIDE[0]]['online']:.2f}"] * len(ANSWERS)]]
    head = ["d", "way", *(f"n = {n:,}" for n in ANSWERS)]
    return Table(f"{title}: share of bandits in which the rewarded student is picked", head, lines)


def _bandit_panel(found: dict[float, dict[str, Any]]) -> Panel:
    lines = list[Line]()
    for d, row in found.items():
        ends = [interval(row["offline"][n]) for n in ANSWERS]
        y, low, high = [m for m, _ in ends], [m - h for m, h in ends], [m + h for m, h in ends]
        lines.append(Line(f"SFT, d = {d:g}", ANSWERS, y, low, high))
    lines.append(Line(f"on-policy, {OUTCOMES} queries, any d", ANSWERS, [found[INSIDE[0]]["online"]] * len(ANSWERS)))
    return Panel("Bandit: the rewarded student is picked", "answers n", "share", lines, log_x=True, range_y=(0.0, 1.0))


# ---- learners


def slippery() -> tuple[World, Policy]:
    """Eight steps, four actions; the expert is mostly right on the path, and often finds back to it."""
    world = slippery_chain(8, 4)
    return world, Policy.of(world, np.array([[0.91, 0.03, 0.03, 0.03], [0.7, 0.1, 0.1, 0.1]]))


def two_contexts() -> tuple[World, Policy]:
    """Action 0 is right in both contexts, 1 in the first alone, 2 in the second alone; the expert is always right."""
    rewards = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    world = contexts(rewards)
    sure = 0.999  # a reverse KL to an expert that says never is infinite
    q = np.array([[0.4, 0.6, 0.0], [0.4, 0.0, 0.6]]) * sure + (1 - sure) / 3
    return world, Policy.of(world, q)


def limits(world: World, expert: Policy) -> dict[str, float]:
    """What a student with one row for all contexts earns at the optimum: the expert's mean, or its geometric mean."""
    logq = expert.logits.log_softmax(-1)
    best = {"sft": logq.exp().mean(0), "opd": logq.mean(0).softmax(-1)}
    return {name: world.value(np.tile(p.numpy(), (world.states, 1))) for name, p in best.items()}


def _level(world: World, expert: Policy) -> float:
    return world.value(expert.probabilities())


METHODS: dict[str, Callable[[], Method]] = {
    "sft": lambda: sft(fresh=True),
    "opd": lambda: gkd(lam=1.0, beta=1.0),
}


def _compared(
    world: World,
    expert: Policy,
    shares: Sequence[int] | None,
    lengths: Sequence[int],
    seeds: int,
    say: Callable[[str], None],
) -> dict[int, dict[str, list[float]]]:
    """Walks -> method -> [B] what the student earns; both see as many walks and make as many updates."""
    found: dict[int, dict[str, list[float]]] = {}
    for steps in lengths:
        say(f"{steps * BATCH} walks")
        found[steps * BATCH] = {
            name: [_earned(world, expert, shares, build(), steps, seed) for seed in range(seeds)]
            for name, build in METHODS.items()
        }
    return found


def _earned(world: World, expert: Policy, shares: Sequence[int] | None, method: Method, steps: int, seed: int) -> float:
    rows = world.states if shares is None else max(shares) + 1
    student = Policy(world, torch.zeros(rows, world.actions), shares)
    learn(world, method, student, expert, steps=steps, batch=BATCH, data=BATCH, seed=seed, lr=RATE)
    return world.value(student.probabilities())


def _compared_table(title: str, found: dict[int, dict[str, list[float]]], expert: float) -> Table:
    lines = list[list[str]]()
    for walks, row in found.items():
        gap = [o - s for s, o in zip(row["sft"], row["opd"], strict=True)]
        lines.append(
            [str(walks), *(spread(row[name], ".3f") for name in METHODS), spread(gap, "+.3f"), f"{expert:.3f}"]
        )
    return Table(f"{title}: what it earns", ["walks", "SFT", "on-policy", "difference", "expert"], lines)


def _panel(title: str, found: dict[int, dict[str, list[float]]], expert: float) -> Panel:
    lines = list[Line]()
    for name, label in (("sft", "SFT"), ("opd", "on-policy reverse KL")):
        ends = [interval(row[name]) for row in found.values()]
        y, low, high = [m for m, _ in ends], [m - h for m, h in ends], [m + h for m, h in ends]
        lines.append(Line(label, list(found), y, low, high))
    lines.append(Line("expert", list(found), [expert] * len(found)))
    return Panel(title, "walks", "earned", lines, log_x=True, range_y=(0.4, 1.0))


# ---- the condition


def distances(weights: Sequence[float] = (0.5, 1e-2, 1e-4, 1e-8), beta: float = 0.2) -> list[dict[str, float]]:
    """The student of least reverse KL where the expert, on what students can do, is base * exp(reward / beta) * const.

    The constant is the expert's mass there: it moves the KL as far as one likes and the optimum not at all. Beside it
    the optimum for an expert whose scores go against the reward. Ten outcomes, rewards 0, 1/9, ..., 1, base uniform.
    """
    rewards = torch.linspace(0, 1, 10, dtype=torch.float64)
    found = list[dict[str, float]]()
    for inside in weights:
        row: dict[str, float] = {"inside": inside}
        for name, sign in (("with", 1.0), ("against", -1.0)):
            lq = (sign * rewards / beta).log_softmax(-1) + math.log(inside)
            best = lq.softmax(-1)
            row |= {f"kl {name}": float(maths.reverse_kl(best.log(), lq)), f"reward {name}": float(best @ rewards)}
        found.append(row)
    return found


def _distance_table(found: Sequence[dict[str, float]]) -> Table:
    names = ("kl with", "reward with", "kl against", "reward against")
    lines = [[f"{row['inside']:g}", *(f"{row[name]:.2f}" for name in names)] for row in found]
    title = "How far a good student may be from its expert: least KL(student || expert), and what it earns (exact)"
    return Table(title, ["expert's mass inside", "KL", "reward", "KL, scores against", "reward, scores against"], lines)
