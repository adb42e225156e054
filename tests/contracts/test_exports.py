"""What lies beside a catalog, what any program reads of it, and whether its positions are those of the input's WCS."""

import re

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.io.votable.ucd import parse_ucd
from astropy.table import Table
from astropy.wcs import WCS
from matplotlib.image import imread

from jointdiff import cli
from jointdiff.evaluate import exports
from jointdiff.evaluate.exports import regions
from jointdiff.evaluate.figures import colour_picture, rgb_bands
from jointdiff.io.products import read_catalog, write_catalog
from jointdiff.measure.aliases import CONVENTIONS, add_aliases
from jointdiff.measure.catalog import measure
from jointdiff.measure.columns import KINDS, column
from jointdiff.reconstruct.checkpoint import save_denoiser
from jointdiff.scene import Band
from tests.contracts.test_catalog import NAMES, identity, scene
from tests.denoisers import DEMO_BANDS, untrained
from tests.scene_folders import edit_yaml, tan_header, write_good_scene

BANDS = (Band("VIS", "VIS"), Band("g", "hsc-g"), Band("r", "hsc-r"))


@pytest.fixture(scope="module")
def table() -> Table:
    samples, truth = scene()
    return measure(samples, NAMES, "field", 0.1, wcs=WCS(tan_header(48, 0.1)), data=identity(truth))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column_has_a_ucd_of_the_controlled_vocabulary(kind):
    for band in ("VIS", "g", "y", "H"):
        parse_ucd(column(kind, np.zeros(1), band).meta["ucd"], check_controlled_vocabulary=True, has_colon=False)


@pytest.mark.filterwarnings("error")
def test_the_header_tells_every_unit_ucd_and_description(table, tmp_path):
    write_catalog(tmp_path / "catalog.fits", table, {})
    with fits.open(tmp_path / "catalog.fits") as hdus:
        hdus.verify("exception")
        header = hdus["CATALOG"].header
    plain, ours = Table.read(tmp_path / "catalog.fits", hdu=1), read_catalog(tmp_path / "catalog.fits")
    for number, name in enumerate(table.colnames, 1):
        assert header[f"TCOMM{number}"] == table[name].description == ours[name].description
        assert header[f"TUCD{number}"] == table[name].meta["ucd"] == ours[name].meta["ucd"]
        assert plain[name].unit == table[name].unit
        if table[name].unit is not None:
            u.Unit(header[f"TUNIT{number}"], format="fits")


def test_a_table_has_one_main_position_and_identifier(table):
    named = table.copy()
    for convention in CONVENTIONS:
        add_aliases(named, BANDS, convention)
    main = [column.meta["ucd"] for column in named.itercols() if "meta.main" in column.meta["ucd"]]
    assert sorted(main) == ["meta.id;meta.main", "pos.eq.dec;meta.main", "pos.eq.ra;meta.main"]


def test_aliases_are_the_same_values_in_the_other_units(table):
    named = table.copy()
    add_aliases(named, BANDS, "mer")
    added = named.colnames[len(table.colnames) :]
    assert added == [
        *("RIGHT_ASCENSION", "DECLINATION", "FLUX_SEGMENTATION", "FLUXERR_SEGMENTATION"),
        *("FLUX_G_EXT_HSC_TEMPLFIT", "FLUXERR_G_EXT_HSC_TEMPLFIT"),  # MER has no r of HSC
    ]
    np.testing.assert_array_equal(named["RIGHT_ASCENSION"], table["ra"])
    np.testing.assert_allclose(named["FLUX_SEGMENTATION"], table["flux_VIS"] / 1000, rtol=1e-12)
    np.testing.assert_allclose(named["FLUXERR_G_EXT_HSC_TEMPLFIT"], table["flux_ml_err_g"] / 1000, rtol=1e-12)
    assert named["FLUX_SEGMENTATION"].unit == u.uJy and "flux_VIS" in named["FLUX_SEGMENTATION"].description
    named = table.copy()
    add_aliases(named, BANDS, "lsst")
    np.testing.assert_array_equal(named["r_gaap1p0Flux"], table["gauss_flux_r"])
    assert named["coord_dec"].unit == u.deg and named["r_gaap1p0FluxErr"].unit == u.nJy
    assert "filter hsc-r" in named["r_gaap1p0Flux"].description and "VIS_gaap1p0Flux" not in named.colnames


def test_regions_lie_where_the_catalog_says(table):
    lines = regions(table).splitlines()
    assert lines[2] == "icrs" and len(lines) == 3 + len(table)
    for line, row in zip(lines[3:], table, strict=True):
        found = re.fullmatch(r'ellipse\((.+),(.+),(.+)",(.+)",(.+)\) # text=\{(.+)\}', line)
        ra, dec, a, b, angle = map(float, found.groups()[:5])
        assert found.group(6) == row["object_id"]
        at = SkyCoord(row["ra"], row["dec"], unit="deg")
        assert SkyCoord(ra, dec, unit="deg").separation(at) < 0.1 * u.mas
        assert np.sqrt(a * b) == pytest.approx(row["r50"], abs=1e-3)
        assert (a - b) / (a + b) == pytest.approx(np.hypot(row["e1"], row["e2"]), abs=1e-3)
        assert np.sin(np.radians(angle - 90 - row["position_angle"])) == pytest.approx(0, abs=2e-4)
    unknown = table.copy()
    unknown["r50"][0], unknown["ra"][1] = np.nan, np.nan
    (circle,) = regions(unknown).splitlines()[3:]
    assert circle.startswith("circle(") and '0.5000"' in circle


def test_the_picture_is_of_the_bands_that_were_observed_and_shows_a_red_source_red():
    assert rgb_bands([*"grizy", "VIS"]) == ("i", "r", "g")
    assert rgb_bands(["VIS", "g", "z", "y"]) == ("y", "z", "g")
    assert rgb_bands(["VIS", "r"]) == ("r", "VIS", "VIS")
    image = np.zeros((3, 10, 10))
    image[:, 2, 3] = [50.0, 10.0, 5.0]
    picture = colour_picture("irg", ("i", "r", "g"), image, 0.1, zoom=3)
    assert picture.shape == (30, 30, 3) and picture.dtype == np.uint8
    red, green, blue = picture[7, 10].astype(int)
    assert red > green > 0 and red > blue > 0 and not picture[0].any()


def test_the_picture_of_a_large_field_is_binned_and_keeps_its_brightness(tmp_path, monkeypatch):
    """A smooth field looks the same at half its size; what is left over of its sides is left out."""
    monkeypatch.setattr(exports, "LARGEST", 40)
    monkeypatch.setattr(exports, "ZOOM", 1)
    y, x = np.mgrid[:73, :61]
    light = np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 200)
    mean = np.stack([light, 0.6 * light, 0.3 * light]).astype(np.float32)
    exports.write_large_picture(tmp_path, "irg", "irg", iter(mean), 0.1)
    small = (255 * imread(tmp_path / "rgb.png")[::-1, :, :3]).round()
    assert small.shape[:2] == (36, 30)
    whole = colour_picture("irg", ("i", "r", "g"), mean, 0.1)[: 2 * 36, : 2 * 30].astype(float)
    blocks = whole.reshape(36, 2, 30, 2, 3)
    light_of_four = mean[:, :72, :60].reshape(3, 36, 2, 30, 2).sum((2, 4))
    assert np.abs(small - colour_picture("irg", ("i", "r", "g"), light_of_four, 0.2)).max() <= 1  # float32 rounding
    # A stretch is monotone: a mean looks like something between its darkest and brightest pixel, but for rounding.
    assert (small >= blocks.min((1, 3)) - 1).all() and (small <= (high := blocks.max((1, 3))) + 1).all()
    assert high.max() > 128, "so bright that another brightness would show"


def test_the_picture_of_a_long_strip_has_rows(tmp_path, monkeypatch):
    """Two rows of 121 pixels, to be binned by four: binned by two."""
    monkeypatch.setattr(exports, "LARGEST", 40)
    monkeypatch.setattr(exports, "ZOOM", 1)
    exports.write_large_picture(tmp_path, "irg", "irg", iter(np.ones((3, 2, 121), np.float32)), 0.1)
    assert imread(tmp_path / "rgb.png").shape[:2] == (1, 60)


def input_header(case: str) -> fits.Header:
    header = tan_header(40, 0.1, angle=0.4)
    if case == "CD, mirrored":
        header["CD1_1"], header["CD2_1"] = -header["CD1_1"], -header["CD2_1"]
    if case == "PC, far from the tangent point":
        header["CDELT1"], header["CDELT2"] = -0.1 / 3600, 0.1 / 3600
        for i, j in ((1, 1), (1, 2), (2, 1), (2, 2)):
            header[f"PC{i}_{j}"] = header.pop(f"CD{i}_{j}") / header[f"CDELT{i}"]
        header["CRPIX1"], header["CRPIX2"] = -3000.0, 4000.0
    return header


@pytest.mark.parametrize("case", ["CD, turned", "CD, mirrored", "PC, far from the tangent point"])
def test_injected_sources_are_found_within_5_mas_of_the_input_wcs(case, tmp_path):
    """Three sources put where astropy's own WCS of the input says, of a signal to noise of some 5,000.

    At 500, the barycentres of isophotes are off by 2 mas (rms), whatever the WCS.
    """
    header = input_header(case)
    at = np.array([[11.3, 12.8], [28.6, 13.45], [18.27, 28.9]])  # (x, y)
    sky = WCS(header).pixel_to_world(*at.T)
    path = write_good_scene(tmp_path / "good")
    edit_yaml(path, lambda content: content.update(observations=content["observations"][:1]))
    y, x = np.mgrid[:40, :40]
    light = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8) / (8 * np.pi) for cx, cy in at)
    noise = fits.getdata(tmp_path / "good" / "VIS.fits")
    fits.writeto(tmp_path / "good" / "VIS.fits", noise + 40000 * light, header, overwrite=True)
    save_denoiser(untrained(DEMO_BANDS[:3]), tmp_path / "model")
    out = ["--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "model"), "--method", "wiener"]
    options = ["--num_samples", "4", "--ecsv", "true", "--aliases", "lsst"]
    assert cli.main(["reconstruct", "--scene", str(path), *out, *options]) == 0
    folder = tmp_path / "out" / "good"
    catalog = Table.read(folder / "catalog.fits")
    found = SkyCoord(catalog["ra"], catalog["dec"])
    nearest, distance, _ = sky.match_to_catalog_sky(found)
    assert len(set(nearest)) == 3 and distance.max() < 5 * u.mas
    again = WCS(header).pixel_to_world(catalog["x"], catalog["y"])
    assert again.separation(found).max() < 0.01 * u.mas
    text = Table.read(folder / "catalog.ecsv")
    assert text.colnames == catalog.colnames and "coord_ra" in text.colnames
    for name in text.colnames:
        np.testing.assert_array_equal(text[name], catalog[name])
        assert text[name].unit == catalog[name].unit
    assert text.meta["method"] == "wiener"
    picture = imread(folder / "rgb.png")
    assert picture.shape[:2] == (160, 160)
    brightest = np.unravel_index(picture[..., :3].sum(-1).argmax(), (160, 160))
    offset = at + 0.5 - np.array([brightest[1], 160 - brightest[0]]) / 4  # the first row is at the bottom
    assert np.hypot(*offset.T).min() < 1
    assert (folder / "catalog.reg").read_text().count("text={good_") == len(catalog)
