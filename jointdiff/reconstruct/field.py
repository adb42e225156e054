"""From a real field, which ends somewhere, to a periodic grid and back.

The scene grid is the scored core plus a margin of MARGIN FWHM of the widest PSF on each side, in which sources beyond
the core may shine into it. Only pixels whose centre lies in the core count (METHOD section 4).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from jointdiff.correlation import resized
from jointdiff.decimate import at_its_resolution, psf_fwhm
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.forward import with_floors
from jointdiff.reconstruct.noise import shared_noise
from jointdiff.scene import Frame, Grid, Observation

MARGIN = 2.0
"""Width of the margin on each side, in FWHM of the widest PSF."""

SCALE_TOLERANCE = 0.01
"""Largest fractional difference of a field's pixel scale from the one that a denoiser was trained on."""

MAX_BYTES = 4_000_000_000
"""Largest predicted memory of one reconstruction."""

_BYTES_PER_VALUE = 32
"""Bytes held per sample, band and pixel at the peak: float32 samples, and float64 copies while they are measured."""


@dataclass(frozen=True)
class PaddedField:
    """What was seen of a core, on the periodic grid around it.

    observations: of the core alone, in the order of the denoiser's bands. corner: (y, x) of core pixel (0, 0) in grid.
    correlated: bands whose noise is correlated, which nobody had said.
    """

    observations: tuple[Observation, ...]
    grid: Grid
    core: Grid
    corner: tuple[int, int]
    correlated: tuple[str, ...] = ()

    def crop(self, images: Tensor) -> Tensor:
        """(…, H, W) on the grid to the core."""
        (y, x), (h, w) = self.corner, self.core.shape
        return images[..., y : y + h, x : x + w]

    @property
    def weight(self) -> np.ndarray:
        """(H, W), 1 in the core and 0 in the margin."""
        weight = np.zeros(self.grid.shape)
        (y, x), (h, w) = self.corner, self.core.shape
        weight[y : y + h, x : x + w] = 1
        return weight


def check_size(shape: tuple[int, int], count: int, bands: int, label: str) -> None:
    """Raises InputError where ``count`` samples on a torus would not fit in memory, before anything is allocated."""
    height, width = shape
    needed = count * bands * height * width * _BYTES_PER_VALUE
    if needed > MAX_BYTES:
        raise InputError(
            f"{label}: {count} samples of {bands} bands on {height} × {width} pixels need {needed / 1e9:.1f} GB, "
            f"at most {MAX_BYTES / 1e9:.0f} are allowed: take fewer samples, or smaller tiles"
        )


def pad_field(
    observations: Sequence[Observation], core: Grid, denoiser: Denoiser, sources: Mapping[str, str] | None = None
) -> PaddedField:
    """Check the observations (B = 1) of a core, cut what lies outside and lay a margin around it.

    sources: file of each band's image, for messages. VIS gets its aliasing floor here, and a filter other than the
    scene's the scatter of its colour term; nothing else may add them. Noise that nobody said was correlated, but is, is
    measured on the sky and told by a warning; then images far finer than their PSF are decimated.
    Raises InputError for a band or a pixel scale that the denoiser was not trained on, and for unphysical pixels.
    """
    names = [band.name for band in denoiser.bands]
    weights = next(denoiser.parameters())
    kept, correlated = [], []
    for observation in observations:
        label = observation.band.name
        place = f" ({sources[label]})" if sources and label in sources else ""
        if label not in names:
            raise InputError(f"{label}: the checkpoint is of another band set, {', '.join(names)}{place}")
        _check_pixels(observation, label, place)
        cut = _cut(observation, core)
        if cut is None:
            continue
        cut, is_correlated = _with_sky_noise(cut, core.scale, label, place)
        if is_correlated:
            correlated.append(label)
        ready = with_floors(at_its_resolution(cut, core.scale), denoiser.bands)
        kept.append(ready.to(weights.device, weights.dtype))
    if not kept:
        raise InputError(f"no observed pixel lies in the field of {core.shape[0]} × {core.shape[1]} pixels")
    reference = next((o.band.name for o in observations if o.frame.grid == core), "grid")
    _check_scale(core, denoiser, reference, f" ({sources[reference]})" if sources and reference in sources else "")
    kept.sort(key=lambda o: (names.index(o.band.name), o.band.filter))
    grid, corner = _with_margin(core, margin_of(kept, core.scale), denoiser.network.stride)
    return PaddedField(tuple(kept), grid, core, corner, tuple(sorted(set(correlated), key=names.index)))


def margin_of(observations: Sequence[Observation], scale: float) -> float:
    """Width of the margin around what was observed, in pixels of ``scale`` arcsec."""
    return MARGIN * max(psf_fwhm(o.frame) for o in observations) / scale


def seen_in(
    field: PaddedField, grid: Grid, corner: tuple[int, int], part: tuple[range, range], context: int
) -> PaddedField:
    """What was seen of a part of a field, and within ``context`` pixels of it, on a torus of its own.

    grid: of the torus, whose first pixel is pixel ``corner`` of the field's padded grid; part: rows and columns of that
    one. Every observation of the field is there; one without a pixel in the part is all masked.
    """
    spans = []
    for span, first, side in zip(part, field.corner, field.core.shape, strict=True):
        low = min(max(span.start - context - first, 0), side - 1)
        spans.append((low, max(min(span.stop + context - first, side), low + 1)))
    pads = [(-low, high - side) for (low, high), side in zip(spans, field.core.shape, strict=True)]
    core = field.core.padded(*pads)
    cut = tuple(_cut(o, core) or _unseen(o) for o in field.observations)
    (top, _), (left, _) = spans
    return PaddedField(
        cut, grid, core, (top + field.corner[0] - corner[0], left + field.corner[1] - corner[1]), field.correlated
    )


def _unseen(observation: Observation) -> Observation:
    """One masked pixel: an observation that tells nothing."""
    h, w = observation.frame.grid.shape
    frame = replace(observation.frame, grid=observation.frame.grid.padded((0, 1 - h), (0, 1 - w)))
    blank = torch.zeros_like(observation.ivar[:, :1, :1])
    return replace(observation, frame=frame, image=blank, ivar=blank, correlation=None)


def _with_sky_noise(observation: Observation, scale: float, label: str, place: str) -> tuple[Observation, bool]:
    """With the noise that its sky shows, where that is correlated, and whether it is: then warns. As it is if said."""
    shared = shared_noise(observation, scale)
    if shared is None:
        return observation, False
    warnings.warn(f"{label}: {shared}{place}", stacklevel=3)
    return observation if shared.noise is None else shared.noise.of(observation), True


def _with_margin(core: Grid, margin: float, stride: int) -> tuple[Grid, tuple[int, int]]:
    """The core in the middle of a grid whose sides are multiples of the network's stride and quick to transform."""
    pads = []
    for side in core.shape:
        extra = stride * next_fast_len(math.ceil((side + 2 * margin) / stride)) - side
        pads.append((extra // 2, extra - extra // 2))
    rows, columns = pads
    return core.padded(rows, columns), (rows[0], columns[0])


def _check_scale(core: Grid, denoiser: Denoiser, label: str, place: str) -> None:
    sides = np.linalg.svd(np.asarray(core.matrix), compute_uv=False)
    if np.abs(sides / denoiser.pixel_scale - 1).max() > SCALE_TOLERANCE:
        raise InputError(
            f"{label}: pixels of {sides[1]:.4g} × {sides[0]:.4g} arcsec, but the checkpoint's scenes have "
            f"{denoiser.pixel_scale:g}: resample it, or train at its scale{place}"
        )


def _check_pixels(observation: Observation, label: str, place: str) -> None:
    """Nothing but finite fluxes where the inverse variance is positive."""
    if len(observation.image) != 1:
        raise InputError(f"{label}: a batch of {len(observation.image)} images, expected one field{place}")
    ivar, image = observation.ivar, observation.image
    bad = int((~torch.isfinite(ivar) | (ivar < 0) | ((ivar > 0) & ~torch.isfinite(image))).sum())
    if bad:
        raise InputError(f"{label}: {bad} pixels have no finite flux or no valid inverse variance{place}")


def _cut(observation: Observation, core: Grid) -> Observation | None:
    """The part of an observation whose pixel centres lie in the core, others at zero weight; None where none does."""
    frame = observation.frame
    inside, first = _inside(frame, core)
    if not inside.any():
        return None
    spans = []
    for axis in (0, 1):
        lines = np.flatnonzero(inside.any(1 - axis))
        spans.append((int(lines[0]), int(lines[-1]) + 1))
    (top, bottom), (left, right) = ((low + n, high + n) for (low, high), n in zip(spans, first, strict=True))
    height, width = frame.grid.shape
    grid = frame.grid.padded((-top, bottom - height), (-left, right - width))
    window = (..., slice(top, bottom), slice(left, right))
    used = torch.as_tensor(inside[tuple(slice(*span) for span in spans)], device=observation.ivar.device)
    ivar = torch.where(used, observation.ivar[window], 0.0)
    image = torch.where(ivar > 0, observation.image[window], 0.0)  # a masked NaN would survive a zero weight
    correlation = observation.correlation
    if correlation is not None:
        correlation = resized(correlation, frame.grid.shape, grid.shape)
    return replace(observation, frame=replace(frame, grid=grid), image=image, ivar=ivar, correlation=correlation)


def _inside(frame: Frame, core: Grid) -> tuple[np.ndarray, tuple[int, int]]:
    """True (h, w) where a pixel's centre lies in the core, in the only part of the image where any may; its corner."""
    shift = np.zeros(2) if frame.shift is None else frame.shift[0].double().cpu().numpy()
    footprint, start = core.footprint(frame.grid), core.locate(frame.grid.origin + shift)
    corners = np.array([(i * core.shape[0] - 0.5, j * core.shape[1] - 0.5) for i in (0, 1) for j in (0, 1)])
    reach = (corners - start) @ np.linalg.inv(footprint).T
    low = np.clip(np.floor(reach.min(0)).astype(int) - 1, 0, frame.grid.shape)
    high = np.clip(np.ceil(reach.max(0)).astype(int) + 2, low, frame.grid.shape)
    rows, columns = (np.arange(a, b) for a, b in zip(low, high, strict=True))
    inside = np.ones((len(rows), len(columns)), dtype=bool)
    for steps, first, side in zip(footprint, start, core.shape, strict=True):
        at = (first + steps[0] * rows)[:, None] + steps[1] * columns
        inside &= (at >= -0.5) & (at < side - 0.5)
    return inside, (int(low[0]), int(low[1]))
