"""A good scene folder, in counts and in separate files as an archive serves them, for tests to read or to break."""

from pathlib import Path

import numpy as np
import yaml
from astropy.io import fits

SIZE = {"VIS": 40, "g": 24}
SCALE = {"VIS": 0.1, "g": 0.168}
ZEROPOINT = {"VIS": 24.6, "g": 30.0}
CENTRE = (150.1, 2.2)


def tan_header(size: int, scale: float, centre=CENTRE, angle: float = 0.0) -> fits.Header:
    """A header whose image's middle lies at ``centre``, north up and east left, turned by ``angle`` (radians)."""
    cos, sin = np.cos(angle) * scale / 3600, np.sin(angle) * scale / 3600
    return fits.Header(
        {
            "CTYPE1": "RA---TAN",
            "CTYPE2": "DEC--TAN",
            "CRVAL1": centre[0],
            "CRVAL2": centre[1],
            "CRPIX1": (size + 1) / 2,
            "CRPIX2": (size + 1) / 2,
            "CD1_1": -cos,
            "CD1_2": sin,
            "CD2_1": sin,
            "CD2_2": cos,
        }
    )


def gaussian_psf(size: int = 21, sigma: float = 2.0) -> np.ndarray:
    offset = np.arange(size) - (size - 1) / 2
    psf = np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * sigma**2))
    return psf / psf.sum()


def write_good_scene(folder: Path) -> Path:
    """VIS and g: image and variance in counts, mask (one pixel), PSF; returns scene.yaml's path."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for band, n in SIZE.items():
        fits.writeto(folder / f"{band}.fits", rng.normal(size=(n, n)), tan_header(n, SCALE[band]))
        fits.writeto(folder / f"{band}_var.fits", rng.uniform(0.5, 2, size=(n, n)))
        mask = np.zeros((n, n), np.int16)
        mask[3, 5] = 4
        fits.writeto(folder / f"{band}_mask.fits", mask)
        fits.writeto(folder / f"{band}_psf.fits", gaussian_psf(), fits.Header({"PIXSCALE": SCALE[band]}))
        files = {"image": "", "variance": "_var", "mask": "_mask", "psf": "_psf"}
        files = {key: f"{band}{suffix}.fits" for key, suffix in files.items()}
        entries.append({"band": band, **files, "zeropoint": ZEROPOINT[band]})
    return write_yaml(folder, {"name": "good", "reference": "VIS", "observations": entries})


def write_yaml(folder: Path, content) -> Path:
    path = folder / "scene.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def edit_yaml(path: Path, edit) -> None:
    """Change a scene file's content in place with ``edit(content)``."""
    content = yaml.safe_load(path.read_text())
    edit(content)
    path.write_text(yaml.safe_dump(content))


def edit_pixels(path: Path, edit) -> None:
    """Replace the pixels of a FITS file's first HDU by ``edit(pixels)``."""
    pixels, header = fits.getdata(path, header=True)
    fits.writeto(path, edit(pixels), header, overwrite=True)


def edit_header(path: Path, **cards) -> None:
    """Set (or, with None, remove) cards of a FITS file's first HDU."""
    pixels, header = fits.getdata(path, header=True)
    for key, value in cards.items():
        if value is None:
            header.remove(key)
        else:
            header[key] = value
    fits.writeto(path, pixels, header, overwrite=True)
