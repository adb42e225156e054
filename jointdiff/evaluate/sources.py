"""The sources that are scored: measured in the same apertures in every method and in the truth.

They are found once per scene on one reference method's posterior mean, by default the joint Wiener filter's: a function
of the data that favours no trained model. Selection and bins use that method's observed fluxes, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jointdiff import units
from jointdiff.errors import InputError
from jointdiff.evaluate import accuracy
from jointdiff.measure.catalog import find_sources, measure_images, shape_image
from jointdiff.measure.conformal import ErrorScales, quantities
from jointdiff.measure.data_checks import Data
from jointdiff.measure.detection import DetectionSettings, Segments
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.measure.shapes import half_light_radius
from jointdiff.reconstruct.base import misfits
from jointdiff.scene import DEFAULT_TARGET_FWHM

REFERENCE = "wiener"
ORACLE = "oracle"
"""Photometry with the true shapes: the limit that ``efficiency`` is over."""

APERTURE, WIDE_APERTURE = 0.5, 1.0
"""Radii of the scored apertures, arcsec."""


@dataclass(frozen=True)
class Estimate:
    """One method's answer for one scene: samples (S, C, H, W) and mean (C, H, W), nJy per pixel.

    photometry_only: its images hold fluxes alone; their shapes were given to the method, and are not scored.
    offsets: what each sample takes each image to be off by (reconstruct.base.Draws).
    """

    samples: Tensor
    mean: Tensor
    photometry_only: bool = False
    offsets: Sequence[Tensor] = ()


@dataclass(frozen=True)
class ScoredScene:
    """A scene of known truth (C, H, W) and each method's estimate of it.

    weight: (H, W), zero outside the scored core, whose border cuts sources; None for a torus seen whole. data: its
    observations, for residuals. target_fwhm: arcsec, of the truth and the estimates.
    """

    name: str
    truth: Tensor
    estimates: Mapping[str, Estimate]
    weight: np.ndarray | None = None
    data: Data | None = None
    target_fwhm: float = DEFAULT_TARGET_FWHM


@dataclass(frozen=True)
class Measured:
    """The N sources of all scenes under one method, or in the truth.

    point, wide: aperture fluxes (N, C) of the mean, nJy. samples: aperture fluxes (S, N, C). r50: (S, N), arcsec.
    shape: (S, N, 2). chi2: Σ r²/σ² of samples and number of pixels, (scenes, C, 2). norms: (scenes, 2, C).
    stretch, shape_stretch: factors of the stated errors, of aperture fluxes (N, C) and of r50, e1 and e2 (N, 3); NaN
    for a method without.
    """

    point: np.ndarray
    wide: np.ndarray
    samples: np.ndarray
    r50: np.ndarray
    shape: np.ndarray
    norms: np.ndarray
    chi2: np.ndarray
    stretch: np.ndarray
    shape_stretch: np.ndarray


@dataclass(frozen=True)
class Places:
    """The K sources of one scene, as the reference shows them.

    sizes: half-light radii (K,), arcsec. edge: (K,), true where the wide aperture reaches unscored pixels.
    """

    segments: Segments
    sizes: np.ndarray
    edge: np.ndarray


@dataclass(frozen=True)
class Sources:
    """Everything that the scores need: the scene's number (N,), the truth's and each method's measurements.

    edge: (N,), centroids so near to unscored pixels that the wide aperture reaches them. found: (scenes,), which scenes
    hold a source, by the reference.
    """

    scenes: np.ndarray
    names: tuple[str, ...]
    truth: Measured
    estimates: dict[str, Measured]
    reference: str
    edge: np.ndarray
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
    scales: Mapping[str, ErrorScales] | None = None,
) -> Sources:
    """Find sources on the reference method and measure them in every method and in the truth.

    names: the C bands'; scale: arcsec per pixel. Every method must have drawn equally many samples in each scene.
    scales: method → factors of its stated errors.
    Raises InputError when a scene lacks the reference, or there is no scene.
    """
    if not scenes:
        raise InputError("no scenes to score")
    parts = []
    for scene in scenes:
        if reference not in scene.estimates:
            raise InputError(f"{scene.name}: no estimate by the reference method {reference}")
        base = scene.estimates[reference]
        places = find(base, names, scene.weight, scale, detection, scene.target_fwhm)
        measured = {"": measure_estimate(Estimate(scene.truth[None], scene.truth), scene, names, places, scale)}
        for method, estimate in scene.estimates.items():
            measured[method] = measure_estimate(estimate, scene, names, places, scale, (scales or {}).get(method))
        parts.append((places.edge, measured))
    return gather(parts, names, reference)


def find(
    base: Estimate,
    names: Sequence[str],
    weight: np.ndarray | None = None,
    scale: float = 0.1,
    detection: DetectionSettings | None = None,
    target_fwhm: float = DEFAULT_TARGET_FWHM,
) -> Places:
    """The sources of one scene, on what the reference says of it. weight, target_fwhm: as in ScoredScene."""
    segments = find_sources(base.samples, base.mean, names, weight, detection, target_fwhm, scale)
    sizes = scale * half_light_radius(shape_image(base.mean[None], names), segments)[0]
    return Places(segments, sizes, _at_edge(segments, weight, WIDE_APERTURE / scale))


def gather(parts: Sequence[tuple[np.ndarray, Mapping[str, Measured]]], names: Sequence[str], reference: str) -> Sources:
    """Scenes measured one by one, as one. parts: for each, edge (K,) and what each method, and as "" the truth, has."""
    joined = {method: _join([measured[method] for _, measured in parts]) for method in parts[0][1]}
    owners = np.concatenate([np.full(len(edge), number) for number, (edge, _) in enumerate(parts)])
    found = np.array([len(edge) > 0 for edge, _ in parts])
    edges = np.concatenate([edge for edge, _ in parts])
    truth = joined.pop("")
    return Sources(owners, tuple(names), truth, joined, reference, edges, found)


def _at_edge(segments: Segments, weight: np.ndarray | None, radius: float) -> np.ndarray:
    """(K,), true where a centroid lies within ``radius`` pixels of an unscored one; never without such pixels."""
    from scipy.ndimage import distance_transform_edt

    if weight is None or np.all(np.asarray(weight) > 0):
        return np.zeros(len(segments), dtype=bool)
    distance = distance_transform_edt(np.asarray(weight) > 0)
    return distance[np.round(segments.y).astype(int), np.round(segments.x).astype(int)] <= radius


def measure_estimate(
    estimate: Estimate,
    scene: ScoredScene,
    names: Sequence[str],
    places: Places,
    scale: float = 0.1,
    errors: ErrorScales | None = None,
) -> Measured:
    """What one method says of one scene's sources; of the scene, truth, weight and data are used."""
    segments, shape = places.segments, places.segments.labels.shape
    narrow, wide = (aperture_map(segments.x, segments.y, r / scale, shape) for r in (APERTURE, WIDE_APERTURE))
    measured = measure_images(estimate.samples, names, segments, places.sizes, scale, APERTURE)
    mean = estimate.mean.cpu()
    scored = np.nan if estimate.photometry_only else 1.0
    return Measured(
        fluxes(mean, narrow).numpy(),
        fluxes(mean, wide).numpy(),
        measured.aperture,
        scored * measured.r50,
        scored * measured.shape,
        scored * accuracy.image_norms(mean.numpy(), scene.truth.cpu().numpy(), scene.weight)[None],
        _residuals(estimate, scene.data, len(names))[None],
        *_stretches(measured.aperture, names, errors),
    )


def _stretches(fluxes_: np.ndarray, names: Sequence[str], errors: ErrorScales | None) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the errors of aperture fluxes (S, K, C), and of shapes, as the catalog would look them up."""
    _, count, channels = fluxes_.shape
    if errors is None:
        return np.full((count, channels), np.nan), np.full((count, 3), np.nan)
    columns = [f"aper_flux_{name}" for name in names]
    snr = dict(zip(columns, (fluxes_.mean(0) / fluxes_.std(0, ddof=1)).T, strict=True))
    factors = {q.column: errors.of(q.column, snr[q.light]) for q in quantities(names) if q.light in snr}
    return np.stack([factors[c] for c in columns], 1), np.stack([factors[c] for c in ("r50", "e1", "e2")], 1)


def _residuals(estimate: Estimate, data: Data | None, channels: int) -> np.ndarray:
    """χ² and number of pixels (C, 2) of up to four samples' residuals; zeros without data."""
    totals = np.zeros((channels, 2))
    if data is not None:
        model = data.forward(estimate.samples[:4].to(data.images[0]))
        left = misfits(data.images, model, estimate.offsets)
        for residual, ivar, band in zip(left, data.ivars, data.bands, strict=True):
            seen = torch.where(ivar > 0, residual, 0.0).cpu().numpy()
            totals[band] += accuracy.residual_chi2(seen, ivar.expand(seen.shape).cpu().numpy())
    return totals


def _join(parts: Sequence[Measured]) -> Measured:
    """One Measured of several scenes: sources lie on axis 1 where samples lead; all else joins on axis 0."""
    assert len({len(p.samples) for p in parts}) == 1, "a method must draw equally many samples in every scene"
    axes = {"samples": 1, "r50": 1, "shape": 1}
    fields = Measured.__dataclass_fields__
    return Measured(**{name: np.concatenate([getattr(p, name) for p in parts], axes.get(name, 0)) for name in fields})
