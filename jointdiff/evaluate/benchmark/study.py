"""What a benchmark found, of all that its processes kept: the table, the figures, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.evaluate.bars import EDGES
from jointdiff.evaluate.benchmark import figures, report
from jointdiff.evaluate.benchmark.table import COMMON, Records, Subset, cost_rows, growth_rows, rows
from jointdiff.evaluate.scores import score_by
from jointdiff.evaluate.suite import ALL, Outcome, Row, table_of
from jointdiff.evaluate.validation import MAGNITUDES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def study(
    records: Records,
    subsets: Sequence[Subset],
    groups: Mapping[str, Sequence[str]],
    growth: Sequence[Row],
    names: Sequence[str],
    scale: float,
    seed: int,
    about: Mapping[str, object],
    command: str,
) -> Outcome:
    """The Outcome of a benchmark.

    subsets: ALL the scenes first, then the COMMON ones, then others. groups: title → names of subsets that are drawn
    side by side. growth: rows of growth.grow, with their methods. scale: arcsec per pixel. about, command: what it was
    made with, and by which command.
    """
    table = [row for subset in subsets for row in rows(records, subset, names, seed)]
    table += cost_rows(records, ALL) + growth_rows(growth)
    drawn = _figures(records, subsets, groups, growth, table, names, scale, seed)
    page = report.page(table, drawn, growth, about)
    files = {"report.html": page, "readme.md": report.markdown(table, command)}
    scalars = {f"{row['score']}/{row['band']}/{row['method']}": row["value"] for row in table if _charted(row)}
    told = {name.split(":")[0].replace(" ", "_"): figure for name, (_, figure) in drawn.items()}
    return Outcome(table_of(table), report.text(table), told, files, scalars)


def _charted(row: Row) -> bool:
    return row["subset"] == ALL and np.isinf(row["snr_low"]) and np.isinf(row["snr_high"]) and row["band"] != ""


def _figures(
    records: Records,
    subsets: Sequence[Subset],
    groups: Mapping[str, Sequence[str]],
    growth: Sequence[Row],
    table: Sequence[Row],
    names: Sequence[str],
    scale: float,
    seed: int,
) -> dict[str, tuple[str, Figure]]:
    every, common = subsets[0], next(subset for subset in subsets if subset.name == COMMON)
    sources = every.sources(records, names)
    magnitude = score_by(sources, sources.magnitude, MAGNITUDES, np.random.default_rng(seed))
    snr = score_by(sources, sources.snr, EDGES, np.random.default_rng(seed))
    drawn = {
        "magnitude": (
            "Aperture fluxes against what was observed, all scenes.",
            figures.by_magnitude(magnitude, MAGNITUDES, names),
        ),
        "scenes": (
            "Means of the bands against kinds of sky, ground surveys, and the seeing over the survey's usual one.",
            figures.by_subset(table, groups),
        ),
        "images": (
            "Image error, median scene, with 95 % intervals.",
            figures.by_band(table, "image_error_typical", "image error"),
        ),
        "colours": ("Scatter of colours, mag.", figures.by_band(table, "colour_scatter", "colour scatter")),
        "frequencies": (
            "Transfer and coherence of the mean against spatial frequency, common scenes, each counting alike.",
            figures.frequencies(records, common.scenes, names, scale),
        ),
        "coverage": (
            "How often the central 69 % interval holds the truth, all scenes.",
            figures.coverage(snr, EDGES, names),
        ),
        "cost": ("Errors against time: down and to the left is better.", figures.cost(table)),
    }
    if growth:
        told = "Two samples where their number is not varied. Hollow: foretold from the time of some of the steps."
        drawn["growth"] = (told, figures.growth(growth))
    for scene in common.scenes:
        shown = {method: records[method][scene] for method in common.methods}
        if any(record.pictures is not None for record in shown.values()):
            told = "The mean, one sample, and what the mean has more (red) or less (blue) than the truth."
            drawn[f"scene {scene}"] = (told, figures.pictures(shown, names, scale, scene))
    return drawn
