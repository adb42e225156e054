"""Are the error bars of many quantities true together? Tests of accuracy with random points.

Lemos et al. (2023, arXiv 2302.03026): around a reference point the truth lies nearer than a share f of the samples. For
an exact posterior f is uniform, whatever the reference, as long as it is a function of the data and of chance alone;
for a reference that follows the data, only an exact posterior has that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.evaluate import accuracy
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def positions(samples: np.ndarray, truth: np.ndarray, references: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where (N,), from 0 to 1, the truth's distance from its reference is among those of the samples.

    samples: (S, N, D); truth, references: (N, D). The rank is spread evenly over its cell, so that exact posteriors are
    uniform for any S.
    """
    distance = np.linalg.norm(truth - references, axis=-1)
    nearer = (np.linalg.norm(samples - references, axis=-1) < distance).sum(0)
    return (nearer + rng.random(len(truth))) / (len(samples) + 1)


def expected_coverage(positions_: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Share (L,) of truths in the regions that hold ``levels`` (L,) of the posterior: the same, if it is exact."""
    return np.searchsorted(np.sort(positions_), levels, side="right") / max(len(positions_), 1)


def area(positions_: np.ndarray) -> float:
    """∫ (expected coverage - level) dlevel, from -1/2 to 1/2: negative for too narrow a posterior. NaN for no truth."""
    return 0.5 - float(np.mean(positions_)) if len(positions_) else math.nan


def of_sources(sources: Sources, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """method → positions (N,) of the aperture fluxes in all bands, of the sources away from the edge.

    Fluxes are whitened by the covariance of the reference method's samples; the reference point is drawn from its
    posterior: both are functions of the data that no compared method has a hand in.
    """
    inside = ~sources.edge
    base = sources.estimates[sources.reference]
    lower = np.linalg.cholesky(_covariance(base.samples[:, inside]))

    def white(fluxes: np.ndarray) -> np.ndarray:
        return np.linalg.solve(lower, (fluxes[..., inside, :] - base.point[inside])[..., None])[..., 0]

    references = rng.standard_normal(base.point[inside].shape)
    truth = white(sources.truth.point)
    return {
        method: positions(white(measured.samples), truth, references, rng)
        for method, measured in sources.estimates.items()
    }


def _covariance(samples: np.ndarray) -> np.ndarray:
    """(N, C, C) of samples (S, N, C), its diagonal raised by 1/S: positive whatever S."""
    deviations = samples - samples.mean(0)
    covariance = np.einsum("snc,snd->ncd", deviations, deviations) / max(len(samples) - 1, 1)
    diagonal = np.einsum("ncc->nc", covariance)
    return covariance + (diagonal / len(samples))[:, :, None] * np.eye(samples.shape[-1])


def scores(found: Mapping[str, np.ndarray], sources: Sources, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """method → tarp_area with its 95 % interval, by bootstrap over scenes."""
    inside = ~sources.edge
    draws = accuracy.Resamples(sources.scenes[inside], len(sources.found), rng)
    rows = {}
    for method, values in found.items():
        every = np.ones(len(values), dtype=bool)
        low, high = accuracy.interval(area, (values,), every, draws.by_source)
        rows[method] = {"tarp_area": area(values), "tarp_area_low": low, "tarp_area_high": high}
    return rows


def figure(found: Mapping[str, np.ndarray], colours: Sequence[str]) -> Figure:
    """Expected coverage against the level, a line a method; grey: 95 % of exact posteriors at any one level."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter
    from scipy.stats import binom

    levels = np.linspace(0, 1, 101)
    drawn = Figure(figsize=(4.6, 4.6), facecolor="white", layout="constrained")
    axes = drawn.subplots()
    count = max(map(len, found.values()))
    if count:
        low, high = (binom.ppf(q, count, levels) / count for q in (0.025, 0.975))
        axes.fill_between(levels, low, high, color="#e6e6e6")
    axes.plot(levels, levels, color=FAINT, lw=0.9)
    for colour, (method, values) in zip(colours, found.items(), strict=False):
        label = f"{method}, area {area(values):+.3f}"
        axes.plot(levels, expected_coverage(values, levels), color=colour, label=label)
    axes.set_xlabel("level")
    axes.set_ylabel("expected coverage")
    axes.set_title(f"TARP: fluxes of all bands, {count} sources", fontsize=11, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, fontsize=9)
    clean(axes)
    return drawn
