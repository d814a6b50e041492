"""Intervals against closed forms: the normal approximation, Student's quantiles, and what pairing is good for."""

import math

import numpy as np
import pytest

from opd.bootstrap import Interval, crossed, over_seeds, quantile


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def width(interval):
    return interval.high - interval.low


def test_one_seed_is_the_normal_approximation():
    values = noise(1, 400)
    found = crossed(values)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.006)
    assert found.high == pytest.approx(values.mean() + half, abs=0.006)


def test_a_proportion_has_the_binomial_interval():
    grades = np.zeros((1, 500))
    grades[0, :150] = 1
    assert width(crossed(grades)) == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 500), rel=0.04)


def test_seeds_that_differ_widen_the_interval_as_much_as_they_should():
    """Seed effects of spread 1 over 30 seeds, and hardly anything else: the error is that of a mean of 30 numbers."""
    seeds = noise(30, 1)
    values = seeds + 1e-3 * noise(30, 200, seed=1)
    assert width(crossed(values)) == pytest.approx(2 * 1.96 * seeds.std() / np.sqrt(30), rel=0.05)
    assert width(crossed(values[:1])) < 0.01, "one seed knows nothing of the others"


def test_problems_that_every_seed_finds_hard_are_not_counted_once_per_seed():
    hard = np.broadcast_to(noise(1, 300), (10, 300))
    assert width(crossed(hard)) == pytest.approx(width(crossed(hard[:1])), rel=0.05)


def test_pairing_narrows_the_interval_of_correlated_methods():
    problems, ours, theirs = noise(3, 400), 0.2 * noise(3, 400, seed=1), 0.2 * noise(3, 400, seed=2)
    paired = crossed((problems + ours) - (problems + theirs))
    apart = np.hypot(width(crossed(problems + ours)), width(crossed(problems + theirs)))
    assert width(paired) < 0.35 * apart


def test_the_same_numbers_give_the_same_interval():
    values = noise(2, 50)
    assert crossed(values) == crossed(values) != crossed(values, seed=1)


def test_no_difference_is_an_interval_at_zero():
    found = crossed(np.zeros((2, 10)))
    assert not found.is_above and not found.is_below


@pytest.mark.parametrize(("freedom", "written"), [(1, 12.7062), (2, 4.3027), (12, 2.1788), (30, 2.0423), (100, 1.9840)])
def test_quantiles_of_student(freedom, written):
    assert quantile(freedom) == pytest.approx(written, abs=5e-4)


def test_over_seeds():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.value == 2 and found.high == pytest.approx(2 + 4.3027 / np.sqrt(3), abs=1e-3)
    assert over_seeds([1.5]).low is None
    assert over_seeds([1.5, math.inf]) == Interval(math.inf)
