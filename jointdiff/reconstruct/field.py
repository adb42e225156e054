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

from jointdiff.decimate import at_its_resolution, psf_fwhm
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.forward import with_floors
from jointdiff.ondisk import OnDisk
from jointdiff.reconstruct.noise import SkyNoise, middle_of, shared_noise
from jointdiff.scene import Frame, Grid, Observation

MARGIN = 2.0
"""Width of the margin on each side, in FWHM of the widest PSF."""

SCALE_TOLERANCE = 0.01
"""Largest fractional difference of a field's pixel scale from the one that a denoiser was trained on."""

MAX_BYTES = 4_000_000_000
"""Largest predicted memory of one reconstruction."""

_BYTES_PER_VALUE = 32
"""Bytes held per sample, band and pixel at the peak: float32 samples, and float64 copies while they are measured."""


REACH = 64
"""Pixels around a window that what is done to images before use may look at; a multiple of what it may bin."""

BLOCK = 1024
"""Side (pixels) of the parts of a core in which all of an image on disk is gone through."""


@dataclass(frozen=True)
class PaddedField:
    """What was seen of a core, on the periodic grid around it.

    observations: of the core alone, in the order of the denoiser's bands; they may be on disk. corner: (y, x) of core
    pixel (0, 0) in grid. correlated: bands whose noise is correlated, which nobody had said.
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
    observations: Sequence[Observation],
    core: Grid,
    denoiser: Denoiser,
    sources: Mapping[str, str] | None = None,
    whole: bool = False,
) -> PaddedField:
    """Check the observations (B = 1) of a core, cut what lies outside and lay a margin around it.

    sources: file of each band's image, for messages. VIS gets its aliasing floor here, and a filter other than the
    scene's the scatter of its colour term; nothing else may add them. Noise that nobody said was correlated, but is, is
    measured on the sky and told by a warning; then images far finer than their PSF are decimated. An image on disk
    stays there if what of it may lie in the core is large (ondisk.HELD); none does where the field is to be sampled
    ``whole``.
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
        if not isinstance(observation, OnDisk):  # whose files are checked where they are read
            _check_pixels(observation, label, place)
        cut = _part_in(observation, core, whole)
        if cut is None:
            continue
        noise, is_correlated = _noise_of_sky(cut, core.scale, label, place)

        def ready(seen: Observation, noise: SkyNoise | None = noise) -> Observation:
            told = seen if noise is None else noise.of(seen)
            return with_floors(at_its_resolution(told, core.scale), denoiser.bands).to(weights.device, weights.dtype)

        seen = _counted(cut.through(ready, REACH), core) if isinstance(cut, OnDisk) else ready(cut)
        if seen is not None:
            kept.append(seen)
            correlated += [label] * is_correlated
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
    blank = frame.psf.new_zeros(len(frame.psf), 1, 1)
    placed = (observation.position_error, observation.position_told)
    return Observation(observation.band, frame, blank, blank, None, *placed)


def _noise_of_sky(observation: Observation, scale: float, label: str, place: str) -> tuple[SkyNoise | None, bool]:
    """The noise that its sky shows, where it is to be believed, and whether it is correlated: then warns. None if said.

    Of images that are not held, the middle tells.
    """
    if isinstance(observation, OnDisk):
        observation = observation.window(*middle_of(observation.frame.grid.shape))
    shared = shared_noise(observation, scale)
    if shared is None:
        return None, False
    warnings.warn(f"{label}: {shared}{place}", stacklevel=3)
    return shared.noise, True


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


def _part_in(observation: Observation, core: Grid, whole: bool) -> Observation | None:
    """What of an observation lies in the core, in memory unless it is ``large`` and not asked for ``whole``: then all
    that may lie there, on disk. None where nothing does."""
    if isinstance(observation, OnDisk) and not whole:
        cropped = _cropped(observation, core)
        if cropped is None or cropped.large:
            return cropped
    return _cut(observation, core)


def _cut(observation: Observation, core: Grid) -> Observation | None:
    """The part of an observation whose pixel centres lie in the core, others at zero weight; None where none does."""
    inside, first = _inside(observation.frame, core)
    if not inside.any():
        return None
    spans = []
    for axis in (0, 1):
        lines = np.flatnonzero(inside.any(1 - axis))
        spans.append((int(lines[0]), int(lines[-1]) + 1))
    part = observation.window(*(range(low + n, high + n) for (low, high), n in zip(spans, first, strict=True)))
    used = torch.as_tensor(inside[tuple(slice(*span) for span in spans)], device=part.ivar.device)
    ivar = torch.where(used, part.ivar, 0.0)
    image = torch.where(ivar > 0, part.image, 0.0)  # a masked NaN would survive a zero weight
    return replace(part, image=image, ivar=ivar)


def _cropped(observation: OnDisk, core: Grid) -> OnDisk | None:
    """The rows and columns of an observation in which any pixel of a core may lie; None where none does."""
    low, high = _reach(observation.frame, core)
    if not (high > low).all():
        return None
    return observation.cropped(*(range(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)))


def _counted(observation: OnDisk, core: Grid) -> OnDisk | None:
    """With the sums of its weights in the core, of which it is gone through once; None where no pixel's centre is."""
    total, peak, empty = 0.0, 0.0, True
    for top in range(0, core.shape[0], BLOCK):
        for left in range(0, core.shape[1], BLOCK):
            ends = [min(n + BLOCK, side) - side for n, side in zip((top, left), core.shape, strict=True)]
            part = _cut(observation, core.padded((-top, ends[0]), (-left, ends[1])))
            if part is not None:
                total, peak = total + float(part.ivar.double().sum()), max(peak, float(part.ivar.max()))
                empty = False
    return None if empty else replace(observation, total=total, peak=peak)


def _reach(frame: Frame, core: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The first row and column (2,) of an image that may lie in a core, and those behind the last."""
    footprint, start = _placed(frame, core)
    corners = np.array([(i * core.shape[0] - 0.5, j * core.shape[1] - 0.5) for i in (0, 1) for j in (0, 1)])
    reach = (corners - start) @ np.linalg.inv(footprint).T
    low = np.clip(np.floor(reach.min(0)).astype(int) - 1, 0, frame.grid.shape)
    return low, np.clip(np.ceil(reach.max(0)).astype(int) + 2, low, frame.grid.shape)


def _placed(frame: Frame, core: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A pixel's footprint in pixels of the core, and where the first pixel's centre lies."""
    shift = np.zeros(2) if frame.shift is None else frame.shift[0].double().cpu().numpy()
    return core.footprint(frame.grid), core.locate(frame.grid.origin + shift)


def _inside(frame: Frame, core: Grid) -> tuple[np.ndarray, tuple[int, int]]:
    """True (h, w) where a pixel's centre lies in the core, in the only part of the image where any may; its corner."""
    (footprint, start), (low, high) = _placed(frame, core), _reach(frame, core)
    rows, columns = (np.arange(a, b) for a, b in zip(low, high, strict=True))
    inside = np.ones((len(rows), len(columns)), dtype=bool)
    for steps, first, side in zip(footprint, start, core.shape, strict=True):
        at = (first + steps[0] * rows)[:, None] + steps[1] * columns
        inside &= (at >= -0.5) & (at < side - 0.5)
    return inside, (int(low[0]), int(low[1]))
