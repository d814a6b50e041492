"""A comparison as a list of runs: every method with every seed, all else the same."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from opd import recipes
from opd.cast import REFERENCE
from opd.errors import SettingError
from opd.settings import Settings, checked_parameters

Goal = Literal["sampled", "greedy", "reverse_kl"]  # what a learning rate is chosen by
GOALS: tuple[Goal, ...] = get_args(Goal)
TUNING_SEED = 1_000_000  # from here on, of the runs that choose a learning rate; no reported run has one of them
UNREPORTED: dict[str, Any] = {"eval_on": "tuning", "drafts": 0, "eval_every": 0}  # settings of those runs


@dataclass(frozen=True)
class Entrant:
    """One method with its parameters; `label` is what the table calls it."""

    label: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, word: str) -> Entrant:
        """'gkd:lam=1,beta=1' as a method and its checked parameters; a list goes on to the next NAME=."""
        method, colon, rest = word.partition(":")
        recipes.check_name(method)
        given: dict[str, Any] = {}
        lists = {p.name for p in recipes.describe(method).parameters if isinstance(p.default, tuple)}
        for pair in re.split(r",(?=\w+=)", rest) if colon else ():
            name, equals, value = pair.partition("=")
            if not equals:
                raise SettingError(f"a parameter of {method}", got=repr(pair), expected=f"{method}:name=value")
            if name in given:
                raise SettingError(f"parameter {name!r} of {method} is given twice", got=word)
            given[name] = [part for part in value.split(",") if part] if name in lists else value
        return cls(word, method, checked_parameters(method, given))

    @property
    def slug(self) -> str:
        """The label as a part of a folder's name."""
        return re.sub(r"[^\w.=-]+", "-", self.label)[:100]

    @property
    def resolved(self) -> tuple[str, str]:
        """The same for two entrants that would do the same."""
        defaults = {name: p.default for name, p in inspect.signature(recipes.load(self.method)).parameters.items()}
        return self.method, repr(sorted((defaults | self.parameters).items()))


@dataclass(frozen=True)
class Trial:
    """One run of the comparison."""

    entrant: Entrant
    lr: float
    seed: int
    settings: Settings

    @property
    def folder(self) -> Path:
        return self.settings.folder

    @property
    def name(self) -> str:
        tuning = self.seed - TUNING_SEED
        seed = f", seed {self.seed}" if tuning < 0 else f", tuning seed {tuning}" if tuning else ""
        return f"{self.entrant.label}, lr {self.lr:g}{seed}"


@dataclass(frozen=True)
class Contest:
    """What is compared: the entrants, the settings that all of them share, the seeds, and the rates to choose from."""

    entrants: tuple[Entrant, ...]
    shared: dict[str, Any]  # settings; none of method, parameters, seed, out
    out: Path
    seeds: int = 1
    rates: tuple[float, ...] = ()  # every method tries all of them; none: all have shared["lr"]
    baseline: str = ""  # label or method; the first entrant if empty
    goal: Goal = "sampled"
    common: Path | None = None  # a folder of runs that several comparisons share; none: everything is in `out`
    tuning_seeds: int = 1  # with which the better rates are tried, see `tuning_again`
    further_rates: int = 0  # at most so many beyond the grid, see `tuning.outward`

    def __post_init__(self) -> None:
        for name, seeds in (("seeds", self.seeds), ("tuning seeds", self.tuning_seeds)):
            if seeds < 1:
                raise SettingError(name, got=seeds, expected="at least 1")
        if self.further_rates < 0:
            raise SettingError("further rates", got=self.further_rates, expected="0 or more")
        if self.further_rates and len(self.rates) < 2:
            expected = "two at least, which say how far apart further ones are"
            raise SettingError("rates to begin with", got=len(self.rates), expected=expected)
        if not self.entrants:
            raise SettingError("nothing to compare", got="no method", remedy="For example opd compare sft gkd:lam=1")
        check_apart(self.entrants)
        for rate in self.rates:
            if not 0 < rate < float("inf"):
                raise SettingError("a learning rate to try", got=rate, expected="a number above 0")
        if len(set(self.rates)) < len(self.rates):
            raise SettingError("a learning rate is to be tried twice", got=",".join(f"{rate:g}" for rate in self.rates))
        _ = self.reference

    @property
    def reference(self) -> Entrant:
        """Against whom the others are held."""
        if not self.baseline:
            return self.entrants[0]
        found = [e for e in self.entrants if e.label == self.baseline]
        found = found or [e for e in self.entrants if e.method == self.baseline]
        if len(found) != 1:
            labels = ", ".join(entrant.label for entrant in self.entrants)
            raise SettingError("the baseline", got=repr(self.baseline), expected=f"one of {labels}")
        return found[0]

    def settings(self, entrant: Entrant, **more: Any) -> Settings:
        """Its settings; a reference that is given for others is no setting of a method that asks none."""
        settings = Settings.of(method=entrant.method, parameters=entrant.parameters, **{**self.shared, **more})
        asked = settings.reference and REFERENCE in settings.build_method().roles
        return settings if asked else settings.model_copy(update={"reference": ""})

    @property
    def most_runs(self) -> int:
        """How many runs it takes, where every rate comes to its end."""
        rates = len(self.rates) + self.further_rates
        return len(self.entrants) * (self.seeds + rates + (self.tuning_seeds - 1) * finalists(rates))

    @property
    def reachable_rates(self) -> tuple[float, ...]:
        """Every rate that some method could come to, lowest first."""
        found = sorted(self.rates)
        for _ in range(self.further_rates):
            found = [beyond(found, found[0]), *found, beyond(found, found[-1])]
        return tuple(found)

    def tuning(self, aside: int) -> list[Trial]:
        """One trial per method and rate, examined on `aside` problems that nothing else is examined on."""
        return [self._tuning(e, rate, 0, aside) for e in self.entrants for rate in self.rates]

    def tuning_further(self, rates: dict[str, float], aside: int) -> list[Trial]:
        """One trial more of every method that has such a rate (by label), see `tuning.outward`."""
        return [self._tuning(e, rates[e.label], 0, aside) for e in self.entrants if e.label in rates]

    def tuning_again(self, better: dict[str, list[float]], aside: int) -> list[Trial]:
        """The better rates of every method (by label) with all other tuning seeds: what one seed says is half luck."""
        return [
            self._tuning(e, rate, seed, aside)
            for seed in range(1, self.tuning_seeds)
            for e in self.entrants
            for rate in better.get(e.label, ())
        ]

    def reported(self, rates: dict[str, float], aside: int) -> list[Trial]:
        """Every method with every seed, at its rate (by label); a method without one has no trial."""
        return [
            self._trial(e, rates[e.label], seed, "runs", tuning_problems=aside)
            for seed in range(self.seeds)
            for e in self.entrants
            if e.label in rates
        ]

    def _tuning(self, entrant: Entrant, rate: float, seed: int, aside: int) -> Trial:
        return self._trial(entrant, rate, TUNING_SEED + seed, "tuning", tuning_problems=aside, **UNREPORTED)

    def _trial(self, entrant: Entrant, rate: float, seed: int, where: str, **more: Any) -> Trial:
        end = "" if seed == TUNING_SEED else f"-seed{seed}"
        name, settings = f"{entrant.slug}-lr{rate:g}{end}", self.settings(entrant, lr=rate, seed=seed, **more)
        folder = self.common / f"{name}-{digest(settings)}" if self.common else self.out / where / name
        return Trial(entrant, rate, seed, settings.model_copy(update={"out": str(folder)}))


def beyond(rates: Sequence[float], best: float) -> float:
    """The next rate beyond the lowest or the highest, as far from it as its neighbour is; three digits of it."""
    ranked = sorted(rates, reverse=best == min(rates))
    return float(f"{ranked[-1] ** 2 / ranked[-2]:.3g}")


def finalists(rates: int) -> int:
    """How many of so many rates are tried with more seeds: the better half, two at least, none where there is one."""
    return max(2, -(-rates // 2)) if rates > 1 else 0


def digest(settings: Settings) -> str:
    """The same for two runs that would do the same, wherever their folders are; a setting of later has its default."""
    said = settings.model_dump_json(exclude={"out"}, exclude_defaults=True)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def check_apart(entrants: Sequence[Entrant]) -> None:
    """Two that would do the same, or whose folders would have the same name, are refused."""
    slugs = Counter(entrant.slug for entrant in entrants)
    done = Counter(entrant.resolved for entrant in entrants)
    for entrant in entrants:
        if done[entrant.resolved] > 1 or slugs[entrant.slug] > 1:
            same = [e.label for e in entrants if e.resolved == entrant.resolved or e.slug == entrant.slug]
            raise SettingError("two methods are the same", got=" and ".join(same[:2]), remedy="Leave one of them out")
