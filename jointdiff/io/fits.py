"""Images in FITS files: found, bounded and checked before a pixel is read."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from jointdiff.errors import InputError
from jointdiff.io.atomic import atomic_path

MAX_PIXELS = 16384**2
"""Most pixels read from one image: a 27-arcmin tile at 0.1 arcsec, 1 GB in float32."""

MAX_CUBE = 2**32
"""Most pixels read from one cube of samples: 16 GB in float32."""

Part = tuple[slice, slice]
"""Rows and columns of an image."""

View = Callable[[fits.Header, tuple[int, int], str, str], Part]
"""From an image's header, shape, label and address to the part of it that is wanted."""

_TRUNCATION_WARNINGS = ("File may have been truncated", "(?s)Error validating header")

_ADDRESS = re.compile(r"(?P<file>.+?)(?:\[(?P<hdu>[^\[\]]+)\])?")


@dataclass(frozen=True)
class FitsImage:
    """The pixels of one HDU (float64, native byte order, its own units), its header and its address.

    part: what was read of it, where that was not all; the header is then that part's. whole: the shape of all.
    """

    data: np.ndarray
    header: fits.Header
    address: str
    part: Part | None = None
    whole: tuple[int, ...] = ()


def read_image(
    address: str, folder: Path, label: str, max_pixels: int = MAX_PIXELS, view: View | None = None
) -> FitsImage:
    """The 2-D image at ``address``: ``a.fits`` (its first 2-D HDU) or ``a.fits[HDU]`` (name, NAME,VERSION or number).

    A relative path starts from ``folder``; ``label`` begins every message. view: says which part of it to read.
    Raises InputError where the file or HDU is missing, truncated, not FITS, not 2-D or above ``max_pixels``.
    """
    with _found(address, folder, label) as (hdu, place):
        header, part = hdu.header.copy(), None
        if view is not None and len(hdu.shape) == 2:
            part = view(header, hdu.shape, label, place)
            for axis, inside in ((1, part[1]), (2, part[0])):
                if f"CRPIX{axis}" in header:
                    header[f"CRPIX{axis}"] -= inside.start
        data = load_pixels(hdu, label, place, 2, max_pixels, part)
        return FitsImage(data.astype(np.float64), header, place, part, hdu.shape)


def describe_image(address: str, folder: Path, label: str) -> tuple[fits.Header, tuple[int, ...], str]:
    """Header, shape and address of what read_image would read, of which no pixel is read or checked."""
    with _found(address, folder, label) as (hdu, place):
        return hdu.header.copy(), tuple(getattr(hdu, "shape", ())), place


@contextmanager
def _found(address: str, folder: Path, label: str) -> Iterator[tuple]:
    """The HDU at an address, its file open, and where it is."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(f"{label}: {address!r} is not a FITS file or file[HDU]")
    path = folder / match["file"]
    place = f"{path}[{match['hdu']}]" if match["hdu"] else str(path)
    with open_fits(path, label) as hdus:
        yield _find_hdu(hdus, match["hdu"], path, label), place


@contextmanager
def open_fits(path: Path, label: str) -> Iterator[fits.HDUList]:
    """A FITS file open for reading; a missing or unreadable one is an InputError that ``label`` begins."""
    if not path.is_file():
        raise InputError(f"{label}: no such file ({path})")
    with warnings.catch_warnings():
        for message in _TRUNCATION_WARNINGS:  # told as an error, with the bytes, by check_length
            warnings.filterwarnings("ignore", message)
        try:
            hdus = fits.open(path, mode="readonly", memmap=False, lazy_load_hdus=True)
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"{label}: not a readable FITS file: {one_line(error)} ({path})") from error
        with hdus:
            yield hdus


def load_pixels(hdu, label: str, place: str, ndim: int, max_pixels: int, part: Part | None = None) -> np.ndarray:
    """The pixels of an HDU of ``ndim`` axes, or a part of them, its size checked from the header first.

    Raises InputError for another shape, more than ``max_pixels``, or a file cut short; ``place`` ends every message.
    """
    shape = hdu.shape if getattr(hdu, "is_image", False) else ()
    size = " × ".join(map(str, shape)) or "none"
    wanted = shape if part is None else [inside.stop - inside.start for inside in part]
    if len(shape) != ndim or 0 in shape:
        raise InputError(f"{label}: expected an image of {ndim} axes, found {size} ({place})")
    if np.prod(wanted, dtype=float) > max_pixels:
        raise InputError(f"{label}: an image of {size} is above the limit of {max_pixels} pixels ({place})")
    check_length(hdu, label, place)
    try:
        return hdu.data if part is None else hdu.section[part]
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise InputError(f"{label}: pixels cannot be read: {one_line(error)} ({place})") from error


def one_line(error: Exception) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split())


def write_fits(path: str | Path, hdus: list) -> None:
    """Write HDUs, the primary first, as a whole file or none."""
    with atomic_path(path) as temporary:
        fits.HDUList(hdus).writeto(temporary, overwrite=True)


def _find_hdu(hdus: fits.HDUList, key: str | None, path: Path, label: str):
    if key is None:
        for hdu in hdus:
            if hdu.is_image and len(hdu.shape) == 2:
                return hdu
        raise InputError(f"{label}: no HDU with a 2-D image; found {_describe(hdus)} ({path})")
    name, _, version = key.partition(",")
    try:
        return hdus[int(name)] if name.isdigit() else hdus[(name, int(version or 1))]
    except (KeyError, IndexError, ValueError) as error:
        check_length(hdus[-1], label, str(path))
        raise InputError(f"{label}: no HDU {key}; found {_describe(hdus)} ({path})") from error


def _describe(hdus: fits.HDUList) -> str:
    """The HDUs by number and name, the first twenty."""
    names = [f"{number} {hdu.name}".strip() for number, hdu in enumerate(hdus)]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def check_length(hdu, label: str, place: str) -> None:
    """A file cut short inside this HDU is refused (astropy would only warn); inside .gz and .bz2, reading fails."""
    path = Path(hdu.fileinfo()["file"].name)
    if path.suffix in (".gz", ".bz2"):
        return
    expected = hdu.fileinfo()["datLoc"] + hdu.fileinfo()["datSpan"]
    found = path.stat().st_size
    if found < expected:
        raise InputError(f"{label}: truncated: {expected} bytes expected, {found} found ({place})")
