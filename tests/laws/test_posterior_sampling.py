"""Laws of the other diffusion samplers: each D′ is what its formula says, and exact where its approximation is."""

from dataclasses import replace

import pytest
import torch

from jointdiff.diffusion.guidance import Factorized
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.posterior_sampling import DPS, MMPS, PiGDM
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid
from tests.denoisers import untrained
from tests.laws.test_guidance import LEVELS, _state, _unseen
from tests.observing import BANDS
from tests.oracles import AMPLITUDE, TORUS, Oracle, blank_survey, draw

PAIRS = [(band.name, band.filter) for band in BANDS]

SCALE = 4.0
"""Of the true sky's covariance over Γ's, so that D − μ and its derivative are not zero."""


def _unconditional(observations, scale: float) -> tuple[Factorized, Oracle, Oracle]:
    """The exact denoiser of nothing, led by all the data; its oracle, and that of all the data."""
    nothing = [replace(o, ivar=torch.zeros_like(o.ivar)) for o in observations]
    prior, full = Oracle(nothing, (scale,)), Oracle(observations, (scale,))
    model = ForwardModel(TORUS, BANDS, 0.2, observations)
    return Factorized(_unseen(prior.residual), prior.posterior, full.posterior, model, observations), prior, full


@pytest.fixture
def led():
    _, observations = draw(blank_survey(1), (SCALE,), 0)
    return _unconditional(observations, SCALE)


def _parts(guided, prior, x_t, sigma):
    """D (B, C, H, W), C and Aᵀ N⁻¹ A of each frequency, and Aᵀ N⁻¹ (y − A D), all from the oracle."""
    mean, covariance = prior.moments(x_t, sigma)
    denoised = field(mean, TORUS)
    data = guided.model.precision(guided.data)
    return denoised, covariance.real, data, guided.force(guided.guess(x_t, sigma))


@pytest.mark.parametrize("level", LEVELS)
def test_mmps_is_exact_for_a_gaussian_sky_of_any_amplitude(led, level):
    guided, _, full = led
    x_t, sigma = _state(full, level)
    found = MMPS(untrained(PAIRS)).led(guided, x_t, sigma, torch.zeros(1), [])
    error = full.posterior.given(x_t, sigma).whiten(found - full.denoise(x_t, sigma))
    assert guided.convergence.converged
    assert float(error.square().mean().sqrt()) < 0.02  # twice the tolerance, of whitened modes wider than Γ's


@pytest.mark.parametrize("level", LEVELS)
def test_dps_takes_a_step_along_the_gradient_of_the_misfit(led, level):
    """C Aᵀ N⁻¹ (y − A D) ζ/λ, with the very C of the denoiser; the largest mode moves by no more than its misfit."""
    guided, prior, full = led
    x_t, sigma = _state(full, level)
    denoised, covariance, data, force = _parts(guided, prior, x_t, sigma)
    rho = torch.full((1, 1, 1, 1), 0.75, dtype=torch.float64)
    found = DPS(untrained(PAIRS), zeta=0.3).led(guided, x_t, sigma, rho, []) - denoised
    direction = field(apply(covariance, spectrum(force)), TORUS)
    step = (0.25 * found * direction).sum() / direction.square().sum()
    torch.testing.assert_close(0.25 * found, step * direction, rtol=1e-6, atol=1e-9)
    largest = float(torch.linalg.eigvals(covariance @ data).real.amax())
    assert 0.3 / 3 < float(step) * largest < 0.3 * 4  # a trace is up to C = 3 norms, and C up to 4 times Γ's S


@pytest.mark.parametrize("level", LEVELS)
def test_pigdm_takes_the_prior_as_white(led, level):
    """D + C/r² (I/r² + P)⁻¹ Aᵀ N⁻¹ (y − A D), frequency by frequency."""
    guided, prior, full = led
    x_t, sigma = _state(full, level)
    denoised, covariance, data, force = _parts(guided, prior, x_t, sigma)
    inverse = float(1 / guided.prior.modes[0].max() ** 2 + 1 / sigma**2)
    seen = torch.linalg.inv(inverse * torch.eye(3, dtype=torch.float64) + data)
    expected = denoised + field(apply(inverse * covariance @ seen, spectrum(force)), TORUS)
    found = PiGDM(untrained(PAIRS)).led(guided, x_t, sigma, torch.zeros(1), [])
    scale = float((expected - denoised).abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * scale)


def test_pigdm_is_exact_for_a_white_prior():
    _, observations = draw(blank_survey(1), (1.0,), 0)
    nothing = [replace(o, ivar=torch.zeros_like(o.ivar)) for o in observations]
    gamma = torch.eye(3, dtype=torch.float64).expand(*TORUS.shape[:1], TORUS.shape[1] // 2 + 1, 3, 3)
    amplitude, model = torch.tensor([AMPLITUDE]).double(), ForwardModel(TORUS, BANDS, 0.2, observations)
    prior, full = (GaussianPosterior(model, seen, gamma, amplitude) for seen in (nothing, observations))
    guided = Factorized(lambda x, *_: 0 * x, prior, full, model, observations)
    x_t = AMPLITUDE * torch.randn(full.mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([2.0], dtype=torch.float64)
    found = PiGDM(untrained(PAIRS)).led(guided, x_t, sigma, torch.zeros(1), [])
    error = full.given(x_t, sigma).whiten(found - full.given(x_t, sigma).mean)
    assert float(error.abs().max()) < 0.05  # of a posterior deviation; conjugate gradients stop at 0.01 rms


def test_mmps_samples_of_a_zero_network_are_wieners():
    """Means agree, and variances but for what coarse ancestral steps of 1 − ρ lose: each about (1 − ρ)/2 of them."""
    grid, count, steps = Grid.centred((16, 16), 0.1), 24, 40
    _, observations = draw(blank_survey(1), (1.0,), 0)
    observations = [_cut(o, grid) for o in observations]
    denoiser = untrained(PAIRS)
    draws = [
        m.sample(observations, grid, count, NoiseStream(i, "a"))
        for i, m in enumerate((Wiener(denoiser), MMPS(denoiser, steps=steps)))
    ]
    spread = [(d.samples - d.samples.mean(0)).square().sum(0).div(count - 1).mean((-2, -1)) for d in draws]
    error = (draws[1].mean - draws[0].mean).square().mean((-2, -1)) / spread[0]
    assert (error < 2.5 / count).all()  # some 1/24 by chance
    assert ((spread[1] / spread[0]) > 0.6).all() and ((spread[1] / spread[0]) < 1.15).all()


def _cut(observation, grid: Grid):
    """The first pixels of an observation on the same scale as it, in float32."""
    frame = observation.frame
    side = round(grid.shape[0] * grid.scale / frame.grid.scale)
    cut = Grid.centred((side, side), frame.grid.scale)
    window = (..., slice(side), slice(side))
    seen = replace(observation, frame=replace(frame, grid=cut))
    return replace(seen, image=observation.image[window], ivar=observation.ivar[window]).to(torch.float32)


def test_nothing_but_vis_in_the_network_leaves_the_ground_to_the_likelihood():
    """Each ``-vis`` method puts VIS into the prior; both kinds draw finite, different samples."""
    grid = Grid.centred((16, 16), 0.1)
    observations = [_cut(o, grid) for o in draw(blank_survey(1), (1.0,), 0)[1]]
    denoiser = untrained(PAIRS, seed=3)
    denoiser.network.exit.weight.data *= 0.1
    for kind in (DPS, PiGDM, MMPS):
        both = [kind(denoiser, vis=vis, steps=6) for vis in (False, True)]
        draws = [m.sample(observations, grid, 2, NoiseStream(0, "a")).samples for m in both]
        assert [m.method for m in both] == [kind.method, f"{kind.method}-vis"]
        assert all(bool(d.isfinite().all()) for d in draws)
        assert not torch.allclose(*draws, rtol=0.01)
