"""The mismatch oracles: every solver, given the exact denoiser of another prior than Γ, draws that prior's posterior.

Bounds are those that we ask of a solver: variances within 5 percent, over the modes that ``sigma_range`` says the
network can tell something of (5 σ_min < s < σ_max/10).
"""

import pytest
import torch

from jointdiff.diffusion.sampler import noise_levels
from jointdiff.diffusion.solvers import DEFAULT, SOLVERS, evaluations_of, fields_of, levels_of
from jointdiff.forward import half_plane_weights
from jointdiff.gaussian import apply, spectrum
from tests.oracles import TORUS, Oracle, blank_survey, draw

ENOUGH = {"multistep": 8, "dpm": 16, "heun": 48, "ancestral": 48}
"""Evaluations at which a solver passes. Ours is the default one."""

MIXTURE = (0.25, 4.0)


def _oracle(scales, batch=1, seed=0):
    truth, observations = draw(blank_survey(batch), scales, seed)
    return truth, Oracle(observations, scales)


def _run(solver, evaluations, oracle, noise=None, seed=1):
    """Samples, one a scene, from white noise of its own, or from given fields, of which one scene takes any number."""
    levels = levels_of(solver, oracle.posterior, evaluations)
    if noise is None:
        shape = (fields_of(solver, levels), *oracle.posterior.mean.shape)
        noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return SOLVERS[solver](oracle.residual, oracle.posterior, levels, noise)


def _affine(solver, evaluations, oracle):
    """Mean (spectrum) and covariance (H, W//2 + 1, C, C) of a solver's samples for a Gaussian sky, with no Monte Carlo.

    All is linear and a product frequency by frequency, so the response to a point in each band of the noise tells all.
    """
    fields = fields_of(solver, levels_of(solver, oracle.posterior, evaluations))
    noise = torch.zeros(fields, 1 + 3 * fields, 3, *TORUS.shape, dtype=torch.float64)
    for number in range(fields):
        for band in range(3):
            noise[number, 1 + 3 * number + band, band, 0, 0] = TORUS.shape[0]  # one at every frequency
    mean, *moved = spectrum(_run(solver, evaluations, oracle, noise)).split([1, *[3] * fields])
    responses = torch.stack([(m - mean).movedim(0, -1) for m in moved])
    return mean, (responses @ responses.mH).real.sum(0)


def _of_modes(oracle, covariance):
    """Variances (…, C) in the eigenbasis of S₀."""
    vectors = oracle.posterior.modes[1].to(covariance.dtype)
    return (vectors.mT @ covariance @ vectors).diagonal(dim1=-2, dim2=-1).real


def _told(oracle):
    """Modes between 5 σ_min and σ_max/10, and how often each stands in the full plane."""
    s = oracle.posterior.modes[0]
    low, high = (sigma.view(-1, 1, 1, 1) for sigma in oracle.posterior.sigma_range)
    told = (s > 5 * low) & (s < high / 10)
    assert told.double().mean() > 0.3
    weights = torch.as_tensor(half_plane_weights(TORUS)).view(1, 1, -1, 1).expand_as(s)
    return told, weights


def _pooled(oracle, ratio):
    told, weights = _told(oracle)
    return float((weights * ratio)[told].sum() / weights[told].sum())


def test_the_oracle_knows_the_posterior():
    """Its denoiser with no noise left to remove, and its moments against the sky that was drawn: χ² is one."""
    truth, oracle = _oracle(MIXTURE, batch=16)
    x_t = truth + 1e-6
    small = torch.full((16,), 1e-5, dtype=torch.float64)
    torch.testing.assert_close(oracle.denoise(x_t, small), x_t, rtol=1e-4, atol=1e-4)
    mean, covariance = oracle.moments()
    error = _of_modes(oracle, covariance)
    found = apply(oracle.posterior.modes[1].mT, spectrum(truth) - mean).abs().square()
    assert float((found / error).mean()) == pytest.approx(1, abs=0.03)  # 50,000 modes of kurtosis below 10


@pytest.mark.parametrize("solver", ["multistep", "ancestral"])
@pytest.mark.parametrize("evaluations", [3, 8])
def test_zero_network_is_exact(solver, evaluations):
    """The oracle of Γ itself has F = 0: mean and covariance are the posterior's, at any number of evaluations."""
    _, oracle = _oracle((1.0,))
    mean, covariance = _affine(solver, evaluations, oracle)
    expected, exact = oracle.moments()
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance, exact[0].real, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_variances_of_a_gaussian_sky_of_another_amplitude(solver, scale):
    _, oracle = _oracle((scale,))
    mean, covariance = _affine(solver, ENOUGH[solver], oracle)
    expected, exact = oracle.moments()
    ratio = _of_modes(oracle, covariance[None]) / _of_modes(oracle, exact)
    assert _pooled(oracle, ratio) == pytest.approx(1, abs=0.05)
    if solver == DEFAULT:  # ours: mode by mode
        told, _ = _told(oracle)
        assert float((ratio[told] - 1).abs().max()) < 0.05
    bias = apply(oracle.posterior.modes[1].mT, mean - expected).abs().square() / _of_modes(oracle, exact)
    assert _pooled(oracle, bias) < 0.01**2


@pytest.mark.parametrize("solver", SOLVERS)
def test_variances_of_a_mixture(solver):
    """Monte Carlo over 8 scenes: 5,000 modes of χ²₂ each, a percent and a half."""
    _, oracle = _oracle(MIXTURE, batch=8)
    mean, covariance = oracle.moments()
    difference = spectrum(_run(solver, ENOUGH[solver], oracle)) - mean
    found = apply(oracle.posterior.modes[1].mT, difference).abs().square()
    assert _pooled(oracle, found / _of_modes(oracle, covariance)) == pytest.approx(1, abs=0.05)


def test_fluxes_of_a_mixture_are_covered():
    """Ranks of true aperture fluxes among 7 samples: the inner six of eight cells hold three quarters of them."""
    scenes, samples = 32, 7
    truth, oracle = _oracle(MIXTURE, batch=scenes, seed=2)
    rows = torch.arange(TORUS.shape[0]) % 16 - 7.5
    apertures = (rows[:, None] ** 2 + rows**2 < 25).double().view(2, 16, 2, 16)  # four discs of 0.5 arcsec radius

    def fluxes(sky):  # (B, C, H, W) → (B, C, 4)
        return torch.einsum("bcyhxw,yhxw->bcyx", sky.view(scenes, 3, 2, 16, 2, 16), apertures).flatten(2)

    drawn = [fluxes(_run(DEFAULT, ENOUGH[DEFAULT], oracle, seed=number)) for number in range(samples)]
    ranks = (torch.stack(drawn) < fluxes(truth)).sum(0)
    assert ranks.numel() == 384
    inner = ((ranks > 0) & (ranks < samples)).double().mean()
    # Apertures of one scene and the bands of one aperture are correlated: at least 128 fluxes are independent.
    assert float(inner) == pytest.approx(0.75, abs=3 * (0.75 * 0.25 / 128) ** 0.5)
    assert float(ranks.double().mean()) == pytest.approx(3.5, abs=3 * (63 / 12 / 128) ** 0.5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("evaluations", [4, 9])
def test_calls_are_counted(solver, evaluations):
    _, oracle = _oracle((1.0,))
    calls = []

    def residual(x, sigma):
        calls.append(sigma)
        return torch.zeros_like(x)

    levels = levels_of(solver, oracle.posterior, evaluations)
    fields = torch.zeros(fields_of(solver, levels), 1, 3, *TORUS.shape, dtype=torch.float64)
    SOLVERS[solver](residual, oracle.posterior, levels, fields)
    assert len(calls) == evaluations_of(solver, levels)
    assert evaluations - 1 <= len(calls) <= evaluations
    assert all((s > 0).all() for s in calls), "no solver may call the network at σ = 0"


def test_levels_fall_from_the_top_of_what_is_trained_to_zero():
    _, oracle = _oracle((1.0,))
    levels = noise_levels(oracle.posterior, 8)
    low, high = oracle.posterior.sigma_range
    assert (levels[0] == 2 * high).all() and (levels[-1] == 0).all()
    torch.testing.assert_close(levels[1], high)
    torch.testing.assert_close(levels[-2], low)
    assert (levels.diff(dim=0) < 0).all()
