"""A broken scene folder is told in one line that names the file, the band and the number."""

from contextlib import nullcontext

import numpy as np
import pytest
from astropy.io import fits

from jointdiff.errors import InputError
from jointdiff.io.scene_files import read_field, read_fields
from tests.scene_folders import (
    SCALE,
    edit_header,
    edit_pixels,
    edit_yaml,
    gaussian_psf,
    tan_header,
    write_good_scene,
)


def _set(index: int, **keys):
    """A breaker: set (or, with None, remove) keys of one observation."""

    def breaker(folder):
        def edit(content):
            entry = content["observations"][index]
            entry.update(keys)
            for key in [key for key, value in keys.items() if value is None]:
                del entry[key]

        edit_yaml(folder / "scene.yaml", edit)

    return breaker


def _top(**keys):
    return lambda folder: edit_yaml(folder / "scene.yaml", lambda content: content.update(keys))


def _pixels(file: str, edit):
    return lambda folder: edit_pixels(folder / file, edit)


def _header(file: str, **cards):
    return lambda folder: edit_header(folder / file, **cards)


def _text(text: str):
    return lambda folder: (folder / "scene.yaml").write_text(text)


def _cut(file: str, length: int):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:length])


def _with(value, where=(2, 2)):
    def edit(pixels):
        pixels[where] = value
        return pixels

    return edit


def _repeat(folder):
    edit_yaml(folder / "scene.yaml", lambda content: content["observations"].append(content["observations"][1]))


def _moved(arcsec: float):
    """A breaker: g looks this far up the meridian of VIS, over the pole if need be."""
    dec = 2.2 + arcsec / 3600
    header = tan_header(24, SCALE["g"], (150.1, dec) if dec < 90 else (330.1, 180 - dec))
    return lambda folder: fits.writeto(folder / "g.fits", np.ones((24, 24)), header, overwrite=True)


def _lags(values: np.ndarray):
    """A breaker: g's noise has this correlation function."""

    def breaker(folder):
        fits.writeto(folder / "lags.fits", values)
        _set(1, noise="lags.fits")(folder)

    return breaker


def _huge(folder):
    """A header that promises 20000² pixels, without them: refused before any allocation."""
    header = tan_header(24, SCALE["g"])
    header["NAXIS"], header["BITPIX"] = 2, -64
    full = fits.PrimaryHDU(np.zeros((2, 2)), header).header
    full["NAXIS1"] = full["NAXIS2"] = 20000
    (folder / "g.fits").write_bytes(full.tostring().encode())


BROKEN = {
    # scene.yaml
    "not YAML": (_text("name: [\n"), ["not valid YAML", "scene.yaml"]),
    "not text": (lambda folder: (folder / "scene.yaml").write_bytes(b"\xff\xfe\x00"), ["not valid YAML", "scene.yaml"]),
    "nested": (_text("[" * 50_000), ["not valid YAML", "scene.yaml"]),
    "too big": (_text("#" * 1_000_001), ["1000001 bytes", "scene.yaml"]),
    "not a mapping": (_text("- VIS\n"), ["found list", "scene.yaml"]),
    "empty": (_text(""), ["found NoneType", "scene.yaml"]),
    "unknown key": (_top(referense="VIS"), ["'referense'", "'reference'", "scene.yaml"]),
    "another format": (_top(format=2, fields=[]), ["format is 2, this version reads 1", "scene.yaml"]),
    "format true": (_top(format=True), ["format is True, this version reads 1", "scene.yaml"]),
    "no name": (_text("reference: VIS\nobservations: []\n"), ["missing name", "scene.yaml"]),
    "name is a number": (_top(name=12), ["name: 12", "scene.yaml"]),
    "name is the catalog's": (_top(name="catalog.fits"), ["'catalog.fits' is a file of the output", "scene.yaml"]),
    "name is the settings'": (_top(name="Reconstruct.yaml"), ["'Reconstruct.yaml' is a file of the", "scene.yaml"]),
    "name leaves the folder": (_top(name="../a"), ["'../a'", "scene.yaml"]),
    "no observations": (_top(observations=[]), ["observations", "scene.yaml"]),
    "observation not a mapping": (_top(observations=["VIS"]), ["observation 1", "found str", "scene.yaml"]),
    "reference unknown": (_top(reference="r"), ["'r'", "VIS, g", "scene.yaml"]),
    "reference a list": (_top(reference=["VIS"]), ["['VIS']", "scene.yaml"]),
    "unknown observation key": (_set(1, zeropont=30), ["g:", "'zeropont'", "'zeropoint'", "scene.yaml"]),
    "key like no other": (_set(1, qqq=30), ["g:", "'qqq'", "expected one of band, image", "scene.yaml"]),
    "no band": (_set(1, band=None), ["observation 2", "missing band", "scene.yaml"]),
    "unknown band": (_set(1, band="G"), ["observation 2", "'G'", "VIS, u, g, r, i, z, y", "scene.yaml"]),
    "band a list": (_set(1, band=["g"]), ["observation 2", "['g']", "scene.yaml"]),
    "repeated band": (_repeat, ["g:", "twice, in observations 2 and 3", "scene.yaml"]),
    "no image": (_set(1, image=None), ["g:", "missing image", "scene.yaml"]),
    "no psf": (_set(1, psf=None), ["g:", "missing psf", "scene.yaml"]),
    "no noise": (_set(1, variance=None), ["g:", "found none", "scene.yaml"]),
    "two noises": (_set(1, rms="g_var.fits"), ["g:", "found variance and rms", "scene.yaml"]),
    "image not text": (_set(1, image=3), ["g:", "image is 3", "scene.yaml"]),
    "mask empty": (_set(1, mask=""), ["g:", "mask is ''", "scene.yaml"]),
    "unknown filter": (_set(1, filter="hsc-gg"), ["g:", "'hsc-gg'", "'hsc-g'", "scene.yaml"]),
    "zeropoint text": (_set(1, zeropoint="thirty"), ["g:", "'thirty'", "scene.yaml"]),
    "zeropoint true": (_set(1, zeropoint=True), ["g:", "True", "scene.yaml"]),
    "zeropoint nan": (_set(1, zeropoint=float("nan")), ["g:", "nan", "scene.yaml"]),
    "zeropoint typo": (_set(1, zeropoint=300), ["g:", "300", "-50 to 50", "scene.yaml"]),
    # files
    "missing file": (_set(1, variance="nothing.fits"), ["g:", "no such file", "nothing.fits"]),
    "an address": (_set(1, image="http://localhost/a.fits"), ["g:", "no such file", "a.fits"]),
    "a folder": (_set(1, image="."), ["g:", "no such file"]),
    "missing HDU name": (_set(1, image="g.fits[SCI]"), ["g:", "no HDU SCI", "0 PRIMARY", "g.fits"]),
    "missing HDU number": (_set(1, image="g.fits[7]"), ["g:", "no HDU 7", "0 PRIMARY", "g.fits"]),
    "not FITS": (lambda folder: (folder / "g.fits").write_text("hello"), ["g:", "not a readable FITS", "g.fits"]),
    "empty file": (_cut("g_psf.fits", 0), ["g:", "not a readable FITS", "g_psf.fits"]),
    "truncated header": (_cut("g_var.fits", 1000), ["g:", "not a readable FITS", "g_var.fits"]),
    "truncated": (_cut("g.fits", 5000), ["g:", "truncated", "8640 bytes", "5000 found", "g.fits"]),
    "three axes": (_pixels("g.fits", lambda p: p[None]), ["g:", "no HDU with a 2-D image", "g.fits"]),
    "three axes, named": (
        lambda folder: (_pixels("g.fits", lambda p: p[None])(folder), _set(1, image="g.fits[0]")(folder)),
        ["g:", "2 axes", "1 × 24 × 24", "g.fits"],
    ),
    "huge": (_huge, ["g:", "20000 × 20000", "268435456", "g.fits"]),
    # pixels
    "variance of another shape": (
        _pixels("g_var.fits", lambda p: p[:23]),
        ["g:", "24 × 24", "variance is 23 × 24", "g.fits", "g_var.fits"],
    ),
    "mask of another shape": (
        _pixels("g_mask.fits", lambda p: p[:, :20]),
        ["g:", "24 × 24", "mask is 24 × 20", "g_mask.fits"],
    ),
    "negative variance": (_pixels("g_var.fits", _with(-0.5)), ["g:", "variance", "1 pixels", "-0.5", "g_var.fits"]),
    "negative rms": (
        lambda folder: (_set(1, variance=None, rms="g_var.fits")(folder), _pixels("g_var.fits", _with(-3))(folder)),
        ["g:", "rms is negative", "-3", "g_var.fits"],
    ),
    "all masked": (_pixels("g_mask.fits", lambda p: p + 1), ["g:", "all 576 pixels", "g.fits"]),
    "all NaN": (_pixels("g.fits", lambda p: p * np.nan), ["g:", "all 576 pixels", "g.fits"]),
    "overflow": (_pixels("g.fits", _with(1e200)), ["g:", "overflow", "3.63 nJy", "g.fits"]),
    "no unit": (_set(1, zeropoint=None), ["g:", "no zeropoint", "BUNIT is ''", "g.fits"]),
    "other unit": (
        lambda folder: (_set(1, zeropoint=None)(folder), _header("g.fits", BUNIT="uJy")(folder)),
        ["g:", "no zeropoint", "'uJy'", "g.fits"],
    ),
    # correlated noise
    "noise not text": (_set(1, noise=0.3), ["g:", "noise is 0.3, expected text", "scene.yaml"]),
    "noise missing": (_set(1, noise="none.fits"), ["g:", "no such file", "none.fits"]),
    "noise even": (_lags(np.ones((4, 5))), ["g:", "4 × 5 lags", "odd sides", "lags.fits"]),
    "noise NaN": (_lags(_with(np.nan, (0, 0))(np.eye(3))), ["g:", "not finite at 1 lags", "lags.fits"]),
    "noise off the middle": (_lags(_with(2.0, (0, 0))(np.eye(3))), ["g:", "is 1 in the middle", "2", "lags.fits"]),
    "noise uneven": (_lags(np.triu(np.ones((3, 3)))), ["g:", "differs by 1 between opposite lags", "lags.fits"]),
    "noise of negative power": (_lags(np.ones((5, 5))), ["g:", "of its power below zero", "lags.fits"]),
    "noise is an image": (_set(1, noise="g.fits"), ["g:", "24 × 24 lags", "g.fits"]),
    # PSF
    "PSF is NaN": (_pixels("g_psf.fits", lambda p: p * np.nan), ["g:", "PSF", "441", "not finite", "g_psf.fits"]),
    "PSF sum": (
        _pixels("g_psf.fits", lambda p: p * 0.52),
        ["g:", "PSF sums to 0.52, expected 0.9 to 1.1", "g_psf.fits"],
    ),
    "PSF not square": (_pixels("g_psf.fits", lambda p: p[:20]), ["g:", "PSF", "20 × 21", "g_psf.fits"]),
    "PSF too large": (
        lambda folder: fits.writeto(folder / "g_psf.fits", np.zeros((1, 1_050_000), np.float32), overwrite=True),
        ["g:", "1 × 1050000", "1048576", "g_psf.fits"],
    ),
    "PIXSCALE text": (_header("g_psf.fits", PIXSCALE="0.168"), ["g:", "PIXSCALE of '0.168'", "g_psf.fits"]),
    "PIXSCALE negative": (_header("g_psf.fits", PIXSCALE=-0.168), ["g:", "PIXSCALE of -0.168", "g_psf.fits"]),
    "PIXSCALE in degrees": (_header("g_psf.fits", PIXSCALE=0.168 / 3600), ["g:", "4.66667e-05 arcsec", "0.168"]),
    # WCS
    "no WCS": (_header("g.fits", CTYPE1=None, CTYPE2=None), ["g:", "no celestial WCS", "g.fits"]),
    "WCS of no area": (
        _header("g.fits", CD1_1=0.0, CD1_2=0.0, CD2_1=0.0, CD2_2=1e-5),
        ["g:", "WCS", "g.fits"],
    ),
    "unknown projection": (_header("g.fits", CTYPE1="RA---XYZ", CTYPE2="DEC--XYZ"), ["g:", "WCS", "g.fits"]),
    "CD against PC": (_header("g.fits", PC1_1=-1e-5, PC2_2=1e-5), ["g:", "CD and PC", "g.fits"]),
    "not affine": (
        _header("g.fits", CTYPE1="RA---ARC", CTYPE2="DEC--ARC", CD1_1=-0.05, CD2_2=0.05),
        ["g:", "mas from an affine grid", "5 allowed", "g.fits"],
    ),
    "no overlap": (_moved(4.1), ["g:", "no overlap", "VIS", "4.1 arcsec away", "g.fits"]),
    "no overlap, far": (_moved(3600), ["g:", "no overlap", "VIS", "3600.0 arcsec away", "g.fits"]),
    "no overlap, other side": (_moved(95 * 3600), ["g:", "no overlap", "VIS", "342000.0 arcsec away", "g.fits"]),
}


@pytest.fixture
def folder(tmp_path):
    write_good_scene(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.filterwarnings("error")
def test_broken_scene_is_told_in_one_line(case, folder):
    breaker, words = BROKEN[case]
    read_field(folder / "scene.yaml")  # whole before it is broken
    breaker(folder)
    with pytest.raises(InputError) as error:
        read_field(folder / "scene.yaml")
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(folder))
    assert [word for word in words if word not in message] == [], message


def test_missing_scene_file(tmp_path):
    with pytest.raises(InputError, match=r"no such scene file .*absent\.yaml"):
        read_field(tmp_path / "absent.yaml")


def test_duplicate_scene_names(tmp_path):
    paths = [write_good_scene(tmp_path / "a"), write_good_scene(tmp_path / "b")]
    with pytest.raises(InputError, match="two scenes are named 'good'") as error:
        read_fields(paths)
    assert all(str(path) in str(error.value) for path in paths)


def test_overlap_by_a_corner_is_enough(folder):
    """The centres are 4 arcsec apart; g reaches 2.016 and VIS 2 arcsec from theirs."""
    _moved(4.0)(folder)
    assert len(read_field(folder / "scene.yaml").observations) == 2


@pytest.mark.parametrize(("offset", "apart"), [(3.4, False), (3.6, True)])
def test_overlap_of_a_turned_image_is_that_of_its_pixels(offset, apart, folder):
    """A diamond reaching 2.016 √2 arcsec against the corner of a square of half-side 2; the circles overlap in both."""
    centre = (150.1 + offset / 3600, 2.2 + offset / 3600)
    header = tan_header(24, SCALE["g"], centre, angle=np.pi / 4)
    fits.writeto(folder / "g.fits", np.ones((24, 24)), header, overwrite=True)
    with pytest.raises(InputError, match="g: no overlap") if apart else nullcontext():
        read_field(folder / "scene.yaml")


def test_zero_variance_is_masked_with_a_warning(folder):
    edit_pixels(folder / "g_var.fits", _with(0.0))
    with pytest.warns(UserWarning, match=r"g: variance is zero in 1 pixels.*g_var\.fits"):
        field = read_field(folder / "scene.yaml")
    assert field.observations[1].ivar[0, 2, 2] == 0


def test_negative_variance_under_the_mask_is_no_error(folder):
    edit_pixels(folder / "g_var.fits", _with(-1.0, (3, 5)))
    assert read_field(folder / "scene.yaml").observations[1].ivar[0, 3, 5] == 0


def test_psf_sum_within_a_tenth_is_normalised_with_a_warning(folder):
    edit_pixels(folder / "g_psf.fits", lambda psf: psf * 0.95)
    with pytest.warns(UserWarning, match=r"g: PSF sums to 0\.9500.*g_psf\.fits"):
        field = read_field(folder / "scene.yaml")
    assert float(field.observations[1].frame.psf.sum()) == pytest.approx(1, abs=1e-6)


def test_psf_centred_on_a_pixel_of_an_even_stamp_is_told(folder):
    edit_pixels(folder / "g_psf.fits", lambda _: gaussian_psf(23)[:-1, :-1] / gaussian_psf(23)[:-1, :-1].sum())
    with pytest.warns(UserWarning, match=r"g: PSF is 0\.71 pixels from the middle.*g_psf\.fits"):
        read_field(folder / "scene.yaml")


def test_a_hostile_yaml_runs_nothing(tmp_path):
    path = tmp_path / "scene.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir [{tmp_path / 'ran'}]\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_field(path)
    assert not (tmp_path / "ran").exists()
