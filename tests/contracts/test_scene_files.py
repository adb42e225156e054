"""scene.yaml: units, noise, masks, order, and what is written comes back."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from astropy.io import fits

from jointdiff.correlation import power_spectrum
from jointdiff.errors import InputError
from jointdiff.io.scene_files import read_field, read_fields, write_field
from jointdiff.scene import Band, Frame, Grid, Observation
from tests.scene_folders import CENTRE, edit_header, edit_pixels, edit_yaml, gaussian_psf, write_good_scene


@pytest.fixture
def good(tmp_path):
    return write_good_scene(tmp_path)


def _simulated(shift=None) -> list[Observation]:
    """VIS, g and y of one scene: float32 noise, a masked corner, PSFs of unit sum to float32 rounding."""
    generator = torch.Generator().manual_seed(3)
    observations = []
    for name, curve, n, scale in (("y", "hsc-y", 19, 0.2), ("VIS", "VIS", 32, 0.1), ("g", "", 21, 0.168)):
        image = torch.randn(1, n, n, generator=generator)
        ivar = torch.rand(1, n, n, generator=generator) + 0.1
        ivar[:, :2, :3] = 0
        psf = torch.tensor(gaussian_psf(15) * (1 + 4e-7), dtype=torch.float32)[None]
        frame = Frame(Grid.centred((n, n), scale), psf, shift=None if name == "VIS" else shift)
        observations.append(Observation(Band(name, curve), frame, image * (ivar > 0), ivar))
    return observations


def test_a_count_at_zero_point_23_9_is_a_thousand_njy(good):
    def edit(content):
        content["observations"][1]["zeropoint"] = 23.9

    edit_yaml(good, edit)
    counts = fits.getdata(good.parent / "g.fits")
    variance = fits.getdata(good.parent / "g_var.fits")
    observation = read_field(good).observations[1]
    seen = np.ones(counts.shape, bool)
    seen[3, 5] = False  # the mask
    np.testing.assert_allclose(observation.image[0].numpy()[seen], 1000 * counts[seen], rtol=1e-6)
    np.testing.assert_allclose(observation.ivar[0].numpy()[seen], 1e-6 / variance[seen], rtol=1e-6)


@pytest.mark.parametrize("unit", ["nJy", "nJy/pixel", "nJy / pix"])
def test_njy_needs_no_zero_point_and_a_given_one_counts(unit, good):
    counts = fits.getdata(good.parent / "g.fits")
    edit_header(good.parent / "g.fits", BUNIT=unit)
    given = read_field(good).observations[1].image[0, 0, 0]
    assert float(given) == pytest.approx(counts[0, 0] * 10 ** (0.4 * 1.4), rel=1e-6)  # zero point 30 of 31.4
    edit_yaml(good, lambda content: content["observations"][1].pop("zeropoint"))
    assert float(read_field(good).observations[1].image[0, 0, 0]) == pytest.approx(counts[0, 0], rel=1e-6)


@pytest.mark.parametrize("zeropoint", ["30.0", "3.0e1"])
def test_a_zero_point_that_yaml_reads_as_text(zeropoint, good):
    expected = read_field(good)
    edit_yaml(good, lambda content: content["observations"][1].update(zeropoint=zeropoint))
    assert torch.equal(read_field(good).observations[1].image, expected.observations[1].image)


@pytest.mark.parametrize(("kind", "power"), [("weight", -1), ("rms", 0.5)])
def test_variance_weight_and_rms_say_the_same(kind, power, good):
    expected = read_field(good)
    edit_pixels(good.parent / "g_var.fits", lambda variance: variance**power)

    def edit(content):
        content["observations"][1][kind] = content["observations"][1].pop("variance")

    edit_yaml(good, edit)
    torch.testing.assert_close(read_field(good).observations[1].ivar, expected.observations[1].ivar, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("file", "value"), [("g.fits", np.nan), ("g.fits", -np.inf), ("g_var.fits", np.nan), ("g_var.fits", np.inf)]
)
@pytest.mark.filterwarnings("error")
def test_pixels_that_are_not_finite_are_masked(file, value, good):
    before = read_field(good).observations[1]

    def edit(pixels):
        pixels[4, 7] = value
        return pixels

    edit_pixels(good.parent / file, edit)
    after = read_field(good).observations[1]
    assert after.ivar[0, 4, 7] == 0 and after.image[0, 4, 7] == 0
    changed = (before.ivar != after.ivar) | (before.image != after.image)
    assert changed.nonzero().tolist() == [[0, 4, 7]]


def test_mask_and_zero_weight_hide_pixels(good):
    for observation in read_field(good).observations:
        assert (observation.ivar == 0).nonzero().tolist() == [[0, 3, 5]]
        assert observation.image[0, 3, 5] == 0


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">i2", ">f8"])
def test_any_pixel_type_becomes_native_float32(dtype, good):
    edit_pixels(good.parent / "g.fits", lambda pixels: np.round(10 * pixels).astype(dtype))
    observation = read_field(good).observations[1]
    assert observation.image.dtype == observation.ivar.dtype == observation.frame.psf.dtype == torch.float32
    counts = fits.getdata(good.parent / "g.fits").astype(float)
    assert float(observation.image[0, 9, 2]) == pytest.approx(counts[9, 2] * 10**0.56, rel=1e-6)


def test_correlated_noise_is_told_by_its_lags(good):
    """In any unit: lag zero is 1, and the spectrum is on the image's own frequencies."""
    assert all(o.correlation is None for o in read_field(good).observations)
    axis = np.arange(-2, 3) ** 2
    lags = 0.3 ** (axis[:, None] + axis)
    fits.writeto(good.parent / "lags.fits", 7 * lags)
    edit_yaml(good, lambda content: content["observations"][1].update(noise="lags.fits"))
    vis, ground = read_field(good).observations
    assert vis.correlation is None
    expected = power_spectrum(torch.tensor(lags)[None], (24, 24)).float()
    torch.testing.assert_close(ground.correlation, expected)


def test_written_noise_reads_back(tmp_path):
    observations = _simulated()
    lags = torch.tensor([0.1, 0.4, 1.0, 0.4, 0.1])
    power = power_spectrum(torch.outer(lags, lags)[None], (21, 21))
    observations[2] = replace(observations[2], correlation=power)
    field = read_field(write_field(tmp_path, "shared", observations, "VIS", CENTRE))
    assert [o.correlation is None for o in field.observations] == [True, False, True]
    torch.testing.assert_close(field.observations[1].correlation, power)


def test_a_band_whose_noise_was_measured_is_known_by_its_entry(good, tmp_path):
    assert read_field(good).noise_measured == ()
    edit_yaml(good, lambda content: content["observations"][1].update(noise_measured=True))
    assert read_field(good).noise_measured == ("g",)
    edit_yaml(good, lambda content: content["observations"][1].update(noise_measured="yes"))
    with pytest.raises(InputError, match=r"g: noise_measured is 'yes', expected true or false .*scene.yaml"):
        read_field(good)


def test_observation_order_changes_nothing(good):
    first = read_field(good)
    edit_yaml(good, lambda content: content["observations"].reverse())
    second = read_field(good)
    assert [o.band.name for o in second.observations] == ["VIS", "g"]
    assert first.grid == second.grid
    for a, b in zip(first.observations, second.observations, strict=True):
        assert (a.band, a.frame.grid) == (b.band, b.frame.grid)
        assert torch.equal(a.image, b.image) and torch.equal(a.ivar, b.ivar) and torch.equal(a.frame.psf, b.frame.psf)


def test_filters_default_to_the_scene_bands_own(good):
    assert [o.band for o in read_field(good).observations] == [Band("VIS", "VIS"), Band("g", "")]
    edit_yaml(good, lambda content: content["observations"][1].update(filter="lsst-g"))
    assert read_field(good).observations[1].band == Band("g", "lsst-g")


def test_psf_pixels_are_the_images_unless_told(good):
    assert [o.frame.psf_scale for o in read_field(good).observations] == [1.0, 1.0]
    edit_header(good.parent / "g_psf.fits", PIXSCALE=0.084)
    assert read_field(good).observations[1].frame.psf_scale == pytest.approx(0.5, rel=1e-6)
    edit_header(good.parent / "g_psf.fits", PIXSCALE=None)
    assert read_field(good).observations[1].frame.psf_scale == 1.0


def test_hdus_by_name_version_and_number(good):
    """One file of several HDUs; without an address the first 2-D image is read."""
    folder = good.parent
    expected = read_field(good)
    image, header = fits.getdata(folder / "g.fits", header=True)
    variance = fits.getdata(folder / "g_var.fits")
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.ImageHDU(np.zeros((2, 3, 4)), name="CUBE"),
            fits.ImageHDU(image, header, name="SCI"),
            fits.ImageHDU(variance, name="VAR"),
            fits.ImageHDU(2 * variance, name="VAR", ver=2),
        ]
    ).writeto(folder / "all.fits")
    for address, factor in (("all.fits[3]", 1), ("all.fits[var]", 1), ("all.fits[VAR,2]", 2)):
        edit_yaml(good, lambda c, a=address: c["observations"][1].update(image="all.fits", variance=a))
        observation = read_field(good).observations[1]
        assert torch.equal(observation.image, expected.observations[1].image)
        torch.testing.assert_close(factor * observation.ivar, expected.observations[1].ivar, rtol=1e-6, atol=0)


def test_compressed_images_are_read(good):
    expected = read_field(good).observations[1]
    image, header = fits.getdata(good.parent / "g.fits", header=True)
    compressed = fits.CompImageHDU(image, header, compression_type="GZIP_2", quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), compressed]).writeto(good.parent / "g.fits", overwrite=True)
    assert torch.equal(read_field(good).observations[1].image, expected.image)


def test_what_is_written_reads_back_bit_for_bit(tmp_path):
    observations = _simulated()
    path = write_field(tmp_path / "made", "made", observations, "VIS", CENTRE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field = read_field(path)
    assert (field.name, field.reference, field.path) == ("made", "VIS", path)
    assert [o.band for o in field.observations] == [Band("VIS", "VIS"), Band("g", ""), Band("y", "hsc-y")]
    assert field.grid == field.observations[0].frame.grid
    written = {o.band.name: o for o in observations}
    for read in field.observations:
        known = written[read.band.name]
        assert torch.equal(read.image, known.image) and torch.equal(read.ivar, known.ivar)
        assert torch.equal(read.frame.psf, known.frame.psf)
        assert read.frame.psf_scale == 1.0
        assert read.frame.grid.shape == known.frame.grid.shape
        assert read.frame.grid.matrix == known.frame.grid.matrix  # so that aligned grids stay aligned
        np.testing.assert_allclose(read.frame.grid.origin, known.frame.grid.origin, rtol=0, atol=1e-9)


def test_a_written_shift_moves_the_grid(tmp_path):
    shift = torch.tensor([[0.037, -0.052]])
    field = read_field(write_field(tmp_path, "shifted", _simulated(shift), "VIS", CENTRE))
    for read, known in zip(field.observations[1:], (_simulated()[2], _simulated()[0]), strict=True):
        assert read.frame.shift is None
        moved = np.subtract(read.frame.grid.origin, known.frame.grid.origin)
        np.testing.assert_allclose(moved, [0.037, -0.052], rtol=0, atol=1e-8)


def test_an_unobserved_band_is_not_written(tmp_path):
    observations = _simulated()
    observations[0] = replace(observations[0], ivar=torch.zeros_like(observations[0].ivar))
    field = read_field(write_field(tmp_path, "two", observations, "VIS", CENTRE))
    assert [o.band.name for o in field.observations] == ["VIS", "g"]
    assert not (tmp_path / "y.fits").exists()


def test_written_files_carry_units_and_world_coordinates(tmp_path):
    path = write_field(tmp_path, "plain", _simulated(), "VIS", CENTRE)
    with fits.open(tmp_path / "g.fits") as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "WEIGHT", "PSF"]
        assert hdus[0].header["BUNIT"] == "nJy"
        assert hdus["PSF"].header["PIXSCALE"] == pytest.approx(0.168, rel=1e-12)
    content = yaml.safe_load(path.read_text())
    assert content["observations"][0]["band"] == "y"  # not YAML 1.1's yes
    assert content["format"] == 1
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_a_failed_write_leaves_no_scene(tmp_path, monkeypatch):
    """scene.yaml comes last: a folder that has it is whole."""

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(fits.HDUList, "writeto", fail)
    with pytest.raises(OSError, match="disk full"):
        write_field(tmp_path, "lost", _simulated(), "VIS", CENTRE)
    assert list(tmp_path.iterdir()) == []


def test_several_scenes_keep_their_order(tmp_path):
    paths = [write_field(tmp_path / name, name, _simulated(), "VIS", CENTRE) for name in ("b", "a")]
    assert [field.name for field in read_fields(paths)] == ["b", "a"]
    assert read_fields([]) == ()


@pytest.mark.filterwarnings("error")
def test_the_real_euclid_field_is_read(real_data):
    with pytest.warns(UserWarning, match=r"VIS: PSF sums to 0\.9453 and is normalised"):
        field = read_field(real_data / "euclid_q1" / "scene.yaml")
    assert field.name == "EUCLJ174517"
    assert [o.band.name for o in field.observations] == ["VIS", "g", "r", "z"]
    for observation in field.observations:
        assert observation.image.shape == observation.ivar.shape == (1, 100, 100)
        assert bool(observation.ivar.all()) and observation.frame.grid == field.grid
        assert float(observation.frame.psf.sum()) == pytest.approx(1, abs=1e-6)
    file = real_data / "euclid_q1" / "EUCLJ174517.fits"
    njy = 10 ** (0.4 * (31.4 - 24.6))
    vis = field.observations[0]
    np.testing.assert_allclose(vis.image[0], fits.getdata(file, "VIS_FLUX") * njy, rtol=1e-5)
    np.testing.assert_allclose(vis.ivar[0], (fits.getdata(file, "VIS_RMS") * njy) ** -2.0, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:VIS. PSF sums")
def test_a_slip_in_the_real_scene_file(real_data, tmp_path):
    """An image's noise where its PSF should be."""
    folder = real_data / "euclid_q1"
    content = yaml.safe_load((folder / "scene.yaml").read_text())
    for entry in content["observations"]:
        entry.update({key: f"{folder}/{entry[key]}" for key in ("image", "rms", "psf")})
    content["observations"][1]["psf"] = content["observations"][1]["rms"]
    path = tmp_path / "scene.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"^g: PSF sums to .*EUCLJ174517\.fits\[HSC_G_RMS\]"):
        read_field(path)
