"""The printed scoreboard."""

import math
from collections.abc import Iterator, Sequence

from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.evaluate.scores import EDGE, MIN_SNR, SCALED, Scores
from jointdiff.evaluate.sources import APERTURE, REFERENCE, WIDE_APERTURE

COLUMNS = (
    ("error", "image_error_typical", "{:.3f}"),
    ("pooled", "image_error", "{:.3f}"),
    ('bias .5"', "flux_bias", "{:+.1%}"),
    ('bias 1"', "flux_bias_wide", "{:+.1%}"),
    ("scatter", "flux_scatter", "{:.1%}"),
    ("pull bias", "pull_median", "{:+.2f}"),
    ("width", "pull_width", "{:.2f}"),
    ("coverage", "coverage", "{:.1%}"),
    ("CRPS nJy", "crps", "{:.2f}"),
    ("CRPS/sd", "crps_relative", "{:.3f}"),
    ("chi2/N", "chi2", "{:.3f}"),
    ("efficiency", "efficiency", "{:.2f}"),
    ("sources", "sources", "{:.0f}"),
)
"""Heading, number and format. A column without numbers is left out."""

_WIDTH = 10
_SCALED = "  scaled"

_NOTES = (
    "Error of images: median over scenes with a source; pooled over all. CRPS/sd: over the reference's deviation.",
    f"Fluxes in {APERTURE}″ radius; bias and scatter: sources above {MIN_SNR:.0f} sigma. Perfect errors: pull bias 0, "
    f"width 1, coverage {COVERAGE_LEVEL:.1%}.",
    "95 %: interval of the ratio above it, by a bootstrap over scenes, the same ones for both methods.",
)
_SCALED_NOTE = "scaled: with the errors of catalogs, times the factors of the checkpoint's calibration.json."
_EDGE_NOTE = f"edge: sources within {WIDE_APERTURE:g}″ of where the data end; they count in no other row."


def format_table(scores: Scores, bands: Sequence[str], reference: str = REFERENCE) -> str:
    """For each band a row per method and, below it, what the scaled errors score, if they are, and its ratio to the
    reference with the 95 % interval.

    Sources at the edge of the scored core follow in a part of their own, where there are any.
    """
    methods = list(scores)
    edge = [band + EDGE for band in bands if band + EDGE in scores[methods[0]]]
    rows = [row for name in [*bands, *edge] for row in _band_rows(scores, name, reference)]
    used = [i for i in range(len(COLUMNS)) if any(cells[i] for *_, cells in rows)]
    rows = [(name, method, [cells[i] for i in used]) for name, method, cells in rows]
    header = ("band", "method", [COLUMNS[i][0] for i in used])
    first, second = (max(len(row[i]) for row in [header, *rows]) + 1 for i in (0, 1))
    lines = [
        (name.ljust(first) + method.ljust(second) + "".join(cell.rjust(_WIDTH) for cell in cells)).rstrip()
        for name, method, cells in [header, *rows]
    ]
    lines.insert(1, "-" * len(lines[0]))
    scaled = any(method == _SCALED for _, method, _ in rows)
    return "\n".join([*lines, *_NOTES, *([_SCALED_NOTE] if scaled else []), *([_EDGE_NOTE] if edge else [])])


def _band_rows(scores: Scores, name: str, reference: str) -> Iterator[tuple[str, str, list[str]]]:
    """(band, method, cells) of one band."""
    for number, (method, bands) in enumerate(scores.items()):
        row = bands[name]
        cells = [_cell(form, row.get(key, math.nan)) for _, key, form in COLUMNS]
        yield "" if number else name, method, cells
        if any(key + SCALED in row for _, key, _ in COLUMNS):
            yield "", _SCALED, [_cell(form, row.get(key + SCALED, math.nan)) for _, key, form in COLUMNS]
        if method != reference:
            ratio, low, high = (
                [_ratio(row.get(f"{key}_ratio{end}", math.nan)) for _, key, _ in COLUMNS]
                for end in ("", "_low", "_high")
            )
            yield "", f"  / {reference}", ratio
            yield "", "  95 %", [f"{a}-{b}" if a and b else "" for a, b in zip(low, high, strict=True)]


def _cell(form: str, value: float) -> str:
    return form.format(value) if math.isfinite(value) else ""


def _ratio(value: float) -> str:
    return _cell("{:.2f}" if value < 9.995 else "{:.0f}" if value < 999.5 else ">999", value)
