"""What all suites share: rows of scores that are kept as they are made, and what a suite leaves behind."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from jointdiff.errors import InputError
from jointdiff.evaluate.scores import score
from jointdiff.evaluate.sources import ScoredScene, measure_scenes
from jointdiff.io.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
"""Texts and numbers by name: what a table has a line of."""

ALL = "all"
"""The band of a row that is the mean of all bands' rows."""

SCORES = (
    "image_error_typical",
    "image_error",
    "flux_bias",
    "flux_scatter",
    "crps",
    "crps_relative",
    "crps_relative_ratio",
    "pull_width",
    "coverage",
    "chi2",
    "sources",
)
"""The scores (METHOD section 8) that suites compare conditions by."""


@dataclass(frozen=True)
class Kept:
    """Rows of scores in JSON files, one a condition, so that a suite that was stopped goes on where it was.

    key: what they depend on beside the condition; rows of another key are made again.
    """

    folder: Path
    key: str

    def rows(self, condition: str, make: Callable[[], list[Row]]) -> list[Row]:
        """The rows of a condition: those kept, or else made now and kept."""
        path = self.folder / f"{condition}.json"
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["key"] == self.key:
                return held["rows"]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not the rows of a suite; remove it") from error
        made = make()
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"key": self.key, "rows": made}, indent=1), encoding="utf-8")
        return made


@dataclass(frozen=True)
class Outcome:
    """What a suite found: a table, its text for the terminal, and by name figures, other texts and scalars to chart."""

    table: Table
    text: str
    figures: Mapping[str, "Figure"] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)


def score_rows(scenes: Sequence[ScoredScene], names: Sequence[str], scale: float, seed: int) -> list[Row]:
    """A row of SCORES for each method and band, and for the mean of all bands; those with an interval have it, too.

    scale: arcsec per pixel.
    """
    scores = score(measure_scenes(scenes, names, scale), np.random.default_rng(seed))
    ends = ("", "_low", "_high")
    keys = [f"{key}{end}" for key in SCORES for end in ends]
    rows: list[Row] = []
    for method, found in scores.items():
        bands = [{key: found[name].get(key, math.nan) for key in keys} for name in names]
        told = [key for key in keys if any(math.isfinite(band[key]) for band in bands)]
        every = {key: float(np.mean([band[key] for band in bands])) for key in told}
        for name, band in [*zip(names, bands, strict=True), (ALL, every)]:
            rows.append({"method": method, "band": name} | {key: band[key] for key in told})
    return rows


def table_of(rows: Sequence[Row]) -> Table:
    """One table of all rows: text or float columns in the order of the first row, NaN where a row has none."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    texts = {key for row in rows for key, value in row.items() if isinstance(value, str)}
    return Table({key: [row.get(key, "" if key in texts else math.nan) for row in rows] for key in keys})


def format_rows(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> str:
    """Lines of a printed table. columns: key → heading and format, as ``{:.2f}``; NaN is left blank."""
    cells = [[heading for heading, _ in columns.values()]]
    for row in rows:
        values = [(row.get(key, math.nan), form) for key, (_, form) in columns.items()]
        cells.append([v if isinstance(v, str) else form.format(v) if math.isfinite(v) else "" for v, form in values])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = [isinstance(next(iter(rows)).get(key), str) for key in columns] if rows else [True] * len(columns)
    lines = [
        "  ".join(
            cell.ljust(n) if left else cell.rjust(n) for cell, n, left in zip(line, widths, text, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write(outcome: Outcome, folder: Path, name: str, provenance: Mapping[str, object], writer=None) -> None:
    """table.ecsv, table.txt, other texts and a PNG a figure, into ``folder``; into a SummaryWriter, if given, too."""
    from jointdiff.evaluate.figures import pixels, save_figure

    table = outcome.table.copy()
    table.meta.update({key: value for key, value in provenance.items() if value is not None})
    with atomic_path(folder / "table.ecsv") as temporary:
        table.write(temporary, format="ascii.ecsv", overwrite=True)
    for file, text in {"table.txt": f"{outcome.text}\n", **outcome.files}.items():
        with atomic_path(folder / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for title, figure in outcome.figures.items():
        save_figure(figure, folder / f"{title}.png")
    if writer is not None:
        writer.add_text(f"suites/{name}", "\n".join(f"    {line}" for line in outcome.text.splitlines()), 0)
        for title, figure in outcome.figures.items():
            writer.add_image(f"suites/{name}/{title}", pixels(figure), 0, dataformats="HWC")
        for tag, value in outcome.scalars.items():
            if math.isfinite(value):
                writer.add_scalar(f"suites/{name}/{tag}", value, 0)
        writer.flush()
