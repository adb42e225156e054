"""The reconstruct command on fields that are cut into tiles: products, resuming, processes, mistakes."""

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from matplotlib.image import imread

from jointdiff import cli, ondisk
from jointdiff.evaluate.field import FieldJob, Treatment
from jointdiff.evaluate.mosaic import MosaicJob, Workers
from jointdiff.io.products import read_catalog, read_reconstruction
from jointdiff.io.scene_files import read_field
from jointdiff.reconstruct import store, tiles
from jointdiff.reconstruct.api import build_reconstructor, reconstruct
from jointdiff.reconstruct.base import Draws
from jointdiff.reconstruct.checkpoint import load_denoiser
from jointdiff.reconstruct.store import TileStore
from jointdiff.reconstruct.tiles import Tile
from jointdiff.reconstruct.wiener import Wiener
from tests.contracts.test_reconstruct_cli import command, mistake, plant
from tests.scene_folders import write_good_scene


@pytest.fixture(scope="module")
def doubting(model, tmp_path_factory) -> Path:
    """A checkpoint that knows of errors of the observations, of levels of sky most of all."""
    folder = tmp_path_factory.mktemp("doubting") / "model"
    shutil.copytree(model, folder)
    described = json.loads((folder / "config.json").read_text()) | {"levels": [0.02, 0.01, 0.015, 3.0]}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def scene(tmp_path, monkeypatch) -> Path:
    """A field of 40 × 40 pixels with a source, to be cut into tiles that see no more around them than apertures do."""
    monkeypatch.setattr(tiles, "CONTEXT", 20)
    monkeypatch.setattr(tiles, "BLEND", 8)
    path = write_good_scene(tmp_path / "good")
    plant(path, 600)
    return path


def tiled(scene: Path, model: Path, output: Path, *options: str) -> list[str]:
    return command(scene, model, output, "--tile", "38", "--align", "false", "--stars", "false", *options)


def drawn(monkeypatch) -> list[str]:
    """The names of tiles as they are written."""
    names: list[str] = []
    write = TileStore.write

    def told(self, tile, draws):
        names.append(tile.name)
        write(self, tile, draws)

    monkeypatch.setattr(TileStore, "write", told)
    return names


def test_products_of_tiles_are_those_of_a_field(scene, doubting, tmp_path, capsys):
    """The same files, headers and columns; and what samples take the images to be off by counts in no misfit."""
    for name, options in (("tiled", ["--tile", "38"]), ("whole", [])):
        assert (
            cli.main(
                command(
                    scene,
                    doubting,
                    tmp_path / name,
                    "--method",
                    "wiener",
                    "--align",
                    "false",
                    "--stars",
                    "false",
                    *options,
                )
            )
            == 0
        )
    told = capsys.readouterr().out
    assert "4 of 4 tiles" in told and "0:00:00 left" in told
    chi2 = [[float(x) for x in line] for line in re.findall(r"samples VIS ([0-9.]+), g ([0-9.]+);", told)]
    assert len(chi2) == 2
    np.testing.assert_allclose(chi2, 1, atol=0.3)  # a level of 3 deviations that counted would add 9 × its variance
    cut, one = ({str(p.relative_to(tmp_path / n)) for p in (tmp_path / n).rglob("*")} for n in ("tiled", "whole"))
    assert cut == one  # the tiles are gone
    pictures = [imread(tmp_path / n / "good" / "rgb.png") for n in ("tiled", "whole")]
    assert pictures[0].shape == pictures[1].shape == (160, 160, 4)  # of all tiles
    results = [read_reconstruction(tmp_path / n / "good" / "reconstruction.fits") for n in ("tiled", "whole")]
    assert results[0].samples.shape == results[1].samples.shape
    assert results[0].bands == results[1].bands and results[0].provenance == results[1].provenance
    headers = [fits.getheader(tmp_path / n / "good" / "reconstruction.fits", "SAMPLES") for n in ("tiled", "whole")]
    assert repr(headers[0]) == repr(headers[1])
    np.testing.assert_allclose(results[0].std, results[0].samples.std(0, ddof=1), rtol=1e-4)
    catalogs = [read_catalog(tmp_path / n / "catalog.fits") for n in ("tiled", "whole")]
    assert catalogs[0].colnames == catalogs[1].colnames and catalogs[0].meta == catalogs[1].meta
    assert len(set(catalogs[0]["object_id"])) == len(catalogs[0]) > 0


class Replayed(Wiener):
    """Gives the samples that tiles have left."""

    def __init__(self, denoiser, store: TileStore):
        super().__init__(denoiser)
        self._store = store

    def sample(self, observations, grid, count, stream) -> Draws:
        whole = Tile((0, 0), *map(range, grid.shape))
        return Draws(self._store.read("samples", whole), self._store.read("mean", whole))


def test_sources_are_measured_on_tiles_as_on_the_field(scene, model, tmp_path, monkeypatch):
    """Of the same samples, every column is the same: each source once, whole, with its neighbours and all of its data.

    Within 0.2 %: bands are weighed in the detection image by the median of tiles, which moves centres by some 1e-4
    pixels. Fluxes by likelihood are of templates that end elsewhere: within 2 % of their errors."""
    for y, x, counts in ((7, 33, 600), (34, 8, 500), (33, 31, 700)):
        plant(scene, counts, y, x)
    stores: list[TileStore] = []
    monkeypatch.setattr(TileStore, "remove", lambda self: stores.append(self))
    assert cli.main(tiled(scene, model, tmp_path / "tiles", "--method", "wiener")) == 0
    replay, field = Replayed(load_denoiser(model), stores[0]), read_field(scene)
    one = FieldJob(field, replay, 3, Treatment(align=False, stars=False)).run(tmp_path / "one", 0, {})
    cut = read_catalog(tmp_path / "tiles" / "good" / "catalog.fits")
    assert one is not None and len(one) == len(cut) >= 3
    assert list(one["object_id"]) == list(cut["object_id"])
    for name in one.colnames:
        if one[name].dtype.kind != "f":
            continue
        likelihood = name.startswith(("flux_ml", "chi2"))
        small = 0.02 * float(np.max(one["flux_ml_err_VIS"])) if likelihood else 2e-3
        np.testing.assert_allclose(cut[name], one[name], rtol=1e-2 if likelihood else 2e-3, atol=small, err_msg=name)
    assert list(one["flags"]) == list(cut["flags"])


def test_a_killed_run_goes_on_where_it_was(scene, model, tmp_path, monkeypatch):
    names = drawn(monkeypatch)
    assert cli.main(tiled(scene, model, tmp_path / "once")) == 0
    assert len(names) == len(set(names)) == 4
    write = TileStore.write

    def killed(self, tile, draws):
        write(self, tile, draws)
        if len(names) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(TileStore, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        cli.main(tiled(scene, model, tmp_path / "twice"))
    left = sorted(path.name for path in (tmp_path / "twice" / "good" / "tiles").iterdir())
    assert left == ["000_000.safetensors", "000_001.safetensors", "field.json", "shared.safetensors"]
    torn = tmp_path / "twice" / "good" / "tiles" / "000_001.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    monkeypatch.setattr(TileStore, "write", write)
    assert cli.main(tiled(scene, model, tmp_path / "twice")) == 0
    assert names[6:] == ["000_001", "001_000", "001_001"], "only what was missing, or torn"
    once, twice = (read_reconstruction(tmp_path / n / "good" / "reconstruction.fits") for n in ("once", "twice"))
    np.testing.assert_array_equal(once.samples, twice.samples)


def test_tiles_of_other_settings_data_or_code_are_drawn_again(scene, model, tmp_path, monkeypatch):
    names = drawn(monkeypatch)
    monkeypatch.setattr(TileStore, "remove", lambda self: None)
    assert cli.main(tiled(scene, model, tmp_path / "out")) == 0
    assert cli.main(tiled(scene, model, tmp_path / "out")) == 0
    assert len(names) == 4
    assert cli.main(tiled(scene, model, tmp_path / "out", "--seed", "1")) == 0
    assert len(names) == 8
    plant(scene, 10)
    assert cli.main(tiled(scene, model, tmp_path / "out", "--seed", "1")) == 0
    assert len(names) == 12
    monkeypatch.setattr(store, "code_digest", lambda: "other")
    assert cli.main(tiled(scene, model, tmp_path / "out", "--seed", "1")) == 0
    assert len(names) == 16
    assert cli.main(tiled(scene, model, tmp_path / "out", "--seed", "1", "--guard", "false")) == 0
    assert len(names) == 20


@pytest.mark.parametrize("most", [ondisk.HELD, 100])
def test_both_doors_lead_to_the_same_tiles(most, scene, doubting, tmp_path, monkeypatch):
    """Where images are in memory, the very same; on disk, but for the order in which weights are summed, which the
    network makes more of where it computes in bf16."""
    monkeypatch.setattr(ondisk, "HELD", most)
    assert cli.main(tiled(scene, doubting, tmp_path / "out", "--seed", "5")) == 0
    told = read_reconstruction(tmp_path / "out" / "good" / "reconstruction.fits")
    field, options = read_field(scene), {"evaluations": 4, "align": False, "stars": False, "tile": 38}
    sky = reconstruct(field.observations, load_denoiser(doubting), 3, 5, name=field.name, grid=field.grid, **options)
    small = 1e-2 * float(told.std.max()) * (most == 100)
    np.testing.assert_allclose(sky.samples.cpu().numpy(), told.samples, rtol=0, atol=small)
    np.testing.assert_allclose(sky.mean.cpu().numpy(), told.mean, rtol=0, atol=small)


def test_the_shifts_of_a_field_are_found_once(scene, model, tmp_path, monkeypatch):
    """A run that goes on reads them, with the amplitude, and moves every image as the first did."""
    stores, calls = [], []
    monkeypatch.setattr(TileStore, "remove", lambda self: stores.append(self))
    monkeypatch.setattr(tiles, "align_field", lambda *a, found=tiles.align_field: calls.append(1) or found(*a))
    for _ in range(2):
        assert cli.main(command(scene, model, tmp_path / "out", "--tile", "39", "--stars", "false")) == 0
    assert len(calls) == 1
    assert stores[0].note() == stores[1].note()
    note = stores[0].note()
    assert note is not None and note.bands == ("VIS", "g")
    header = fits.getheader(tmp_path / "out" / "good" / "reconstruction.fits")
    applied = note.alignment.applied[1].tolist() if note.alignment else []
    assert [header["SHIFTY2"], header["SHIFTX2"]] == pytest.approx(applied, abs=1e-5)


def test_processes_share_the_tiles(scene, model, tmp_path, monkeypatch):
    """Two, here threads that wait for each other, draw each tile once and leave what one leaves."""
    assert cli.main(tiled(scene, model, tmp_path / "one")) == 0
    names, barrier, field = drawn(monkeypatch), threading.Barrier(2, timeout=60), read_field(scene)
    denoiser = load_denoiser(model)
    provenance = build_reconstructor("diffusion", denoiser, 4).provenance(0, "x")
    catalogs = {}

    def work(index: int) -> None:
        workers = Workers(index, 2, lambda: barrier.wait() and None)
        treatment = Treatment(align=False, stars=False)
        job = MosaicJob(field, build_reconstructor("diffusion", denoiser, 4), 3, treatment, 38, workers)
        catalogs[index] = job.run(tmp_path / "two" / "good", 0, provenance)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == ["000_000", "000_001", "001_000", "001_001"]
    assert catalogs[1] is None and len(catalogs[0]) > 0
    one, two = (read_reconstruction(tmp_path / n / "good" / "reconstruction.fits") for n in ("one", "two"))
    np.testing.assert_array_equal(one.samples, two.samples)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "starlet"], "method starlet (mode none) knows no tiles, and 40 × 40 pixels"),
        (["--mode", "factorized"], "method diffusion (mode factorized) knows no tiles"),
        (["--method", "wiener-band"], "method wiener-band (mode none) knows no tiles"),
        (["--tile", "20"], "tile is 20, expected 0, or at least 32"),
        (["--num_samples", "1000000"], "take fewer samples, or smaller tiles"),
    ],
)
def test_mistakes(options, told, scene, model, tmp_path, capsys):
    assert told in mistake(capsys, tiled(scene, model, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_an_empty_field_has_an_empty_catalog(tmp_path, model, monkeypatch):
    monkeypatch.setattr(tiles, "CONTEXT", 20)
    monkeypatch.setattr(tiles, "BLEND", 8)
    path = write_good_scene(tmp_path / "good")
    for band in ("VIS", "g"):
        pixels, header = fits.getdata(path.parent / f"{band}.fits", header=True)
        fits.writeto(path.parent / f"{band}.fits", 0.01 * pixels, header, overwrite=True)
    assert cli.main(tiled(path, model, tmp_path / "out", "--method", "wiener")) == 0
    assert len(read_catalog(tmp_path / "out" / "good" / "catalog.fits")) == 0
