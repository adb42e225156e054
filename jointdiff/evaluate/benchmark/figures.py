"""The benchmark in pictures: every method in a colour of its own, ours the thick line.

matplotlib's Figure alone, no pyplot: nothing global.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.evaluate.benchmark.examine import ANNULI
from jointdiff.evaluate.benchmark.record import Record
from jointdiff.evaluate.benchmark.table import COMMON, Records
from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.evaluate.figures import FAINT, INK, clean, colour_panels
from jointdiff.evaluate.scores import Binned
from jointdiff.evaluate.suite import ALL, Row
from jointdiff.evaluate.validation import METHOD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    METHOD: "#1f5fbf",
    "wiener": "#222222",
    "wiener-band": "#8a8a8a",
    "richardson-lucy": "#d98032",
    "isra": "#e8b98a",
    "starlet": "#3f9a6b",
    "scarlet2": "#a8323e",
    "templates": "#9a8c2e",
    "oracle": "#000000",
    "dps": "#a4508b",
    "dps-vis": "#d3a0c6",
    "pigdm": "#5a4fb0",
    "pigdm-vis": "#b0a8e6",
    "mmps": "#178f9e",
    "mmps-vis": "#8fd0d8",
}


def line(method: str) -> dict:
    """How a method is drawn."""
    ours = method == METHOD
    style = {"color": _COLOURS.get(method, FAINT), "lw": 2.6 if ours else 1.2, "zorder": 5 if ours else 2}
    return style | {"ls": ":" if method == "oracle" else "--" if method.endswith("-vis") else "-"}


def _panels(rows: int, columns: int, height: float = 2.6, width: float = 12.0):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height * rows + 0.9), facecolor="white", layout="constrained")
    return drawn, drawn.subplots(rows, columns, squeeze=False)


def _logarithmic(axes: Axes, form: str = "{x:g}") -> None:
    """A logarithmic y, with ticks that say what they are."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(drawn: Figure, grid: np.ndarray) -> None:
    handles: dict = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=8, frameon=False, fontsize=9)


def by_magnitude(scores: Binned, edges: Sequence[float], names: Sequence[str]) -> Figure:
    """Bias and scatter of aperture fluxes against what was observed, a column a band."""
    from matplotlib.ticker import PercentFormatter

    drawn, grid = _panels(2, len(names), width=2.3 * len(names))
    places = np.arange(len(edges) - 1)
    for column, name in enumerate(names):
        for row, key in enumerate(("scatter", "bias")):
            axes = grid[row, column]
            for method, bands in scores.items():
                axes.plot(places, bands[name][key], label=method, **line(method))
            axes.set_xticks(places, [f"{low:g}-{high:g}" for low, high in pairwise(edges)], rotation=60)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            clean(axes)
        _logarithmic(grid[0, column], "{x:.1%}")
        grid[0, column].set_title(name, fontsize=11, color=INK)
        ours = scores[METHOD][name]["bias"] if METHOD in scores else np.zeros(1)
        reach = max(0.1, 1.5 * float(np.nanmax(np.abs(ours), initial=0)))
        grid[1, column].set_ylim(-reach, reach)
        grid[1, column].axhline(0, color=FAINT, lw=0.8)
        grid[1, column].set_xlabel("observed AB magnitude")
    grid[0, 0].set_ylabel("flux scatter")
    grid[1, 0].set_ylabel("flux bias")
    _legend(drawn, grid)
    return drawn


_BY_SUBSET = (
    ("image_error_typical", "Image error, median scene"),
    ("flux_scatter", "Flux scatter"),
    ("crps_relative", "CRPS over the Wiener filter's deviation"),
    ("colour_scatter", "Colour scatter, mag"),
)


def by_subset(rows: Sequence[Row], groups: Mapping[str, Sequence[str]]) -> Figure:
    """Scores, means over the bands, against what scenes are like. groups: title → subsets in order; a row each."""
    drawn, grid = _panels(len(groups), len(_BY_SUBSET))
    for number, (title, subsets) in enumerate(groups.items()):
        for axes, (score, heading) in zip(grid[number], _BY_SUBSET, strict=True):
            for method, values in _series(rows, score, ALL, subsets).items():
                axes.plot(np.arange(len(subsets)), values, marker="o", ms=3, label=method, **line(method))
            axes.set_xticks(np.arange(len(subsets)), list(subsets))
            _logarithmic(axes)
            if not number:
                axes.set_title(heading, fontsize=10, color=INK)
            clean(axes)
        grid[number, 0].set_ylabel(title)
    _legend(drawn, grid)
    return drawn


def _series(rows: Sequence[Row], score: str, band: str, subsets: Sequence[str]) -> dict[str, np.ndarray]:
    """method → its values in the subsets, over all S/N; NaN where there is none."""
    found: dict[str, np.ndarray] = {}
    for row in rows:
        if row["score"] == score and row["band"] == band and _whole(row) and row["subset"] in subsets:
            values = found.setdefault(row["method"], np.full(len(subsets), np.nan))
            values[list(subsets).index(row["subset"])] = row["value"]
    return found


def _whole(row: Row) -> bool:
    """Whether a score is of all signal to noise."""
    return bool(np.isinf(row["snr_low"]) and np.isinf(row["snr_high"]))


def by_band(rows: Sequence[Row], score: str, title: str, nominal: float | None = None) -> Figure:
    """A score in each band (or colour) with its 95 % interval, on all scenes and on the common ones."""
    drawn, grid = _panels(1, 2, height=3.6)
    for axes, subset in zip(grid[0], (ALL, COMMON), strict=True):
        chosen = [row for row in rows if (row["score"], row["subset"]) == (score, subset) and _whole(row)]
        chosen = [row for row in chosen if row["band"] != ALL]
        bands, methods = (list(dict.fromkeys(row[key] for row in chosen)) for key in ("band", "method"))
        for row in chosen:
            at = bands.index(row["band"]) + 0.8 * ((methods.index(row["method"]) + 0.5) / len(methods) - 0.5)
            ends = [[max(row["value"] - row["low"], 0)], [max(row["high"] - row["value"], 0)]]
            style = {"color": line(row["method"])["color"], "ms": 6 if row["method"] == METHOD else 4}
            axes.errorbar([at], [row["value"]], ends, fmt="o", lw=1, **style, label=row["method"])
        if nominal is not None:
            axes.axhline(nominal, color=FAINT, lw=0.9)
        else:
            _logarithmic(axes)
        axes.set_xticks(np.arange(len(bands)), bands)
        axes.set_title(f"{title}: {subset} scenes", fontsize=10, color=INK)
        clean(axes)
    _legend(drawn, grid)
    return drawn


def coverage(scores: Binned, edges: Sequence[float], names: Sequence[str]) -> Figure:
    """Coverage of nominal intervals against observed signal to noise, a panel a band; ours dashed as catalogs state."""
    drawn, grid = _panels(1, len(names), height=3.0, width=2.3 * len(names))
    places = np.arange(len(edges) - 1)
    for axes, name in zip(grid[0], names, strict=True):
        for method, bands in scores.items():
            axes.plot(places, bands[name]["coverage"], marker="o", ms=3, label=method, **line(method))
            if "coverage_scaled" in bands[name]:
                style = line(method) | {"ls": "--", "lw": 1.8}
                axes.plot(places, bands[name]["coverage_scaled"], **style, label=f"{method}, scaled")
        axes.axhline(COVERAGE_LEVEL, color=FAINT, lw=0.9)
        labels = [
            f"<{b:g}" if np.isinf(a) else f">{a:g}" if np.isinf(b) else f"{a:g}-{b:g}" for a, b in pairwise(edges)
        ]
        axes.set_xticks(places, labels, rotation=40)
        axes.set_ylim(0, 1)
        axes.set_title(name, fontsize=11, color=INK)
        clean(axes)
    grid[0, 0].set_ylabel(f"coverage (nominal {COVERAGE_LEVEL:.0%})")
    grid[0, len(names) // 2].set_xlabel("observed S/N")
    _legend(drawn, grid)
    return drawn


def frequencies(records: Records, scenes: Sequence[str], names: Sequence[str], scale: float) -> Figure:
    """Transfer Σ Re x̂ x*/Σ|x|² and coherence Σ Re x̂ x*/√(Σ|x̂|² Σ|x|²) against frequency; scenes count alike."""
    drawn, grid = _panels(2, len(names), width=2.3 * len(names))
    k = (np.arange(ANNULI) + 0.5) / ANNULI * 0.5 / scale
    for method, kept in records.items():
        chosen = [kept[scene] for scene in scenes if scene in kept]
        if not chosen or np.isnan(chosen[0].measured.norms).any():  # photometry has no images
            continue
        own, truth, shared = np.sum([record.spectra for record in chosen], 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            for row, values in enumerate((shared / truth, shared / np.sqrt(own * truth))):
                for band in range(len(names)):
                    grid[row, band].plot(k, values[band], label=method, **line(method))
    for band, name in enumerate(names):
        grid[0, band].set_title(name, fontsize=11, color=INK)
        grid[1, band].set_xlabel("cycles per arcsec")
        for axes, low, high in zip(grid[:, band], (-0.1, -0.1), (1.4, 1.05), strict=True):
            axes.set_ylim(low, high)
            axes.axhline(1, color=FAINT, lw=0.8)
            clean(axes)
    grid[0, 0].set_ylabel("transfer")
    grid[1, 0].set_ylabel("coherence")
    _legend(drawn, grid)
    return drawn


def pictures(records: Mapping[str, Record], names: Sequence[str], scale: float, title: str) -> Figure:
    """One scene: a row a method: the mean and a sample in colour, and the mean's errors in four bands."""
    from matplotlib.colors import AsinhNorm

    bands = [name for name in ("VIS", "g", "i", "y") if name in names] or list(names)[:4]
    shown = {method: record.pictures for method, record in records.items() if record.pictures is not None}
    truth = next(iter(shown.values()))[2]
    drawn, grid = _panels(len(shown) + 1, 2 + len(bands), height=1.75, width=1.75 * (2 + len(bands)) + 0.6)
    peak = {name: np.quantile(np.abs(truth[names.index(name)]), 0.999) for name in bands}

    def colour(axes: Axes, sky: np.ndarray) -> None:
        # the truth sets the stretch, so that colours and brightness compare
        panel = next(p for p in colour_panels([], names, truth, sky[None], None, scale) if p[0] == "Sample 1")
        axes.imshow(panel[1], origin="lower", interpolation="nearest")

    colour(grid[0, 0], truth)
    grid[0, 0].set_ylabel("truth", fontsize=9)
    for column, name in enumerate(bands):
        light = AsinhNorm(0.05 * peak[name], -peak[name], peak[name])
        grid[0, 2 + column].imshow(truth[names.index(name)], cmap="RdBu_r", norm=light, origin="lower")
        grid[0, 2 + column].set_title(f"{name}: mean - truth", fontsize=8)
        for row, (mean, *_) in enumerate(shown.values(), 1):
            error = (mean - truth)[names.index(name)]
            grid[row, 2 + column].imshow(error, cmap="RdBu_r", norm=light, origin="lower")
    for row, (method, (mean, sample, _)) in enumerate(shown.items(), 1):
        colour(grid[row, 0], mean)
        colour(grid[row, 1], sample)
        grid[row, 0].set_ylabel(method, fontsize=9, color=INK)
    grid[0, 0].set_title("mean", fontsize=8)
    grid[0, 1].set_title("one sample", fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    drawn.suptitle(title, fontsize=11, color=INK)
    return drawn


def cost(rows: Sequence[Row]) -> Figure:
    """CRPS against the time of a sample: down and left is better. On the common scenes; time of all."""
    drawn, grid = _panels(1, 2, height=4.0)
    values = {(r["method"], r["subset"], r["score"]): r["value"] for r in rows if r["band"] in (ALL, "")}
    for axes, score, label in zip(
        grid[0], ("crps_relative", "image_error_typical"), ("CRPS / Wiener's deviation", "image error"), strict=True
    ):
        for method in dict.fromkeys(row["method"] for row in rows):
            seconds, error = values.get((method, ALL, "seconds_per_sample")), values.get((method, COMMON, score))
            if seconds and error:
                axes.plot([seconds], [error], "o", ms=9 if method == METHOD else 6, color=line(method)["color"])
                axes.annotate(method, (seconds, error), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", xlabel="core seconds a sample", ylabel=f"{label}, mean of the bands")
        _logarithmic(axes)
        clean(axes)
    return drawn


def growth(rows: Sequence[Row]) -> Figure:
    """Core seconds a scene against its side, observed bands and samples; hollow where some steps foretell all."""
    drawn, grid = _panels(1, 3, height=3.6)
    labels = {"size": "side of the scene, pixels", "bands": "observed bands", "samples": "samples"}
    for axes, (kind, label) in zip(grid[0], labels.items(), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            rest = [row for row in rows if row["method"] == method and row["kind"] == kind]
            if own := sorted((row["at"], row["seconds"]) for row in rest if math.isfinite(row["seconds"])):
                filled = {"mfc": "white"} if rest[0]["timed"] else {}
                axes.plot(*zip(*own, strict=True), marker="o", ms=4, label=method, **filled, **line(method))
        axes.set_xlabel(label)
        _logarithmic(axes)
        if kind != "bands":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        clean(axes)
    grid[0, 0].set_ylabel("core seconds a scene")
    _legend(drawn, grid)
    return drawn
