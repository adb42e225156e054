"""The zero-network oracle: with F = 0 every part of the diffusion is the exact Gaussian posterior."""

import pytest
import torch

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.sampler import Flow, noise_levels, sample
from jointdiff.gaussian import apply, field, spectrum
from jointdiff.scene import Grid
from tests.laws.test_gaussian import GRID, posterior_of, prior
from tests.observing import BANDS, geometries, observe


def _noise(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 3, *GRID.shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("evaluations", [3, 4, 8, 30])
def test_solver_is_exact_for_zero_network_at_any_step_count(evaluations):
    """The flow is linear: x₀ − μ₀ = S₀^{1/2} (S₀ + σ²)^{-1/2} (x_T − μ₀), mode by mode."""
    posterior, *_ = posterior_of()
    levels = noise_levels(posterior, evaluations)
    assert levels.shape == (evaluations, 2)
    noise = _noise(0)
    result = sample(lambda x, _: torch.zeros_like(x), posterior, levels, (noise[0], noise[1]))
    high = levels[0].view(-1, 1, 1, 1)
    start = Flow(posterior).start(
        posterior.given(posterior.mean + high * noise[0], levels[0]).mean, levels[0], noise[1]
    )
    s, vectors = posterior.modes
    modes = apply(vectors.mT, spectrum(start - posterior.mean)) * s / torch.hypot(s, high)
    torch.testing.assert_close(result, posterior.mean + field(apply(vectors, modes), GRID), rtol=1e-9, atol=1e-9)


def test_zero_network_samples_have_the_posterior_covariance():
    """The map from the two noises to a sample, applied to a basis, gives S₀ exactly (up to the finite σ_max)."""
    posterior, *_ = posterior_of()
    levels = noise_levels(posterior, 4)
    size = 3 * GRID.shape[0] * GRID.shape[1]
    total = torch.zeros(size, size, dtype=torch.float64)
    zero = torch.zeros(2, 3, *GRID.shape, dtype=torch.float64)
    for which in range(2):
        columns = []
        for basis in torch.eye(size, dtype=torch.float64).view(size, 1, 3, *GRID.shape):
            noise = [zero, zero]
            noise[which] = basis.expand_as(zero)
            columns.append(
                (sample(lambda x, _: torch.zeros_like(x), posterior, levels, tuple(noise)) - posterior.mean)[
                    0
                ].flatten()
            )
        columns = torch.stack(columns)
        total += columns.T @ columns
    colour = torch.stack(
        [
            posterior.marginal().colour(b.expand_as(zero))[0].flatten()
            for b in torch.eye(size, dtype=torch.float64).view(size, 1, 3, *GRID.shape)
        ]
    )
    expected = colour.T @ colour
    # The start draws (s/σ_max)⁴ too much variance: 1/625 for the largest mode, which σ_max is five times as wide as.
    torch.testing.assert_close(total, expected, rtol=0, atol=float(expected.diagonal().max()) / 500)


def test_an_untrained_denoiser_is_the_gaussianposterior_of():
    """A fresh network puts out zero: D = μ, masked pixels and missing bands included."""
    grid, generator = Grid.centred((8, 8), 0.1), torch.Generator().manual_seed(2)
    observations = [observe(b, geometries(grid)["same"], generator, size=7) for b in BANDS]
    observations[1].ivar.zero_()
    observations[2].ivar[:, 3:5] = 0
    denoiser = Denoiser(
        [(b.name, b.filter) for b in BANDS], 0.1, 0.2, wavenumbers=9, widths=[16, 16], blocks=1
    ).double()
    denoiser.set_prior(prior())
    x_t, sigma = _noise(1)[0][..., :8, :8], torch.tensor([0.2, 3.0], dtype=torch.float64)
    with torch.no_grad():
        conditioning = denoiser.condition(observations, grid)
        output = denoiser(x_t, sigma, conditioning)
    assert torch.isfinite(conditioning.maps).all() and torch.isfinite(conditioning.gain).all()
    torch.testing.assert_close(output, conditioning.posterior.given(x_t, sigma).mean)
