"""Laws of the search for what no sample explains: on skies of the prior it tells of nothing, and of rings it tells."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

from jointdiff.correlation import power_spectrum
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior
from jointdiff.measure import unexplained
from jointdiff.measure.detection import Segments
from jointdiff.measure.peaks import joined, near_unexplained, peaks
from jointdiff.measure.unexplained import (
    ALL,
    LEAST,
    Kind,
    Significance,
    _each,
    _of,
    _Search,
    _sigma,
    _Sum,
    significance,
)
from jointdiff.reconstruct.base import Draws
from jointdiff.scene import Observation
from tests.observing import BANDS
from tests.oracles import AMPLITUDE, TORUS, blank_survey, draw, gamma

SAMPLES = 16

_AWAY = (torch.arange(32, dtype=torch.float64) - 16) / 10
RING = torch.exp(-((((_AWAY[:, None] ** 2 + _AWAY**2).sqrt() - 1) / 0.15) ** 2) / 2).expand(3, 32, 32)
"""(C, H, W): a ring of 1 arcsec in all bands."""


def _seen(case: str) -> list[Observation]:
    observations, generator = blank_survey(1), torch.Generator().manual_seed(0)
    if case == "masked":
        for o in observations:
            height, width = o.frame.grid.shape
            o.ivar[0, height // 3 : height // 2, : width // 2] = 0
        observations[1].ivar.zero_()
    if case == "uneven":
        for o in observations:
            o.ivar.mul_(0.1 + 1.9 * torch.rand(o.ivar.shape, dtype=torch.float64, generator=generator))
    if case == "correlated":
        lags = torch.arange(-2, 3).abs()
        power = power_spectrum((0.5 ** (lags[:, None] + lags).double())[None], (16, 16))
        observations = [observations[0], *(replace(o, correlation=power) for o in observations[1:])]
    return observations


def _drawn(case: str, skies: int, amplitude: float, added: float = 0.0):
    """Skies of the prior, and a ring of ``added`` sigmas on them: the model, what was seen, and exact samples."""
    blank, generator = _seen(case), torch.Generator().manual_seed(2)
    model = ForwardModel(TORUS, BANDS, 0.2, blank)
    power = sum(float((o.weigh(a) * a).sum()) for o, a in zip(blank, model(RING[None]), strict=True))
    truth, _ = draw(blank_survey(skies), (1.0,), 1)

    def white(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    for sky in truth * (amplitude / AMPLITUDE) + added / power**0.5 * RING:
        images = model(sky[None])
        seen = [replace(o, image=i + o.noise(white(*i.shape))) for o, i in zip(blank, images, strict=True)]
        posterior = GaussianPosterior(model, seen, gamma(), torch.tensor([amplitude], dtype=torch.float64), 1e-3, 200)
        data = [white(SAMPLES, *o.image.shape[1:]) for o in seen]
        samples = posterior.perturbed(white(SAMPLES, 3, *TORUS.shape), data)
        yield model, seen, Draws(samples, samples.mean(0))


CASES = ["even", "masked", "uneven", "correlated"]


@pytest.mark.parametrize("case", CASES)
def test_what_an_exact_posterior_leaves_is_as_wide_as_is_said(case, monkeypatch):
    """And narrower than the noise alone; a band without a pixel changes nothing.

    20 skies hold some 100 independent blobs each, so a width is uncertain by 1.6 %.
    """
    ours: list[torch.Tensor] = []
    over_noise: list[torch.Tensor] = []
    for model, seen, draws in _drawn(case, 20, 0.5):
        search, parts = _searched(model, seen, draws)
        for values, least in ((ours, LEAST), (over_noise, 1.0)):
            monkeypatch.setattr(unexplained, "LEAST", least)
            z, judged = search._deviations(parts, search.blob(0.2), 0 * search.blob(0.2))
            values.append(z[judged])
    width, narrow = (float(torch.cat(z).square().mean().sqrt()) for z in (ours, over_noise))
    assert width == pytest.approx(1, abs=0.05)
    assert narrow < 0.85


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("signature", [0.0, 9.0])
def test_a_ring_that_the_prior_does_not_expect_is_found(case, signature):
    for model, seen, draws in _drawn(case, 5, 0.02, signature):
        found = peaks(significance(draws, model, seen), TORUS.scale)
        if not signature:
            assert not found
            continue
        first = found[0]
        assert first.kind == Kind("ring", 1.0, ALL)
        assert max(abs(first.y - 16), abs(first.x - 16)) <= 2
        assert 5.5 < first.sigma < signature + 4


def test_light_that_a_network_gets_slightly_wrong_is_not_told_of():
    """A blob of 300 σ: 2 % of it missing passes for explained, half of it does not."""
    seen = _seen("even")
    model, light = ForwardModel(TORUS, BANDS, 0.2, seen), torch.exp(-(_AWAY[:, None] ** 2 + _AWAY**2) / (2 * 0.2**2))
    light = light.expand(1, 3, 32, 32)
    power = sum(float((o.weigh(a) * a).sum()) for o, a in zip(seen, model(light), strict=True))
    light = 300 / power**0.5 * light
    exact = [replace(o, image=image) for o, image in zip(seen, model(light), strict=True)]
    for share, told in ((0.98, False), (0.5, True)):
        samples = (share * light).expand(4, 3, 32, 32)
        assert bool(peaks(significance(Draws(samples, samples[0]), model, exact), TORUS.scale)) == told


def test_what_is_near_is_one_peak_and_sources_near_it_are_flagged():
    """Two pixels 0.6 arcsec apart are one, as what is around either meets; sources 0.5 arcsec away are near."""
    sigma, kinds = np.zeros((40, 40), np.float32), (Kind("blob", 0.4, "g"), Kind("ring", 1.0, ALL))
    sigma[10, 10], sigma[10, 16], sigma[30, 30], sigma[39, 0] = 6, 8, 7, 5
    found = Significance(sigma, (sigma > 7.5).astype(np.int16), kinds)
    told = [(peak.y, peak.x, peak.sigma, peak.kind.shape) for peak in peaks(found, 0.1)]
    assert told == [(10, 16, 8.0, "ring"), (30, 30, 7.0, "blob")]
    weight = np.ones((40, 40))
    weight[:, 15:20] = 0
    assert [peak.sigma for peak in peaks(found, 0.1, weight)] == [7.0, 6.0]
    labels = np.zeros((40, 40), dtype=int)
    labels[24, 20:26], labels[16, 10], labels[39, 0] = 1, 2, 3
    segments = Segments(labels, np.array([22.0, 10, 0]), np.array([24.0, 16, 39]))
    assert near_unexplained(segments, found, 0.1).tolist() == [False, False, False]
    labels[25, 25] = 1
    assert near_unexplained(segments, found, 0.1).tolist() == [True, False, False]
    halves = [found.crop(slice(0, 40), columns) for columns in (slice(0, 17), slice(17, 40))]
    whole = joined([(slice(0, 40), slice(0, 17)), (slice(0, 40), slice(17, 40))], halves, (40, 40))
    assert peaks(whole, 0.1) == peaks(found, 0.1)


def _searched(model, seen, draws):
    parts = [_of(*one) for one in _each(draws, model, seen)]
    return _Search(TORUS, {}, parts), parts


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_squares_are_as_significant_as_chi_squares(bands):
    """Where each is of one degree of freedom their sum is χ² of so many."""
    x = torch.linspace(bands, bands + 60, 50, dtype=torch.float64).view(1, -1)
    one = _Sum((x - bands) / bands, torch.ones_like(x), 1.0)
    expected = norm.isf(chi2.sf(x.numpy(), bands))
    np.testing.assert_allclose(_sigma([one] * bands).numpy(), expected, atol=0.03)
