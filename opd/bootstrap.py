"""Intervals for numbers about seeds and problems, by resampling both: 95 %, and the same at every call.

The same problems are met by every seed, so the two are drawn independently of one another (the crossed bootstrap of
Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007). It counts noise that belongs to a single (seed,
problem) up to three times, so it errs towards too wide; with two or three seeds it says little about other seeds,
whatever the method. With one seed it is the ordinary bootstrap over problems.

Axes: S seeds, P problems, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from opd.evaluate import Z
from opd.rollout import Array

DRAWS = 10_000
PIECE = 500  # draws whose weights [B, P] exist at the same time
EDGES = 2.5, 97.5  # percentiles
T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # 97.5 % of Student's t, 1..10


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; None where nothing is known of the spread."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_above(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def is_below(self) -> bool:
        return self.high is not None and self.high < 0


def crossed(values: Array, seed: int = 0, draws: int = DRAWS) -> Interval:
    """The mean of values [S, P], resampled over seeds and over problems. Differences go in as differences: paired."""
    s, p = values.shape
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    means = list[Array]()
    for start in range(0, draws, PIECE):
        size = min(PIECE, draws - start)
        means.append(((_shares(rng, size, s) @ values) * _shares(rng, size, p)).sum(1))
    low, high = np.percentile(np.concatenate(means), EDGES)
    return Interval(float(values.mean()), float(low), float(high))


def _shares(rng: np.random.Generator, draws: int, n: int) -> Array:
    """[B, n] how often each of n is drawn when n are drawn with replacement, divided by n."""
    drawn = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n) / n


def resampled(statistic: Callable[[Array], float | None], p: int, seed: int = 0, draws: int = 2000) -> Interval:
    """Any number about P problems: `statistic` is told which of them were drawn, [P] with repetitions.

    A draw of which it knows nothing (None) is left out; where it knows nothing of all problems, the value is nan.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    value = statistic(np.arange(p))
    drawn = [found for _ in range(draws) if (found := statistic(rng.integers(0, p, p))) is not None]
    if value is None or not drawn:
        return Interval(math.nan if value is None else value)
    low, high = np.percentile(drawn, EDGES)
    return Interval(value, float(low), float(high))


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one number per seed with Student's interval; one seed, or one that is not finite, gives none."""
    mean, n = fmean(values), len(values)
    if n < 2 or not math.isfinite(mean):
        return Interval(mean)
    half = quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def quantile(freedom: int) -> float:
    """97.5 % of Student's t: written down up to 10 degrees of freedom, then Fisher's expansion around the normal."""
    if freedom <= len(T):
        return T[freedom - 1]
    terms = (Z, (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))
