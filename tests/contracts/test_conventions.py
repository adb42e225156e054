"""Archive files in whatever convention: WCS keywords, scaled and compressed pixels, PSFs beside the middle."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from jointdiff.errors import InputError
from jointdiff.io.fits import FitsImage
from jointdiff.io.surveys.hst import read_cosmos
from jointdiff.io.surveys.product import unit_psf
from jointdiff.units import njy_per_count
from tests.archive_files import write_afw_psf, write_mosaic, write_tile
from tests.contracts.test_ingest import by_band, distance, field
from tests.scene_folders import edit_header, gaussian_psf, tan_header


@pytest.mark.parametrize("kind", ["pc", "rotated pc", "cdelt", "crota", "sip", "scaled", "compressed", "swapped"])
def test_one_sky_in_whatever_convention(kind, tmp_path):
    """PC, CDELT and CROTA2, SIP, scaled integers, compression, either byte order: the same part of the same sky."""
    paths = write_tile(tmp_path / "tile")
    pixels, header = fits.getdata(paths["image"], header=True)
    expected = WCS(tan_header(80, 0.1, angle=0.5 if kind in ("rotated pc", "crota") else 0.0))
    expected.wcs.crpix = [header["CRPIX1"], header["CRPIX2"]]
    hdu = fits.PrimaryHDU(pixels.copy(), _convention(header, kind))
    if kind == "scaled":
        hdu.scale("int16", bscale=1e-5, bzero=0.1)
    if kind == "compressed":
        hdu = fits.CompImageHDU(pixels, header, compression_type="GZIP_2", quantize_level=0)
    if kind == "swapped":
        hdu = fits.PrimaryHDU(pixels.astype("<f8"), header)
    hdus = [hdu] if isinstance(hdu, fits.PrimaryHDU) else [fits.PrimaryHDU(), hdu]
    fits.HDUList(hdus).writeto(paths["image"], overwrite=True)
    centre = expected.pixel_to_world(50, 25)
    options = ("--centre", f"[{centre.ra.deg:.9f},{centre.dec.deg:.9f}]", "--size", "2.04")
    scene = field("euclid-q1", paths.values(), tmp_path / "scene", *options)
    image = by_band(scene)["VIS"].image[0].numpy()
    assert image.shape == (21, 21)
    part = pixels[15:36, 40:61]
    seen = image != 0  # but a saturated pixel
    np.testing.assert_allclose(image[seen], njy_per_count(24.6) * part[seen], rtol=1e-5, atol=3e-3)
    assert distance(scene.wcs, expected, [(0, 0), (20, 20)], [(40, 15), (60, 35)]) < 1e-4


def _convention(header: fits.Header, kind: str) -> fits.Header:
    """The header's north-up CD matrix in other words; with SIP, of no distortion to speak of."""
    header = header.copy()
    if kind in ("scaled", "compressed", "swapped"):
        return header
    if kind == "sip":
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
        header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-9, "B_0_2": 1e-9})
        return header
    for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        del header[key]
    header["CDELT1"], header["CDELT2"] = -0.1 / 3600, 0.1 / 3600
    if kind == "crota":
        header["CROTA2"] = np.degrees(-0.5)
    if kind == "rotated pc":
        cos, sin = np.cos(0.5), np.sin(0.5)
        header.update({"PC1_1": cos, "PC1_2": -sin, "PC2_1": sin, "PC2_2": cos})
    return header


@pytest.mark.parametrize(("n", "shift", "size"), [(41, 0, 41), (42, 0, 41), (42, -1, 41), (41, 1, 39), (41, -2, 37)])
def test_a_psf_beside_the_middle_is_brought_there(n, shift, size, tmp_path):
    stamp = fits.getdata(write_afw_psf(tmp_path / "psf.fits", n, shift))
    notes: list[str] = []
    psf = unit_psf(FitsImage(stamp, fits.Header(), "psf.fits"), "r", notes)
    assert psf.shape == (size, size)
    assert np.unravel_index(psf.argmax(), psf.shape) == (size // 2, size // 2)
    assert bool(notes) == (size < n)


def test_a_psf_beside_the_middle_along_one_axis_stays_square():
    stamp = np.roll(gaussian_psf(31, 2.0), 1, axis=0)
    psf = unit_psf(FitsImage(stamp, fits.Header(), "psf.fits"), "r", [])
    assert psf.shape == (29, 29)
    assert np.unravel_index(psf.argmax(), psf.shape) == (14, 14)


@pytest.mark.parametrize("by", [0.05, -0.05])
def test_a_psf_on_a_pixel_along_one_axis_and_between_two_along_the_other_stays_square(by):
    """Of an even side, as afw's are: half a pixel beside the middle along one axis, which is told."""
    offset = np.arange(42) - 20.5
    across, along = (np.exp(-((offset - at) ** 2) / 8) for at in (by, 0.5))
    stamp = np.outer(across, along) / (across.sum() * along.sum())
    with pytest.warns(UserWarning, match=r"r: PSF is 0\.45 pixels from the middle of its stamp"):
        psf = unit_psf(FitsImage(stamp, fits.Header(), "psf.fits"), "r", notes := [])
    assert psf.shape == (41, 41) and notes == ["PSF of 42 pixels centred beside its middle: cut to 41"]
    rows = slice(1, 42) if by > 0 else slice(0, 41)
    np.testing.assert_allclose(psf, stamp[rows, 1:], rtol=1e-6)


@pytest.mark.parametrize(
    "unit", ["electrons s^-1", "ct/s", "ELECTRONS/S", "e-/s", "counts s**-1", "electron s-1", "cps"]
)
@pytest.mark.parametrize("name", ["ACS_F814W", "F814W", "CLEAR1L", "ACS/WFC F814W"])
def test_f814w_in_electrons_a_second_by_whatever_words(unit, name, tmp_path):
    paths = write_mosaic(tmp_path)
    edit_header(paths[0], BUNIT=unit, FILTER=name)
    assert read_cosmos(paths, None)[0].exposure.band.name == "F814W"


@pytest.mark.parametrize(("key", "value"), [("BUNIT", "ct"), ("BUNIT", "MJy/sr"), ("FILTER", "ACS_F606W")])
def test_what_is_not_f814w_in_electrons_a_second_is_refused(key, value, tmp_path):
    paths = write_mosaic(tmp_path)
    edit_header(paths[0], **{key: value})
    with pytest.raises(InputError, match=f"^F814W: {key} is {value}, "):
        read_cosmos(paths, None)


def test_wings_that_are_cut_unevenly_do_not_move_a_psf():
    """Its peak is in the middle, though the centroid is not."""
    stamp = gaussian_psf(31, 4.0)
    stamp[:, :12] = 0
    assert unit_psf(FitsImage(stamp / stamp.sum(), fits.Header(), "psf.fits"), "r", []).shape == (31, 31)
