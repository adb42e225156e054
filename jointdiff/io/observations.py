"""One entry of a scene file: from FITS files in counts to an Observation in nJy on the sky."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from astropy.coordinates import angular_separation
from astropy.wcs import WCS

from jointdiff.correlation import power_spectrum
from jointdiff.errors import InputError
from jointdiff.io.fits import FitsImage, read_image
from jointdiff.io.wcs import celestial_wcs, fit_grid, image_centre, overlaps
from jointdiff.scene import Band, Frame, Grid, Observation
from jointdiff.units import ARCSEC_PER_DEGREE, njy_per_count

NOISE = ("variance", "weight", "rms")
"""The keys that tell the noise: variance, 1/variance and its square root."""

MAX_PSF = 1024
"""Largest side of a PSF stamp, pixels."""

PSF_SUMS = (0.9, 1.1)
"""Sums of a PSF that are taken for wings cut off, and normalised."""

MAX_OFFSET = 2.0
"""Pixels from the middle of its stamp at which a PSF is one of another place, or a star not centred."""

PSF_SCALES = (0.02, 5.0)
"""Sizes of a PSF pixel over an image pixel that are believed."""

NEGATIVE_POWER = 0.05
"""Largest share of negative power that a correlation function may have, as cut ones do; more is of no noise."""

_NJY = ("njy", "njy/pixel", "njy/pix")


@dataclass(frozen=True)
class Entry:
    """An observation as scene.yaml names it; addresses are FILE or FILE[HDU], ``noise_kind`` is one of NOISE.

    correlation: of the noise, its function of the lag; None where it is not told.
    """

    band: Band
    image: str
    noise_kind: str
    noise: str
    psf: str
    mask: str | None = None
    zeropoint: float | None = None
    correlation: str | None = None


@dataclass(frozen=True)
class Exposure:
    """The pixels of an entry, not yet on any scene's sky.

    image, ivar: (h, w) float32, nJy and nJy⁻². psf: (n, n) float64, unit sum. psf_pixel: arcsec, None for the image's.
    correlation: c(l) of the noise (n, m) float64, None where it is not told.
    """

    band: Band
    image: np.ndarray
    ivar: np.ndarray
    psf: np.ndarray
    psf_pixel: float | None
    wcs: WCS
    place: str
    correlation: np.ndarray | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """ICRS (ra, dec), degrees, of the middle of the image."""
        return image_centre(self.wcs, self.image.shape, self.band.name, self.place)

    def grid(self, centre: tuple[float, float]) -> Grid:
        """The image's grid in the tangent plane about ``centre`` (ra, dec, degrees)."""
        return fit_grid(self.wcs, self.image.shape, centre, self.band.name, self.place)


def read_exposure(entry: Entry, folder: Path) -> Exposure:
    """Read and check the files of an entry; relative addresses start from ``folder``.

    Raises InputError for anything missing, of the wrong shape, not physical, or masked throughout.
    """
    label = entry.band.name
    image = read_image(entry.image, folder, label)
    noise = _read_like(image, entry.noise, folder, label, entry.noise_kind)
    masked = ~np.isfinite(image.data)
    if entry.mask is not None:
        masked |= _read_like(image, entry.mask, folder, label, "mask").data != 0
    ivar = _inverse_variance(noise, entry.noise_kind, masked, label)
    psf, psf_pixel = read_psf(entry.psf, folder, label)
    njy = _njy_per_count(entry, image)
    # Overflow is looked for below, where it can be told with the band and the file.
    with np.errstate(over="ignore"):
        ivar = (ivar / njy**2).astype(np.float32)
        flux = (np.where(ivar > 0, image.data, 0) * njy).astype(np.float32)
    if not (np.isfinite(ivar).all() and np.isfinite(flux).all()):
        raise InputError(f"{label}: fluxes or errors overflow at {njy:.3g} nJy a count ({image.address})")
    if not ivar.any():
        raise InputError(f"{label}: all {ivar.size} pixels are masked ({image.address})")
    wcs = celestial_wcs(image.header, label, image.address)
    correlation = None if entry.correlation is None else read_correlation(entry.correlation, folder, label)
    return Exposure(entry.band, flux, ivar, psf, psf_pixel, wcs, image.address, correlation)


def place_on_sky(exposure: Exposure, reference: Exposure) -> Observation:
    """The observation (B = 1) in the tangent plane about the middle of the reference image.

    Raises InputError where the two images share no sky.
    """
    centre = reference.centre
    scene = reference.grid(centre)
    # Far from the reference its tangent plane ends, so distance is judged before the grid is made.
    distance = ARCSEC_PER_DEGREE * math.degrees(angular_separation(*np.radians([*exposure.centre, *centre])))
    near = distance <= _radius(scene) + _radius(exposure.grid(exposure.centre))
    if not near or not overlaps(scene, exposure.grid(centre)):
        raise InputError(
            f"{exposure.band.name}: no overlap with the reference {reference.band.name}, "
            f"{distance:.1f} arcsec away ({exposure.place})"
        )
    grid = exposure.grid(centre)
    frame = Frame(grid, torch.tensor(exposure.psf, dtype=torch.float32)[None], _psf_scale(exposure, grid))
    image, ivar = torch.tensor(exposure.image)[None], torch.tensor(exposure.ivar)[None]
    if exposure.correlation is None:
        return Observation(exposure.band, frame, image, ivar)
    power = power_spectrum(torch.tensor(exposure.correlation)[None], grid.shape)
    return Observation(exposure.band, frame, image, ivar, power.to(image))


def read_psf(address: str, folder: Path, label: str) -> tuple[np.ndarray, float | None]:
    """A PSF (n, n) of unit sum and its pixel in arcsec (header PIXSCALE; None where absent).

    Raises InputError for a stamp that is not square, not finite, too large, or whose sum is outside PSF_SUMS.
    """
    stamp = read_image(address, folder, label, MAX_PSF**2)
    return normalised(stamp.data, label, stamp.address), psf_pixel(stamp, label)


def normalised(psf: np.ndarray, label: str, place: str) -> np.ndarray:
    """A PSF stamp, checked, and its sum made one, told of with a warning. Raises InputError as read_psf does."""
    if psf.shape[0] != psf.shape[1]:
        raise InputError(f"{label}: PSF of {_size(psf)} pixels, expected a square ({place})")
    if not np.isfinite(psf).all():
        raise InputError(f"{label}: PSF has {np.sum(~np.isfinite(psf))} pixels that are not finite ({place})")
    total = psf.sum()
    if not PSF_SUMS[0] <= total <= PSF_SUMS[1]:
        raise InputError(f"{label}: PSF sums to {total:.3g}, expected {PSF_SUMS[0]} to {PSF_SUMS[1]} ({place})")
    if abs(total - 1) > 1e-3:
        warnings.warn(f"{label}: PSF sums to {total:.4f} and is normalised ({place})", stacklevel=3)
    if abs(total - 1) > 1e-6:  # nearer, float32 rounding: kept, so that a stamp that was written reads back bit for bit
        psf = psf / total
    _check_centre(psf, label, place)
    return psf


def read_correlation(address: str, folder: Path, label: str) -> np.ndarray:
    """The correlation function (n, m) of a noise, 1 at lag zero, which is the middle; lags in pixels.

    Raises InputError for sides that have no middle, pixels that are not finite, a middle that is not the largest and
    positive, a function that differs at opposite lags, and one of which no noise can be: with negative power.
    """
    stamp = read_image(address, folder, label, MAX_PSF**2)
    lags, place = stamp.data.astype(float), stamp.address
    if not (lags.shape[0] % 2 and lags.shape[1] % 2):
        raise InputError(f"{label}: noise correlation of {_size(lags)} lags, expected odd sides ({place})")
    if not np.isfinite(lags).all():
        raise InputError(f"{label}: noise correlation is not finite at {np.sum(~np.isfinite(lags))} lags ({place})")
    peak = lags[lags.shape[0] // 2, lags.shape[1] // 2]
    if not peak > 0 or np.abs(lags).max() > peak * (1 + 1e-6):
        raise InputError(
            f"{label}: noise correlation is {peak:.3g} in the middle, expected its largest value, "
            f"{np.abs(lags).max():.3g} ({place})"
        )
    lags = lags / peak
    uneven = np.abs(lags - lags[::-1, ::-1]).max()
    if uneven > 1e-3:
        raise InputError(f"{label}: noise correlation differs by {uneven:.3g} between opposite lags ({place})")
    wide = np.pad(lags, [(n, n) for n in lags.shape])  # between its own frequencies, too
    power = np.fft.fft2(np.fft.ifftshift(wide)).real
    negative = -power[power < 0].sum() / np.abs(power).sum()
    if negative > NEGATIVE_POWER:
        raise InputError(f"{label}: noise correlation has {negative:.0%} of its power below zero ({place})")
    return lags


def _check_centre(psf: np.ndarray, label: str, place: str) -> None:
    """Warn of a stamp centred elsewhere, as even sides centred on a pixel are: the band would be shifted on the sky.

    Raises InputError where both centroid and peak are MAX_OFFSET from the middle: wings alone, or noise, move but one.
    """
    offset = np.arange(len(psf)) - (len(psf) - 1) / 2
    distance = float(np.hypot(psf.sum(1) @ offset, psf.sum(0) @ offset))
    peak = float(np.hypot(*offset[np.asarray(np.unravel_index(psf.argmax(), psf.shape))]))
    if min(distance, peak) > MAX_OFFSET:
        raise InputError(
            f"{label}: PSF is {distance:.1f} pixels from the middle of its stamp, above {MAX_OFFSET:g} ({place})"
        )
    if distance > 0.4:
        warnings.warn(f"{label}: PSF is {distance:.2f} pixels from the middle of its stamp ({place})", stacklevel=4)


def psf_pixel(stamp: FitsImage, label: str) -> float | None:
    """PIXSCALE of a PSF's header, arcsec; None where there is none. Raises InputError for what is no scale."""
    value = stamp.header.get("PIXSCALE")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{label}: PIXSCALE of {value!r}, expected arcsec above 0 ({stamp.address})")
    return float(value)


def _psf_scale(exposure: Exposure, grid: Grid) -> float:
    """Size of a PSF pixel over an image pixel, exactly 1 where they agree to the rounding of a WCS."""
    if exposure.psf_pixel is None:
        return 1.0
    ratio = exposure.psf_pixel / grid.scale
    if not PSF_SCALES[0] <= ratio <= PSF_SCALES[1]:
        raise InputError(
            f"{exposure.band.name}: PSF pixels of {exposure.psf_pixel:g} arcsec on image pixels of {grid.scale:.4g}, "
            f"expected {PSF_SCALES[0]:g} to {PSF_SCALES[1]:g} times those ({exposure.place})"
        )
    return 1.0 if math.isclose(ratio, 1, rel_tol=1e-6) else ratio


def _read_like(image: FitsImage, address: str, folder: Path, label: str, role: str) -> FitsImage:
    """The image at ``address``, of the same shape as ``image``."""
    other = read_image(address, folder, label)
    if other.data.shape != image.data.shape:
        raise InputError(
            f"{label}: image is {_size(image.data)} pixels but {role} is {_size(other.data)} "
            f"({image.address}, {other.address})"
        )
    return other


def _inverse_variance(noise: FitsImage, kind: str, masked: np.ndarray, label: str) -> np.ndarray:
    """1/variance in counts⁻², (h, w), zero where masked or where the noise is not finite or not positive."""
    values, place = noise.data, noise.address
    negative = (values < 0) & ~masked
    if negative.any():
        lowest = values[negative].min()
        raise InputError(f"{label}: {kind} is negative in {negative.sum()} pixels, down to {lowest:.3g} ({place})")
    empty = (values == 0) & ~masked
    if kind != "weight" and empty.any():
        warnings.warn(f"{label}: {kind} is zero in {empty.sum()} pixels, which are masked ({place})", stacklevel=3)
    good = np.isfinite(values) & (values > 0) & ~masked
    power = {"variance": -1, "weight": 1, "rms": -2}[kind]
    return np.power(values, power, out=np.zeros_like(values), where=good)


def _njy_per_count(entry: Entry, image: FitsImage) -> float:
    """nJy of one count: the entry's zero point, else 1 where BUNIT is nJy."""
    if entry.zeropoint is not None:
        return njy_per_count(entry.zeropoint)
    unit = str(image.header.get("BUNIT", "")).strip()
    if unit.lower().replace(" ", "") not in _NJY:
        raise InputError(f"{entry.band.name}: no zeropoint, and BUNIT is {unit!r}, not 'nJy' ({image.address})")
    return 1.0


def _radius(grid: Grid) -> float:
    """Radius (arcsec) of a circle about a grid's middle that holds it."""
    return float(np.linalg.norm(grid.matrix, 2) * np.hypot(*grid.shape) / 2)


def _size(array: np.ndarray) -> str:
    return " × ".join(map(str, array.shape))
