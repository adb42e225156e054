"""Libraries drawn from images: what is refused, and a run from images to a trained model."""

import shutil

import numpy as np
import pytest
import yaml
from astropy.io import fits

from jointdiff import build, cli, config
from jointdiff.errors import InputError
from jointdiff.io.shards import read_index
from jointdiff.run_folder import refuse_other_run
from jointdiff.simulate.images import find_images
from tests.pictures import gaussian_light, write_picture
from tests.runs import TINY, finish, start, tiny_config

pytestmark = pytest.mark.usefixtures("own_process")


def _twice(folder):
    write_picture(folder / "again", "r", gaussian_light(16, 1.0))


def _card(**cards):
    def breaker(folder):
        write_picture(folder, "g", gaussian_light(16, 1.0), "b", **cards)

    return breaker


def _remove(folder):
    shutil.rmtree(folder)


def _empty(folder):
    _remove(folder)
    folder.mkdir()


def _table(folder):
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("ID", "J", array=[1])])]
    fits.HDUList(hdus).writeto(folder / "catalogue.fits")


@pytest.mark.parametrize(
    ("breaker", "told"),
    [
        (_remove, "no such folder"),
        (_empty, "no FITS file"),
        (_table, "no image"),
        (_twice, "is there twice in a filter"),
        (_card(BUNIT="nanomaggies"), "BUNIT is nanomaggies, expected AB mag/arcsec2 of an idealised image; realistic"),
        (_card(FILTER="2MASS.J"), "filter '2MASS.J', expected one of SDSS, HSC, MegaCam's u and r, or LSST"),
        (_card(CTYPE1="RA---TAN"), "no pixel in pc or kpc: CTYPE1 is ra---tan"),
        (lambda folder: (folder / "groups.csv").write_text("a.fits\n"), "'a.fits' is not 'file name,group'"),
        (lambda folder: (folder / "x.fits").write_text("no"), "not a readable FITS file"),
        (lambda folder: None, "1 galaxies are pictured, and each split needs its own"),
    ],
)
def test_one_line_for_every_mistake(breaker, told, tmp_path, capsys):
    folder = tmp_path / "images"
    write_picture(folder, "r", gaussian_light(16, 1.0))
    breaker(folder)
    options = ["--library.source", "tng", "--library.images", str(folder)]
    assert cli.main(["simulate", "--config", str(TINY), "--run", str(tmp_path / "run"), *options]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_images_and_source_go_together(tmp_path, capsys):
    for options, told in (
        (["--library.source", "tng"], "library.images is missing, expected the folder of the images"),
        (["--library.images", "x"], "library.images is x, expected nothing for source galsim"),
        (["--library.source", "cosmos", "--library.images", str(tmp_path)], "no real_galaxy_catalog….fits"),
        (["--library.redshifts", "[1,0.5]"], "library.redshifts is [1.0, 0.5], expected two above 0, the nearer first"),
    ):
        assert cli.main(["simulate", "--config", str(TINY), "--run", str(tmp_path / "run"), *options]) == 2
        assert told in capsys.readouterr().err


def test_a_catalogue_without_its_images_is_named(tmp_path, real_data):
    if not (real_data / "cosmos").is_dir():
        pytest.skip(f"no COSMOS galaxies: {real_data / 'cosmos'} is absent")
    for name in ("catalog_26_extension_example", "PSF_images_extension"):
        shutil.copy(real_data / "cosmos" / f"real_galaxy_{name}.fits", tmp_path)
    with pytest.raises(InputError, match=r"lacks real_galaxy_images_extension\.fits"):
        find_images("cosmos", tmp_path, 1.0, (0.2, 1.0))


def test_a_run_without_the_newer_settings_goes_on(tmp_path):
    """A run of before there were sources of galaxies had GalSim's."""
    config.save_config(tiny_config(tmp_path), tmp_path / "config.yaml")
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for key in ("source", "images", "image_fraction", "redshifts"):
        del content["library"][key]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    refuse_other_run(tiny_config(tmp_path), tmp_path)
    other = tiny_config(tmp_path, "--library.source", "tng", "--library.images", "x")
    with pytest.raises(InputError, match=r"library\.images is x, expected .* as in"):
        refuse_other_run(other, tmp_path)


@pytest.mark.parametrize(("source", "folder"), [("tng", "skirt"), ("cosmos", "cosmos")])
def test_images_to_a_trained_model(source, folder, real_data, tmp_path):
    """The library, two steps of training, validation on galaxies of other splits: on the real files."""
    images = real_data / folder
    if not images.is_dir():
        pytest.skip(f"no images: {images} is absent")
    run = tmp_path / "run"
    options = ["--library.source", source, "--library.images", str(images), "--library.image_fraction", "0.3"]
    options += ["--library.count", "60", "--scene.geometries", "[lsst]", "--calibration.scenes", "0"]
    simulate = ["simulate", "--config", str(TINY), "--run", str(run), *options]
    assert cli.main(simulate) == 0
    entries = [entry for record in read_index(run / "library")["shards"] for entry in record["entries"]]
    pictured = {}
    for entry in entries:
        if "group" in entry:
            pictured.setdefault(entry["group"], set()).add(entry["split"])
    assert sum("group" in entry for entry in entries) >= 6
    assert all(len(splits) == 1 for splits in pictured.values())
    assert {entry["split"] for entry in entries} == {"train", "validation", "test"}
    assert np.isfinite([entry["mag_VIS"] for entry in entries]).all()
    other = tiny_config(run, *options, "--library.image_fraction", "0.25")
    with pytest.raises(InputError, match=r"library\.image_fraction is 0\.25, expected 0\.3 as in"):
        build.simulator(other, "train")
    if source == "cosmos":  # one training is enough: the libraries are of one format
        return
    assert finish(start(run, *options, "--training.steps", "2", "--training.checkpoint_every", "2")) == 0, (
        run / "output.txt"
    ).read_text()
    assert (run / "model" / "model.safetensors").is_file()
