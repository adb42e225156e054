"""Galaxies from images: brightness, colour and size as redshift has them; splits by galaxy; real ones dimmed."""

from dataclasses import replace

import numpy as np
import pytest

from jointdiff import units
from jointdiff.errors import InputError
from jointdiff.sed import emitted_fluxes
from jointdiff.simulate import skirt
from jointdiff.simulate.galaxies import SourceSettings, draw_source, galaxy_colours
from jointdiff.simulate.images import SPLITS, ImageSet, find_images
from tests.pictures import PIXEL, gaussian_light, write_picture, write_tng

SETTINGS = SourceSettings(stamp_sizes=(64, 128), star_fraction=0.0)
FILTERS = ("VIS", "hsc-g", "hsc-r", "hsc-i", "hsc-z", "hsc-y")
SPIRAL = 1  # the template Sbc


@pytest.fixture
def spiral(tmp_path):
    """A galaxy whose every pixel has the spectrum of the template Sbc, in g, r and i at redshift 0.05."""
    light = gaussian_light(160, 2.0)
    for band in "gri":
        ratio = emitted_fluxes(f"sdss-{band}", 0.05)[SPIRAL] / emitted_fluxes("sdss-r", 0.05)[SPIRAL]
        write_picture(tmp_path / "spiral", band, light * ratio)
    return tmp_path / "spiral"


def fluxes_at(folder, redshift, filters=FILTERS) -> np.ndarray:
    """(len(filters),), nJy."""
    (picture,) = skirt.pictures_of(folder)
    light = skirt.light_of(picture, 1000.0)
    side = picture.pixel / skirt.kpc_per_arcsec(redshift)
    return skirt.redshifted(light, picture.redshift, redshift, side, filters).sum(0)


def test_nothing_changes_at_the_redshift_of_the_file(spiral):
    (picture,) = skirt.pictures_of(spiral)
    light = skirt.light_of(picture, 1000.0)
    side = PIXEL / skirt.kpc_per_arcsec(0.05)
    expected = light.totals * side**2 * units.flux(0.0)
    np.testing.assert_allclose(fluxes_at(spiral, 0.05, ("sdss-g", "sdss-r", "sdss-i")), expected, rtol=1e-5)


@pytest.mark.parametrize("redshift", [0.2, 0.7, 1.5])
def test_colours_are_the_templates(redshift, spiral):
    fluxes = fluxes_at(spiral, redshift)
    # Tables of redshift in steps of 0.02 (sed.template_fluxes).
    np.testing.assert_allclose(fluxes / fluxes[0], galaxy_colours(SPIRAL, redshift, FILTERS), rtol=0.01)


def test_flux_falls_with_luminosity_distance(spiral):
    """f_ν = (1 + z) L_ν((1 + z) ν) / (4π D_L²), by astropy's own distance."""
    from astropy.cosmology import Planck18

    near, far = (
        fluxes_at(spiral, z, ("hsc-i",))[0]
        * Planck18.luminosity_distance(z).value ** 2
        / (1 + z)
        / emitted_fluxes("hsc-i", z)[SPIRAL]
        for z in (0.1, 0.9)
    )
    assert far / near == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("redshift", [0.3, 0.8])
def test_size_and_flux_of_a_stamp(redshift, spiral):
    images = ImageSet("tng", str(spiral), 1.0, (redshift, redshift), ("sim/a",), "")
    source = draw_source(np.random.default_rng(5), FILTERS[1:], SETTINGS, images)
    assert source.properties["redshift"] == redshift
    sigma = np.hypot(2.0 / skirt.kpc_per_arcsec(redshift), SETTINGS.psf_fwhm * units.SIGMA_PER_FWHM)
    assert source.properties["r50"] == pytest.approx(1.1774 * sigma, rel=0.05)  # read off in whole pixels of 0.05
    assert source.flux == pytest.approx(fluxes_at(spiral, redshift)[1:], rel=5e-3)  # a stamp holds 99.5 %
    assert source.properties["mag_VIS"] == pytest.approx(units.magnitude(fluxes_at(spiral, redshift)[0]))


def test_colour_gradients_are_the_files(tmp_path):
    """A red middle in a blue galaxy stays so; a band beyond the files has the structure of the nearest."""
    write_picture(tmp_path, "g", gaussian_light(160, 3.0))
    write_picture(tmp_path, "r", gaussian_light(160, 1.5))
    images = ImageSet("tng", str(tmp_path), 1.0, (0.3, 0.3), ("sim/a",), "")
    stamp = draw_source(np.random.default_rng(1), FILTERS[1:], SETTINGS, images).stamp.astype(float)
    n = stamp.shape[-1]
    core = (slice(None), slice(n // 2 - 4, n // 2 + 4), slice(n // 2 - 4, n // 2 + 4))
    g, r, i, z, y = (stamp[core].sum((1, 2)) / stamp.sum((1, 2))).tolist()
    assert g < r < i, "r, at redshift 0.3, is emitted between the files' g and r"
    assert g < 0.7 * i
    assert [z, y] == pytest.approx([i, i], rel=1e-4)


def test_all_filters_of_a_tng_file_are_taken_but_the_infrared(tmp_path):
    """The filters of Bottrell's files, u and r of MegaCam among those of HSC; those that no scene has are left out."""
    light = gaussian_light(80, 2.0)
    light[:, :5] = 0  # 99 mag/arcsec²
    names = ("CFHT_MegaCam.u", "Subaru_HSC.g", "Subaru_HSC.r", "CFHT_MegaCam.r", "Subaru_HSC.i", "Subaru_HSC.z")
    write_tng(tmp_path, light, (*names, "Subaru_HSC.Y", "JWST_NIRCAM.F150W"))
    (picture,) = skirt.pictures_of(tmp_path)
    assert (picture.group, picture.pixel, picture.redshift) == ("TNG50-1/17", PIXEL, 0.0994)
    curves = {"cfht-u", "cfht-r", "hsc-g", "hsc-r", "hsc-i", "hsc-z", "hsc-y"}
    assert {curve for curve, *_ in picture.planes} == curves
    kept = tuple(sorted(curves))
    # AB magnitudes of one brightness in every filter: one flux, at the file's own redshift.
    expected = skirt.light_of(picture, 1000.0).totals[0] * (PIXEL / skirt.kpc_per_arcsec(0.0994)) ** 2 * units.flux(0.0)
    np.testing.assert_allclose(fluxes_at(tmp_path, 0.0994, kept), expected, rtol=1e-5)


def test_cameras_of_a_galaxy_are_in_one_split(tmp_path):
    for number in range(10):
        for camera in ("v0", "v1"):
            write_picture(tmp_path, "r", gaussian_light(16, 1.0), f"g{number}", CAMERA=camera)
    images = find_images("tng", tmp_path, 1.0, (0.2, 0.5))
    assert len(images.groups) == 10
    counts = [sum(images.split_of(group) == split for group in images.groups) for split in SPLITS]
    assert counts == [8, 1, 1]


def test_snapshots_are_told_apart_by_groups_alone(tmp_path):
    for snapshot, body in ((72, 5), (91, 8), (91, 9), (91, 10)):
        write_picture(tmp_path, "r", gaussian_light(16, 1.0), f"s{body}", SUBHALO=body, SNAPNUM=snapshot, ISNAP=None)
    with pytest.raises(InputError, match=r"sim at snapshots 72, 91: without groups\.csv"):
        find_images("tng", tmp_path, 1.0, (0.2, 0.5))
    skirt.pictures_of.cache_clear()
    (tmp_path / "groups.csv").write_text("photo_r_s5_i0_.fits,tree1\nphoto_r_s8_i0_.fits,tree1\n")
    assert set(find_images("tng", tmp_path, 1.0, (0.2, 0.5)).groups) == {"tree1", "sim/9", "sim/10"}


def test_a_source_depends_on_its_number_alone(spiral):
    images = ImageSet("tng", str(spiral), 0.5, (0.3, 0.8), ("sim/a",), "")
    draws = [draw_source(np.random.default_rng((2, 7)), FILTERS[1:], SETTINGS, images) for _ in range(2)]
    assert np.array_equal(draws[0].stamp, draws[1].stamp)
    seen = {
        draw_source(np.random.default_rng((2, n)), FILTERS[1:], SETTINGS, images).properties.get("group")
        for n in range(8)
    }
    assert seen == {None, "sim/a"}, "half are GalSim's models"


@pytest.fixture
def cosmos(real_data):
    folder = real_data / "cosmos"
    if not folder.is_dir():
        pytest.skip(f"no COSMOS galaxies: {folder} is absent")
    return find_images("cosmos", folder, 1.0, (0.2, 1.0))


def test_real_galaxies_have_the_magnitude_drawn_and_real_shapes(cosmos):
    assert len(cosmos.groups) == 100
    settings = replace(SETTINGS, magnitudes=(24.0, 26.0))
    sources = [draw_source(np.random.default_rng((4, n)), ("VIS", "hsc-i"), settings, cosmos) for n in range(12)]
    for source in sources:
        assert source.properties["group"] in cosmos.groups
        # Noise in a stamp of 64 pixels: a few per cent of a galaxy that was dimmed by two magnitudes or more.
        assert source.flux[0] == pytest.approx(units.flux(source.properties["mag_VIS"]), rel=0.1)
        assert 0.05 < source.properties["r50"] < 1
    assert len({source.properties["group"] for source in sources}) > 3


def test_what_the_sample_cannot_be_dimmed_to_is_a_model(cosmos):
    settings = replace(SETTINGS, magnitudes=(19.0, 19.5))
    assert "group" not in draw_source(np.random.default_rng(4), ("VIS",), settings, cosmos).properties
