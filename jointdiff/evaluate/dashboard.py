"""What a validation leaves in TensorBoard: where each score goes, and the charts of the Custom Scalars page.

Sections sort by name, so the accuracy of fluxes comes first, and what is learnt in the middle: accuracy, by_magnitude,
by_snr, calibration, colour, figures, image, intervals, loss … validation_cut.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.evaluate.scores import Binned, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IMAGE = ("image_error", "chi2")
_CALIBRATION = ("crps", "pull", "coverage", "sources", "defined", "tarp")
_SHAPES = ("r50", "e1", "e2")


def scalars(scores: Scores) -> Iterator[tuple[str, float]]:
    """(section/number/band/method, value) of every finite score, so that methods and bands stand side by side."""
    for method, rows in scores.items():
        for name, row in rows.items():
            for key, value in row.items():
                if math.isfinite(value):
                    yield f"{_section(name, key)}/{key}/{name.replace(' ', '_')}/{method}", value


def _section(name: str, key: str) -> str:
    if key.endswith(("_low", "_high")):
        return "intervals"
    if name in _SHAPES:
        return "shape"
    if "-" in name:
        return "colour"
    if key.startswith(_IMAGE):
        return "image"
    return "calibration" if key.startswith(_CALIBRATION) else "accuracy"


def binned_scalars(scores: Binned, edges: Sequence[float]) -> Iterator[tuple[str, float]]:
    """(number/band/method/bin, value) of every finite score of score_by."""
    for method, bands in scores.items():
        for band, rows in bands.items():
            for key, values in rows.items():
                for (low, high), value in zip(pairwise(edges), values, strict=True):
                    if math.isfinite(value):
                        yield f"{key}/{band}/{method}/{low:g}-{high:g}", float(value)


_CHARTS = (
    ("accuracy", "flux_bias", "Flux bias"),
    ("accuracy", "flux_scatter", "Flux scatter"),
    ("calibration", "pull_width", "Pull width: 1 where the stated errors are true"),
    ("calibration", "pull_median", "Pull bias, in stated errors"),
    ("calibration", "coverage", f"Coverage of {COVERAGE_LEVEL:.0%} intervals"),
    ("calibration", "crps", "CRPS of fluxes, nJy"),
    ("image", "image_error_typical", "Image error"),
)
_MARGINS = (("calibration", "crps_relative_ratio", "CRPS over the Wiener filter's, with its 95 % interval"),)


def lay_out(writer, prefixes: Mapping[str, str], bands: Sequence[str], methods: Sequence[str]) -> None:
    """Custom Scalars: one chart per band, all methods in it. prefixes: title → what the tags of a suite begin with."""
    layout: dict[str, dict[str, list]] = {}
    for title, prefix in prefixes.items():
        for section, key, text in _CHARTS:
            layout[f"{text} ({title})"] = {
                band: ["Multiline", [f"^{prefix}{section}/{key}/{band}/{method}$" for method in methods]]
                for band in bands
            }
        for section, key, text in _MARGINS:
            ends = [(section, key), ("intervals", f"{key}_low"), ("intervals", f"{key}_high")]
            layout[f"{text} ({title})"] = {
                band: ["Margin", [f"{prefix}{part}/{number}/{band}/{methods[0]}" for part, number in ends]]
                for band in bands
            }
    writer.add_custom_scalars(layout)


_JUDGED = ("image/image_error_typical", "accuracy/flux_scatter", "calibration/crps", "calibration/pull_width")
"""Scores that runs are compared by, beside their settings."""


def log_settings(writer, settings: Mapping[str, object], bands: Sequence[str], method: str) -> None:
    """HParams: the settings of a run beside the last scores of a method, found by their tags in the same log."""
    from torch.utils.tensorboard.summary import hparams

    # SummaryWriter.add_hparams would open a run of its own, named by the clock, whose scores are constants.
    for summary in hparams(dict(settings), {f"{tag}/{band}/{method}": 0 for tag in _JUDGED for band in bands}):
        writer.file_writer.add_summary(summary)


def log(
    writer,
    step: int,
    prefix: str,
    scores: Scores,
    binned: Mapping[str, tuple[Binned, Sequence[float]]],
    figures: Mapping[str, "Figure"],
    table: str,
) -> None:
    """Every score as a scalar, every figure as an image and the table as a text, to a TensorBoard SummaryWriter.

    prefix: what all tags begin with. binned: name → (scores, edges of the bins).
    """
    from jointdiff.evaluate.figures import pixels

    for tag, value in scalars(scores):
        writer.add_scalar(f"{prefix}{tag}", value, step)
    for name, (values, edges) in binned.items():
        for tag, value in binned_scalars(values, edges):
            writer.add_scalar(f"{prefix}by_{name}/{tag}", value, step)
    for name, figure in figures.items():
        writer.add_image(f"{prefix}figures/{name}", pixels(figure), step, dataformats="HWC")
    writer.add_text(f"{prefix}scoreboard", "\n".join(f"    {line}" for line in table.splitlines()), step)
    writer.flush()
