"""The reconstruct command and its checkpoints: what is written, and one line for every mistake."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from jointdiff import cli
from jointdiff.diffusion.guidance import Convergence
from jointdiff.errors import InputError
from jointdiff.io.products import read_catalog, read_reconstruction, write_truth
from jointdiff.io.scene_files import read_field
from jointdiff.measure.catalog import NEAR_STAR, NOT_CONVERGED
from jointdiff.reconstruct import checkpoint
from jointdiff.reconstruct.api import reconstruct
from jointdiff.reconstruct.checkpoint import checkpoint_folder, fingerprint, load_denoiser, save_denoiser
from jointdiff.scene import Band
from tests.denoisers import DEMO_BANDS, untrained
from tests.scene_folders import edit_yaml, write_good_scene

BANDS = DEMO_BANDS[:3]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint of an untrained denoiser."""
    folder = tmp_path_factory.mktemp("run") / "model"
    save_denoiser(untrained(BANDS), folder)
    return folder


@pytest.fixture
def scene(tmp_path) -> Path:
    return write_good_scene(tmp_path / "good")


def command(scene: Path, model: Path, output: Path, *options: str) -> list[str]:
    fixed = ["--output", str(output), "--checkpoint", str(model), "--num_samples", "3", "--evaluations", "4"]
    return ["reconstruct", "--scene", str(scene), *fixed, *options]


def plant(scene: Path, counts: float, y: int = 22, x: int = 18) -> None:
    """Adds a source to VIS."""
    path = scene.parent / "VIS.fits"
    pixels, header = fits.getdata(path, header=True)
    psf = fits.getdata(scene.parent / "VIS_psf.fits")
    stamp = np.zeros((n := pixels.shape[0] + 20, n))
    stamp[y : y + 21, x : x + 21] = counts * psf  # which may reach beyond the image
    pixels += stamp[10:-10, 10:-10]
    fits.writeto(path, pixels, header, overwrite=True)


def mistake(capsys, arguments: list[str]) -> str:
    """The one line that a wrong command prints before it has done anything."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("jointdiff: ").strip()


@pytest.mark.parametrize("method", ["wiener", "diffusion", "wiener-band"])
def test_products_of_two_fields(method, scene, model, tmp_path, capsys):
    second = write_good_scene(tmp_path / "second")
    edit_yaml(second, lambda content: content.update(name="other"))
    output = tmp_path / "out"
    assert cli.main(command(scene, model, output, "--scene", str(second), "--method", method, "--seed", "5")) == 0
    told = capsys.readouterr().out
    assert str(output / "catalog.fits") in told
    assert "good: VIS, g on 40 × 40 pixels" in told
    assert "r not observed" in told
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    names = ("reconstruction.fits", "catalog.fits", "catalog.reg", "unexplained.ecsv", "unexplained.reg")
    names += ("figure.png", "rgb.png")
    merged = {"catalog.fits", "catalog.reg", "reconstruct.yaml"}
    assert found == {f"{f}/{n}" for f in ("good", "other") for n in names} | merged
    result = read_reconstruction(output / "good" / "reconstruction.fits")
    assert result.samples.shape == (3, 3, 40, 40)
    assert np.isfinite(result.samples).all()
    assert result.bands == tuple(Band(*band) for band in BANDS)
    assert result.target_fwhm == 0.2
    field = read_field(scene)
    corners = [[0, 39], [0, 39]]
    np.testing.assert_allclose(result.wcs.wcs_pix2world(*corners, 0), field.wcs.wcs_pix2world(*corners, 0), atol=1e-9)
    np.testing.assert_allclose(result.std, result.samples.std(0, ddof=1), rtol=1e-4)
    if method == "diffusion":
        np.testing.assert_allclose(result.mean, result.samples.mean(0), rtol=1e-3, atol=1e-3 * result.std.mean())
    expected = {"method": method, "seed": 5, "checkpoint": fingerprint(model)}
    expected |= {"mode": "amortized", "evaluations": 4} if method == "diffusion" else {}
    expected |= {"guard": method == "diffusion"}
    assert expected.items() <= result.provenance.items()
    assert result.provenance.keys() - expected.keys() == {"version"}
    merged = read_catalog(output / "catalog.fits")
    parts = [read_catalog(output / name / "catalog.fits") for name in ("good", "other")]
    assert list(merged["object_id"]) == [*parts[0]["object_id"], *parts[1]["object_id"]]
    again = ["reconstruct", "--config", str(output / "reconstruct.yaml"), "--output", str(tmp_path / "again")]
    assert cli.main(again) == 0
    repeated = read_reconstruction(tmp_path / "again" / "good" / "reconstruction.fits")
    np.testing.assert_array_equal(repeated.samples, result.samples)


def test_factorized_says_so_and_flags_what_did_not_converge(scene, model, tmp_path, monkeypatch):
    """The untrained network is Gaussian, so that nothing fails of itself."""
    plant(scene, 400)
    for name, converged in (("good", True), ("bad", False)):
        monkeypatch.setattr(Convergence, "converged", converged)
        output = tmp_path / name
        assert cli.main(command(scene, model, output, "--mode", "factorized")) == 0
        assert read_reconstruction(output / "good" / "reconstruction.fits").provenance["mode"] == "factorized"
        catalog = read_catalog(output / "catalog.fits")
        assert len(catalog) and ((catalog["flags"] & NOT_CONVERGED > 0) == (not converged)).all()


def test_a_field_does_not_depend_on_its_companions(scene, model, tmp_path):
    second = write_good_scene(tmp_path / "second")
    edit_yaml(second, lambda content: content.update(name="other"))
    assert cli.main(command(second, model, tmp_path / "both", "--scene", str(scene))) == 0
    assert cli.main(command(scene, model, tmp_path / "alone")) == 0
    both, alone = (read_reconstruction(tmp_path / n / "good" / "reconstruction.fits") for n in ("both", "alone"))
    np.testing.assert_array_equal(both.samples, alone.samples)


def test_both_doors_lead_to_the_same_samples(scene, tmp_path):
    """The command and the library: one device, precision and random numbers; with a network that says something."""
    save_denoiser(untrained(BANDS, seed=4), tmp_path / "model")
    assert cli.main(command(scene, tmp_path / "model", tmp_path / "out", "--seed", "5")) == 0
    told = read_reconstruction(tmp_path / "out" / "good" / "reconstruction.fits").samples
    field, denoiser = read_field(scene), load_denoiser(tmp_path / "model")
    sky = reconstruct(field.observations, denoiser, 3, seed=5, name=field.name, grid=field.grid, evaluations=4)
    np.testing.assert_array_equal(sky.samples.cpu().numpy(), told)


def test_the_precision_may_be_chosen(model):
    dtypes = [load_denoiser(model, "cpu", precision).network_dtype for precision in ("no", "bf16")]
    assert dtypes == [None, torch.bfloat16]
    assert load_denoiser(model, "cpu").network_dtype in dtypes


def test_a_bright_source_is_found_where_it_is(scene, model, tmp_path):
    """Position in pixels of the reference and on its sky; the flux that was put in."""
    plant(scene, 4000)
    assert cli.main(command(scene, model, tmp_path / "out", "--method", "wiener", "--stars", "false")) == 0
    catalog = read_catalog(tmp_path / "out" / "good" / "catalog.fits")
    source = catalog[np.argmax(catalog["flux_VIS"])]
    assert (source["y"], source["x"]) == pytest.approx((22, 18), abs=0.1)
    ra, dec = read_field(scene).wcs.wcs_pix2world(source["x"], source["y"], 0)
    assert (source["ra"], source["dec"]) == pytest.approx((float(ra), float(dec)), abs=1e-8)
    njy = 10 ** (0.4 * (31.4 - 24.6))
    # 5 pixels hold 1 - exp(-5²/2²/2) = 0.956 of the PSF, and all of a source as sharp as the target PSF.
    assert 0.95 < source["aper_flux_VIS"] / (4000 * njy) < 1.01
    assert source["flux_ml_VIS"] == pytest.approx(source["flux_VIS"], rel=0.03)
    assert source["flux_VIS"] / (4000 * njy) == pytest.approx(0.94, abs=0.04), "some light is beyond the segment"
    assert source["chi2_VIS"] > 0


def test_a_star_that_outshines_the_field_is_told_and_what_is_near_it_flagged(scene, model, tmp_path):
    plant(scene, 20_000)
    plant(scene, 400, 29, 28)  # 1.2 arcsec away
    with pytest.warns(UserWarning, match=r"^good: a star of VIS 13.8 at x 18, y 22 outshines all else: subtracted"):
        assert cli.main(command(scene, model, tmp_path / "out", "--method", "wiener")) == 0
    (source,) = read_catalog(tmp_path / "out" / "good" / "catalog.fits")
    assert (source["y"], source["x"]) == pytest.approx((29, 28), abs=1)
    assert source["flags"] & NEAR_STAR


def test_the_truth_of_a_simulated_field_is_drawn(scene, model, tmp_path, monkeypatch):
    from jointdiff.evaluate import field as module

    drawn = []
    draw = module.scene_figure
    monkeypatch.setattr(module, "scene_figure", lambda *args: drawn.append(args[5]) or draw(*args))
    flux = np.arange(3 * 40 * 40, dtype=np.float32).reshape(3, 40, 40)
    bands = [Band(*band) for band in BANDS]
    write_truth(scene.parent, flux[::-1], bands[::-1], read_field(scene).wcs, 0.2)
    assert cli.main(command(scene, model, tmp_path / "out")) == 0
    np.testing.assert_array_equal(drawn[0], flux)


def test_a_truth_of_other_pixels_is_refused(scene, model, tmp_path, capsys):
    bands, wcs = [Band(*band) for band in BANDS], read_field(scene).wcs
    write_truth(scene.parent, np.zeros((3, 39, 40)), bands, wcs, 0.2)
    told = mistake(capsys, command(scene, model, tmp_path / "out"))
    assert told == f"truth: 39 × 40 pixels, but the reference has 40 × 40 ({scene.parent / 'truth.fits'})"
    write_truth(scene.parent, np.zeros((2, 40, 40)), bands[:2], wcs, 0.2)
    assert "truth: no band r, found VIS, g" in mistake(capsys, command(scene, model, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_band_that_the_checkpoint_lacks(scene, tmp_path, capsys):
    save_denoiser(untrained([("VIS", "VIS"), ("r", "hsc-r")]), tmp_path / "model")
    told = mistake(capsys, command(scene, tmp_path / "model", tmp_path / "out"))
    assert told.startswith("g: the checkpoint is of another band set, VIS, r (")
    assert "g.fits" in told


def test_pixels_that_the_checkpoint_was_not_trained_on(scene, tmp_path, capsys):
    save_denoiser(untrained(BANDS, pixel_scale=0.2), tmp_path / "model")
    told = mistake(capsys, command(scene, tmp_path / "model", tmp_path / "out"))
    assert told.startswith("VIS: pixels of 0.1 × 0.1 arcsec, but the checkpoint's scenes have 0.2")
    assert "VIS.fits" in told


def test_too_many_samples_for_the_memory(scene, model, tmp_path, capsys):
    told = mistake(capsys, command(scene, model, tmp_path / "out", "--num_samples", "1000000"))
    assert told.startswith(f"good ({scene}): 1000000 samples of 3 bands on ")
    assert "GB, at most 4 are allowed" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--evaluations 2", "evaluations is 2, expected at least 3"),
        ("--num_samples 1", "num_samples is 1, expected at least 2"),
        ("--method wiener --mode factorized", "mode is factorized, expected amortized with method wiener"),
    ],
)
def test_option_out_of_range(options, told, scene, model, tmp_path, capsys):
    assert told in mistake(capsys, command(scene, model, tmp_path / "out", *options.split()))


def test_output_that_is_a_file(scene, model, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    told = mistake(capsys, command(scene, model, tmp_path / "out"))
    assert told == f"output is {tmp_path / 'out'}, expected a folder"


def _broken(model: Path, folder: Path, how: str) -> Path:
    """A copy of a checkpoint, broken."""
    denoiser = load_denoiser(model)
    if how == "not finite":
        denoiser.covariances[0] = torch.nan
    save_denoiser(denoiser, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = json.loads(config.read_text())
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "not weights":
        weights.write_bytes(b"PK\x03\x04 not a safetensors file at all")
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "not JSON":
        config.write_text("{")
    elif how == "incomplete":
        config.write_text(json.dumps({k: v for k, v in content.items() if k != "pixel_scale"}))
    elif how == "other network":
        config.write_text(json.dumps(content | {"widths": [24, 32]}))
    elif how == "other bands":
        config.write_text(json.dumps(content | {"bands": content["bands"][:2]}))
    elif how == "other format":
        config.write_text(json.dumps(content | {"format": 2}))
    elif how == "no denoiser":
        config.write_text(json.dumps(content | {"widths": "wide"}))
    return folder


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("truncated", r"bytes found \(.*model.safetensors\)"),
        ("not weights", r"bytes found \(.*model.safetensors\)"),
        ("no weights", r"no model.safetensors"),
        ("no config", r"config.json"),
        ("not JSON", r"config.json\)"),
        ("incomplete", r"missing pixel_scale \(.*config.json\)"),
        ("other network", r"is \(.*\), config.json says \(.*model.safetensors\)"),
        ("other bands", r"covariances is \(24, 3, 3\), config.json says \(24, 2, 2\)"),
        ("other format", r"format is 2, this version reads 1 \(.*config.json\)"),
        ("no denoiser", r"not a denoiser: .*config.json\)"),
        ("not finite", r"covariances is not finite \(.*model.safetensors\)"),
    ],
)
def test_broken_checkpoint(how, told, model, tmp_path):
    with pytest.raises(InputError, match=told) as caught:
        load_denoiser(_broken(model, tmp_path / "model", how))
    assert str(caught.value).startswith("checkpoint: ")
    assert "\n" not in str(caught.value)


def test_missing_checkpoint_is_one_line(scene, tmp_path, capsys):
    told = mistake(capsys, command(scene, tmp_path / "none", tmp_path / "out"))
    assert told == f"checkpoint: no such folder ({tmp_path / 'none'})"


def test_no_checkpoint_means_the_packaged_weights(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "files", lambda _: tmp_path)
    with pytest.raises(InputError, match="no weights come with this jointdiff; give --checkpoint"):
        checkpoint_folder(None)
    save_denoiser(load_denoiser(model), tmp_path / "weights")
    assert checkpoint_folder(None) == tmp_path / "weights"
    assert checkpoint_folder("mine") == Path("mine")


def test_checkpoint_reads_back_whole(model, tmp_path):
    """Two files, no pickle; every weight and setting bit for bit; a second save replaces the first."""
    denoiser = untrained(BANDS, seed=4)
    for _ in range(2):
        save_denoiser(denoiser, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_denoiser(tmp_path / "model")
    assert (loaded.bands, loaded.pixel_scale, loaded.target_fwhm) == (denoiser.bands, 0.1, 0.2)
    assert loaded.state_dict().keys() == denoiser.state_dict().keys()
    for name, weight in denoiser.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert fingerprint(tmp_path / "model") == hashlib.sha256(content).hexdigest() != fingerprint(model)


def test_a_failed_save_leaves_the_old_checkpoint(model, tmp_path, monkeypatch):
    save_denoiser(load_denoiser(model), tmp_path / "model")
    broken = untrained(BANDS, seed=4)
    monkeypatch.setattr(broken, "_save_pretrained", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_denoiser(broken, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert fingerprint(tmp_path / "model") == fingerprint(model)


@pytest.mark.parametrize(
    "first", ["import jointdiff", "import jointdiff.reconstruct.wiener", "from jointdiff.reconstruct import field"]
)
def test_public_api_works_whatever_is_imported_first(first, scene, model):
    """jointdiff.reconstruct is a package and a function; importing jointdiff imports nothing heavy."""
    code = f"""
import sys
import jointdiff
assert 'torch' not in sys.modules
{first}
observations = jointdiff.read_field({str(scene)!r}).observations
denoiser = jointdiff.load_denoiser({str(model)!r})
sky = jointdiff.reconstruct(observations, denoiser, num_samples=2, seed=1)
print(tuple(sky.samples.shape), sky.std.shape == sky.mean.shape, sky.grid.shape)
assert all(hasattr(jointdiff, name) for name in jointdiff.__all__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 3, 40, 40) True (40, 40)\n"
