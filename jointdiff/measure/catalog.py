"""The catalog: one row per source, measured on scene samples (METHOD section 9)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from astropy.table import Column, Table
from torch import Tensor

from jointdiff import units
from jointdiff.errors import InputError
from jointdiff.measure.conformal import Calibration, scale_errors
from jointdiff.measure.data_checks import Data, DataChecks, check_against_data
from jointdiff.measure.detection import DetectionSettings, Segments, detect, detection_image
from jointdiff.measure.photometry import aperture_map, fluxes, segment_map
from jointdiff.measure.shapes import ellipticity, half_light_radius
from jointdiff.scene import DEFAULT_TARGET_FWHM

FLAGS = {
    1: "segment or aperture reaches the edge of the scored area",
    2: "blended: the segment touches another",
    4: "a band has no data at the source: its flux is inferred from the others",
    8: "over 10 percent of the source's light is masked in an observed band",
    16: "shape undefined on more than half of the samples",
    32: "a band has correlated noise, its spectrum and level estimated from sky pixels, or white for want of them",
    64: "ground data were in part taken in with the covariance of the prior, for the network's did not converge",
    128: "near a star that outshone the field, was subtracted and is masked",
    256: "the amortized and the factorized mode disagree by more than MODETHR: not what the network was trained on",
}
"""The bits of the column ``flags``."""

CORRELATED_NOISE, NOT_CONVERGED, NEAR_STAR, MODES_DISAGREE = 32, 64, 128, 256
"""The bits that whoever has seen a field's observations, or drawn its samples, sets."""


@dataclass(frozen=True)
class MeasureSettings:
    """aperture: radius of the circular aperture, arcsec; detection: when a group of pixels is a source."""

    aperture: float = 0.5
    detection: DetectionSettings = field(default_factory=DetectionSettings)


@dataclass(frozen=True)
class Measurements:
    """What one set of images (S, C, H, W) says about K sources: posterior samples of the catalog.

    segment, aperture: fluxes (S, K, C), nJy. r50: (S, K), arcsec. shape: (e1, e2), (S, K, 2). NaN where undefined.
    """

    segment: np.ndarray
    aperture: np.ndarray
    r50: np.ndarray
    shape: np.ndarray


def find_sources(
    samples: Tensor,
    mean: Tensor,
    names: Sequence[str],
    weight: np.ndarray | None = None,
    settings: DetectionSettings | None = None,
    target_fwhm: float = DEFAULT_TARGET_FWHM,
    scale: float = 0.1,
) -> Segments:
    """Sources of a reconstruction: samples (S, C, H, W) and mean (C, H, W), nJy per pixel of ``scale`` arcsec.

    weight: (H, W), zero where nothing is scored, as in the scene's margin.
    """
    image, noise = detection_image(_numpy(samples), _numpy(mean), names, weight, target_fwhm, scale)
    return detect(image, noise, settings, weight)


def measure_images(
    images: Tensor, names: Sequence[str], segments: Segments, r50: np.ndarray, scale: float, aperture: float
) -> Measurements:
    """Measure images (S, C, H, W), samples or a truth, in given segments and apertures (radius in arcsec).

    r50: (K,), arcsec, of the sources; sets the weight of the ellipticities alone, the same on every image.
    """
    apertures = aperture_map(segments.x, segments.y, aperture / scale, segments.labels.shape)
    totals = segment_map(segments.labels, len(segments))
    light = shape_image(images, names)
    return Measurements(
        segment=fluxes(images.cpu(), totals).numpy(),
        aperture=fluxes(images.cpu(), apertures).numpy(),
        r50=scale * half_light_radius(light, segments),
        shape=ellipticity(light, segments, np.asarray(r50) / scale),
    )


def measure(
    samples: Tensor,
    names: Sequence[str],
    scene: str,
    scale: float,
    mean: Tensor | None = None,
    wcs=None,
    weight: np.ndarray | None = None,
    data: Data | None = None,
    segments: Segments | None = None,
    settings: MeasureSettings | None = None,
    target_fwhm: float = DEFAULT_TARGET_FWHM,
    calibration: Calibration | None = None,
) -> Table:
    """The catalog of one scene.

    samples: (S, C, H, W), nJy per pixel of ``scale`` arcsec; mean: (C, H, W), by default that of the samples, exact for
    a Gaussian posterior. names: the C bands'. scene: its name. wcs: an astropy WCS of these pixels; ra and dec are NaN
    without. weight: (H, W), zero where nothing is scored. data: the scene's observations; without, flux_ml and chi2 are
    NaN. segments: by default found here. calibration: of the weights that drew the samples.
    Values are posterior means and errors posterior standard deviations (NaN for S = 1), times the calibration's factors
    where one is given, the raw ones beside them; r50 and ellipticity are those of VIS, mean and deviation of the
    samples on which they are defined.
    """
    settings, names = settings or MeasureSettings(), list(names)
    if samples.ndim != 4 or samples.shape[1] != len(names):
        raise InputError(f"{scene}: samples have shape {tuple(samples.shape)}, expected (S, {len(names)}, H, W)")
    mean = samples.mean(0) if mean is None else mean
    if segments is None:
        segments = find_sources(samples, mean, names, weight, settings.detection, target_fwhm, scale)
    sizes = scale * half_light_radius(shape_image(mean[None], names), segments)[0]
    measured = measure_images(samples, names, segments, sizes, scale, settings.aperture)
    at_mean = measure_images(mean[None], names, segments, sizes, scale, settings.aperture)
    checks = check_against_data(mean, names, segments, data) if data else None

    table = Table(meta={"APERRAD": settings.aperture, "NSAMPLES": len(samples)})
    table.meta.update({f"FLAG{bit}": text for bit, text in FLAGS.items()})
    _add_positions(table, segments, scene, wcs)
    _add_fluxes(table, names, measured, at_mean, checks)
    _add_shapes(table, measured)
    reach = _near_edge(segments, settings.aperture / scale, weight)
    table["flags"] = Column(
        _flags(segments, measured, checks, reach),
        description="sum of the bits that the header explains: FLAG1, FLAG2 ...",
    )
    scale_errors(table, names, calibration)
    return table


def shape_image(images: Tensor, names: Sequence[str]) -> np.ndarray:
    """The images (S, H, W) on which sizes and shapes are measured: VIS, or the sum of the bands without it."""
    return _numpy(images[:, list(names).index("VIS")] if "VIS" in names else images.sum(1)).astype(float)


def posterior_mean(values: np.ndarray) -> np.ndarray:
    """Mean over samples (S, …), of those that are finite; NaN where fewer than half are."""
    return _over_finite(values, np.nanmean)


def posterior_deviation(values: np.ndarray) -> np.ndarray:
    """Standard deviation (S - 1 in the denominator) over samples (S, …), of those that are finite; NaN for S = 1."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return _over_finite(values, lambda v, axis: np.nanstd(v, axis=axis, ddof=1))


def _over_finite(values: np.ndarray, statistic) -> np.ndarray:
    count = np.isfinite(values).sum(0)
    enough = (2 * count > len(values)) & (count >= min(2, len(values)))
    return np.where(enough, statistic(np.where(enough, values, 0.0), axis=0), np.nan)


def _add_positions(table: Table, segments: Segments, scene: str, wcs) -> None:
    count = len(segments)
    world = (
        wcs.pixel_to_world_values(segments.x, segments.y) if wcs is not None and count else np.full((2, count), np.nan)
    )
    ids = [f"{scene}_{k + 1:05d}" for k in range(count)]
    table["object_id"] = Column(np.array(ids, dtype=str), description="scene and number in it")
    table["scene"] = Column(np.full(count, scene, dtype=f"U{max(len(scene), 1)}"), description="name of the scene")
    for name, values in zip(("ra", "dec"), world, strict=True):
        table[name] = Column(np.asarray(values, dtype=float), unit="deg", description=f"{name} of the detection")
    for name in ("x", "y"):
        table[name] = Column(getattr(segments, name), unit="pix", description="scene pixel, first at 0")


def _add_fluxes(table: Table, names: Sequence[str], measured: Measurements, at_mean: Measurements, checks) -> None:
    count = measured.segment.shape[1]
    errors, aperture_errors = posterior_deviation(measured.segment), posterior_deviation(measured.aperture)
    missing = np.full((count, len(names)), np.nan)
    checks = checks or DataChecks(missing, missing, missing, missing)
    flux = at_mean.segment[0]
    columns = (
        ("flux", flux, "nJy", "flux in the grown, deblended segment"),
        ("flux_err", errors, "nJy", "its posterior standard deviation"),
        ("aper_flux", at_mean.aperture[0], "nJy", "flux in a circle of radius APERRAD arcsec"),
        ("aper_flux_err", aperture_errors, "nJy", "its posterior standard deviation"),
        ("mag", units.magnitude(flux), "mag", "AB magnitude of flux; NaN if negative"),
        ("mag_err", units.magnitude_error(flux, errors), "mag", "its first-order error"),
        ("flux_ml", checks.flux, "nJy", "maximum-likelihood flux from this band's data and the VIS template, no prior"),
        ("flux_ml_err", checks.flux_err, "nJy", "its error"),
        ("chi2", checks.chi2, None, "reduced chi-square of the residual under the source"),
    )
    for kind, values, unit, description in columns:
        for band, name in enumerate(names):
            table[f"{kind}_{name}"] = Column(values[:, band], unit=unit, description=f"{name}: {description}")
    table["flux_cov"] = Column(
        _covariance(measured.segment),
        unit="nJy2",
        description=f"posterior covariance of flux between {', '.join(names)}",
    )


def _add_shapes(table: Table, measured: Measurements) -> None:
    columns = (
        ("r50", measured.r50, "arcsec", "radius of half the segment's VIS flux, at the target PSF"),
        ("e1", measured.shape[..., 0], None, "VIS ellipticity (a-b)/(a+b) cos 2 phi, phi from +x to +y"),
        ("e2", measured.shape[..., 1], None, "VIS ellipticity (a-b)/(a+b) sin 2 phi, phi from +x to +y"),
    )
    for name, values, unit, description in columns:
        table[name] = Column(posterior_mean(values), unit=unit, description=description)
        text = f"posterior standard deviation of {name}"
        table[f"{name}_err"] = Column(posterior_deviation(values), unit=unit, description=text)


def _covariance(samples: np.ndarray) -> np.ndarray:
    """Unbiased covariance (K, C, C) of samples (S, K, C); NaN for S = 1."""
    count, sources, channels = samples.shape
    if count < 2:
        return np.full((sources, channels, channels), np.nan)
    deviations = samples - samples.mean(0)
    return np.einsum("skc,skd->kcd", deviations, deviations) / (count - 1)


def _near_edge(segments: Segments, radius: float, weight: np.ndarray | None) -> np.ndarray:
    """(K,), true where a segment or an aperture of ``radius`` pixels reaches what is not scored."""
    unscored = np.zeros(segments.labels.shape, dtype=bool) if weight is None else np.asarray(weight) <= 0
    outside = np.pad(unscored, reach := int(np.ceil(radius)) + 1, constant_values=True)
    lost = aperture_map(segments.x + reach, segments.y + reach, radius, outside.shape)
    in_aperture = fluxes(torch.as_tensor(outside, dtype=torch.float64)[None], lost)[:, 0].numpy() > 0
    return segments.touching(unscored) | in_aperture


def _flags(segments: Segments, measured: Measurements, checks: DataChecks | None, near_edge: np.ndarray) -> np.ndarray:
    flags = 1 * near_edge + 2 * segments.blended
    if checks is not None:
        flags += 4 * np.isnan(checks.flux).any(1)
        flags += 8 * ((checks.masked > 0.1) & np.isfinite(checks.flux)).any(1)
    undefined = ~np.isfinite(measured.r50) | ~np.isfinite(measured.shape).all(-1)
    return (flags + 16 * (undefined.mean(0) > 0.5)).astype(np.int32)


def _numpy(tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)
