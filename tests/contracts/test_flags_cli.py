"""What the reconstruct command flags: a network that contradicts the data, noise that was measured."""

import pytest

from jointdiff import cli
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.io.products import read_catalog
from jointdiff.measure.catalog import CORRELATED_NOISE, GAUSSIAN
from jointdiff.reconstruct.checkpoint import save_denoiser
from tests.contracts.test_reconstruct_cli import BANDS, command, plant
from tests.denoisers import untrained
from tests.scene_folders import edit_yaml, write_good_scene


def test_sources_on_which_the_network_contradicts_the_data_are_flagged(tmp_path, monkeypatch, capsys):
    """A network that takes all light away; unless --guard false lets it."""
    scene, model = write_good_scene(tmp_path / "good"), tmp_path / "model"
    save_denoiser(untrained(BANDS), model)
    plant(scene, 400)

    def without(self, x, sigma, conditioning, symmetries=()):
        return -conditioning.posterior.given(x, sigma).mean

    monkeypatch.setattr(Denoiser, "correction", without)
    flags = {}
    for guard in ("true", "false"):
        assert cli.main(command(scene, model, tmp_path / guard, "--guard", guard)) == 0
        told = "are the Gaussian posterior's, for the network contradicted the data there (flag 512)"
        assert (told in capsys.readouterr().out) == (guard == "true")
        flags[guard] = read_catalog(tmp_path / guard / "catalog.fits")["flags"] & GAUSSIAN
    assert len(flags["true"]) and flags["true"].any() and not flags["false"].any()


@pytest.mark.parametrize("measured", [True, False, None])
def test_noise_that_ingest_measured_is_flagged_as_if_reconstruct_had(measured, model, tmp_path):
    scene = write_good_scene(tmp_path / "good")
    plant(scene, 400)
    if measured is not None:
        edit_yaml(scene, lambda content: content["observations"][1].update(noise_measured=measured))
    assert cli.main(command(scene, model, tmp_path / "out", "--method", "wiener")) == 0
    flags = read_catalog(tmp_path / "out" / "catalog.fits")["flags"] & CORRELATED_NOISE
    assert len(flags) and (flags == CORRELATED_NOISE * bool(measured)).all()
