"""Stars that outshine a field: fitted, subtracted, and masked where they cannot be subtracted (METHOD section 5)."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jointdiff.ondisk import OnDisk
from jointdiff.reconstruct.field import PaddedField, psf_fwhm
from jointdiff.scene import Observation
from jointdiff.units import magnitude

OUTSHINES = 30.0
"""Flux over that of all else in the field from which a star sets the amplitude of the whole prior."""

BRIGHT = 18.5
"""VIS magnitude (AB) of the faintest star that is taken out: training holds none brighter."""

POINTLIKE = 0.02
"""Largest share of the power within CORE that a point source may leave unexplained: aliasing leaves a star some 0.003,
a bulge of 0.2 arcsec leaves a tenth."""

CORE = 0.5
"""Radius (arcsec), at least, within which a star is fitted."""

WINGS = 0.1
"""Fractional error of a PSF's wings, which enters the variance of what is left of a star."""

UNDERSAMPLED_WINGS = 0.5
"""The same in VIS: diffraction rings 0.13 arcsec apart do not stand still on pixels of 0.1."""

MASKED = 5.0
"""Multiple of the sky noise from which that error is too large for the pixel to be of use."""

REACH = 1.0
"""Distance (arcsec) from the mask of a star up to which a source is flagged: the diameter of an aperture."""

_MOST, _STEPS = 4, 6


@dataclass(frozen=True)
class Star:
    """One that was taken out. y, x: pixel of the core; magnitude: VIS, AB; radius: of its largest mask, arcsec."""

    y: float
    x: float
    magnitude: float
    radius: float

    @property
    def line(self) -> str:
        """What was done about it."""
        place = f"a star of VIS {self.magnitude:.1f} at x {self.x:.0f}, y {self.y:.0f} outshines all else"
        return f"{place}: subtracted, and masked within {self.radius:.1f} arcsec"

    def near(self, y: np.ndarray, x: np.ndarray, scale: float) -> np.ndarray:
        """True for pixels of the core, of ``scale`` arcsec, within REACH of the mask."""
        return np.hypot(y - self.y, x - self.x) * scale < self.radius + REACH


def subtract_stars(field: PaddedField, name: str) -> tuple[PaddedField, tuple[Star, ...]]:
    """The field without the stars that outshine it, and which they were; each is told by a warning.

    Such a star is of BRIGHT or brighter in VIS, point-like, and OUTSHINES times all else. Its flux and position are
    fitted in each band; its subtraction leaves a variance of (WINGS × what it shines near by)², and zero weight where
    that is over MASKED times the sky noise. A field without VIS stays as it is, and so does
    one with an image on disk, told by a warning: in so many pixels no star that is not saturated outshines all galaxies
    thirtyfold.
    """
    if large := [o.band.name for o in field.observations if isinstance(o, OnDisk)]:
        verb = "is" if len(large) == 1 else "are"
        warnings.warn(f"{name}: no star is subtracted, for {', '.join(large)} {verb} read part by part", stacklevel=2)
        return field, ()
    stars: list[Star] = []
    for _ in range(_MOST):
        found = _brightest(field)
        if found is None:
            break
        left, radius = zip(*(_without(o, found.position) for o in field.observations), strict=True)
        y, x = field.core.locate(found.position)
        field = replace(field, observations=left)
        stars.append(Star(float(y), float(x), float(magnitude(found.flux)), max(radius)))
        warnings.warn(f"{name}: {stars[-1].line}", stacklevel=2)
    return field, tuple(stars)


@dataclass(frozen=True)
class _Point:
    """A point source in one observation: sky position (2,) in arcsec, flux in nJy, and image (h, w) per unit flux."""

    position: np.ndarray
    flux: float
    image: np.ndarray

    def error(self, observation: Observation) -> np.ndarray:
        """What its subtraction may leave (h, w), nJy: a share of the brightest pixel of 5 × 5."""
        from scipy.ndimage import maximum_filter

        share = UNDERSAMPLED_WINGS if observation.band.name == "VIS" else WINGS
        return share * self.flux * maximum_filter(np.abs(self.image), 5)


def _brightest(field: PaddedField) -> _Point | None:
    """The star in VIS that outshines the field, if there is one."""
    for observation in field.observations:
        if observation.band.name == "VIS" and bool(observation.present.all()):
            image, ivar = _numpy(observation.image), _numpy(observation.ivar)
            grid = observation.frame.grid
            peak = np.unravel_index(np.argmax(np.where(ivar > 0, image, 0)), image.shape)
            point = _fit(observation, np.asarray(grid.matrix) @ peak + grid.origin + _shift(observation))
            return point if _outshines(observation, point) else None
    return None


def _outshines(observation: Observation, point: _Point) -> bool:
    """Whether what was fitted is a star, bright by itself and beside all else that is significant."""
    if not (point.flux > 0 and magnitude(point.flux) < BRIGHT):
        return False
    image, ivar, distance = _numpy(observation.image), _numpy(observation.ivar), _distance(observation, point.position)
    left, core = image - point.flux * point.image, (ivar > 0) & (distance < CORE)
    if (left[core] ** 2).sum() > POINTLIKE * (image[core] ** 2).sum():
        return False
    deviation = np.sqrt(1 / np.where(ivar > 0, ivar, np.inf) + point.error(observation) ** 2)
    rest = left[(ivar > 0) & (distance > 2 * CORE) & (left > 4 * deviation)].sum()
    return bool(point.flux > OUTSHINES * rest)


def _without(observation: Observation, near: np.ndarray) -> tuple[Observation, float]:
    """An observation without the star near a position on the sky, and the radius (arcsec) that is masked."""
    if not bool(observation.present.all()):
        return observation, 0.0
    point, ivar = _fit(observation, near), _numpy(observation.ivar)
    error = point.error(observation)
    masked = error > MASKED / np.sqrt(ivar.max())
    ivar = np.where(masked, 0.0, ivar / (1 + ivar * error**2))
    image = np.where(ivar > 0, _numpy(observation.image) - point.flux * point.image, 0.0)
    new = (torch.as_tensor(a[None]).to(observation.image) for a in (image, ivar))
    radius = (masked * _distance(observation, point.position)).max()
    return replace(observation, image=next(new), ivar=next(new)), float(radius)


def _fit(observation: Observation, start: np.ndarray) -> _Point:
    """The point source near ``start``: least squares on a level ground within CORE, or one FWHM where that is more.

    Without weights: there, what is known least is the model. Flux 0 where less than a source is to be seen.
    """
    position = np.asarray(start, dtype=float)
    radius = max(CORE, psf_fwhm(observation.frame))
    used = (_numpy(observation.ivar) > 0) & (_distance(observation, position) < radius)
    data = _numpy(observation.image)[used]
    step = 0.1 * observation.frame.grid.scale
    for _ in range(_STEPS):
        image = _image(observation, position)
        slopes = [(_image(observation, position + step * e) - image) / step for e in np.eye(2)]
        columns = np.stack([image, *slopes, np.ones_like(image)])[:, used]
        scale = np.linalg.norm(columns, axis=1)
        if len(data) < 5 or not scale.all():
            return _Point(position, 0.0, image)
        flux, *moves, _ = np.linalg.lstsq((columns / scale[:, None]).T, data, rcond=None)[0] / scale
        if flux <= 0:
            return _Point(position, 0.0, image)
        position = position + np.clip(np.array(moves) / flux, -0.1, 0.1)
    return _Point(position, float(flux), _image(observation, position))


def _image(observation: Observation, position: np.ndarray) -> np.ndarray:
    """The PSF (h, w) at a position on the sky, by cubic splines in its stamp, which do not ring; beyond it as r⁻³,
    the envelope of diffraction."""
    from scipy.ndimage import map_coordinates

    frame = observation.frame
    stamp, middle = _numpy(frame.psf), (frame.psf.shape[-1] - 1) / 2
    away = _offset(observation, position) / frame.psf_scale
    inside = map_coordinates(stamp, np.moveaxis(away, -1, 0) + middle, order=3, mode="constant")
    edge = np.concatenate([stamp[0], stamp[-1], stamp[:, 0], stamp[:, -1]]).clip(min=0).mean()
    distance = np.linalg.norm(away, axis=-1)
    beyond = np.abs(away).max(-1) > middle
    wings = edge * (middle / distance.clip(min=middle)) ** 3
    return np.where(beyond, wings, inside) / frame.psf_scale**2


def _offset(observation: Observation, position: np.ndarray) -> np.ndarray:
    """(h, w, 2), pixels of the image from a position on the sky."""
    frame = observation.frame
    pixels = np.stack(np.meshgrid(*map(np.arange, frame.grid.shape), indexing="ij"), -1)
    return pixels - frame.grid.locate(position - _shift(observation))


def _distance(observation: Observation, position: np.ndarray) -> np.ndarray:
    """(h, w), arcsec."""
    return np.linalg.norm(_offset(observation, position) @ np.asarray(observation.frame.grid.matrix).T, axis=-1)


def _shift(observation: Observation) -> np.ndarray:
    shift = observation.frame.shift
    return np.zeros(2) if shift is None else shift[0].double().cpu().numpy()


def _numpy(batch: Tensor) -> np.ndarray:
    """The one image of a batch, in double precision."""
    return batch[0].detach().double().cpu().numpy()
