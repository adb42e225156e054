"""Reconstructions, truths and catalogs: what any FITS reader sees, and what comes back."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from jointdiff.errors import InputError
from jointdiff.io.products import (
    merge_catalogs,
    read_catalog,
    read_reconstruction,
    read_truth,
    write_catalog,
    write_reconstruction,
    write_truth,
)
from jointdiff.io.wcs import tangent_wcs
from jointdiff.scene import Band, Grid

BANDS = (Band("VIS", "VIS"), Band("g", "hsc-g"))
CENTRE = (150.1, 2.2)
WORLD = tangent_wcs(Grid.centred((7, 9), 0.1, 0.3), CENTRE)
PROVENANCE = {
    "version": "0.1.0",
    "checkpoint": "0123456789abcdef" * 4,
    "seed": 5,
    "method": "diffusion",
    "mode": "amortized",
    "evaluations": 8,
}


@pytest.fixture
def cubes():
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(4, 2, 7, 9, generator=generator)
    return samples.mean(0), samples.std(0), samples


@pytest.fixture
def reconstruction(tmp_path, cubes):
    mean, std, samples = cubes
    path = tmp_path / "field" / "reconstruction.fits"
    write_reconstruction(path, mean, std, samples, BANDS, WORLD, 0.2, PROVENANCE)
    return path


def _catalog(scene: str, rows: int = 3) -> Table:
    rng = np.random.default_rng(2)
    table = Table(
        {
            "object_id": np.arange(rows),
            "scene": np.full(rows, scene),
            "ra": Table.Column(np.full(rows, 150.1), unit=u.deg, description="right ascension (ICRS)"),
            "flux_g": Table.Column(
                rng.normal(size=rows).astype(">f4"), unit=u.nJy, description="posterior mean flux in the segment, of g"
            ),
            "mag_g": Table.Column(np.full(rows, np.nan), unit=u.mag),
            "flux_cov": Table.Column(rng.normal(size=(rows, 2, 2)), unit=u.nJy**2),
            "flags": np.zeros(rows, np.int32),
        }
    )
    table.meta["APERRAD"] = 0.5
    return table


@pytest.mark.filterwarnings("error")
def test_reconstruction_reads_back(reconstruction, cubes):
    read = read_reconstruction(reconstruction)
    for array, written in zip((read.mean, read.std, read.samples), cubes, strict=True):
        assert array.dtype == np.dtype("=f4")
        np.testing.assert_array_equal(array, written.numpy())
    assert (read.bands, read.target_fwhm, read.provenance) == (BANDS, 0.2, PROVENANCE)
    known, seen = (wcs.pixel_to_world([0, 8], [0, 6]) for wcs in (WORLD, read.wcs))
    assert known.separation(seen).max() < 1 * u.uas


@pytest.mark.filterwarnings("error")
def test_any_fits_reader_finds_units_bands_and_sky(reconstruction):
    with fits.open(reconstruction) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "MEAN", "STD", "SAMPLES"]
        primary = hdus[0].header
        assert (primary["FORMAT"], primary["SEED"], primary["METHOD"], primary["NEVAL"]) == (1, 5, "diffusion", 8)
        assert primary["CKPTSHA"] == PROVENANCE["checkpoint"]
        assert [hdu.shape for hdu in hdus[1:]] == [(2, 7, 9), (2, 7, 9), (4, 2, 7, 9)]
        for hdu in hdus[1:]:
            assert hdu.data.dtype.kind == "f" and hdu.data.dtype.itemsize == 4
            assert u.Unit(hdu.header["BUNIT"]) == u.nJy / u.pix
            assert (hdu.header["BAND1"], hdu.header["BAND2"], hdu.header["TARGFWHM"]) == ("VIS", "g", 0.2)
            wcs = WCS(hdu.header)
            assert wcs.naxis == hdu.header["WCSAXES"] == hdu.data.ndim
            sky = wcs.celestial.pixel_to_world(8, 6)
            assert sky.separation(WORLD.pixel_to_world(8, 6)) < 1 * u.uas


def test_the_mean_written_is_the_one_passed(tmp_path, cubes):
    """An exact mean, as the Wiener filter's, is not replaced by that of its samples; nor is negative flux."""
    mean, std, samples = cubes
    write_reconstruction(tmp_path / "r.fits", mean - 3, std, samples, BANDS, WORLD, 0.2, {})
    read = read_reconstruction(tmp_path / "r.fits")
    np.testing.assert_array_equal(read.mean, (mean - 3).numpy())
    assert read.provenance == {}


def test_truth_reads_back(tmp_path, cubes):
    path = write_truth(tmp_path / "scene", cubes[0], BANDS, WORLD, 0.2, {"seed": 9})
    assert path == tmp_path / "scene" / "truth.fits"
    truth = read_truth(path.parent)
    np.testing.assert_array_equal(truth.flux, cubes[0].numpy())
    assert (truth.bands, truth.target_fwhm) == (BANDS, 0.2)
    assert fits.getheader(path)["SEED"] == 9


def test_a_failed_write_keeps_the_old_file(reconstruction, cubes, monkeypatch):
    mean, std, samples = cubes
    before = reconstruction.read_bytes()

    def fail(self, plane):
        raise OSError("disk full")

    monkeypatch.setattr(fits.StreamingHDU, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_reconstruction(reconstruction, mean, std, samples, BANDS, WORLD, 0.2, {})
    assert reconstruction.read_bytes() == before
    assert list(reconstruction.parent.iterdir()) == [reconstruction]


def _reheaded(path, **cards):
    with fits.open(path, mode="update") as hdus:
        for key, value in cards.items():
            hdus[0].header[key] = value


def _without(path, name):
    with fits.open(path) as hdus:
        kept = fits.HDUList([hdu.copy() for hdu in hdus if hdu.name != name])
    kept.writeto(path, overwrite=True)


BROKEN = {
    "missing": (lambda path: path.unlink(), ["no such file"]),
    "not FITS": (lambda path: path.write_text("hello"), ["not a readable FITS"]),
    "other format": (lambda path: _reheaded(path, FORMAT=2), ["FORMAT is 2", "reads 1"]),
    "no HDU": (lambda path: _without(path, "STD"), ["no HDU STD"]),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-2880]), ["truncated", "bytes expected"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_reconstruction_is_told_in_one_line(case, reconstruction):
    breaker, words = BROKEN[case]
    breaker(reconstruction)
    with pytest.raises(InputError) as error:
        read_reconstruction(reconstruction)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in ["reconstruction:", str(reconstruction), *words] if word not in message] == [], message


@pytest.mark.filterwarnings("error")
def test_catalog_reads_back(tmp_path):
    table = _catalog("cosmos_12")
    write_catalog(tmp_path / "catalog.fits", table, PROVENANCE)
    read = read_catalog(tmp_path / "catalog.fits")
    assert read.colnames == table.colnames
    for name in table.colnames:
        np.testing.assert_array_equal(read[name], table[name])
        assert (read[name].unit, read[name].description) == (table[name].unit, table[name].description)
        assert read[name].dtype.isnative and read[name].shape == table[name].shape
    assert not read.has_masked_values
    assert (read.meta["APERRAD"], read.meta["SEED"], read.meta["FORMAT"]) == (0.5, 5, 1)


@pytest.mark.filterwarnings("error")
def test_any_fits_reader_finds_units_and_descriptions(tmp_path):
    table = _catalog("cosmos_12")
    write_catalog(tmp_path / "catalog.fits", table, PROVENANCE)
    with fits.open(tmp_path / "catalog.fits") as hdus:
        hdus.verify("exception")
        header = hdus["CATALOG"].header
        assert [header[f"TTYPE{n}"] for n in range(1, 8)] == table.colnames
        assert (header["TUNIT4"], header["TCOMM4"]) == ("nJy", "posterior mean flux in the segment, of g")
        assert header["CKPTSHA"] == PROVENANCE["checkpoint"]
    plain = Table.read(tmp_path / "catalog.fits", hdu=1)
    assert plain["flux_g"].unit == u.nJy and plain["flux_cov"].shape == (3, 2, 2)


def test_an_empty_catalog_keeps_its_columns(tmp_path):
    write_catalog(tmp_path / "catalog.fits", _catalog("nothing", 0), PROVENANCE)
    read = read_catalog(tmp_path / "catalog.fits")
    assert len(read) == 0
    assert read.colnames == _catalog("nothing", 0).colnames
    assert read["flux_g"].unit == u.nJy


@pytest.mark.filterwarnings("error")
def test_merged_catalogs_keep_rows_units_and_common_meta(tmp_path):
    tables = [_catalog("a"), _catalog("a_longer_name", 2), _catalog("empty", 0)]
    tables[1].meta["TILE"] = 7
    for number, table in enumerate(tables):
        write_catalog(tmp_path / f"{number}.fits", table, PROVENANCE)
    merged = merge_catalogs([read_catalog(tmp_path / f"{number}.fits") for number in range(3)])
    assert list(merged["scene"]) == ["a"] * 3 + ["a_longer_name"] * 2
    assert merged.colnames == tables[0].colnames
    assert merged["flux_g"].unit == u.nJy and merged["flux_g"].description == tables[0]["flux_g"].description
    assert merged.meta["APERRAD"] == 0.5 and "TILE" not in merged.meta
    write_catalog(tmp_path / "catalog.fits", merged, PROVENANCE)
    np.testing.assert_array_equal(read_catalog(tmp_path / "catalog.fits")["flux_cov"], merged["flux_cov"])


def test_catalogs_of_different_columns_do_not_merge():
    other = _catalog("b")
    other.remove_column("flags")
    with pytest.raises(AssertionError, match="different columns"):
        merge_catalogs([_catalog("a"), other])


@pytest.mark.parametrize("case", ["missing", "other HDU", "truncated", "other format"])
def test_broken_catalog_is_told_in_one_line(case, tmp_path, reconstruction):
    path = tmp_path / "catalog.fits"
    write_catalog(path, _catalog("a", 400), PROVENANCE)
    if case == "missing":
        path.unlink()
    elif case == "other HDU":
        path = reconstruction
    elif case == "truncated":
        path.write_bytes(path.read_bytes()[:-2880])
    else:
        fits.setval(path, "FORMAT", value=3, ext=1)
    with pytest.raises(InputError, match=r"^catalog: .*\.fits\)$") as error:
        read_catalog(path)
    expected = {"missing": "no such", "other HDU": "no HDU CATALOG", "other format": "FORMAT is 3"}
    assert expected.get(case, case) in str(error.value)
