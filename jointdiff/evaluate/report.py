"""The scoreboard: methods side by side on scenes of known truth, in the same apertures.

Sources are found once per scene on one reference method's posterior mean, by default the joint Wiener filter's: a
function of the data that favours no trained model. Selection and magnitude bins use that method's observed fluxes, too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from jointdiff import units
from jointdiff.errors import InputError
from jointdiff.evaluate import accuracy, calibration
from jointdiff.measure.catalog import find_sources, measure_images, shape_image
from jointdiff.measure.data_checks import Data
from jointdiff.measure.detection import DetectionSettings, Segments
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.measure.shapes import half_light_radius

REFERENCE = "wiener"
APERTURE, WIDE_APERTURE = 0.5, 1.0
"""Radii of the scored apertures, arcsec."""
MIN_SNR = 5.0
"""Relative flux errors are scored for sources this significant in the reference; all else for every source."""

Scores = dict[str, dict[str, dict[str, float]]]
"""method → band, colour or shape → number."""


@dataclass(frozen=True)
class Estimate:
    """One method's answer for one scene: samples (S, C, H, W) and mean (C, H, W), nJy per pixel."""

    samples: Tensor
    mean: Tensor


@dataclass(frozen=True)
class ScoredScene:
    """A scene of known truth (C, H, W) and each method's estimate of it.

    weight: (H, W), zero outside the scored core. data: its observations, for residuals.
    """

    name: str
    truth: Tensor
    estimates: Mapping[str, Estimate]
    weight: np.ndarray | None = None
    data: Data | None = None


@dataclass(frozen=True)
class Measured:
    """The N sources of all scenes under one method, or in the truth.

    point, wide: aperture fluxes (N, C) of the mean, nJy. samples: aperture fluxes (S, N, C). r50: (S, N), arcsec.
    shape: (S, N, 2). chi2: Σ r²/σ² of samples and number of pixels, (scenes, C, 2). norms: (scenes, 2, C).
    """

    point: np.ndarray
    wide: np.ndarray
    samples: np.ndarray
    r50: np.ndarray
    shape: np.ndarray
    norms: np.ndarray
    chi2: np.ndarray


@dataclass(frozen=True)
class Sources:
    """Everything that the scores need: scene names (N,), the truth's and each method's measurements.

    found: which scenes hold a source, by the reference.
    """

    scenes: np.ndarray
    names: tuple[str, ...]
    truth: Measured
    estimates: dict[str, Measured]
    reference: str
    found: np.ndarray

    @property
    def magnitude(self) -> np.ndarray:
        """Observed AB magnitude (N, C): the reference's aperture flux, NaN if negative."""
        return units.magnitude(self.estimates[self.reference].point)

    @property
    def snr(self) -> np.ndarray:
        """Observed significance (N, C) of the reference's aperture flux; infinite for a reference without errors."""
        reference = self.estimates[self.reference]
        if len(reference.samples) < 2:
            return np.where(reference.point > 0, np.inf, -np.inf)
        return reference.point / reference.samples.std(0, ddof=1)


def measure_scenes(
    scenes: Sequence[ScoredScene],
    names: Sequence[str],
    scale: float = 0.1,
    reference: str = REFERENCE,
    detection: DetectionSettings | None = None,
) -> Sources:
    """Find sources on the reference method and measure them in every method and in the truth.

    names: the C bands'; scale: arcsec per pixel. Every method must have drawn equally many samples in each scene.
    Raises InputError when a scene lacks the reference, or there is no scene.
    """
    if not scenes:
        raise InputError("no scenes to score")
    collected: dict[str, list[Measured]] = {}
    owners = []
    for scene in scenes:
        if reference not in scene.estimates:
            raise InputError(f"{scene.name}: no estimate by the reference method {reference}")
        base = scene.estimates[reference]
        segments = find_sources(base.samples, base.mean, names, scene.weight, detection, scale=scale)
        sizes = scale * half_light_radius(shape_image(base.mean[None], names), segments)[0]
        truth = Estimate(scene.truth[None], scene.truth)
        for method, estimate in {"": truth, **scene.estimates}.items():
            collected.setdefault(method, []).append(_measure(estimate, scene, names, segments, sizes, scale))
        owners += [scene.name] * len(segments)
    joined = {method: _join(parts) for method, parts in collected.items()}
    found = np.isin([scene.name for scene in scenes], owners)
    return Sources(np.array(owners, dtype=str), tuple(names), joined.pop(""), joined, reference, found)


def score(sources: Sources, rng: np.random.Generator) -> Scores:
    """Per method and band: image error, aperture flux bias, scatter, pulls, coverage, CRPS (nJy), residual χ²/N.

    Beside the bands: neighbouring colours (mag) and r50, e1, e2. Pull width and coverage have 95 % bootstrap intervals
    over scenes (…_low, …_high). wide: the aperture of 1″; scatter, biases and outliers: sources above MIN_SNR.
    """
    scores: Scores = {}
    for method, measured in sources.estimates.items():
        rows: dict[str, dict[str, float]] = {}
        errors = accuracy.image_error(measured.norms)
        typical = accuracy.typical_image_error(measured.norms, sources.found)
        for band, name in enumerate(sources.names):
            rows[name] = {"image_error": float(errors[band]), "image_error_typical": float(typical[band])}
            rows[name] |= _band_scores(sources, measured, band)
            rows[name] |= _calibration(measured.samples[..., band], sources.truth.point[:, band], sources.scenes, rng)
            chi2, pixels = measured.chi2[:, band].sum(0)
            rows[name]["chi2"] = float(chi2 / pixels) if pixels else math.nan
        rows |= _colour_scores(sources, measured)
        shapes = {"r50": (measured.r50, sources.truth.r50[0])}
        shapes |= {f"e{i + 1}": (measured.shape[..., i], sources.truth.shape[0, :, i]) for i in (0, 1)}
        for name, (samples, truth) in shapes.items():
            defined = np.isfinite(samples).all(0) & np.isfinite(truth)
            rows[name] = _calibration(samples[:, defined], truth[defined], sources.scenes[defined], rng)
            rows[name]["defined"] = float(defined.mean()) if len(defined) else math.nan
        scores[method] = rows
    return scores


def score_scenes(scenes: Sequence[ScoredScene], names: Sequence[str], rng: np.random.Generator, **options) -> Scores:
    """``measure_scenes`` (its options), then ``score``."""
    return score(measure_scenes(scenes, names, **options), rng)


def score_by_magnitude(
    sources: Sources, edges: Sequence[float], rng: np.random.Generator
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """method → band → bias, scatter, pull_width, coverage and sources, by observed AB magnitude.

    Each is (len(edges) - 1,), NaN in bins of fewer than 5 sources.
    """
    scores: dict[str, dict[str, dict[str, np.ndarray]]] = {method: {} for method in sources.estimates}
    for method, measured in sources.estimates.items():
        for band, name in enumerate(sources.names):
            rows = []
            for inside in accuracy.bins(sources.magnitude[:, band], edges):
                point, truth = measured.point[inside, band], sources.truth.point[inside, band]
                row = _spread(measured.samples[:, inside, band], truth, rng)
                row |= {"bias": accuracy.bias(point, truth), "scatter": accuracy.scatter(point, truth)}
                enough = inside.sum() >= 5
                rows.append(
                    {key: value if enough else math.nan for key, value in row.items()} | {"sources": inside.sum()}
                )
            scores[method][name] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return scores


def flatten(scores: Mapping, prefix: str = "") -> Iterator[tuple[str, float]]:
    """("method/band/number", value) for every finite number of nested scores, as TensorBoard names its scalars."""
    for key, value in scores.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif math.isfinite(value):
            yield f"{prefix}{key}", float(value)


COLUMNS = (
    ("error", "image_error_typical", "{:.3f}", True),
    ("pooled", "image_error", "{:.3f}", True),
    ('bias .5"', "flux_bias", "{:+.1%}", False),
    ('bias 1"', "flux_bias_wide", "{:+.1%}", False),
    ("scatter", "flux_scatter", "{:.1%}", True),
    ("pull", "pull_width", "{:.2f}", False),
    ("coverage", "coverage", "{:.1%}", False),
    ("CRPS nJy", "crps", "{:.2f}", True),
    ("CRPS/sd", "crps_relative", "{:.3f}", True),
    ("chi2/N", "chi2", "{:.3f}", False),
)
"""Heading, number, format, and whether the ratio of two methods means something."""


def format_table(scores: Scores, bands: Sequence[str]) -> str:
    """The printed scoreboard: for each band a row per method, then the first method over each other one."""
    methods = list(scores)
    label = max(len(f"/ {method}") for method in [*methods, "method"])
    header = ["band".ljust(5), "method".ljust(label)] + [title.rjust(9) for title, *_ in COLUMNS] + ["sources".rjust(8)]
    lines = ["".join(header), "-" * sum(map(len, header))]
    for band in bands:
        for i, method in enumerate(methods):
            row = scores[method][band]
            cells = [_cell(row.get(key, math.nan), form) for _, key, form, _ in COLUMNS]
            lines.append("".join([("" if i else band).ljust(5), method.ljust(label), *cells, f"{row['sources']:8.0f}"]))
        first = scores[methods[0]][band]
        for other in methods[1:]:
            pairs = [(first.get(key, math.nan), scores[other][band].get(key, math.nan)) for _, key, *_ in COLUMNS]
            ratios = [a / b if keep and b else math.nan for (a, b), (*_, keep) in zip(pairs, COLUMNS, strict=True)]
            lines.append(
                "".join(["".ljust(5), f"/ {other}".ljust(label), *(_cell(r, "{:.2f}") for r in ratios)]).rstrip()
            )
    note = (
        "Error of images: median over scenes with a source; pooled over all. CRPS/sd: over the reference's deviation.\n"
    )
    note += f"Fluxes in {APERTURE}″ radius; bias and scatter: sources above {MIN_SNR:.0f} sigma; coverage is nominally "
    return "\n".join([*lines, f"{note}{calibration.COVERAGE_LEVEL:.1%}, pull width 1."])


def _cell(value: float, form: str) -> str:
    return (form.format(value) if math.isfinite(value) else "").rjust(9)


def _measure(
    estimate: Estimate, scene: ScoredScene, names: Sequence[str], segments: Segments, sizes: np.ndarray, scale: float
) -> Measured:
    shape = segments.labels.shape
    narrow, wide = (aperture_map(segments.x, segments.y, r / scale, shape) for r in (APERTURE, WIDE_APERTURE))
    measured = measure_images(estimate.samples, names, segments, sizes, scale, APERTURE)
    mean = estimate.mean.cpu()
    return Measured(
        fluxes(mean, narrow).numpy(),
        fluxes(mean, wide).numpy(),
        measured.aperture,
        measured.r50,
        measured.shape,
        accuracy.image_norms(mean.numpy(), scene.truth.cpu().numpy(), scene.weight)[None],
        _residuals(estimate, scene.data, len(names))[None],
    )


def _residuals(estimate: Estimate, data: Data | None, channels: int) -> np.ndarray:
    """χ² and number of pixels (C, 2) of up to four samples' residuals; zeros without data."""
    totals = np.zeros((channels, 2))
    if data is not None:
        model = data.forward(estimate.samples[:4].to(data.images[0]))
        for image, ivar, band, seen in zip(data.images, data.ivars, data.bands, model, strict=True):
            residual = torch.where(ivar > 0, image - seen, 0.0).cpu().numpy()
            totals[band] += accuracy.residual_chi2(residual, ivar.expand(residual.shape).cpu().numpy())
    return totals


def _join(parts: Sequence[Measured]) -> Measured:
    """One Measured of several scenes: sources lie on axis 1 where samples lead; all else joins on axis 0."""
    assert len({len(p.samples) for p in parts}) == 1, "a method must draw equally many samples in every scene"
    axes = {"samples": 1, "r50": 1, "shape": 1}
    fields = Measured.__dataclass_fields__
    return Measured(**{name: np.concatenate([getattr(p, name) for p in parts], axes.get(name, 0)) for name in fields})


def _band_scores(sources: Sources, measured: Measured, band: int) -> dict[str, float]:
    bright = sources.snr[:, band] >= MIN_SNR
    point, truth = measured.point[bright, band], sources.truth.point[bright, band]
    wide, wide_truth = measured.wide[bright, band], sources.truth.wide[bright, band]
    return {
        "flux_bias": accuracy.bias(point, truth),
        "flux_bias_wide": accuracy.bias(wide, wide_truth),
        "flux_mean_bias": accuracy.flux_weighted_bias(point, truth),
        "flux_mean_bias_wide": accuracy.flux_weighted_bias(wide, wide_truth),
        "flux_scatter": accuracy.scatter(point, truth),
        "flux_outliers": accuracy.outliers(point, truth),
        "sources_bright": float(bright.sum()),
        "crps_relative": _relative_crps(sources, measured, band),
    }


def _relative_crps(sources: Sources, measured: Measured, band: int) -> float:
    """Mean CRPS in units of the reference's posterior deviation of each source: faint and bright ones count alike."""
    deviation = sources.estimates[sources.reference].samples[..., band].std(0, ddof=1)
    crps = calibration.crps(measured.samples[..., band], sources.truth.point[:, band])
    return float((crps / deviation).mean()) if crps.size else math.nan


def _spread(samples: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    count = len(samples)
    return {
        "pull_width": calibration.pull_width(calibration.pulls(samples, truth), count),
        "coverage": calibration.coverage(calibration.ranks(samples, truth, rng), count, rng),
    }


def _calibration(
    samples: np.ndarray, truth: np.ndarray, scenes: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Scores of samples (S, N) against truth (N,), over every source."""
    count = len(samples)
    pulls, ranks = calibration.pulls(samples, truth), calibration.ranks(samples, truth, rng)
    row = {"crps": float(calibration.crps(samples, truth).mean()) if truth.size else math.nan} | _spread(
        samples, truth, rng
    )
    row["pull_median"] = float(np.nanmedian(pulls)) if np.isfinite(pulls).any() else math.nan
    row["sources"] = float(truth.size)
    if count > 1 and truth.size:
        statistics = {
            "pull_width": (lambda p: calibration.pull_width(p, count), pulls),
            "coverage": (lambda r: calibration.coverage(r, count, rng), ranks),
        }
        for name, (statistic, values) in statistics.items():
            row[f"{name}_low"], row[f"{name}_high"] = accuracy.bootstrap(statistic, scenes, values, rng=rng)
    return row


def _colour_scores(sources: Sources, measured: Measured) -> dict[str, dict[str, float]]:
    """Median and NMAD (mag) of neighbouring colours' errors, where the reference is significant in both bands."""
    errors = accuracy.colour_error(measured.point, sources.truth.point)
    rows = {}
    for band, (blue, red) in enumerate(pairwise(sources.names)):
        bright = (sources.snr[:, band : band + 2] >= MIN_SNR).all(1) & np.isfinite(errors[:, band])
        values = errors[bright, band]
        median = float(np.median(values)) if values.size else math.nan
        row = {"bias": median, "scatter": calibration.nmad(values), "sources": float(values.size)}
        rows[f"{blue}-{red}"] = row
    return rows
