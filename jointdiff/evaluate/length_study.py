"""How long to train: scores of finished runs that differ in their length alone, on the same scenes, with the bars.

Each run has a schedule of its own, so a point is what training of that length ends with, not where a longer one passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.bars import BRIGHT, COLUMNS, ENOUGH, RAW_WIDTH, RAW_WIDTH_BRIGHT, SCALED_COVERAGE, Bar
from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.score_figures import BAND_PALETTE
from jointdiff.evaluate.scores import SCALED
from jointdiff.evaluate.suite import Kept, Outcome, Row, format_rows, table_of
from jointdiff.evaluate.validation import METHOD, Validation
from jointdiff.measure.conformal import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Trained(NamedTuple):
    """A finished run. key: what its scores depend on beside the scenes. calibrate: gives its calibration."""

    key: str
    denoiser: Denoiser
    calibrate: Callable[[], Calibration]


RATIOS = ("image_error_typical_ratio", "image_error_ratio", "crps_ratio")
"""Scores over those of the joint Wiener filter, in the rows of all sources."""

_BRIGHT_WIDTH = "pull_width_bright"

_PRINTED = {
    "steps": ("steps", "{:.0f}"),
    "band": ("band", "{}"),
    "sources": ("sources", "{:.0f}"),
    "pull_width": ("raw width", "{}"),
    _BRIGHT_WIDTH: (f"S/N > {BRIGHT:g}", "{}"),
    "pull_width" + SCALED: ("scaled", "{}"),
    "coverage": ("raw coverage", "{}"),
    "coverage" + SCALED: ("scaled", "{}"),
    "crps_ratio": ("CRPS", "{}"),
    "image_error_typical_ratio": ("image error", "{}"),
}


def study(runs: Mapping[int, Trained], trials: Validation, kept: Kept) -> Outcome:
    """For each run, by its steps, its bars and RATIOS: a row a band and bin of observed signal to noise.

    All are sampled from the same noise on the same scenes, beside the same Wiener filter: their Γ must be one.
    """
    rows: list[Row] = []
    for steps, trained in sorted(runs.items()):

        def make(trained=trained) -> list[Row]:
            calibration = trained.calibrate()
            trained.denoiser.network_errors = calibration.network_errors or ()
            return score_rows(trained.denoiser, calibration, trials)

        found = Kept(kept.folder, f"{kept.key}  {trained.key}").rows(f"steps_{steps:07d}", make)
        rows += [{"steps": float(steps)} | row for row in found]
    return Outcome(table_of(rows), _text(rows, trials), {"length": figure(rows)})


def score_rows(denoiser: Denoiser, calibration: Calibration, trials: Validation) -> list[Row]:
    """The rows of ``bars.judge``; those of all sources of a band with RATIOS and their intervals."""
    report = trials.run(denoiser, progress=True, calibration=calibration)
    rows = []
    for judged in report.bars:
        cells = zip(judged.colnames, judged, strict=True)
        row: Row = {key: value if isinstance(value, str) else float(value) for key, value in cells}
        if _of_all(row):
            scores = report.scores[METHOD][row["band"]]
            row |= {f"{key}{end}": scores[f"{key}{end}"] for key in RATIOS for end in ("", "_low", "_high")}
        rows.append(row)
    return rows


def _of_all(row: Row) -> bool:
    return math.isinf(row["snr_low"]) and math.isinf(row["snr_high"])


def _text(rows: Sequence[Row], trials: Validation) -> str:
    """A line for each run and band, then the bars that each run meets, over all bands and bins."""
    bright = {(row["steps"], row["band"]): row for row in rows if row["snr_low"] == BRIGHT}
    lines: list[Row] = []
    for row in filter(_of_all, rows):
        line: Row = {key: row[key] for key in ("steps", "band", "sources")}
        line[_BRIGHT_WIDTH] = _cell(bright[row["steps"], row["band"]], "pull_width")
        lines.append(line | {key: _cell(row, key) for key in _PRINTED if key not in line})
    notes = [
        f"{len(trials.trials)} scenes, {trials.samples} samples each, the same for all runs. "
        "In brackets: 95 % by a bootstrap over scenes; ! misses its bar.",
        "CRPS and image error (median scene) are over the joint Wiener filter's. Every band, S/N and bar: table.ecsv.",
    ]
    if min(row["sources"] for row in lines) < ENOUGH:
        notes.append(f"Fewer than {ENOUGH} sources: wide intervals meet most bars.")
    for steps in dict.fromkeys(row["steps"] for row in rows):
        told = [row[f"{key}_met"] for row in rows if row["steps"] == steps for _, key, _ in COLUMNS]
        notes.append(f"{steps:.0f} steps: {told.count(1)} of {told.count(1) + told.count(0)} bars met")
    return "\n".join([format_rows(lines, _PRINTED), *notes])


def _cell(row: Row, key: str) -> str:
    value, low, high = (row.get(key + end, math.nan) for end in ("", "_low", "_high"))
    if not math.isfinite(value):
        return ""
    return f"{value:.2f} ({low:.2f}..{high:.2f}){'!' if row.get(f'{key}_met') == 0 else ' '}"


def figure(rows: Sequence[Row]) -> Figure:
    """Scores against training steps, a line a band with its 95 % interval; shaded, the bars; dotted, the nominal."""
    from matplotlib.figure import Figure

    every = [row for row in rows if _of_all(row)]
    bright = [row for row in rows if row["snr_low"] == BRIGHT]
    panels: tuple[tuple[Sequence[Row], str, str, Bar | None, float], ...] = (
        (every, "pull_width", "Raw pull width, all sources", RAW_WIDTH, 1.0),
        (bright, "pull_width", f"Raw pull width, S/N > {BRIGHT:g}", RAW_WIDTH_BRIGHT, 1.0),
        (every, "image_error_typical_ratio", "Image error (median scene) over Wiener's", None, 1.0),
        (every, "coverage", f"Raw coverage of {COVERAGE_LEVEL:.0%} intervals", None, COVERAGE_LEVEL),
        (
            every,
            "coverage" + SCALED,
            f"Scaled coverage of {COVERAGE_LEVEL:.0%} intervals",
            SCALED_COVERAGE,
            COVERAGE_LEVEL,
        ),
        (every, "crps_ratio", "CRPS of fluxes over Wiener's", None, 1.0),
    )
    drawn = Figure(figsize=(12, 7), facecolor="white", layout="constrained")
    for axes, (chosen, key, title, bar, ideal) in zip(drawn.subplots(2, 3, sharex=True).flat, panels, strict=True):
        if bar is not None:
            axes.axhspan(bar.low, bar.high, color="#e8eef6", zorder=0, label="bar to be met")
        axes.axhline(ideal, color=FAINT, lw=0.9, ls=":", zorder=0, label="nominal, or Wiener's")
        _lines(axes, chosen, key)
        axes.set_title(title, fontsize=11, color=INK)
        clean(axes)
    for axes in drawn.axes[3:]:
        axes.set_xlabel("training steps")
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, ncols=len(labels), frameon=False, fontsize=9, loc="outside lower center")
    return drawn


def _lines(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """One line a band, side by side where they share a number of steps."""
    from matplotlib.ticker import PercentFormatter

    bands = list(dict.fromkeys(str(row["band"]) for row in rows))
    for number, band in enumerate(bands):
        own: list[dict[str, Any]] = [row for row in rows if row["band"] == band]
        x = [row["steps"] * 1.03 ** (number - (len(bands) - 1) / 2) for row in own]
        value, low, high = ([row.get(key + end, math.nan) for row in own] for end in ("", "_low", "_high"))
        below, above = ([abs(a - b) for a, b in zip(value, ends, strict=True)] for ends in (low, high))
        axes.errorbar(
            x, value, [below, above], fmt="o-", ms=4, lw=1.2, color=BAND_PALETTE[number % len(BAND_PALETTE)], label=band
        )
    axes.set_xscale("log")
    axes.minorticks_off()
    steps = sorted({row["steps"] for row in rows})
    axes.set_xticks(steps, [f"{n:,.0f}" for n in steps])
    if key.startswith("coverage"):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
