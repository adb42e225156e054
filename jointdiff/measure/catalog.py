"""The catalog: one row per source, measured on scene samples (METHOD section 9)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from astropy.table import Table
from torch import Tensor

from jointdiff import units
from jointdiff.errors import InputError
from jointdiff.io.wcs import direction_angle, sky_position
from jointdiff.measure.columns import column
from jointdiff.measure.conformal import Calibration, scale_errors
from jointdiff.measure.data_checks import Data, DataChecks, check_against_data
from jointdiff.measure.detection import DetectionSettings, Segments, detect, detection_image
from jointdiff.measure.morphology import INDICES, MIN_SNR, Morphology, measure_morphology
from jointdiff.measure.photometry import aperture_map, fluxes, gaussian_map, segment_map
from jointdiff.measure.shapes import ellipticity, half_light_radius
from jointdiff.scene import DEFAULT_TARGET_FWHM

FLAGS = {
    1: "segment or aperture reaches the edge of the scored area",
    2: "blended: the segment touches another",
    4: "a band has no data at the source: its flux is inferred from the others",
    8: "over 10 percent of the source's light is masked in an observed band",
    16: "shape undefined on more than half of the samples",
    32: "a band has correlated noise, its spectrum and level estimated from sky pixels, or white for want of them",
    64: "a linear system of the samples did not converge: ground data taken in with the prior's covariance, or in part",
    128: "near a star that outshone the field, was subtracted and is masked",
    256: "the amortized and the factorized mode disagree by more than MODETHR, as MODERATE of sound sources "
    "do; without MODETHR it was not looked at",
    512: "the network contradicted the data here: in a tenth of the samples or more, the Gaussian posterior stands in",
    1024: "no sample explains the data here, in the segment or within 0.5 arcsec: more than UNEXPTHR sigma are left",
}
"""The bits of the column ``flags``."""

CORRELATED_NOISE, NOT_CONVERGED, NEAR_STAR, MODES_DISAGREE, GAUSSIAN, UNEXPLAINED = 32, 64, 128, 256, 512, 1024
"""The bits that whoever has seen a field's observations, or drawn its samples, sets."""


GAUSS_SIGMA = 1.0
"""Sigma (arcsec) of the Gaussian aperture: that of Rubin's ``gaap1p0``."""


@dataclass(frozen=True)
class MeasureSettings:
    """aperture: radius of the circular aperture, arcsec; detection: when a group of pixels is a source.

    morphology: number of samples, the first ones, that statmorph measures; 0 for none.
    """

    aperture: float = 0.5
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    morphology: int = 0


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
    a Gaussian posterior. names: the C bands'. scene: its name. wcs: an astropy WCS of these pixels; ra, dec and
    position_angle are NaN without. weight: (H, W), zero where nothing is scored. data: the scene's observations;
    without, flux_ml and chi2 are NaN. segments: by default found here. calibration: of the weights that drew the
    samples.
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

    table = Table(meta={"APERRAD": settings.aperture, "GAUSSRAD": GAUSS_SIGMA, "NSAMPLES": len(samples)})
    table.meta.update({f"FLAG{bit}": text for bit, text in FLAGS.items()})
    _add_positions(table, segments, scene)
    every, one = (gaussian_fluxes(images, segments, scale, target_fwhm) for images in (samples, mean[None]))
    _add_fluxes(table, names, measured, at_mean, (one[0], every), checks)
    table.add_column(column("flux_cov", _covariance(measured.segment), more=", ".join(names)))
    _add_shapes(table, measured)
    if settings.morphology:
        light = shape_image(samples[: settings.morphology], names)
        bright = _bright(measured, at_mean, names)
        _add_morphology(table, measure_morphology(light, segments, bright, target_fwhm, scale))
    if wcs is not None:
        place(table, wcs, scene, "wcs")
    reach = _near_edge(segments, settings.aperture / scale, weight)
    table.add_column(column("flags", _flags(segments, measured, checks, reach)))
    scale_errors(table, names, calibration)
    return table


def gaussian_fluxes(
    images: Tensor, segments: Segments, scale: float, target_fwhm: float = DEFAULT_TARGET_FWHM
) -> np.ndarray:
    """Fluxes (S, K, C), nJy, of images (S, C, H, W) under Gaussians of GAUSS_SIGMA on the sky as before any PSF."""
    width = units.SIGMA_PER_FWHM * target_fwhm / scale
    return fluxes(images.cpu(), gaussian_map(segments, GAUSS_SIGMA / scale, width)).numpy()


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


def place(table: Table, wcs, label: str, source: str) -> None:
    """Fill in ra, dec and position_angle of a catalog, from x, y, e1 and e2 in the pixels of a WCS; in place.

    label, source: band and file of the WCS, for messages. Raises InputError for pixels outside its projection.
    """
    if not len(table):
        return
    at = np.column_stack([table["y"], table["x"]])
    table["ra"][:], table["dec"][:] = sky_position(wcs, at, label, source).T
    table["position_angle"][:] = direction_angle(wcs, at, np.arctan2(table["e2"], table["e1"]) / 2, label, source)


def _add_positions(table: Table, segments: Segments, scene: str) -> None:
    count = len(segments)
    ids = [f"{scene}_{k + 1:05d}" for k in range(count)]
    unknown = np.full(count, np.nan)
    positions = {
        "object_id": np.array(ids, dtype=str),
        "scene": np.full(count, scene, dtype=f"U{max(len(scene), 1)}"),
        "ra": unknown.copy(),
        "dec": unknown.copy(),
        "x": segments.x,
        "y": segments.y,
    }
    table.add_columns([column(kind, values) for kind, values in positions.items()])


def _add_fluxes(
    table: Table,
    names: Sequence[str],
    measured: Measurements,
    at_mean: Measurements,
    gauss: tuple[np.ndarray, np.ndarray],
    checks: DataChecks | None,
) -> None:
    """gauss: under Gaussian apertures, of the mean (K, C) and of the samples (S, K, C)."""
    flux, error = at_mean.segment[0], posterior_deviation(measured.segment)
    missing = np.full_like(flux, np.nan)
    checks = checks or DataChecks(missing, missing, missing, missing)
    kinds = {
        "flux": flux,
        "flux_err": error,
        "aper_flux": at_mean.aperture[0],
        "aper_flux_err": posterior_deviation(measured.aperture),
        "gauss_flux": gauss[0],
        "gauss_flux_err": posterior_deviation(gauss[1]),
        "mag": units.magnitude(flux),
        "mag_err": units.magnitude_error(flux, error),
        "flux_ml": checks.flux,
        "flux_ml_err": checks.flux_err,
        "chi2": checks.chi2,
    }
    for kind, values in kinds.items():
        table.add_columns([column(kind, values[:, band], name) for band, name in enumerate(names)])


def _add_shapes(table: Table, measured: Measurements) -> None:
    for kind, values in (("r50", measured.r50), ("e1", measured.shape[..., 0]), ("e2", measured.shape[..., 1])):
        table.add_column(column(kind, posterior_mean(values)))
        table.add_column(column(f"{kind}_err", posterior_deviation(values)))
    table.add_column(column("position_angle", np.full(len(table), np.nan)))


def _bright(measured: Measurements, at_mean: Measurements, names: Sequence[str]) -> np.ndarray:
    """(K,), true for sources whose aperture flux in VIS is MIN_SNR times its deviation."""
    vis = list(names).index("VIS") if "VIS" in names else 0
    return at_mean.aperture[0][:, vis] >= MIN_SNR * posterior_deviation(measured.aperture)[:, vis]


def _add_morphology(table: Table, found: Morphology) -> None:
    table.meta.update(MORPHNUM=len(found.values), MORPHSNR=MIN_SNR)
    for number, kind in enumerate(INDICES):
        table.add_column(column(kind, posterior_mean(found.values[..., number]), "VIS"))
        table.add_column(column(f"{kind}_err", posterior_deviation(found.values[..., number]), "VIS"))
    for kind, index in (("sersic_flagged", "sersic_n"), ("morphology_flagged", "gini")):
        counted = found.flagged[..., INDICES.index(index)].sum(0)
        table.add_column(column(kind, np.where(found.measured, counted, -1).astype(np.int32), "VIS"))


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
