"""Errors against the bars that they are to meet: a row for each band and bin of observed signal to noise.

A bar is met where the 95 % bootstrap interval over scenes overlaps it, so few sources meet it easily: see the counts.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from astropy.table import Table

from jointdiff.evaluate import accuracy
from jointdiff.evaluate.scores import LEAST, SCALED, Statistic, spread_statistics
from jointdiff.evaluate.sources import Sources

EDGES = (-math.inf, 5.0, 20.0, 100.0, math.inf)
"""Bins of the reference's signal to noise; before them a row of all."""

BRIGHT = 100.0
"""Signal to noise from which biases are judged, and raw pull widths less strictly."""


ENOUGH = 1500
"""Sources from which intervals are narrow enough to tell a bar that is met from one that nothing is known of."""


class Bar(NamedTuple):
    """The values that are good enough."""

    low: float
    high: float

    def met(self, low: float, high: float) -> bool | None:
        """Whether an interval overlaps the bar; None for no interval."""
        return low <= self.high and high >= self.low if math.isfinite(low) else None


RAW_WIDTH, RAW_WIDTH_BRIGHT, SCALED_WIDTH = Bar(0.85, 1.2), Bar(0.85, 1.5), Bar(0.95, 1.05)
SCALED_COVERAGE = Bar(0.65, 0.71)
CHI2 = Bar(0.98, 1.02)
BIAS, BIAS_OTHER = Bar(-10, 10), Bar(-15, 15)
"""mmag: of g, r and i, and of other bands."""

COLUMNS = (
    ("bias mmag", "bias", "{:+.0f}"),
    ("raw width", "pull_width", "{:.2f}"),
    ("scaled width", "pull_width" + SCALED, "{:.2f}"),
    ("raw coverage", "coverage", "{:.2f}"),
    ("scaled coverage", "coverage" + SCALED, "{:.2f}"),
    ("chi2/N", "chi2", "{:.3f}"),
)
"""Heading, number and format."""


def judge(sources: Sources, method: str, rng: np.random.Generator) -> Table:
    """Scores of a method's aperture fluxes with their intervals, and which bars they meet.

    Columns band, snr_low, snr_high, sources; each number of COLUMNS with its ends …_low and …_high; …_met: 1 or 0, -1
    where there is no bar. bias: median, mmag, positive for fluxes that come out too faint. chi2 is of whole images, in
    the rows of all sources alone.
    """
    draws = accuracy.Resamples(sources.scenes, len(sources.found), rng)
    rows = []
    for band, name in enumerate(sources.names):
        snr, inside = sources.snr[:, band], ~sources.edge
        groups = [((EDGES[0], EDGES[-1]), inside)]
        groups += [
            (ends, inside & chosen) for ends, chosen in zip(pairwise(EDGES), accuracy.bins(snr, EDGES), strict=True)
        ]
        for number, ((low, high), group) in enumerate(groups):
            row = {"band": name, "snr_low": low, "snr_high": high, "sources": int(group.sum())}
            found = dict(_statistics(sources, method, band, group, draws, rng))
            if number == 0:
                found["chi2"] = _chi2(sources, method, band, draws)
            for _, key, _ in COLUMNS:
                row |= _judged(key, found.get(key), _bar(key, name, low))
            rows.append(row)
    return Table(rows)


def _statistics(
    sources: Sources, method: str, band: int, group: np.ndarray, draws: accuracy.Resamples, rng: np.random.Generator
) -> Iterator[tuple[str, Statistic]]:
    if group.sum() < LEAST:
        return
    measured = sources.estimates[method]
    samples, truth, stretch = measured.samples[..., band], sources.truth.point[:, band], measured.stretch[:, band]
    yield from spread_statistics(samples, truth, stretch, group, draws, rng).items()
    yield "bias", Statistic(_magnitudes, (measured.point[:, band], truth), group, draws.by_source)


def _magnitudes(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Median error in mmag; NaN where fluxes are lost in noise."""
    error = accuracy.bias(estimate, truth)
    return -2500 * math.log10(1 + error) if error > -1 else math.nan


def _chi2(sources: Sources, method: str, band: int, draws: accuracy.Resamples) -> Statistic:
    def ratio(sums: np.ndarray) -> float:
        chi2, pixels = sums.sum(0)
        return float(chi2 / pixels) if pixels else math.nan

    sums = sources.estimates[method].chi2[:, band]
    return Statistic(ratio, (sums,), np.ones_like(sources.found), draws.by_scene)


def _bar(key: str, band: str, low: float) -> Bar | None:
    if key == "pull_width":
        return RAW_WIDTH_BRIGHT if low >= BRIGHT else RAW_WIDTH
    if key == "bias":
        return (BIAS if band in ("g", "r", "i") else BIAS_OTHER) if low >= BRIGHT else None
    return {"pull_width" + SCALED: SCALED_WIDTH, "coverage" + SCALED: SCALED_COVERAGE, "chi2": CHI2}.get(key)


def _judged(key: str, statistic: Statistic | None, bar: Bar | None) -> dict[str, float]:
    value, ends = (statistic.value, statistic.interval) if statistic else (math.nan, (math.nan, math.nan))
    met = bar.met(*ends) if bar else None
    return {key: value, f"{key}_low": ends[0], f"{key}_high": ends[1], f"{key}_met": -1 if met is None else int(met)}


def format_bars(table: Table) -> str:
    """The table with a line for each row; ! marks what misses its bar. Columns without any number are left out."""
    shown = [column for column in COLUMNS if np.isfinite(table[column[1]]).any()]
    lines = [["band", "S/N", "sources", *(title for title, *_ in shown)]]
    for row in table:
        new = not lines or row["band"] not in [line[0] for line in lines]
        cells = [row["band"] if new else "", _range(row["snr_low"], row["snr_high"]), str(row["sources"])]
        lines.append(cells + [_cell(row, key, form) for _, key, form in shown])
    widths = [max(map(len, cells)) + 2 for cells in zip(*lines, strict=True)]
    first = widths[0]
    text = [
        line[0].ljust(first) + "".join(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)) for line in lines
    ]
    text.insert(1, "-" * sum(widths))
    judged = [table[f"{key}_met"] for _, key, _ in COLUMNS]
    met, counted = (
        int(sum((column == 1).sum() + extra * (column == 0).sum() for column in judged)) for extra in (0, 1)
    )
    few = (
        f" Fewer than {ENOUGH} sources: wide intervals meet most bars."
        if len(table) and table["sources"][0] < ENOUGH
        else ""
    )
    return "\n".join([*(line.rstrip() for line in text), *_notes(met, counted, few)])


def _notes(met: int, counted: int, few: str) -> Sequence[str]:
    return (
        f"{met} of {counted} bars met; ! marks the others. In brackets: 95 % by a bootstrap over scenes.{few}",
        f"Bars: raw width {RAW_WIDTH.low:g}-{RAW_WIDTH.high:g} (up to {RAW_WIDTH_BRIGHT.high:g} above S/N {BRIGHT:g}); "
        f"scaled width {SCALED_WIDTH.low:g}-{SCALED_WIDTH.high:g}; scaled coverage "
        f"{SCALED_COVERAGE.low:g}-{SCALED_COVERAGE.high:g};",
        f"chi2/N {CHI2.low:g}-{CHI2.high:g}; |bias| above S/N {BRIGHT:g} {BIAS.high:g} mmag in g r i, "
        f"{BIAS_OTHER.high:g} in others.",
    )


def _range(low: float, high: float) -> str:
    if math.isinf(low):
        return "all" if math.isinf(high) else f"<{high:g}"
    return f">{low:g}" if math.isinf(high) else f"{low:g}-{high:g}"


def _cell(row, key: str, form: str) -> str:
    value, low, high, met = (row[key + end] for end in ("", "_low", "_high", "_met"))
    if not math.isfinite(value):
        return ""
    return f"{form.format(value)} ({form.format(low)}..{form.format(high)}){'!' if met == 0 else ' '}"
