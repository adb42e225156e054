"""What every reader of archive products shares: the product, the part of the sky that is wanted, PSF stamps."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, NoConvergence

from jointdiff.errors import InputError
from jointdiff.io.fits import FitsImage, Part, read_image
from jointdiff.io.observations import MAX_OFFSET, Exposure, normalised
from jointdiff.io.surveys.sky import measure_sky, variance_of
from jointdiff.io.wcs import celestial_wcs, image_centre
from jointdiff.scene import Band
from jointdiff.survey import Depth
from jointdiff.units import ARCSEC_PER_DEGREE, njy_per_count


@dataclass(frozen=True, eq=False)
class Product:
    """One band of one field as an archive serves it: pixels in nJy, and what the user should know of them.

    unknown: (h, w), true where the archive's variance is none, which masks a pixel; None where all are known.
    """

    exposure: Exposure
    notes: tuple[str, ...] = ()
    unknown: np.ndarray | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """The notes, and how many pixels have no variance."""
        count = 0 if self.unknown is None else int(self.unknown.sum())
        return (
            (*self.notes, f"variance zero or not finite in {count} pixels, which are masked") if count else self.notes
        )

    def describe(self) -> str:
        """One line for the console: band, filter, size, typical noise, what is unusable, and the notes."""
        exposure, seen = self.exposure, self.exposure.ivar > 0
        height, width = seen.shape
        noise = float(np.median(exposure.ivar[seen])) ** -0.5
        text = f"{exposure.band.name}: {exposure.band.filter}, {height} × {width} pixels, noise {noise:.3g} nJy a pixel"
        text += f", {1 - seen.mean():.1%} masked" if not seen.all() else ""
        return "; ".join([text, *self.told])


@dataclass(frozen=True)
class Wanted:
    """A square of the sky: centre ICRS (ra, dec), degrees; side in arcsec. A View (io/fits.py) of any image."""

    centre: tuple[float, float]
    side: float

    def __call__(self, header: fits.Header, shape: tuple[int, int], label: str, place: str) -> Part:
        """Rows and columns of the square, cut at the image's edges. Raises InputError where its centre is outside."""
        return self.part(celestial_wcs(header, label, place), shape, label, place)

    def part(self, wcs: WCS, shape: tuple[int, int], label: str, place: str) -> Part:
        """The same, of an image whose WCS is known."""
        try:
            x, y = wcs.celestial.world_to_pixel(_icrs(self.centre))
        except (NoConvergence, ValueError):
            x = y = math.nan
        if not (-0.5 <= y <= shape[0] - 0.5 and -0.5 <= x <= shape[1] - 0.5):
            middle = image_centre(wcs, shape, label, place)
            there, here = (f"({ra:.5f}, {dec:.5f})" for ra, dec in (self.centre, middle))
            raise InputError(f"{label}: {there} is outside the image, whose middle is at {here} ({place})")
        half, parts = self.side / _pixel(wcs) / 2, []
        for middle, length in ((y, shape[0]), (x, shape[1])):
            # A pixel belongs to the square if its centre does, with room for the rounding of a WCS; the nearest always.
            nearest = min(round(float(middle)), length - 1)
            start = min(max(0, math.ceil(middle - half - 1e-6)), nearest)
            parts.append(slice(start, max(min(length, math.floor(middle + half + 1e-6) + 1), nearest + 1)))
        return parts[0], parts[1]


def cut(product: Product, wanted: Wanted) -> Product:
    """The square of a product. Raises InputError where its centre is outside the image, or all of it is masked."""
    exposure = product.exposure
    rows, columns = wanted.part(exposure.wcs, exposure.image.shape, exposure.band.name, exposure.place)
    inside = exposure.part(rows, columns)
    if not inside.ivar.any():
        raise InputError(f"{exposure.band.name}: all {inside.ivar.size} pixels are masked ({exposure.place})")
    unknown = None if product.unknown is None else product.unknown[rows, columns]
    part = Product(inside, product.notes, unknown)
    height, width = (side * _pixel(exposure.wcs) for side in inside.image.shape)
    if min(height, width) > wanted.side - 2 * _pixel(exposure.wcs):
        return part
    return replace(part, notes=(*part.notes, f"the image ends within it: {height:.1f} × {width:.1f} arcsec"))


def _pixel(wcs: WCS) -> float:
    """Side of a pixel, arcsec."""
    return math.sqrt(abs(np.linalg.det(wcs.celestial.pixel_scale_matrix))) * ARCSEC_PER_DEGREE


def _icrs(centre: tuple[float, float]):
    from astropy.coordinates import SkyCoord

    return SkyCoord(*centre, unit="deg", frame="icrs")


def make_product(
    band: Band,
    image: FitsImage,
    zeropoint: float,
    variance: np.ndarray | Depth,
    masked: np.ndarray | None,
    psf: FitsImage,
    psf_pixel: float | None,
    notes: Sequence[str] = (),
) -> Product:
    """Counts to nJy, and variance to inverse variance, zero where masked.

    zeropoint: AB mag of one count. variance: (h, w), counts²; or where there is none, what the survey is like: then it
    is measured on the sky, and a note says so. masked: (h, w), true where a pixel is not to be used. psf_pixel: arcsec,
    None for the image's. Raises InputError for variances and PSFs that are not physical.
    """
    label, notes, unknown = band.name, list(notes), None
    njy = njy_per_count(zeropoint)
    flux, seen = image.data * njy, np.isfinite(image.data)
    if masked is not None:
        seen &= ~masked
    if not seen.any():
        raise InputError(f"{label}: all {seen.size} pixels are masked ({image.address})")
    if isinstance(variance, Depth):
        sky = measure_sky(np.where(seen, flux, 0.0), seen, label, image.address)
        variance = variance_of(np.where(seen, flux, sky.level), sky, variance)
        notes.append(
            f"no variance plane: noise of {sky.sigma:.3g} nJy a pixel measured on {round(sky.share * seen.sum())} "
            f"pixels of sky (level {sky.level:+.2g} nJy), Poisson noise of sources by the survey's sky brightness"
        )
    else:
        variance = variance * njy**2
        unknown = seen & ~(np.isfinite(variance) & (variance > 0))
    seen &= np.isfinite(variance) & (variance > 0)
    ivar = np.where(seen, 1 / np.where(seen, variance, 1.0), 0.0).astype(np.float32)
    if not (np.isfinite(ivar).all() and ivar.any()):
        raise InputError(f"{label}: no pixel has a finite, positive variance ({image.address})")
    wcs = celestial_wcs(image.header, label, image.address)
    stamp = unit_psf(psf, label, notes)
    flux = np.where(seen, flux, 0.0).astype(np.float32)
    return Product(Exposure(band, flux, ivar, stamp, psf_pixel, wcs, image.address), tuple(notes), unknown)


def unit_psf(psf: FitsImage, label: str, notes: list[str]) -> np.ndarray:
    """A stamp (n, n), its star in the middle, of unit sum; what was done to it is added to ``notes``.

    A star centred on a pixel beside the middle, as in all stamps of even sides, is brought there by leaving out rows
    and columns on the far side.
    """
    stamp = _centred(psf.data) if np.isfinite(psf.data).all() else psf.data
    if stamp.shape != psf.data.shape:
        notes.append(f"PSF of {psf.data.shape[0]} pixels centred beside its middle: cut to {stamp.shape[0]}")
    total = float(stamp.sum())
    with warnings.catch_warnings():  # the note says it, and the file that is written needs no other word
        warnings.filterwarnings("ignore", ".*and is normalised")
        result = normalised(stamp, label, psf.address)
    if abs(total - 1) > 1e-3:
        notes.append(f"PSF sums to {total:.4f}: normalised")
    return result


def _centred(stamp: np.ndarray) -> np.ndarray:
    """Without what is farther on one side of the brightest row and column, where the centroid is nearer to these.

    Square where the stamp was. Sides of an even and of an odd length have no common middle: the longer one then loses a
    row or column more, on the side farther from its centroid, and the star lies half a pixel beside the middle.
    """
    parts, centroids = [], []
    for axis, n in enumerate(stamp.shape):
        line, offset = stamp.sum(1 - axis), np.arange(n) - (n - 1) / 2
        peak = float(offset[line.argmax()])
        centroid = float(line @ offset) / total if (total := float(line.sum())) > 0 else 0.0
        beside = abs(peak) <= MAX_OFFSET and abs(centroid - peak) < abs(centroid)
        far = round(2 * abs(peak)) if beside else 0
        parts.append([far, n] if peak > 0 else [0, n - far])
        centroids.append(centroid)
    sides = [stop - start for start, stop in parts]
    for part, side, n, centroid in zip(parts, sides, stamp.shape, centroids, strict=True):
        evenly, odd = divmod(side - min(sides), 2)
        low = odd * (centroid > (sum(part) - n) / 2)
        part[:] = part[0] + evenly + low, part[1] - evenly - (odd - low)
    return stamp[slice(*parts[0]), slice(*parts[1])]


def read_beside(address: str, label: str, image: FitsImage) -> FitsImage:
    """The same pixels of another plane as were read of ``image``; such a plane may have no WCS of its own.

    Raises InputError where the two planes do not have the same shape.
    """

    def same(header: fits.Header, shape: tuple[int, int], label: str, place: str) -> Part:
        if shape != image.whole:
            found, expected = (" × ".join(map(str, sides)) for sides in (shape, image.whole))
            raise InputError(f"{label}: {found} pixels, but the image has {expected} ({place}, {image.address})")
        return image.part or (slice(0, shape[0]), slice(0, shape[1]))

    return read_image(address, Path(), label, view=same)


def check_pixels(header: fits.Header, scale: float, label: str, place: str) -> None:
    """Raises InputError for pixels that are not the survey's ``scale`` (arcsec), to a twentieth: those of another."""
    found = _pixel(celestial_wcs(header, label, place))
    if not 0.95 * scale < found < 1.05 * scale:
        raise InputError(f"{label}: pixels of {found:.4g} arcsec, expected {scale:g} ({place})")


def bits(mask: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """True where any of the numbered bits of a mask plane is set."""
    value = sum(1 << number for number in numbers)
    return (np.asarray(mask, dtype=np.int64) & value) != 0


def only_one(found: Sequence[Path], label: str, what: str) -> Path:
    """The one file of a kind. Raises InputError for none or several."""
    if not found:
        raise InputError(f"{label}: no {what} among the files")
    if len(found) > 1:
        raise InputError(f"{label}: {len(found)} files are its {what}: {', '.join(map(str, found))}")
    return found[0]
