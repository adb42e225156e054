"""scarlet2 through our own A: it must find what it is shown."""

import pytest
import torch

from jointdiff.reconstruct.base import NoiseStream
from tests.denoisers import untrained
from tests.laws.test_baselines import PAIRS, _survey
from tests.observing import BANDS
from tests.oracles import TORUS

pytest.importorskip("scarlet2", reason="scarlet2 comes with the extra baselines: pip install -e '.[dev,baselines]'")


def test_two_blobs_come_out():
    """Fluxes within 2 %, images within a tenth: without deconvolution they would be wrong by half (test_baselines)."""
    from jointdiff.reconstruct.scarlet import Scarlet

    truth, observations = _survey(amplitude=3e5)
    observations = [o.to(torch.float32) for o in observations]
    draws = Scarlet(untrained(PAIRS)).sample(observations, TORUS, 2, NoiseStream(0, "a"))
    assert draws.samples.shape == (2, len(BANDS), *TORUS.shape)
    truth = truth[0].float()
    error = (draws.mean - truth).norm(dim=(-2, -1)) / truth.norm(dim=(-2, -1))
    assert (error < 0.1).all(), error
    torch.testing.assert_close(draws.mean.sum((-2, -1)), truth.sum((-2, -1)), rtol=0.02, atol=0)
    assert (draws.samples.std(0) > 0).any(), "each is fitted to noise of its own"
