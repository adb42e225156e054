"""Are the error bars true? Ranks, coverage, pulls and CRPS of posterior samples against the truth.

Shapes: samples (S, …), truth (…). All are functions of one quantity at a time; sources, fluxes and bands are elements.
Select and bin elements by functions of the data only, never by the truth (METHOD section 8).
"""

import math

import numpy as np

COVERAGE_LEVEL = 22 / 32
"""The nominal 68 percent: the central 22 of the 32 rank cells that 31 samples make."""

_NORMAL_QUARTILE = 0.6744897501960817


def ranks(samples: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rank of the truth among its samples, 0 … S, ties broken at random; uniform for a perfect posterior."""
    below = (samples < truth).sum(0)
    ties = (samples == truth).sum(0)
    return below + rng.integers(0, ties + 1)


def rank_histogram(ranks_: np.ndarray, samples: int) -> np.ndarray:
    """Counts in the S + 1 cells (Talagrand diagram; Hamill 2001, Mon. Wea. Rev. 129, 550)."""
    return np.bincount(np.ravel(ranks_), minlength=samples + 1)


def covered(ranks_: np.ndarray, samples: int, rng: np.random.Generator, level: float = COVERAGE_LEVEL) -> np.ndarray:
    """1 for truths in the central interval that holds ``level``, else 0; its mean is the coverage. NaN for S = 1.

    A rank is spread uniformly over its cell, so a perfect posterior covers ``level`` exactly, whatever S; for S = 31
    and the default level this is the central 22 cells, without randomness.
    """
    position = (ranks_ + rng.random(np.shape(ranks_))) / (samples + 1)
    inside = (np.abs(position - 0.5) <= level / 2).astype(float)
    return inside if samples > 1 else np.full_like(inside, np.nan)


def pulls(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(mean - truth) / (sd √(1 + 1/S)), NaN for S = 1.

    For a perfect Gaussian posterior, Student's t with S - 1 degrees of freedom.
    """
    count = len(samples)
    if count < 2:
        return np.full(np.shape(truth), np.nan)
    deviation = samples.std(0, ddof=1) * math.sqrt(1 + 1 / count)
    return (samples.mean(0) - truth) / np.where(deviation > 0, deviation, np.nan)


def pull_width(pulls_: np.ndarray, samples: int) -> float:
    """Width of the finite pulls: their median absolute deviation over that of a perfect Gaussian posterior's.

    The usual factor 1.4826 is its limit for many samples; Student's quartile makes 1 right for few, too.
    """
    from scipy.special import stdtrit  # scipy.stats takes longer for it than for all else here

    pulls_ = pulls_[np.isfinite(pulls_)]
    if not len(pulls_):
        return math.nan
    return float(np.median(np.abs(pulls_ - np.median(pulls_))) / stdtrit(samples - 1, 0.75))


def nmad(values: np.ndarray) -> float:
    """Normalised median absolute deviation: a robust standard deviation. NaN for no values."""
    values = np.asarray(values)
    if not values.size:
        return math.nan
    return float(np.median(np.abs(values - np.median(values))) / _NORMAL_QUARTILE)


def crps(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score per element, in the unit of truth; smaller is better.

    The fair estimator mean |x - truth| - Σ|x_i - x_j| / (2 S (S - 1)), whose expectation does not depend on S (Ferro
    2014, Q. J. R. Meteorol. Soc. 140, 1917). For S = 1 it is the absolute error, the score of a certain forecast.
    """
    count = len(samples)
    error = np.abs(samples - truth).mean(0)
    if count < 2:
        return error
    # Σ_ij |x_i - x_j| = 2 Σ_i (2i - S + 1) x_(i), from the order statistics x_(0) … x_(S-1).
    weights = (2 * np.arange(count) - count + 1).reshape(-1, *[1] * (samples.ndim - 1))
    return error - (weights * np.sort(samples, axis=0)).sum(0) / (count * (count - 1))
