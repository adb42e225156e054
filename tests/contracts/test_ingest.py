"""Archive files to scene folders: units, noise, masks, WCS and PSFs; and one line for every mistake."""

import numpy as np
import pytest
import torch
import yaml
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import gaussian_filter

from jointdiff import cli
from jointdiff.correlation import correlation_function
from jointdiff.io.scene_files import read_field
from jointdiff.io.surveys.product import Wanted
from jointdiff.io.wcs import celestial_wcs
from jointdiff.reconstruct import noise as noise_module
from jointdiff.reconstruct.noise import sky_noise
from jointdiff.survey import load_survey
from jointdiff.units import njy_per_count
from tests.archive_files import noise, write_afw_psf, write_coadd, write_mosaic, write_tile
from tests.scene_folders import CENTRE, edit_pixels, gaussian_psf, tan_header, write_good_scene


def ingest(survey: str, files, output, *options: str) -> int:
    return cli.main(["ingest", survey, *map(str, files), "--output", str(output), *options])


def field(survey: str, files, output, *options: str):
    assert ingest(survey, files, output, *options) == 0
    return read_field(output / "scene.yaml")


def by_band(scene):
    return {observation.band.name: observation for observation in scene.observations}


def distance(one: WCS, other: WCS, pixels, others) -> float:
    """Largest angle, arcsec, between pixels (n, 2) as (x, y) of one WCS and those of another."""
    sky, there = (wcs.pixel_to_world(*np.transpose(p)) for wcs, p in ((one, pixels), (other, others)))
    return float(sky.separation(there).arcsec.max())


# Real files


def test_euclid_cutout(real_data, tmp_path):
    path = real_data / "euclid_q1" / "EUCLJ174517.fits"
    if not path.is_file():
        pytest.skip(f"no Euclid cutout: {path} is absent")
    with pytest.warns(UserWarning, match="u: PSF is 0.43 pixels from the middle"):
        scene = field("euclid-q1", [path], tmp_path / "q1")
    found = by_band(scene)
    assert {name: o.band.filter for name, o in found.items()} == {
        "VIS": "VIS", "u": "cfht-u", "g": "hsc-g", "r": "cfht-r", "z": "hsc-z",
    }  # fmt: skip
    for name, hdu, zeropoint in (("VIS", "VIS", 24.6), ("z", "HSC_Z", 30.0)):
        njy = njy_per_count(zeropoint)
        np.testing.assert_allclose(found[name].image[0], njy * fits.getdata(path, f"{hdu}_FLUX"), rtol=1e-6)
        share = found[name].ivar[0].numpy() ** -0.5 / (njy * fits.getdata(path, f"{hdu}_RMS"))
        np.testing.assert_allclose(share, float(share.mean()), rtol=1e-6)
        assert float(share.mean()) ** 2 == pytest.approx(1.0 if name == "VIS" else 0.16, rel=0.03), "level of the noise"
        psf = fits.getdata(path, f"{hdu}_PSF")
        np.testing.assert_allclose(found[name].frame.psf[0], psf / psf.sum(), atol=1e-8)
        assert float(found[name].frame.psf.sum()) == pytest.approx(1, abs=1e-6)
    corners = [(0, 0), (99, 0), (0, 99), (99, 99)]
    served = celestial_wcs(fits.getheader(path, "VIS_FLUX"), "VIS", "")
    assert distance(scene.wcs, served, corners, corners) < 1e-4
    notes = {entry["band"]: entry.get("note", "") for entry in yaml.safe_load(scene.path.read_text())["observations"]}
    assert "sums to 0.9453" in notes["VIS"]
    assert "noise is correlated (lag-1 0.61): spectrum and level, 0.16 of the stated variance" in notes["z"]
    assert [o.correlation is None for o in found.values()] == [True, False, False, False, False], "VIS passes for white"


@pytest.mark.filterwarnings("error:.*noise is correlated")
def test_noise_measured_by_ingest_is_the_noise_that_reconstruct_would_measure(real_data, tmp_path):
    """Its spectrum comes back from the scene's files, and that it was measured, by which catalogs are flagged."""
    path = real_data / "euclid_q1" / "EUCLJ174517.fits"
    if not path.is_file():
        pytest.skip(f"no Euclid cutout: {path} is absent")
    (raw,) = (o for o in read_field(path.with_name("scene.yaml")).observations if o.band.name == "z")
    expected = sky_noise(raw).of(raw)
    scene = field("euclid-q1", [path], tmp_path / "q1", "--bands", "[z]")
    (z,) = scene.observations
    torch.testing.assert_close(z.ivar, expected.ivar, rtol=1e-5, atol=0)
    # Written as far as 15 lags: what the floor of ρ makes of farther ones is left out.
    torch.testing.assert_close(
        z.correlation, expected.correlation, rtol=0, atol=0.03 * float(expected.correlation.max())
    )
    assert scene.noise_measured == ("z",)
    assert field("euclid-q1", [path], tmp_path / "vis", "--bands", "[VIS]").noise_measured == (), "it passes for white"


def test_notes_are_of_what_was_written(tmp_path):
    """Of four pixels without a variance one lies in the part that is cut out."""
    paths = write_tile(tmp_path / "tile")

    def hollow(rms: np.ndarray) -> np.ndarray:
        rms[[5, 30, 50, 55], [5, 40, 5, 70]] = 0
        return rms

    edit_pixels(paths["rms"], hollow)
    for options, count in (((), 4), (("--centre", f"[{CENTRE[0]},{CENTRE[1]}]", "--size", "2"), 1)):
        scene = field("euclid-q1", paths.values(), tmp_path / str(count), *options)
        (entry,) = yaml.safe_load(scene.path.read_text())["observations"]
        assert f"variance zero or not finite in {count} pixels, which are masked" in entry["note"]
        (vis,) = scene.observations
        assert int((vis.ivar == 0).sum()) == count + 1, "and one that is saturated"


def test_noise_is_measured_around_the_part_that_is_cut_out(tmp_path):
    """A part of 2 arcsec has hardly any sky to tell its noise by; the tile around it has."""
    paths = write_tile(tmp_path / "tile", "DES-G", (300, 300), 30.0)
    edit_pixels(paths["image"], lambda image: 0.4 * _smooth(image) / _smooth(image).std() * 0.01)
    with fits.open(paths["psf"], mode="update") as hdus:
        hdus[1].data[:] = np.hstack([gaussian_psf(21, 3.0)] * 2)
    scene = field(
        "euclid-q1", paths.values(), tmp_path / "part", "--centre", f"[{CENTRE[0]},{CENTRE[1]}]", "--size", "2"
    )
    g = by_band(scene)["g"]
    assert g.image.shape[1:] == (20, 20)
    assert float(g.ivar.max()) ** -0.5 == pytest.approx(0.4 * 0.01 * njy_per_count(30.0), rel=0.05)
    # Neighbours share exp(-1/4s²) of what a Gaussian of s pixels has smoothed.
    assert float(correlation_function(g.correlation, (20, 20), 1)[0, 1, 2]) == pytest.approx(
        np.exp(-0.25 / 0.8**2), abs=0.05
    )


def test_noise_of_a_large_image_is_measured_in_its_middle(tmp_path, monkeypatch):
    """And told of all of it, though what lies at the edge is another noise."""
    paths = write_tile(tmp_path / "tile", "DES-G", (300, 300), 30.0)
    edge = np.pad(np.zeros((200, 200)), 50, constant_values=1.0)
    edit_pixels(paths["image"], lambda image: np.where(edge, image, 0.4 * 0.01 * _smooth(image) / _smooth(image).std()))
    with fits.open(paths["psf"], mode="update") as hdus:
        hdus[1].data[:] = np.hstack([gaussian_psf(21, 3.0)] * 2)
    monkeypatch.setattr(noise_module, "MOST", 200)
    (g,) = field("euclid-q1", paths.values(), tmp_path / "whole").observations
    assert g.image.shape[1:] == (300, 300)
    assert g.correlation.shape[1:] == (300, 151)
    np.testing.assert_allclose(g.ivar[g.ivar > 0] ** -0.5, 0.4 * 0.01 * njy_per_count(30.0), rtol=0.05)


def _smooth(image: np.ndarray) -> np.ndarray:
    return gaussian_filter(noise(image.shape, 1.0), 0.8, mode="wrap")


def test_a_part_of_a_cutout_is_the_same_pixels(real_data, tmp_path):
    path = real_data / "euclid_q1" / "EUCLJ174517.fits"
    if not path.is_file():
        pytest.skip(f"no Euclid cutout: {path} is absent")
    options = ("--centre", "[266.3232,65.9368]", "--size", "4", "--bands", "[VIS,z]")
    scene = field("euclid-q1", [path], tmp_path / "part", *options)
    whole = fits.getdata(path, "VIS_FLUX") * njy_per_count(24.6)
    image = by_band(scene)["VIS"].image[0].numpy()
    assert image.shape == (40, 40)
    (y, x) = (int(i[0]) for i in np.nonzero(np.isclose(whole, image[0, 0], rtol=1e-6)))
    np.testing.assert_allclose(image, whole[y : y + 40, x : x + 40], rtol=1e-6)
    served = celestial_wcs(fits.getheader(path, "VIS_FLUX"), "VIS", "")
    assert distance(scene.wcs, served, [(0, 0), (39, 39)], [(x, y), (x + 39, y + 39)]) < 1e-4
    middle = scene.wcs.pixel_to_world(19.5, 19.5)
    assert (middle.ra.deg, middle.dec.deg) == pytest.approx((266.3232, 65.9368), abs=0.1 / 3600 / np.cos(1.15))


def test_hsc_cutouts(real_data, tmp_path):
    """Zero point 27 from FLUXMAG0, the CD matrix as served, noise from the sky; pixels of 0.1 arcsec for the scene."""
    folder = real_data / "hsc_pdr3"
    if not folder.is_dir():
        pytest.skip(f"no HSC cutouts: {folder} is absent")
    scene = field("hsc-pdr3", sorted(folder.glob("*.fits")), tmp_path / "hsc")
    found = by_band(scene)
    assert list(found) == ["g", "r", "i"]
    for name, sigma in (("g", 0.33), ("r", 0.49), ("i", 0.53)):
        path = folder / f"cutout-HSC-{name.upper()}-9813-pdr3_dud_rev.fits"
        counts = fits.getdata(path, 1)
        np.testing.assert_allclose(found[name].image[0], 57.54 * counts, rtol=1e-4)
        assert float(found[name].ivar.max()) ** -0.5 == pytest.approx(sigma, rel=0.05)
        brightest = np.unravel_index(counts.argmax(), counts.shape)
        assert found[name].ivar[0][brightest] < 0.75 * found[name].ivar.max(), "the noise of its own photons"
        assert found[name].frame.psf.shape == (1, 43, 43)
    assert scene.grid.shape == (435, 435)
    assert scene.grid.scale == pytest.approx(0.1, rel=1e-6)
    served = WCS(fits.getheader(folder / "cutout-HSC-G-9813-pdr3_dud_rev.fits", 1))
    assert distance(scene.wcs, served, [(217, 217)], [(129, 129)]) < 0.005
    assert scene.reference == "g"
    assert "noise of 0.333 nJy" in (tmp_path / "hsc" / "scene.yaml").read_text().replace("\n   ", "")


@pytest.mark.parametrize("name", ["150.23115_2.07250", "150.24071_2.06514", "150.25370_2.04800", "150.33052_2.07076"])
def test_hst_and_hsc_fields(name, real_data, tmp_path):
    """Mock VIS has what HST and HSC's i have: its flux, and one scale for both by independent ways."""
    folder = real_data / "hst_hsc" / name
    if not folder.is_dir():
        pytest.skip(f"no HST and HSC field: {folder} is absent")
    with pytest.warns(UserWarning, match="F814W: PSF is 0.[45]"):
        scene = field("hst-hsc", [folder], tmp_path / "field")
    found = by_band(scene)
    assert list(found) == ["VIS", "g", "r", "i", "z", "y"]
    vis, i = (float(found[band].image.sum()) for band in ("VIS", "i"))
    # 89² pixels of 1.7 nJy leave 150 nJy; the HST image is a tenth of an arcsecond smaller than HSC's.
    assert vis == pytest.approx(i, abs=3 * 150 + 0.02 * i)
    note = yaml.safe_load(scene.path.read_text())["observations"][0]["note"]
    held = float(note.split("noise of ")[1].split()[0])
    # Scaled by the flux of i, which HSC's noise gives in nJy, HST's noise is that of COSMOS (0.42 nJy, hst.SKY).
    assert held == pytest.approx(0.40, rel=0.15)


# Files as archives lay them out


def test_tile_takes_the_nearest_psf_the_flags_and_a_part(tmp_path):
    paths = write_tile(tmp_path / "tile")
    scene = field("euclid-q1", paths.values(), tmp_path / "whole")
    vis = by_band(scene)["VIS"]
    njy = njy_per_count(24.6)
    np.testing.assert_allclose(vis.ivar.max() ** -0.5, 0.01 * njy, rtol=1e-6)
    assert torch.nonzero(vis.ivar[0] == 0).tolist() == [[20, 30]], "saturated; an edge flag spoils nothing"
    counts = fits.getdata(paths["image"])
    east = CENTRE[0] + 2 / 3600
    for side, sigma, columns in ((1, 1.5, slice(10, 30)), (-1, 1.0, slice(50, 70))):
        centre = f"[{CENTRE[0] + side * (east - CENTRE[0]) / np.cos(np.radians(CENTRE[1]))},{CENTRE[1]}]"
        output = tmp_path / f"part{side}"
        part = by_band(field("euclid-q1", paths.values(), output, "--centre", centre, "--size", "2"))["VIS"]
        np.testing.assert_allclose(part.frame.psf[0], gaussian_psf(21, sigma), atol=1e-7)
        np.testing.assert_allclose(
            part.image[0], njy * np.where(part.ivar[0] > 0, counts[20:40, columns], 0), rtol=1e-6
        )


def test_ground_tiles_name_their_filters_and_nisp_is_left_out(tmp_path):
    files = [path for band in ("VIS", "NIR-Y", "DES-G", "CFIS-R", "PANSTARRS-I", "WISHES-Z") for path in
             write_tile(tmp_path / "tile", band).values()]  # fmt: skip
    found = by_band(field("euclid-q1", files, tmp_path / "scene"))
    filters = {name: o.band.filter for name, o in found.items()}
    assert filters == {"VIS": "VIS", "g": "decam-g", "r": "cfht-r", "i": "ps1-i", "z": "hsc-z"}


def test_rubin_coadd(tmp_path):
    files = [write_coadd(tmp_path / "coadd_r.fits"), write_afw_psf(tmp_path / "psf_r.fits")]
    scene = field("lsst", files, tmp_path / "scene")
    r = by_band(scene)["r"]
    assert r.band.filter == "lsst-r"
    np.testing.assert_allclose(r.image[0], np.where(r.ivar[0] > 0, noise((40, 40), 6.0), 0), rtol=1e-6)
    assert float(r.ivar.max()) == pytest.approx(1 / 36)
    assert torch.nonzero(r.ivar[0] == 0).tolist() == [[3, 5]], "saturated; a detection spoils nothing"
    assert scene.grid.shape == (80, 80)


def test_fluxmag0_stands_in_for_njy(tmp_path):
    path = write_coadd(tmp_path / "calexp-i.fits", "i", FLUXMAG0=10 ** (0.4 * 27))
    with fits.open(path, mode="update") as hdus:
        del hdus[1].header["BUNIT"]
    files = [path, write_afw_psf(tmp_path / "psf_i.fits")]
    image = by_band(field("lsst", files, tmp_path / "scene"))["i"].image[0]
    assert float(image[10, 10] / noise((40, 40), 6.0)[10, 10]) == pytest.approx(57.54, rel=1e-4)


def test_ground_bands_are_added_to_vis(tmp_path):
    output = tmp_path / "scene"
    field("euclid-q1", write_tile(tmp_path / "tile").values(), output, "--name", "joint")
    files = [write_coadd(tmp_path / "coadd_r.fits"), write_afw_psf(tmp_path / "psf_r.fits")]
    scene = field("lsst", files, output, "--add")
    assert (scene.name, scene.reference, list(by_band(scene))) == ("joint", "VIS", ["VIS", "r"])
    assert scene.grid.shape == (60, 80)
    other = tmp_path / "ground"
    field("lsst", files, other)
    assert read_field(other / "scene.yaml").reference == "r"
    scene = field("euclid-q1", write_tile(tmp_path / "again").values(), other, "--add")
    assert (scene.reference, scene.grid.shape) == ("VIS", (60, 80)), "VIS becomes the reference once it is there"


def test_mock_vis_of_a_mosaic(tmp_path):
    """5000 nJy at HST's resolution come out at VIS's, with the noise of VIS on what HST's own leaves."""
    scene = field("hst-cosmos", write_mosaic(tmp_path / "acs"), tmp_path / "scene")
    vis = by_band(scene)["VIS"]
    image = vis.image[0].double()
    assert image.shape == (60, 60)
    x, y = scene.wcs.world_to_pixel_values(*CENTRE)
    sigma = load_survey("euclid").depths["VIS"].sky_sigma
    assert float(vis.ivar.max()) ** -0.5 == pytest.approx(sigma, rel=1e-6)
    # The brightest pixel lies within 0.71 of the star, whatever its phase.
    peak = np.unravel_index(int(image.argmax()), image.shape)
    assert np.hypot(peak[0] - y, peak[1] - x) < 0.75
    assert float(image.sum()) == pytest.approx(5000, abs=3 * 60 * sigma)
    edge = image[:12].flatten()
    # HST's noise here is white, not drizzled: what _DRIZZLE takes it for is 0.27 of 1.72 nJy in quadrature, 1 %.
    assert float(edge.std()) == pytest.approx(sigma, rel=4 / np.sqrt(2 * len(edge)) + 0.02)


def test_pixel_scale_lays_finer_pixels_over_the_reference(tmp_path):
    path = write_good_scene(tmp_path)
    whole = read_field(path)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"pixel_scale": 0.05, "reference": "g"}))
    scene = read_field(path)
    assert scene.grid.shape == (80, 80), "24 pixels of 0.168 arcsec"
    assert scene.grid.scale == pytest.approx(0.05)
    middle = [scene.wcs.pixel_to_world(39.5, 39.5), by_band(whole)["g"]]
    assert middle[0].ra.deg == pytest.approx(CENTRE[0], abs=1e-8)
    assert middle[0].dec.deg == pytest.approx(CENTRE[1], abs=1e-8)


def test_wanted_is_cut_at_the_edge():
    rows, columns = Wanted(CENTRE, 100.0)(tan_header(30, 0.1), (30, 30), "VIS", "a.fits")
    assert (rows, columns) == (slice(0, 30), slice(0, 30))
