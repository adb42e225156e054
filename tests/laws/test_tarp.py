"""Laws of the tests of accuracy with random points, and the package of their authors as an oracle."""

import numpy as np
import pytest
from scipy.stats import kstest

from jointdiff.evaluate import tarp

N, DIMENSIONS = 4000, 4


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def posterior(rng, samples: int, width: float = 1.0, shift: float = 0.0):
    """Truths, samples of posteriors with correlated quantities, their errors ``width`` times what they should be.

    references: near the posterior mean, a function of the data.
    """
    mixing = rng.normal(size=(DIMENSIONS, DIMENSIONS))
    mean = rng.normal(0, 5, (N, DIMENSIONS))
    truth = mean + rng.normal(size=(N, DIMENSIONS)) @ mixing
    draws = mean + shift + width * rng.normal(size=(samples, N, DIMENSIONS)) @ mixing
    return draws, truth, mean + rng.normal(size=(N, DIMENSIONS))


@pytest.mark.parametrize("samples", [3, 15, 100])
def test_an_exact_posterior_covers_every_level(rng, samples):
    found = tarp.positions(*posterior(rng, samples), rng)
    assert kstest(found, "uniform").pvalue > 1e-3
    assert tarp.area(found) == pytest.approx(0, abs=4 / np.sqrt(12 * N))


def test_errors_of_the_wrong_size_show(rng):
    narrow, wide = (tarp.positions(*posterior(rng, 31, width), rng) for width in (0.7, 1.4))
    assert tarp.area(narrow) < -0.05
    assert tarp.area(wide) > 0.05


def test_a_bias_shows_that_has_the_right_errors(rng):
    found = tarp.positions(*posterior(rng, 31, shift=1.0), rng)
    assert kstest(found, "uniform").pvalue < 1e-6


def test_the_area_is_that_between_coverage_and_level(rng):
    found = rng.random(N) ** 1.3
    levels = np.linspace(0, 1, 20_001)
    between = np.trapezoid(tarp.expected_coverage(found, levels) - levels, levels)
    assert tarp.area(found) == pytest.approx(between, abs=1e-4)


@pytest.mark.parametrize("width", [0.7, 1.0, 1.4])
def test_coverage_is_that_of_the_authors_package(rng, width):
    """Their f is n/S, ours (n + u)/(S + 1), never more than 1/(S + 1) away: one curve lies between two of the other."""
    package = pytest.importorskip("tarp", reason="tarp, an oracle, comes with the dev extra")
    draws, truth, references = posterior(rng, 50, width)
    theirs, levels = package.get_tarp_coverage(draws, truth, references, norm=False, num_alpha_bins=40)
    ours = tarp.positions(draws, truth, references, rng)
    low, high = (tarp.expected_coverage(ours, levels + step / 51) for step in (-1, 1))
    assert ((low <= theirs + 1e-9) & (theirs <= high + 1e-9)).all()
