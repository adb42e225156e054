"""One entry of a scene file: from FITS files in counts to an Observation in nJy on the sky."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from astropy.coordinates import angular_separation
from astropy.wcs import WCS

from jointdiff.correlation import power_spectrum
from jointdiff.errors import InputError
from jointdiff.io.fits import FitsImage, describe_image, read_image
from jointdiff.io.wcs import celestial_wcs, fit_grid, image_centre, overlaps
from jointdiff.ondisk import LAGS, OnDisk
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

_STRIP = 2**22
"""Pixels of an image on disk that are checked at a time."""

_NJY = ("njy", "njy/pixel", "njy/pix")


@dataclass(frozen=True)
class Entry:
    """An observation as scene.yaml names it; addresses are FILE or FILE[HDU], ``noise_kind`` is one of NOISE.

    correlation: of the noise, its function of the lag; None where it is not told. noise_measured: that the noise is
    correlated was measured on this image's own sky.
    """

    band: Band
    image: str
    noise_kind: str
    noise: str
    psf: str
    mask: str | None = None
    zeropoint: float | None = None
    correlation: str | None = None
    noise_measured: bool = False


@dataclass(frozen=True)
class Exposure:
    """The pixels of an entry, not yet on any scene's sky.

    image, ivar: (h, w) float32, nJy and nJy⁻². psf: (n, n) float64, unit sum. psf_pixel: arcsec, None for the image's.
    correlation: c(l) of the noise (n, m) float64, None where it is not told. read: of an image that is too large to be
    held, from rows and columns to image and ivar; ``image`` and ``ivar`` are then zeros that take no memory.
    noise_measured: as of Entry.
    """

    band: Band
    image: np.ndarray
    ivar: np.ndarray
    psf: np.ndarray
    psf_pixel: float | None
    wcs: WCS
    place: str
    correlation: np.ndarray | None = None
    read: Callable[[range, range], tuple[np.ndarray, np.ndarray]] | None = None
    noise_measured: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """ICRS (ra, dec), degrees, of the middle of the image."""
        return image_centre(self.wcs, self.image.shape, self.band.name, self.place)

    def grid(self, centre: tuple[float, float]) -> Grid:
        """The image's grid in the tangent plane about ``centre`` (ra, dec, degrees)."""
        return fit_grid(self.wcs, self.image.shape, centre, self.band.name, self.place)

    def part(self, rows: slice, columns: slice) -> "Exposure":
        """Some of its rows and columns, in their place on the sky. Of images that are held."""
        assert self.read is None, f"{self.band.name}: on disk"
        image, ivar, wcs = self.image[rows, columns], self.ivar[rows, columns], self.wcs[rows, columns]
        return replace(self, image=image, ivar=ivar, wcs=wcs)


def read_exposure(entry: Entry, folder: Path, most: int | None = None) -> Exposure:
    """Read and check the files of an entry; relative addresses start from ``folder``.

    most: pixels above which an image stays on disk, where files can be read by parts: not out of .gz and .bz2.
    Raises InputError for anything missing, of the wrong shape, not physical, or masked throughout.
    """
    label = entry.band.name
    header, shape, place = describe_image(entry.image, folder, label)
    packed = any(Path(file or "").suffix.startswith((".gz", ".bz2")) for file in (entry.image, entry.noise, entry.mask))
    parts: list[tuple[range, range] | None] = [None]
    if most is not None and len(shape) == 2 and shape[0] * shape[1] > most and not packed:
        step = max(1, _STRIP // shape[1])
        parts = [(range(top, min(top + step, shape[0])), range(shape[1])) for top in range(0, shape[0], step)]
    read, seen, zeros = None, False, 0
    for part in parts:
        flux, ivar, empty = _read_part(entry, folder, part)
        seen, zeros = seen or bool(ivar.any()), zeros + empty
    if parts != [None]:
        flux = ivar = np.broadcast_to(np.float32(0), shape)
        read = lambda rows, columns: _read_part(entry, folder, (rows, columns))[:2]  # noqa: E731
    if zeros:
        what = f"{entry.noise_kind} is zero in {zeros} pixels, which are masked"
        warnings.warn(f"{label}: {what} ({folder / entry.noise})", stacklevel=3)
    if not seen:
        raise InputError(f"{label}: all {ivar.size} pixels are masked ({place})")
    psf, psf_pixel = read_psf(entry.psf, folder, label)
    wcs = celestial_wcs(header, label, place)
    correlation = None if entry.correlation is None else read_correlation(entry.correlation, folder, label)
    return Exposure(entry.band, flux, ivar, psf, psf_pixel, wcs, place, correlation, read, entry.noise_measured)


def _read_part(entry: Entry, folder: Path, part: tuple[range, range] | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Flux and inverse variance (h, w), float32, nJy and nJy⁻², of all or some of an entry's rows and columns; and in
    how many pixels a variance is zero."""
    label = entry.band.name
    image = _read_image(entry.image, folder, label, part)
    noise = _read_like(image, entry.noise, folder, label, entry.noise_kind, part)
    masked = ~np.isfinite(image.data)
    if entry.mask is not None:
        masked |= _read_like(image, entry.mask, folder, label, "mask", part).data != 0
    ivar, empty = _inverse_variance(noise, entry.noise_kind, masked, label)
    njy = _njy_per_count(entry, image)
    # Overflow is looked for below, where it can be told with the band and the file.
    with np.errstate(over="ignore"):
        ivar = (ivar / njy**2).astype(np.float32)
        flux = (np.where(ivar > 0, image.data, 0) * njy).astype(np.float32)
    if not (np.isfinite(ivar).all() and np.isfinite(flux).all()):
        raise InputError(f"{label}: fluxes or errors overflow at {njy:.3g} nJy a count ({image.address})")
    return flux, ivar, empty


def _read_image(address: str, folder: Path, label: str, part: tuple[range, range] | None) -> FitsImage:
    if part is None:
        return read_image(address, folder, label)
    inside = (slice(part[0].start, part[0].stop), slice(part[1].start, part[1].stop))
    return read_image(address, folder, label, view=lambda *_: inside)


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
    band, lags, shape = exposure.band, exposure.correlation, grid.shape
    if exposure.read is not None and lags is not None:
        shape = (2 * max(lags.shape[0], LAGS), 2 * max(lags.shape[1], LAGS))
    power = None if lags is None else power_spectrum(torch.tensor(lags)[None], shape).float()
    if (read := exposure.read) is not None:

        def pixels(rows: range, columns: range) -> tuple[torch.Tensor, torch.Tensor]:
            flux, ivar = read(rows, columns)
            return torch.tensor(flux)[None], torch.tensor(ivar)[None]

        return OnDisk.of(band, frame, pixels, power)
    return Observation(band, frame, torch.tensor(exposure.image)[None], torch.tensor(exposure.ivar)[None], power)


def read_psf(address: str, folder: Path, label: str) -> tuple[np.ndarray, float | None]:
    """A PSF (n, n) of unit sum and its pixel in arcsec (header PIXSCALE; None where absent).

    Raises InputError for a stamp that is not square, not finite, too large, or whose sum is outside PSF_SUMS.
    """
    stamp = read_image(address, folder, label, MAX_PSF**2)
    return normalised(stamp.data, label, stamp.address), psf_pixel(stamp, label)


def normalised(psf: np.ndarray, label: str, place: str) -> np.ndarray:
    """A PSF stamp, checked, and its sum made one, told of with a warning. Raises InputError as read_psf does."""
    if psf.shape[0] != psf.shape[1]:
        raise InputError(f"{label}: PSF of {_size(psf.shape)} pixels, expected a square ({place})")
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
        raise InputError(f"{label}: noise correlation of {_size(lags.shape)} lags, expected odd sides ({place})")
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


def _read_like(
    image: FitsImage, address: str, folder: Path, label: str, role: str, part: tuple[range, range] | None
) -> FitsImage:
    """The image at ``address``, or a part of it, of the same shape as ``image``."""
    other = _read_image(address, folder, label, part)
    if other.whole != image.whole:
        raise InputError(
            f"{label}: image is {_size(image.whole)} pixels but {role} is {_size(other.whole)} "
            f"({image.address}, {other.address})"
        )
    return other


def _inverse_variance(noise: FitsImage, kind: str, masked: np.ndarray, label: str) -> tuple[np.ndarray, int]:
    """1/variance in counts⁻², (h, w), zero where masked or where the noise is not finite or not positive; and in how
    many pixels it is zero, though it should not be."""
    values, place = noise.data, noise.address
    negative = (values < 0) & ~masked
    if negative.any():
        lowest = values[negative].min()
        raise InputError(f"{label}: {kind} is negative in {negative.sum()} pixels, down to {lowest:.3g} ({place})")
    empty = (values == 0) & ~masked
    good = np.isfinite(values) & (values > 0) & ~masked
    power = {"variance": -1, "weight": 1, "rms": -2}[kind]
    return np.power(values, power, out=np.zeros_like(values), where=good), int(kind != "weight" and empty.sum())


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


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
