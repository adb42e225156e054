"""Scores as pictures, one row a band: errors, pulls and ranks of fluxes; scores in bins of what was observed.

matplotlib's Figure alone, no pyplot: nothing global.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.evaluate import calibration
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.scores import SCALED, Binned
from jointdiff.evaluate.sources import APERTURE, Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#3b6fb6", "#d98032", "#3f9a6b", "#a4508b", "#7a6a55")
"""Colours of the methods, the first one ours."""

BAND_PALETTE = ("#222222", "#3b6fb6", "#3f9a6b", "#d98032", "#c0504d", "#7a4a2a", "#a4508b")
"""Colours of the bands, in the order of the scene's channels."""

_LARGEST = 0.5
"""Relative flux errors beyond this are drawn at the rim."""


def photometry_figure(sources: Sources, rng: np.random.Generator) -> Figure:
    """Each band's relative flux errors against observed magnitude, pulls, and ranks beside a perfect posterior's.

    The ranks are a Talagrand diagram (Hamill 2001), with the central 95 % of each cell's count were all ranks equally
    likely. Sources at the edge of the scored core are left out.
    """
    from matplotlib.figure import Figure

    names, chosen = sources.names, ~sources.edge
    figure = Figure(figsize=(12, 2.3 * len(names) + 0.9), facecolor="white", layout="constrained")
    grid = figure.subplots(len(names), 3, squeeze=False, sharex="col", width_ratios=[1.3, 1, 1])
    for band, name in enumerate(names):
        errors, pulls, ranks = grid[band]
        truth = sources.truth.point[chosen, band]
        for colour, (method, measured) in zip(PALETTE, sources.estimates.items(), strict=False):
            samples = measured.samples[:, chosen, band]
            ours = method == next(iter(sources.estimates))
            if ours:
                point = measured.point[chosen, band]
                _flux_errors(errors, sources.magnitude[chosen, band], point, samples, truth)
                _perfect(pulls, ranks, len(truth), len(samples))
            style = {"alpha": 0.35} if ours else {"histtype": "step", "lw": 1.3}
            _pulls(pulls, calibration.pulls(samples, truth), len(samples), color=colour, label=method, **style)
            _ranks(ranks, calibration.ranks(samples, truth, rng), len(samples), color=colour, label=method, **style)
        errors.set_ylabel(f"{name}:  error / true flux", color=INK)
        pulls.set_ylabel("density")
        if len(truth):
            pulls.legend(frameon=False, fontsize=8, loc="upper left", handlelength=1)
        pulls.set_ylim(0, 0.62)  # room for the legend
        ranks.set_ylabel("sources")
        for axes in grid[band]:
            clean(axes)
    grid[0, 0].set_title(f"Fluxes in {APERTURE}″ radius, {next(iter(sources.estimates))}", color=INK, fontsize=11)
    grid[0, 1].set_title("Pulls; line: if error bars are true", color=INK, fontsize=11)
    grid[0, 2].set_title("Ranks of the truth; lines: if flat, 95 %", color=INK, fontsize=11)
    labels = ("observed magnitude (AB)", "(mean - true) / stated error", "rank among the samples")
    for axes, label in zip(grid[-1], labels, strict=True):
        axes.set_xlabel(label)
    return figure


def binned_figure(scores: Binned, edges: Sequence[float], names: Sequence[str], observed: str) -> Figure:
    """Bias, scatter, pull width and coverage in bins of an observed quantity, one row a band, one line a method.

    scores: as score_by gives them for the edges. observed: the quantity, for the label. The number of sources in each
    bin stands in the first column.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    level = calibration.COVERAGE_LEVEL
    columns = (
        ("bias", "Flux bias", 0.0),
        ("scatter", "Flux scatter", None),
        ("pull_width", "Pull width (nominal: 1)", 1.0),
        ("coverage", f"Coverage (nominal: {level:.0%})", level),
    )
    figure = Figure(figsize=(12, 1.9 * len(names) + 1.1), facecolor="white", layout="constrained")
    grid = figure.subplots(len(names), len(columns), squeeze=False, sharex=True, sharey="col")
    places = np.arange(len(edges) - 1)
    labels = [f">{low:g}" if np.isinf(high) else f"{low:g}-{high:g}" for low, high in pairwise(edges)]
    for row, name in enumerate(names):
        for column, (key, _, ideal) in enumerate(columns):
            axes = grid[row, column]
            if ideal is not None:
                axes.axhline(ideal, color=FAINT, lw=0.9, zorder=0)
            for colour, (method, bands) in zip(PALETTE, scores.items(), strict=False):
                axes.plot(places, bands[name][key], "o-", ms=4, lw=1.4, color=colour, label=method)
                if key + SCALED in bands[name]:
                    line = {"color": colour, "label": f"{method}, scaled"}
                    axes.plot(places, bands[name][key + SCALED], "o--", ms=4, lw=1.1, mfc="white", **line)
            if key != "pull_width":
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.set_xticks(places, labels)
            axes.set_xlim(-0.5, len(places) - 0.5)
            clean(axes)
        grid[row, 0].set_ylabel(name, color=INK, fontsize=12, rotation=0, labelpad=14)
        _counts(grid[row, 0], places, next(iter(scores.values()))[name]["sources"])
    for axes, (_, title, _) in zip(grid[0], columns, strict=True):
        axes.set_title(title, color=INK, fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel(f"observed {observed}")
    for axes in grid[:, 1:].flat:
        axes.set_ylim(bottom=0)
    grid[0, 2].legend(frameon=False, fontsize=9)
    return figure


def _counts(axes: Axes, places: np.ndarray, counts: np.ndarray) -> None:
    for place, count in zip(places, counts, strict=True):
        text = f"n={count:.0f}" if place == 0 else f"{count:.0f}"
        across = axes.get_xaxis_transform()
        axes.text(place, 1.0, text, transform=across, ha="center", va="top", fontsize=7, color=FAINT)


def _flux_errors(axes: Axes, magnitude: np.ndarray, point, samples: np.ndarray, truth: np.ndarray) -> None:
    """Relative errors with the stated error bars, those beyond _LARGEST as arrows at the rim."""
    from matplotlib.ticker import PercentFormatter

    real = (truth > 0) & np.isfinite(magnitude)
    magnitude, error = magnitude[real], (point[real] - truth[real]) / truth[real]
    deviation = samples[:, real].std(0, ddof=1) / truth[real] if len(samples) > 1 else np.zeros(real.sum())
    inside = np.abs(error) <= _LARGEST
    axes.axhline(0, color=FAINT, lw=0.9, zorder=0)
    x, y, bars = magnitude[inside], error[inside], deviation[inside]
    axes.errorbar(x, y, bars, fmt="o", ms=3, lw=0.8, color=PALETTE[0], ecolor="#a9c1de", mec="white", mew=0.3)
    for marker, side in (("^", 1), ("v", -1)):
        beyond = magnitude[side * error > _LARGEST]
        rim = np.full(len(beyond), side * 0.96 * _LARGEST)
        axes.plot(beyond, rim, marker, ms=4, color=PALETTE[0], mfc="white", mew=0.8)
    axes.set_ylim(-_LARGEST, _LARGEST)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _perfect(pulls: Axes, ranks: Axes, sources: int, samples: int) -> None:
    """What a perfect posterior would show: Student's t, and equal counts in every cell."""
    from scipy.stats import binom, t

    x = np.linspace(-5, 5, 201)
    if samples > 1:
        pulls.plot(x, t.pdf(x, samples - 1), color=INK, lw=1)
    cell = 1 / (samples + 1)
    low, high = binom.ppf([0.025, 0.975], sources, cell)
    ranks.axhline(sources * cell, color=INK, lw=1)
    for limit in (low, high):
        ranks.axhline(limit, color=INK, lw=0.8, ls=":")


def _pulls(axes: Axes, pulls: np.ndarray, samples: int, label: str, **style) -> None:
    pulls = pulls[np.isfinite(pulls)]
    if not len(pulls):
        return
    width = calibration.pull_width(pulls, samples)
    name = f"{label}, width {width:.2f}"
    axes.hist(np.clip(pulls, -5, 5), np.linspace(-5, 5, 26).tolist(), density=True, label=name, **style)


def _ranks(axes: Axes, ranks: np.ndarray, samples: int, **style) -> None:
    counts = calibration.rank_histogram(ranks, samples)
    cells = np.arange(samples + 1)
    axes.hist(cells, (np.arange(samples + 2) - 0.5).tolist(), weights=counts, **style)
    axes.set_xlim(-0.5, samples + 0.5)
