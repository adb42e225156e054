"""The network's own errors: found by evaluate, kept with the checkpoint, used with the factors that belong to them."""

import json
from dataclasses import replace

import pytest

from jointdiff import build, cli, config
from jointdiff.errors import InputError
from jointdiff.evaluate import conformal, network_errors
from jointdiff.io.products import read_catalog
from jointdiff.measure.conformal import read_calibration
from jointdiff.reconstruct.checkpoint import fingerprint, load_denoiser, state_network_errors
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.settings import Config
from tests.contracts.test_calibration import KNOWN, calibration
from tests.contracts.test_reconstruct_cli import command, plant
from tests.scene_folders import write_good_scene


def test_network_errors_come_from_the_checkpoint_and_with_their_own_factors(copy, tmp_path, recwarn):
    """Samples of a checkpoint that states them allow for them, and headers say so. Factors of other samples do not
    count: not with --refine false, nor where config.json says something else than calibration.json."""
    field, stated = write_good_scene(tmp_path / "good"), (0.02, 0.08, 0.08)
    plant(field, 4000)
    state_network_errors(stated, copy)
    assert load_denoiser(copy).network_errors == stated
    replace(calibration(fingerprint(copy), evaluations=4), network_errors=stated).write(copy)
    found, warned = {}, {}
    for name, options in (("on", ()), ("off", ("--refine", "false"))):
        recwarn.clear()
        assert cli.main(command(field, copy, tmp_path / name, "--stars", "false", *options)) == 0
        found[name] = read_catalog(tmp_path / name / "catalog.fits")
        warned[name] = [str(w.message) for w in recwarn if "stated raw" in str(w.message)]
    assert found["on"].meta["NETERR"] == "0.02 0.08 0.08" and "NETERR" not in found["off"].meta
    assert (found["on"].meta["ERRSCALE"], found["off"].meta["ERRSCALE"]) == ("conformal", "none")
    (told,) = warned["off"]
    assert not warned["on"] and told.endswith(
        "4 evaluations and network errors 0.02 0.08 0.08, not of mode amortized with 4 evaluations"
    )
    state_network_errors((0.005, 0.08, 0.08), copy)
    with pytest.warns(UserWarning, match="errors are stated raw"):
        asked = config.ReconstructConfig(scene=("a",), output="b", evaluations=4)
        assert config._calibration_for(asked, copy, Diffusion(load_denoiser(copy), 4)) is None


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ([0.1], r"network_errors are \[0.1\], expected one of 0 to 1 for each band, or none"),
        ([0.1, 0.1, 2], "network_errors are"),
        ("wide", "not a denoiser"),
        (0.1, "not a denoiser"),
    ],
)
def test_broken_network_errors_are_one_line(stated, told, copy):
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"network_errors": stated}))
    with pytest.raises(InputError, match=told):
        load_denoiser(copy)


def test_what_evaluate_finds_is_in_both_files(copy, monkeypatch):
    """And is written again where config.json has lost it, though calibration.json has not."""
    run = copy.parent
    monkeypatch.setattr(network_errors, "fit_network_errors", lambda *_: KNOWN)
    monkeypatch.setattr(build, "_validation", lambda *_: None)
    monkeypatch.setattr(conformal, "measure_errors", lambda *_: replace(calibration().errors, scenes=48, samples=15))
    for _ in range(2):
        found = config._calibrate(Config(run=str(run)))
        assert read_calibration(copy) == found and found.network_errors == KNOWN
        assert load_denoiser(copy).network_errors == KNOWN
        state_network_errors((), copy)
