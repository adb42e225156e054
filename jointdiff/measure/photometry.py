"""Fluxes in fixed apertures and segments: sparse linear maps from pixels to sources.

A map is made once from the detections and applied to every sample, to every method and to the truth. No background is
subtracted and nothing is clipped, so a flux is linear in the image and a mean of fluxes is the flux of the mean.
"""

import numpy as np
import torch
from torch import Tensor

from jointdiff.measure.detection import Segments

_ROWS = 16
"""Chords per pixel of the aperture integral: a pixel's share is exact to 1e-2, a 5-pixel circle's area to 1e-4."""


def circle_overlap(dy: np.ndarray, dx: np.ndarray, radius) -> np.ndarray:
    """Fraction of each unit pixel, centred at (dy, dx) from a circle's centre, inside the circle of ``radius`` pixels.

    Arguments broadcast. Exact along x (the chord's overlap with the pixel), the midpoint rule along y.
    """
    dy, dx, radius = np.broadcast_arrays(dy, dx, radius)
    total = np.zeros(dy.shape)
    for offset in (np.arange(_ROWS) + 0.5) / _ROWS - 0.5:
        half_chord = np.sqrt(np.maximum(radius**2 - (dy + offset) ** 2, 0))
        total += np.maximum(np.minimum(dx + 0.5, half_chord) - np.maximum(dx - 0.5, -half_chord), 0)
    return total / _ROWS


def aperture_map(x: np.ndarray, y: np.ndarray, radius: float, shape: tuple[int, int]) -> Tensor:
    """Circular apertures of ``radius`` pixels about (x, y), each (K,): a sparse (K, H·W) float64 tensor.

    Pixels count by the fraction of their area inside; what lies beyond the image is lost (the catalog flags it).
    """
    reach = int(np.ceil(radius + 0.5))
    offsets = np.arange(-reach, reach + 1)
    rows = np.round(y).astype(int)[:, None, None] + offsets[None, :, None]
    columns = np.round(x).astype(int)[:, None, None] + offsets[None, None, :]
    overlap = circle_overlap(rows - np.asarray(y)[:, None, None], columns - np.asarray(x)[:, None, None], radius)
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1]) & (overlap > 0)
    source, i, j = np.nonzero(inside)
    pixels = rows[source, i, 0] * shape[1] + columns[source, 0, j]
    return _sparse(source, pixels, overlap[source, i, j], (len(x), shape[0] * shape[1]))


def gaussian_map(segments: Segments, sigma: float, psf_sigma: float) -> Tensor:
    """Gaussian apertures of peak 1 and width ``sigma`` on the sky as before any PSF: a sparse (K, H·W) float64 tensor.

    psf_sigma: of the images' Gaussian PSF; both in pixels, sigma the larger. Under the weight exp(-r²/2q²) with
    q² = sigma² - psf_sigma², an image convolved with the PSF sums to what the sky does under exp(-r²/2 sigma²), times
    q²/sigma² (Kuijken et al. 2015, MNRAS 454, 3500, eq. A16): the Gaussian aperture and PSF flux, the same at any
    resolution. Pixels of other sources' segments do not count.
    """
    narrow = sigma**2 - psf_sigma**2
    assert narrow > 0, "an aperture no wider than the PSF"
    (height, width), reach = segments.labels.shape, int(np.ceil(4 * sigma))
    rows, columns, values, owners = [], [], [], []
    for k, (y, x) in enumerate(zip(segments.y, segments.x, strict=True)):
        top, left = max(round(y) - reach, 0), max(round(x) - reach, 0)
        near = (slice(top, round(y) + reach + 1), slice(left, round(x) + reach + 1))
        own = np.isin(segments.labels[near], (0, k + 1))
        i, j = np.nonzero(own)
        i, j = i + top, j + left
        rows.append(i)
        columns.append(j)
        values.append(sigma**2 / narrow * np.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * narrow)))
        owners.append(np.full(len(i), k))
    if not owners:
        return _sparse(np.empty(0), np.empty(0), np.empty(0), (0, height * width))
    pixels = np.concatenate(rows) * width + np.concatenate(columns)
    return _sparse(np.concatenate(owners), pixels, np.concatenate(values), (len(segments), height * width))


def segment_map(labels: np.ndarray, count: int) -> Tensor:
    """Segments 1 … ``count`` of labels (H, W): a sparse (K, H·W) float64 tensor of ones."""
    pixels = np.flatnonzero(labels)
    return _sparse(labels.ravel()[pixels] - 1, pixels, np.ones(len(pixels)), (count, labels.size))


def fluxes(images: Tensor, pixel_map: Tensor) -> Tensor:
    """Fluxes (…, K, C), nJy and float64, of images (…, C, H, W) in nJy per pixel under a map (K, H·W)."""
    flat = images.flatten(-2)
    sums = torch.sparse.mm(pixel_map, flat.reshape(-1, flat.shape[-1]).T.to(pixel_map.dtype))
    return sums.reshape(len(pixel_map), *flat.shape[:-1]).movedim(0, -2)


def _sparse(rows, columns, values, shape: tuple[int, int]) -> Tensor:
    indices = torch.as_tensor(np.stack([rows, columns]), dtype=torch.long)
    weights = torch.as_tensor(values, dtype=torch.float64)
    return torch.sparse_coo_tensor(indices, weights, shape, check_invariants=True).coalesce()
