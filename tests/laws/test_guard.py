"""The guard, on Gaussian skies and with networks whose error is known: what is wrong is replaced, and nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2 as chi2_law

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.sampler import noise_levels, sample
from jointdiff.gaussian import apply, field, spectrum
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.guard import LIMIT, PATCH, RAMP, REACH, _around, guarded, local_chi2
from jointdiff.scene import Grid
from jointdiff.units import SIGMA_PER_FWHM
from tests.denoisers import DEMO_BANDS, untrained
from tests.oracles import GROUND, TORUS, Oracle, blank, blank_survey, draw

SKIES, SEEING = 200, 0.8


def _normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def skies():
    """Gaussian skies of the solver's own Γ: their truth, their oracle and one sample each, that F = 0 draws exactly."""
    truth, observations = draw(blank_survey(SKIES, SEEING), (1.0,), 0)
    oracle = Oracle(observations, (1.0,))
    levels, noise = noise_levels(oracle.posterior, 4), _normal(*truth.shape, seed=1)
    return truth, oracle, sample(lambda x, _: torch.zeros_like(x), oracle.posterior, levels, [noise])


def _gaussian(posterior):
    data = [_normal(*o.image.shape, seed=3 + n) for n, o in enumerate(posterior.observations)]
    return posterior.perturbed(_normal(*posterior.mean.shape, seed=2), data, (1e-3, 200))


def _bump(y: float, x: float) -> torch.Tensor:
    """A blob of 0.3 arcsec (sigma) on the torus, peak 1."""
    n = TORUS.shape[0]
    away = [(torch.arange(n, dtype=torch.float64) - c + n / 2) % n - n / 2 for c in (y, x)]
    return torch.exp(-(away[0][:, None] ** 2 + away[1] ** 2) / (2 * 3.0**2))


def test_a_right_network_is_left_alone(skies):
    """Samples of the posterior, on 200 skies: χ² of a patch never comes near the limit, and no draw is asked for.

    A patch of Gaussian weights has the law of χ² of 4πσ² even ones or nearly (Satterthwaite 1946, Biometrics Bulletin
    2, 110), with σ that of the patch, widened by the PSF over the target's; fewest are those of the ground. Beyond the
    bound there is a patch, around any pixel in any band of any sky, at most once in a thousand such tests.
    """
    _, oracle, drawn = skies
    chi2 = local_chi2(drawn, oracle.posterior)
    # y - A x of posterior samples has the law of noise: one a pixel, within 5 errors of the mean of all skies
    squares = [(o.image - s).square() * o.ivar for o, s in zip(oracle.observations, oracle.model(drawn), strict=True)]
    for square in squares:
        assert float(square.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / square.numel()))
    square = PATCH**2 + SEEING**2 - oracle.model.target_fwhm**2
    pixels = 4 * math.pi * SIGMA_PER_FWHM**2 * square / GROUND.scale**2
    bound = chi2_law.isf(1e-3 / (3 * chi2.numel()), pixels) / pixels
    assert chi2.max() < bound < LIMIT

    def never():
        raise AssertionError("no sample contradicts the data")

    samples, share = guarded(drawn, oracle.posterior, never)
    assert samples is drawn and not share.any()


def test_a_wrong_network_gives_way_where_it_is_wrong(skies):
    """Every second sample has light that the data exclude: χ² and errors are those of the Gaussian posterior again."""
    truth, oracle, drawn = skies
    posterior, wrong = oracle.posterior, torch.arange(SKIES) % 2 == 0
    light = 20 * _bump(16, 16)
    hallucinated = torch.where(wrong.view(-1, 1, 1, 1), drawn + light, drawn)
    assert (local_chi2(hallucinated, posterior)[wrong].flatten(1).amax(1) > LIMIT).all()
    other = _gaussian(posterior)
    samples, share = guarded(hallucinated, posterior, lambda: other)
    torch.testing.assert_close(samples[~wrong], drawn[~wrong], rtol=0, atol=0)
    assert (share[wrong][..., 16, 16] == 1).all() and not share[~wrong].any()
    assert (local_chi2(samples, posterior) <= LIMIT * local_chi2(other, posterior).clamp(min=1)).all()
    # x - x* of a posterior sample has twice the posterior variance; the mean of N squares is right to √(2/N)
    probe = spectrum(_bump(16, 16).expand(1, 3, *TORUS.shape))
    for band in range(3):
        own = torch.zeros_like(probe)
        own[..., band] = probe[..., band]
        variance = field(apply(posterior.covariance, own), TORUS)[:, band].mul(_bump(16, 16)).sum((-2, -1)).mean()
        error = ((samples - truth)[:, band] * _bump(16, 16)).sum((-2, -1))[wrong]
        assert float(error.square().mean() / (2 * variance)) == pytest.approx(1, abs=4 * math.sqrt(2 / len(error)))


@pytest.mark.parametrize("seen", [1, 16])
def test_a_patch_is_judged_if_enough_of_it_was_seen(seen):
    """All else of the field is masked, so nothing there is more of a patch. One pixel of 100 σ tells nothing; of
    16 × 16, a patch and more, they do, and where fewest were seen their mean is theirs."""
    observations = blank_survey(1)
    for o in observations:
        y, x = (range(n // 2 - seen // 2, n // 2 + (seen + 1) // 2) for n in o.frame.grid.shape)
        inside = torch.zeros_like(o.ivar)
        inside[:, y.start : y.stop, x.start : x.stop] = 1
        o.ivar.mul_(inside)
        o.image.copy_(100 * o.ivar.rsqrt().where(o.ivar > 0, 0.0))
    posterior = Oracle(observations, (1.0,)).posterior
    chi2 = local_chi2(torch.zeros(1, 3, *TORUS.shape, dtype=torch.float64), posterior)
    if seen == 1:
        assert (chi2 == 1).all()
    else:
        assert chi2[..., 16, 16] == pytest.approx(100**2, rel=0.01)


def test_what_is_replaced_ends_where_it_is_said_to():
    wrong = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    wrong[..., 2, 60] = True
    share, reach, ramp = _around(wrong, 0.1)[0, 0], round(REACH / 0.1), round(RAMP / 0.1)
    rows, columns = ((torch.arange(64) - c + 32) % 64 - 32 for c in (2, 60))
    far = torch.maximum(rows.abs()[:, None], columns.abs())
    assert (share[far <= reach - ramp] == 1).all() and (share[far > reach + ramp] == 0).all()


def _field(grid: Grid):
    """A bright source in VIS and two ground bands, as a scene of one sky."""
    denoiser = untrained(DEMO_BANDS[:3])
    observations = [blank(band, grid, 1, 0.2 + 0.6 * n, 1.0) for n, band in enumerate(denoiser.bands)]
    away = (torch.arange(64.0) - 20).square()
    sky = (300 * torch.exp(-(away[:, None] + away) / (2 * 3.0**2))).expand(1, 3, *grid.shape)
    observations = [o.to(torch.float32) for o in observations]
    images = denoiser.forward_model(observations, grid)(sky)
    noise = [torch.randn(o.image.shape, generator=torch.Generator().manual_seed(n)) for n, o in enumerate(observations)]
    return denoiser, [replace(o, image=i + n) for o, i, n in zip(observations, images, noise, strict=True)]


def test_samples_do_not_depend_on_their_number_and_the_right_ones_not_on_the_guard(monkeypatch):
    grid = Grid.centred((64, 64), 0.1)
    denoiser, observations = _field(grid)
    stream = NoiseStream(0, "a")
    plain = Diffusion(denoiser, 4, guard=False).sample(observations, grid, 3, stream)
    guarded_ = Diffusion(denoiser, 4).sample(observations, grid, 3, stream)
    torch.testing.assert_close(guarded_.samples, plain.samples, rtol=0, atol=0)
    assert plain.replaced is None and guarded_.replaced is not None and not guarded_.replaced.any()

    def wrong(self, x, sigma, conditioning, symmetries=()):
        return -conditioning.posterior.given(x, sigma).mean  # an empty sky, whatever the data say

    monkeypatch.setattr(Denoiser, "correction", wrong)
    three, two = (Diffusion(denoiser, 4).sample(observations, grid, n, stream) for n in (3, 2))
    assert three.replaced is not None and three.replaced[20, 20] == 1
    error = (three.samples[:2] - two.samples).square().mean().sqrt() / plain.samples.std(0).mean()
    assert error < 1e-3  # rounding, in batches of two and three
    posterior = denoiser.condition(observations, grid).posterior
    assert local_chi2(three.samples, posterior).max() < LIMIT
