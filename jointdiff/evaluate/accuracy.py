"""How close are the estimates? Fluxes, colours and images against the truth; intervals by bootstrap over scenes.

Pure functions of numpy arrays. Bin by what was observed, never by the truth (METHOD section 8).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from jointdiff import units
from jointdiff.evaluate.calibration import nmad

OUTLIER = 0.5
"""A relative flux error beyond this is an outlier."""


def relative_error(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """δ = (f̂ - f*) / f* of the elements whose truth is positive (a flat array)."""
    estimate, truth = np.ravel(estimate), np.ravel(truth)
    real = truth > 0
    return (estimate[real] - truth[real]) / truth[real]


def bias(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Median relative error; NaN for no elements."""
    error = relative_error(estimate, truth)
    return float(np.median(error)) if error.size else math.nan


def flux_weighted_bias(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Σ(f̂ - f*) / Σ f*: the mean bias, which faint sources cannot upset; NaN when the truth sums to nothing."""
    total = float(np.sum(truth))
    return float(np.sum(estimate - truth)) / total if total > 0 else math.nan


def scatter(estimate: np.ndarray, truth: np.ndarray) -> float:
    """NMAD of the relative error."""
    return nmad(relative_error(estimate, truth))


def outliers(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Fraction of relative errors beyond OUTLIER; NaN for no elements."""
    error = relative_error(estimate, truth)
    return float(np.mean(np.abs(error) > OUTLIER)) if error.size else math.nan


def colour_error(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Error (mag) of the colours of neighbouring bands, (N, C - 1), of fluxes (N, C); NaN for non-positive fluxes."""
    return np.diff(-units.magnitude(estimate) + units.magnitude(truth), axis=-1)


def efficiency(error: np.ndarray, limit: np.ndarray, deviation: np.ndarray) -> float:
    """η = NMAD²(limit/σ) / NMAD²(error/σ), (N,) each: the limit's variance over a method's, in the limit's own σ."""
    ours = nmad(error / deviation)
    return (nmad(limit / deviation) / ours) ** 2 if ours else math.nan


def image_norms(estimate: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Σ(x̂ - x)² and Σx² per band, (2, C), of one scene (C, H, W), where weight (H, W) is positive."""
    used = np.ones(truth.shape[-2:], dtype=bool) if weight is None else np.asarray(weight) > 0
    truth, estimate = np.asarray(truth, dtype=float)[:, used], np.asarray(estimate, dtype=float)[:, used]
    return np.stack([((estimate - truth) ** 2).sum(1), (truth**2).sum(1)])


def image_error(norms: np.ndarray) -> np.ndarray:
    """Relative error ‖x̂ - x‖ / ‖x‖ per band (C,), scenes pooled, from their norms (N, 2, C)."""
    error, norm = np.asarray(norms).sum(0)
    return np.sqrt(error / np.where(norm > 0, norm, np.nan))


def typical_image_error(norms: np.ndarray) -> np.ndarray:
    """Median over scenes of each one's own relative error, (C,), from norms (N, 2, C); NaN for no scene.

    Pooled scenes are ruled by the brightest; here each counts alike. Give it scenes chosen by the data, as those with
    a source.
    """
    error, norm = np.moveaxis(np.asarray(norms), 1, 0)
    relative = np.sqrt(error / np.where(norm > 0, norm, np.nan))
    return np.nanmedian(relative, 0) if len(relative) else np.full(np.shape(norms)[-1], np.nan)


def residual_chi2(residual: np.ndarray, ivar: np.ndarray) -> tuple[float, int]:
    """Σ r²/σ² and the number of pixels of positive weight."""
    used = np.asarray(ivar) > 0
    chi2 = np.sum(np.asarray(residual, dtype=float)[used] ** 2 * np.asarray(ivar, dtype=float)[used])
    return float(chi2), int(used.sum())


def bins(observed: np.ndarray, edges: Sequence[float]) -> list[np.ndarray]:
    """Masks (N,) of the elements whose *observed* value lies in [edge, next edge); NaN falls in none."""
    return [(observed >= low) & (observed < high) for low, high in pairwise(edges)]


class Resamples:
    """Scenes drawn with replacement (Efron & Tibshirani 1993): once, so that all statistics of methods are paired.

    Sources of one scene share its noise and blends, so scenes, not sources, are the independent draws.
    owners: (N,) number of each source's scene; scenes: how many there are, also without a source.
    by_scene, by_source: the numbers of the scenes, and of the sources, in each resample.
    """

    def __init__(self, owners: np.ndarray, scenes: int, rng: np.random.Generator, count: int = 400):
        self.by_scene = list(rng.integers(0, scenes, (count, scenes)))
        members = [np.flatnonzero(owners == scene) for scene in range(scenes)]
        self.by_source = [np.concatenate([members[scene] for scene in drawn]) for drawn in self.by_scene]


def interval(
    statistic: Callable[..., float],
    arrays: Sequence[np.ndarray],
    chosen: np.ndarray,
    draws: Sequence[np.ndarray],
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of statistic(*arrays) over resamples; (NaN, NaN) where none is finite.

    arrays: each (N, …), over all scenes or all sources; chosen: (N,), those that count. draws: by_scene or by_source.
    """
    position = np.cumsum(chosen) - 1
    arrays = [array[chosen] for array in arrays]
    values = []
    for drawn in draws:
        kept = position[drawn[chosen[drawn]]]
        values.append(statistic(*(array[kept] for array in arrays)))
    finite = np.asarray(values)[np.isfinite(values)]
    if not finite.size:
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
