"""Real pairs: HST F814W and HSC g r i z y of four COSMOS fields, whose astrometry differs by 20 to 140 mas."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import uniform_filter

from jointdiff.io.wcs import celestial_wcs, fit_grid, image_centre
from jointdiff.reconstruct.align import align_field
from jointdiff.reconstruct.field import pad_field
from jointdiff.scene import Band, Frame, Grid, Observation
from tests.denoisers import DEMO_BANDS, untrained

FIELDS = ("150.23115_2.07250", "150.24071_2.06514", "150.25370_2.04800", "150.33052_2.07076")
BIN = 3
"""HST pixels of 0.03 arcsec are summed to 0.09: a scene of 0.1 arcsec holds no more."""


def _read(folder: Path, name: str, band: Band) -> Observation:
    """One image, as bright as the others (colours are lost), about the middle of HST's; noise from its sky."""
    pixels, header = fits.getdata(folder / f"{name}.fits", header=True)
    pixels, psf = pixels.astype(float), fits.getdata(folder / f"{name}_psf.fits").astype(float)
    wcs, scale = celestial_wcs(header, band.name, name), 1.0
    hst = celestial_wcs(fits.getheader(folder / "hst.fits"), "VIS", "hst")
    centre = image_centre(hst, fits.getdata(folder / "hst.fits").shape, "VIS", "hst")
    if name == "hst":
        rows, columns = (n // BIN for n in pixels.shape)
        pixels = pixels[: rows * BIN, : columns * BIN].reshape(rows, BIN, columns, BIN).sum((1, 3))
        wcs, psf, scale = wcs.slice((slice(None, None, BIN),) * 2), uniform_filter(psf, BIN, mode="constant"), 1 / BIN
    pixels = (pixels - np.median(pixels)) * 3e3 / pixels.sum()
    sigma = 1.4826 * np.median(np.abs(pixels))
    frame = Frame(
        fit_grid(wcs, pixels.shape, centre, band.name, name), torch.tensor(psf / psf.sum())[None].float(), scale
    )
    image = torch.tensor(pixels)[None].float()
    return Observation(band, frame, image, torch.full_like(image, sigma**-2))


@pytest.mark.parametrize("name", FIELDS)
def test_hsc_bands_are_off_hst_by_one_shift(name, real_data):
    """20 to 140 mas, the same in every band to its error and 20 mas, which galaxies' colour gradients look like."""
    folder, names = real_data / "hst_hsc" / name, ["hst", *"grizy"]
    seen = [_read(folder, n, Band(*band)) for n, band in zip(names, DEMO_BANDS, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of correlated noise
        found = align_field(pad_field(seen, Grid.centred((64, 64), 0.1), untrained()), untrained())[1]
    assert found is not None
    value, error = (a[0, 1:].double() for a in (found.shifts.value, found.shifts.error))
    print(name, [f"{b} {y:+.0f} {x:+.0f}" for b, (y, x) in zip("grizy", (1e3 * value).tolist(), strict=True)], error)
    weight = error**-2
    common = (weight * value).sum(0) / weight.sum(0)
    assert 0.02 < common.norm() < 0.14
    assert ((value - common).abs() < 3 * torch.hypot(error, torch.tensor(0.02).double())).all()
    assert common.norm() > 4 * weight.sum(0).rsqrt().max()
