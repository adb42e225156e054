"""Small files laid out as archive products that cannot be in the repository: MER tiles, Rubin coadds, mosaics."""

from pathlib import Path

import numpy as np
from astropy.io import fits

from tests.scene_folders import CENTRE, gaussian_psf, tan_header

TILE = "TILE102018211-ACBD03_20241018T142710.276838Z_00.00.fits"


def noise(shape, sigma: float, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sigma, shape).astype(np.float32)


def write_tile(folder: Path, band: str = "VIS", shape=(60, 80), zeropoint: float = 24.6) -> dict[str, Path]:
    """A MER tile of one band: mosaic, RMS, FLAG (pixel (20, 30) saturated, (21, 30) a mere edge) and catalogue PSF.

    The stamps of the PSF file have a width of 1 pixel in the west of the tile and of 1.5 in the east.
    """
    header = tan_header(max(shape), 0.1)
    header["CRPIX1"], header["CRPIX2"] = (shape[1] + 1) / 2, (shape[0] + 1) / 2
    header["MAGZERO"], header["FILTER"] = zeropoint, band.replace("-", "_")
    flags = np.zeros(shape, np.int32)
    flags[20, 30], flags[21, 30] = 8, 64
    paths = {
        "image": folder / f"EUC_MER_BGSUB-MOSAIC-{band}_{TILE}",
        "rms": folder / f"EUC_MER_MOSAIC-{band}-RMS_{TILE}",
        "flag": folder / f"EUC_MER_MOSAIC-{band}-FLAG_{TILE}",
        "psf": folder / f"EUC_MER_CATALOG-PSF-{band}_{TILE}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    fits.writeto(paths["image"], noise(shape, 0.01), header)
    fits.writeto(paths["rms"], np.full(shape, 0.01, np.float32), header)
    fits.writeto(paths["flag"], flags, header)
    stamps = np.hstack([gaussian_psf(21, 1.0), gaussian_psf(21, 1.5)])
    east = 4 / 3600 / np.cos(np.radians(CENTRE[1]))
    columns = {"RA": [CENTRE[0] - east, CENTRE[0] + east], "Dec": [CENTRE[1]] * 2, "FWHM": [0.2, 0.3]}
    columns |= {"x": [10.0, 70.0], "y": [30.0, 30.0], "x_center": [11.0, 32.0], "y_center": [11.0, 11.0]}
    table = fits.BinTableHDU.from_columns([fits.Column(name=k, format="D", array=v) for k, v in columns.items()])
    mosaic = fits.ImageHDU(stamps, fits.Header({"STMPSIZE": 21}))
    fits.HDUList([fits.PrimaryHDU(), mosaic, table]).writeto(paths["psf"])
    return paths


def write_coadd(path: Path, band: str = "r", n: int = 40, scale: float = 0.2, **cards) -> Path:
    """A Rubin deep coadd: image (nJy), mask (pixel (3, 5) saturated, (4, 5) detected) and variance, compressed."""
    header = tan_header(n, scale)
    header["BUNIT"] = "nJy"
    primary = fits.PrimaryHDU(header=fits.Header({"FILTER": band}))
    for key, value in cards.items():
        primary.header[key] = value
    mask = np.zeros((n, n), np.int32)
    mask[3, 5], mask[4, 5] = 1 << 1, 1 << 5
    planes = [fits.CompImageHDU(noise((n, n), 6.0), header, name="IMAGE", compression_type="GZIP_2", quantize_level=0)]
    planes += [fits.CompImageHDU(mask, fits.Header({"MP_BAD": 0, "MP_SAT": 1, "HIERARCH MP_DETECTED": 5}), name="MASK")]
    planes += [
        fits.CompImageHDU(
            np.full((n, n), 36.0, np.float32), name="VARIANCE", compression_type="GZIP_2", quantize_level=0
        )
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([primary, *planes]).writeto(path)
    return path


def write_afw_psf(path: Path, n: int = 41, shift: int = 0) -> Path:
    """A PSF image of the Science Pipelines; shift: pixels from the middle, rounded up, along both axes."""
    offset = np.arange(n) - n // 2 - shift
    psf = np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * 2.0**2))
    cards = {"CTYPE1A": "LINEAR", "CTYPE2A": "LINEAR", "CRVAL1A": -(n // 2), "CRVAL2A": -(n // 2)}
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.writeto(path, psf / psf.sum(), fits.Header(cards))
    return path


def write_mosaic(folder: Path, n: int = 200, weights: bool = True) -> list[Path]:
    """A COSMOS F814W mosaic (electrons a second) with a star of 5000 nJy in its middle, weights and a PSF."""
    folder.mkdir(parents=True, exist_ok=True)
    psf = gaussian_psf(51, 1.4)
    njy = 10 ** (0.4 * (31.4 - 25.94))
    image = noise((n, n), 0.1 / njy)
    middle = slice(n // 2 - 25, n // 2 + 26)
    image[middle, middle] += 5000 / njy * psf
    header = tan_header(n, 0.03)
    header["CRPIX1"] = header["CRPIX2"] = n // 2 + 1  # the star is at CENTRE
    paths = [folder / f"acs_I_030mas_077_{kind}.fits" for kind in ("sci", "wht", "psf")]
    fits.writeto(paths[0], image, header)
    fits.writeto(paths[1], np.where(np.arange(n) < n // 2, 2000.0, 1000.0) * np.ones((n, 1)), header)
    fits.writeto(paths[2], psf, fits.Header({"PIXSCALE": 0.03}))
    return paths if weights else [paths[0], paths[2]]
