"""Small SKIRT images of one galaxy, in the layout of the simulations' files."""

from pathlib import Path

import numpy as np
from astropy.io import fits

PIXEL = 0.25
"""kpc."""


def gaussian_light(n: int, sigma: float) -> np.ndarray:
    """Brightness of a round galaxy of ``sigma`` kpc, maggies per arcsec², 20 mag/arcsec² in its middle."""
    offset = PIXEL * (np.arange(n) - (n - 1) / 2)
    return 10 ** (-0.4 * 20.0) * np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * sigma**2))


def write_picture(folder: Path, band: str, light: np.ndarray, name: str = "a", **cards) -> Path:
    """One file a band; cards replace those of a merger of SKIRT's, None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"BUNIT": "AB mag/arcsec2", "CTYPE1": "pc", "CDELT1": 1000 * PIXEL, "SIMTAG": "sim", "SUBTAG": name}
    header |= {"ISNAP": 1, "CAMERA": "i0", "FILTER": f"{band}_SDSS.res", "REDSHIFT": 0.05}
    header = {key: value for key, value in (header | cards).items() if value is not None}
    with np.errstate(divide="ignore"):
        image = -2.5 * np.log10(light)
    path = folder / f"photo_{band}_{name}_{header.get('CAMERA', '')}_{header.get('ISNAP', '')}.fits"
    fits.writeto(path, image, fits.Header(header))
    return path


def write_tng(folder: Path, light: np.ndarray, filters: tuple[str, ...], subhalo: int = 17) -> Path:
    """A galaxy of TNG: a file a camera, an HDU a filter, pixels in kpc, dark pixels of 99 mag/arcsec²."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.where(light > 0, -2.5 * np.log10(np.where(light > 0, light, 1.0)), 99.0).astype(np.float32)
    header = {"SIMTAG": "TNG50-1", "SNAPNUM": 91, "SUBHALO": subhalo, "CAMERA": "v0", "REDSHIFT": 0.0994}
    header |= {"BUNIT": "AB mag/arcsec2", "FOVSIZE": PIXEL * len(light), "CTYPE1": "kpc", "CDELT1": PIXEL}
    hdus = [fits.ImageHDU(image, fits.Header(header | {"FILTER": name}), name=name) for name in filters]
    path = folder / f"shalo_091-{subhalo}_v0_photo.fits"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path
