"""What the reconstruct command flags: a network that contradicts the data, as the library tells too; measured noise."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from jointdiff import cli
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.io.products import read_catalog, read_reconstruction
from jointdiff.io.scene_files import read_field
from jointdiff.measure.catalog import CORRELATED_NOISE, GAUSSIAN, UNEXPLAINED
from jointdiff.measure.peaks import ALARM
from jointdiff.reconstruct import tiles
from jointdiff.reconstruct.api import reconstruct
from jointdiff.reconstruct.checkpoint import load_denoiser, save_denoiser
from tests.contracts.test_reconstruct_cli import BANDS, command, plant
from tests.denoisers import untrained
from tests.scene_folders import edit_yaml, write_good_scene


@pytest.fixture
def denying(request, tmp_path, monkeypatch):
    """A checkpoint whose network takes all light away; or one that knows of errors of the observations, besides."""
    folder = tmp_path / "model"
    save_denoiser(untrained(BANDS), folder)
    if getattr(request, "param", "sure") == "doubting":
        described = json.loads((folder / "config.json").read_text()) | {"levels": [0.02, 0.01, 0.015, 0.1]}
        (folder / "config.json").write_text(json.dumps(described))

    def without(self, x, sigma, conditioning, symmetries=()):
        return -conditioning.posterior.given(x, sigma).mean

    monkeypatch.setattr(Denoiser, "correction", without)
    monkeypatch.setattr(tiles, "CONTEXT", 20)
    return folder


@pytest.fixture
def scene(tmp_path):
    return write_good_scene(tmp_path / "good")


IN_ONE_PIECE_AND_IN_TILES = pytest.mark.parametrize(
    ("denying", "options"),
    [("sure", []), ("doubting", []), ("doubting", ["--tile", "38", "--align", "false"])],
    indirect=["denying"],
)


@IN_ONE_PIECE_AND_IN_TILES
def test_sources_on_which_the_network_contradicts_the_data_are_flagged(options, scene, denying, tmp_path, capsys):
    """And headers say whether it was looked for; --guard false lets the network have its way."""
    plant(scene, 400)
    flags = {}
    for guard in ("true", "false"):
        assert cli.main(command(scene, denying, tmp_path / guard, "--guard", guard, *options)) == 0
        told = "are the Gaussian posterior's, for the network contradicted the data there (flag 512)"
        assert (told in capsys.readouterr().out) == (guard == "true")
        catalog = read_catalog(tmp_path / guard / "catalog.fits")
        flags[guard] = catalog["flags"] & GAUSSIAN
        made = read_reconstruction(tmp_path / guard / "good" / "reconstruction.fits").provenance
        assert made["guard"] is catalog.meta["GUARD"] is (guard == "true")
    assert len(flags["true"]) and flags["true"].any() and not flags["false"].any()


@IN_ONE_PIECE_AND_IN_TILES
def test_what_no_sample_explains_is_told_flagged_and_listed(options, scene, denying, tmp_path, capsys):
    """A source that the network denies, where the guard may not speak; of the Wiener filter nothing is left."""
    plant(scene, 400)
    for method, peaks in (("diffusion", True), ("wiener", False)):
        out = tmp_path / method
        assert cli.main(command(scene, denying, out, "--method", method, "--guard", "false", *options)) == 0
        assert (told := "; flag 1024)" in capsys.readouterr().out) == peaks, told
        table = Table.read(out / "good" / "unexplained.ecsv", format="ascii.ecsv")
        assert (out / "good" / "unexplained.reg").read_text().count("circle(") == len(table)
        header = fits.getheader(out / "good" / "reconstruction.fits")
        catalog = read_catalog(out / "good" / "catalog.fits")
        assert header["UNEXPLN"] == catalog.meta["UNEXPLN"] == len(table)
        assert header["UNEXPTHR"] == table.meta["UNEXPTHR"] == ALARM
        assert bool(len(table)) == peaks
        if peaks:
            assert {"ra", "dec", "x", "y", "sigma", "size", "shape", "band"} == {*table.colnames}
            near = np.hypot(table["y"] - 22, table["x"] - 18) < 8
            assert near[0] and (np.diff(table["sigma"]) <= 0).all() and table["sigma"].min() > ALARM
            sky = read_field(scene).wcs.pixel_to_world_values(table["x"], table["y"])
            np.testing.assert_allclose(np.stack(sky), np.stack([table["ra"], table["dec"]]), atol=1e-9)
        else:
            assert not (catalog["flags"] & UNEXPLAINED).any()


@pytest.mark.parametrize("tile", [0, 38])
def test_the_library_says_where_samples_gave_way(tile, scene, denying):
    """At the source that the network denies; where each pixel's share belongs is a law of tiles."""
    plant(scene, 400)
    field, options = read_field(scene), {"evaluations": 4, "align": False, "stars": False, "tile": tile}
    seen = field.observations, load_denoiser(denying), 3
    told = reconstruct(*seen, name=field.name, grid=field.grid, **options).replaced
    assert told is not None and told.shape == field.grid.shape
    assert told[22, 18] == 1
    assert reconstruct(*seen, grid=field.grid, guard=False, **options).replaced is None


@pytest.mark.parametrize("measured", [True, False, None])
def test_noise_that_ingest_measured_is_flagged_as_if_reconstruct_had(measured, scene, model, tmp_path):
    plant(scene, 400)
    if measured is not None:
        edit_yaml(scene, lambda content: content["observations"][1].update(noise_measured=measured))
    assert cli.main(command(scene, model, tmp_path / "out", "--method", "wiener")) == 0
    flags = read_catalog(tmp_path / "out" / "catalog.fits")["flags"] & CORRELATED_NOISE
    assert len(flags) and (flags == CORRELATED_NOISE * bool(measured)).all()
