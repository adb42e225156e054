"""Sources in a reconstruction: found on the VIS-weighted posterior mean, against the samples' own scatter.

Detection, deblending and segments are functions of the data only, never of a truth (METHOD section 8), and are made
once: every sample, every method compared and the truth itself are then measured in the same apertures and segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jointdiff.errors import InputError
from jointdiff.scene import DEFAULT_TARGET_FWHM
from jointdiff.units import SIGMA_PER_FWHM


@dataclass(frozen=True)
class DetectionSettings:
    """When a group of pixels is a source.

    threshold: significance of every pixel of a source, in units of the noise.
    min_area: fewest connected pixels above the threshold.
    deblend_levels, deblend_contrast: as in SExtractor (Bertin & Arnouts 1996, A&AS 117, 393).
    grow: how far a segment reaches beyond its threshold isophote, pixels.
    """

    threshold: float = 4.0
    min_area: int = 5
    deblend_levels: int = 32
    deblend_contrast: float = 0.005
    grow: int = 3


@dataclass(frozen=True)
class Segments:
    """K sources and the pixels that belong to each.

    labels: (H, W) integers; 0 is sky, k + 1 the grown segment of source k. Segments are disjoint.
    x, y: (K,) barycentres, pixels.
    """

    labels: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def blended(self) -> np.ndarray:
        """(K,), true where a segment touches another's."""
        touching = np.zeros(len(self) + 1, dtype=bool)
        for a, b in _neighbours(self.labels):
            met = (a != b) & (a > 0) & (b > 0)
            touching[a[met]] = touching[b[met]] = True
        return touching[1:]

    def touching(self, mask: np.ndarray) -> np.ndarray:
        """(K,), true where a segment has a pixel of ``mask`` (H, W) or on the image's border beside one of its own."""
        edge = np.pad(np.asarray(mask, dtype=bool), 1, constant_values=True)
        beside = edge[:-2, 1:-1] | edge[2:, 1:-1] | edge[1:-1, :-2] | edge[1:-1, 2:] | edge[1:-1, 1:-1]
        return np.isin(np.arange(1, len(self) + 1), self.labels[beside])


def band_weights(variance: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(C,) weights of the bands in the detection image, from their typical variances (C,).

    VIS weighs 1 and the other bands share at most 1 between them, by inverse variance: VIS alone resolves close pairs,
    whatever the other bands' stated errors. Without VIS, plain inverse variance, scaled to a sum of 1.
    """
    precision = 1 / np.asarray(variance, dtype=float)
    assert np.isfinite(precision).all(), "a band's variance must be positive"
    if "VIS" not in names:
        return precision / precision.sum()
    vis = list(names).index("VIS")
    others = np.arange(len(names)) != vis
    weights = np.where(others, precision, 0.0)
    if others.any():
        weights *= min(1 / weights.sum(), 1 / precision[vis])
    weights[vis] = 1.0
    return weights


def typical_noise(samples: np.ndarray, mean: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """A robust deviation (C,), nJy, of the samples (S, C, H, W) about their mean; for S = 1, of the image (C, H, W)."""
    used = np.ones(mean.shape[-2:], dtype=bool) if weight is None else np.asarray(weight) > 0
    cubes = np.asarray(samples, dtype=float)
    noise = mean[None] - np.median(mean[:, used], axis=1)[:, None, None] if len(cubes) < 2 else cubes - cubes.mean(0)
    return 1.4826 * np.array([np.median(np.abs(noise[:, band, used])) for band in range(len(mean))])


def detection_image(
    samples: np.ndarray,
    mean: np.ndarray,
    names: Sequence[str],
    weight: np.ndarray | None = None,
    target_fwhm: float = DEFAULT_TARGET_FWHM,
    scale: float = 0.1,
    typical: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The weighted sum of the posterior mean's bands and its noise, each (H, W), nJy per pixel.

    samples: (S, C, H, W); mean: (C, H, W); names: the C bands'; weight: (H, W), zero outside the scored core; typical:
    noise of the bands (C,), by default that of these images (typical_noise).
    The sum is filtered by the target PSF (FWHM and pixel ``scale`` in arcsec), the best filter for a point source in
    white noise (Bertin & Arnouts 1996). The noise is the samples' scatter about the mean after the same filter, its
    variance smoothed over a few pixels because S is small; for S = 1, the normalised median absolute deviation of the
    image.
    """
    from scipy.ndimage import gaussian_filter

    used = np.ones(mean.shape[-2:], dtype=bool) if weight is None else np.asarray(weight) > 0
    single = len(samples) < 2
    deviations = np.asarray(samples, dtype=float) - np.asarray(samples, dtype=float).mean(0)
    typical = typical_noise(samples, mean, weight) if typical is None else typical
    weights = band_weights(typical**2, names)
    sigma = SIGMA_PER_FWHM * target_fwhm / scale
    image = gaussian_filter(np.einsum("c,chw->hw", weights, mean, dtype=float), sigma, mode="nearest")
    if single:
        return image, np.full_like(image, 1.4826 * np.median(np.abs(image[used] - np.median(image[used]))))
    filtered = gaussian_filter(np.einsum("c,schw->shw", weights, deviations), (0, sigma, sigma), mode="nearest")
    variance = (filtered**2).sum(0) / (len(samples) - 1)
    return image, np.sqrt(gaussian_filter(variance, 2 * sigma, mode="nearest"))


def detect(
    image: np.ndarray,
    noise: np.ndarray | float,
    settings: DetectionSettings | None = None,
    weight: np.ndarray | None = None,
) -> Segments:
    """Detect and deblend sources on a sky-subtracted image (H, W), and grow their segments.

    noise: its standard deviation, (H, W) or one number; weight: (H, W), no source where it is zero.
    Raises InputError for non-finite pixels of positive weight.
    """
    import sep

    settings = settings or DetectionSettings()
    image = np.ascontiguousarray(image, dtype=np.float64)
    noise = np.ascontiguousarray(np.broadcast_to(noise, image.shape), dtype=np.float64)
    mask = np.zeros(image.shape, dtype=bool) if weight is None else np.asarray(weight) <= 0
    bad = int((~np.isfinite(image) | ~(noise > 0))[~mask].sum())
    if bad:
        raise InputError(f"detection: {bad} pixels of the scored area have no finite flux or no positive noise")
    sep.set_extract_pixstack(max(image.size, 300_000))  # sep's own buffer; a field full of sources must not overflow it
    sources, labels = sep.extract(
        np.where(mask, 0.0, image),
        settings.threshold,
        err=np.where(mask, 1.0, noise),
        mask=mask,
        minarea=settings.min_area,
        filter_kernel=None,
        deblend_nthresh=settings.deblend_levels,
        deblend_cont=settings.deblend_contrast,
        segmentation_map=True,
    )
    return Segments(grow(labels, settings.grow, mask), np.asarray(sources["x"]), np.asarray(sources["y"]))


def grow(labels: np.ndarray, radius: float, mask: np.ndarray | None = None) -> np.ndarray:
    """Labels (H, W) in which each sky pixel within ``radius`` pixels of a segment joins the nearest one.

    Segments meet half-way (a Voronoi partition) and so stay disjoint; pixels of ``mask`` stay sky.
    """
    from scipy.ndimage import distance_transform_edt

    labels = np.asarray(labels)
    if not labels.any():
        return labels.copy()
    distance, (rows, columns) = distance_transform_edt(labels == 0, return_indices=True)
    grown = np.where(distance <= radius, labels[rows, columns], 0)
    return grown if mask is None else np.where(mask, 0, grown)


def _neighbours(labels: np.ndarray):
    """Pairs of arrays of the labels of pixels that share a side."""
    yield labels[:, :-1].ravel(), labels[:, 1:].ravel()
    yield labels[:-1].ravel(), labels[1:].ravel()
