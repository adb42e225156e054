"""What contracts of several commands share."""

from pathlib import Path

import pytest

from jointdiff.reconstruct.checkpoint import save_denoiser
from tests.denoisers import DEMO_BANDS, untrained


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint of a network in three bands that says something for want of training; not to be written into."""
    folder = tmp_path_factory.mktemp("run") / "model"
    save_denoiser(untrained(DEMO_BANDS[:3], seed=4), folder)
    return folder


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """A checkpoint to write a calibration into."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
