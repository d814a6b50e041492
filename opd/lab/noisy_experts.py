"""Samples needed against horizon and noise, when the expert is noisy and the learner is judged against the clean one.

Three findings. By counting over seeds: whoever samples, expert or student, needs exponentially many walks in the
horizon, and a greedy student about linearly many. By exact sums: what a class of policies costs, and which noise allows
rates without the horizon. Theory: arXiv 2606.30923; worlds and learners are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from opd.errors import SettingError
from opd.lab.drawing import Line, Panel
from opd.lab.locks import LEARNERS, fitted, is_learnable, seen, slope, staying, walks_needed
from opd.lab.study import Result, Table
from opd.lab.telling_apart import affinity, enough
from opd.lab.world import World, lock_expert, prefix_lock
from opd.parts.channel import Channel, Given, uniform
from opd.rollout import Array
from opd.rows import Rows

HORIZONS = (4, 8, 12, 16, 24)
PATIENCE = 60_000  # walks, roughly: a horizon that needs more is left out, or the counting would take hours
LIAR = 0.6, (0.0, 1.0, 0.0, 0.0)  # noise that always says the same wrong token, and more often than the clean one
NAMES = {
    "bc": "expert's own walks (SFT)",
    "opd": "student samples (OPD)",
    "aware": "student samples, through the channel",
    "nail": "student greedy, through the channel (nail)",
    "nailgun": "student greedy, majority (nailgun)",
}


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    seeds: int = Field(30, ge=2, description="independent repetitions")
    out: str = Field("runs/lab-noisy-experts", description="new folder for the tables, the numbers and the picture")
    rates: tuple[float, ...] = Field((0.3, 0.6), description="share of the expert's actions that are noise")
    actions: int = Field(4, ge=2, description="at every depth, one of them right")
    noise: tuple[float, ...] = Field(
        (), description="how likely noise takes each action, the right one first; uniform if none"
    )


def check(options: Options) -> Array:
    """The noise as [A] probabilities, and every channel as it will be used; whatever cannot be is refused here."""
    if not options.rates:
        raise SettingError("no noise rate", expected="at least one", remedy="For example --rates 0.3,0.6")
    noise = Given(options.noise) if options.noise else uniform
    channels = [Channel(rate, noise) for rate in options.rates]
    clean = torch.eye(options.actions, dtype=torch.float64)[:1].log()
    for channel in channels:
        channel(clean, Rows({}))
    chances = noise(clean, Rows({})).exp()[0].numpy()
    for rate in options.rates:
        horizons(rate, chances)
    return chances


def run(options: Options, say: Callable[[str], None]) -> Result:
    noise = check(options)
    counted = {rate: _count(rate, noise, options.seeds, say) for rate in options.rates}
    tables = [_counted(rate, found, noise) for rate, found in counted.items()]
    slopes = {rate: _slopes(found) for rate, found in counted.items()}
    tables.append(_slope_table(slopes, noise))
    say("noise that lies")
    liars = {name: walks_needed(name, LIAR[0], np.array(LIAR[1]), 8, options.seeds) for name in LEARNERS}
    tables.append(_liar_table(liars))
    classes, soft = class_size(options.rates[0], noise), domination(options.rates[0])
    tables += [_class_table(options.rates[0], classes), _domination_table(options.rates[0], soft)]
    raw = {
        "options": options.model_dump(),
        "noise": noise.tolist(),
        "counted": {
            r: {h: {n: v.tolist() for n, v in row.items()} for h, row in f.items()} for r, f in counted.items()
        },
        "slopes": slopes,
        "liar": {name: values.tolist() for name, values in liars.items()},
        "class_size": classes,
        "domination": soft,
    }
    panels = [_panel(rate, found) for rate, found in counted.items()]
    return Result(tables, raw, [*panels, _soft_panel(options.rates[0], soft)])


# ---- by counting

Counted = dict[int, dict[str, Array]]  # horizon -> learner -> [B] walks


def horizons(rate: float, noise: Array) -> list[int]:
    """Those that the slowest learner masters with bearably many walks; at least two, or nothing can be said."""
    here = seen(rate, noise)
    margin = here[0] - here[1:].max()  # labels until the right action leads: about 1 / margin^2
    wait = (lambda h: here[0] ** -(h - 1) / margin**2) if margin > 0 else (lambda h: 1 / (1 - rate) ** 2)
    bearable = [h for h in HORIZONS if wait(h) <= PATIENCE]
    if len(bearable) < 2:
        what = f"noise rate {rate:g} with this noise leaves too little to see"
        raise SettingError(what, got=f"{wait(HORIZONS[1]):.2g} walks at horizon {HORIZONS[1]}", expected=f"{PATIENCE}")
    return bearable


def _count(rate: float, noise: Array, seeds: int, say: Callable[[str], None]) -> Counted:
    found: Counted = {}
    for horizon in horizons(rate, noise):
        say(f"noise rate {rate:g}, horizon {horizon}")
        found[horizon] = {name: walks_needed(name, rate, noise, horizon, seeds) for name in LEARNERS}
    return found


def _middle(values: Array) -> str:
    if not np.isfinite(values).all():
        return "never"
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:,.5g} ({low:,.4g}-{high:,.4g})"


def _counted(rate: float, found: Counted, noise: Array) -> Table:
    rho = staying(rate, noise)
    lines = [[str(h), f"{rho ** -(h - 1):,.1f}", *(_middle(row[n]) for n in LEARNERS)] for h, row in found.items()]
    title = f"Walks until the whole key is known, noise rate {rate:g}: median over seeds (middle half)"
    return Table(title, ["H", "rho^-(H-1)", *LEARNERS], lines)


def _slopes(found: Counted) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Per learner the slope of log(walks) over H, and over log H, with intervals."""
    h = list(found)
    able = [name for name in LEARNERS if all(np.isfinite(row[name]).all() for row in found.values())]
    return {
        name: {
            "exponential": slope(h, [row[name] for row in found.values()]),
            "power": slope([math.log(x) for x in h], [row[name] for row in found.values()]),
        }
        for name in able
    }


def _slope_table(slopes: dict[float, dict[str, dict[str, tuple[float, float, float]]]], noise: Array) -> Table:
    lines = [
        [f"{rate:g}", name, f"{-math.log(staying(rate, noise)):.3f}", *(_between(fit) for fit in fits.values())]
        for rate, row in slopes.items()
        for name, fits in row.items()
    ]
    title = "How the walks grow: slope of log(walks) over H, and exponent of a power of H (95 % intervals over seeds)"
    return Table(title, ["noise", "learner", "-log rho", "slope", "exponent"], lines)


def _between(fit: tuple[float, float, float]) -> str:
    return f"{fit[0]:.3f} ({fit[1]:.3f} to {fit[2]:.3f})"


def _liar_table(found: dict[str, Array]) -> Table:
    rate, noise = LIAR[0], np.array(LIAR[1])
    seen_as = seen(rate, noise)
    limits = [seen_as if not learner.channel else fitted(seen_as * 1e6, rate, noise) for learner in LEARNERS.values()]
    lines = [
        [name, f"{limit[0]:.2f}", "yes" if is_learnable(LEARNERS[name], rate, noise) else "no", _middle(found[name])]
        for name, limit in zip(LEARNERS, limits, strict=True)
    ]
    title = f"Noise that lies: at rate {rate:g} it always says one wrong token (H = 8)"
    return Table(title, ["learner", "right action in the limit", "most probable", "walks"], lines)


# ---- by exact sums


def class_size(rate: float, noise: Array) -> list[dict[str, float]]:
    """Walks enough for M candidate keys that differ at the last depth alone: offline, and greedy on the path."""
    found = list[dict[str, float]]()
    for horizon in (8, 16, 32):
        lock, actions = prefix_lock((0,) * horizon, len(noise)), len(noise)
        right = lock_expert((0,) * horizon, actions)
        wrong = right.copy()
        wrong[horizon - 1] = np.eye(actions)[1]
        channel = lambda clean: (1 - rate) * clean + rate * noise
        offline = affinity(lock, channel(right), channel(wrong))
        greedy = affinity(lock, channel(right), channel(wrong), walker=right)
        for policies in (2.0, 256.0, float(actions) ** horizon):
            found.append(
                {"H": horizon, "M": policies, "offline": enough(offline, policies), "greedy": enough(greedy, policies)}
            )
    return found


def _class_table(rate: float, found: Sequence[dict[str, float]]) -> Table:
    lines = [[f"{row['H']:g}", f"{row['M']:.3g}", f"{row['offline']:,.0f}", f"{row['greedy']:,.0f}"] for row in found]
    title = (
        f"What a class costs: walks enough for M keys that differ at the last depth only (rate {rate:g}, exact sums)"
    )
    return Table(title, ["H", "M", "offline", "greedy"], lines)


def domination(rate: float, lengths: Sequence[int] = (4, 8, 16, 32, 64, 128, 256)) -> list[dict[str, float]]:
    """A student that never errs against a clean expert that does with probability 1 / H at each of H steps.

    Their walks differ with probability about .63 whatever H is. Labels through noise on both actions (which the expert
    hardly dominates: nu / p* = H / 2 on the second) against noise that says only what the expert might (nu = p*).
    """
    found = list[dict[str, float]]()
    for h in lengths:
        one_state = World(np.zeros((1, 2), int), np.zeros((1, 2)), h)
        clean, student = np.array([[1 - 1 / h, 1 / h]]), np.array([[1.0, 0.0]])
        row: dict[str, float] = {"H": h, "no noise": enough(affinity(one_state, clean, student), 2)}
        for name, noise in (("uniform", np.full((1, 2), 0.5)), ("dominated", clean)):
            noisy = [(1 - rate) * p + rate * noise for p in (clean, student)]
            alike = affinity(one_state, *noisy, walker=student)
            row |= {name: enough(alike, 2), f"{name}, M = 2^H": enough(alike, 2.0**h)}
        found.append(row)
    return found


def _domination_table(rate: float, found: Sequence[dict[str, float]]) -> Table:
    head = list(found[0])
    lines = [[f"{row['H']:g}", *(f"{row[name]:,.1f}" for name in head[1:])] for row in found]
    title = f"Which noise hides small errors: walks enough to see 1/H per step (rate {rate:g}, exact sums)"
    return Table(title, head, lines)


# ---- pictures


def _panel(rate: float, found: Counted) -> Panel:
    lines = list[Line]()
    for name in LEARNERS:
        low, y, high = (
            [float(np.quantile(row[name], q)) if np.isfinite(row[name]).all() else math.inf for row in found.values()]
            for q in (0.25, 0.5, 0.75)
        )
        lines.append(Line(NAMES[name], list(found), y, low, high))
    return Panel(f"Noise rate {rate:g}", "horizon H", "walks until the key is known", lines, log_y=True)


def _soft_panel(rate: float, found: Sequence[dict[str, float]]) -> Panel:
    x = [row["H"] for row in found]
    names = {"no noise": "no noise", "uniform": "uniform noise", "dominated": "noise that the expert dominates"}
    lines = [Line(label, x, [row[name] for row in found]) for name, label in names.items()]
    return Panel(f"Small errors, noise rate {rate:g}", "horizon H", "walks to see an error", lines, True, True)


def summary(raw: dict[str, Any]) -> str:
    """One sentence on what was found."""
    rate, fits = next(iter(raw["slopes"].items()))
    if "bc" not in fits or "nail" not in fits:
        return f"At noise rate {rate:g} the noise outvotes the expert, and only a known channel helps."
    grows, power = fits["bc"]["exponential"][0], fits["nail"]["power"][0]
    return f"At noise rate {rate:g} SFT needs e^({grows:.2f} H) walks and greedy roll-in about H^{power:.1f}."
