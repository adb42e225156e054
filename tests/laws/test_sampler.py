"""The zero-network oracle: with F = 0 every part of the diffusion is the exact Gaussian posterior."""

import pytest
import torch

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.sampler import noise_levels, sample
from jointdiff.gaussian import apply, field, spectrum
from jointdiff.scene import Grid
from tests.laws.test_gaussian import GRID, posterior_of, prior
from tests.observing import BANDS, geometries, observe


def _noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, *GRID.shape, dtype=torch.float64, generator=generator)


def _nothing(x, _):
    return torch.zeros_like(x)


@pytest.mark.parametrize("evaluations", [3, 4, 8, 30])
def test_solver_is_exact_for_zero_network_at_any_step_count(evaluations):
    """z never changes: the sample is μ₀ + U s Uᵀ n, whose covariance is S₀."""
    posterior, *_ = posterior_of()
    levels = noise_levels(posterior, evaluations)
    assert levels.shape == (evaluations + 1, 2)
    noise = _noise(0)
    result = sample(_nothing, posterior, levels, [noise])
    s, vectors = posterior.modes
    exact = field(apply(vectors, s * apply(vectors.mT, spectrum(noise))), GRID)
    torch.testing.assert_close(result, posterior.mean + exact, rtol=1e-12, atol=1e-12)


def test_zero_network_samples_have_the_posterior_covariance():
    """The map from noise to a sample, applied to a basis, gives S₀."""
    posterior, *_ = posterior_of()
    levels = noise_levels(posterior, 4)
    size = 3 * GRID.shape[0] * GRID.shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, 1, 3, *GRID.shape).expand(size, 2, 3, *GRID.shape)
    columns = torch.stack([(sample(_nothing, posterior, levels, [b]) - posterior.mean)[0].flatten() for b in basis])
    colour = torch.stack([posterior.marginal().colour(b)[0].flatten() for b in basis])
    torch.testing.assert_close(columns.T @ columns, colour.T @ colour, rtol=1e-9, atol=1e-9)


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
    x_t, sigma = _noise(1)[..., :8, :8], torch.tensor([0.2, 3.0], dtype=torch.float64)
    with torch.no_grad():
        conditioning = denoiser.condition(observations, grid)
        output = denoiser(x_t, sigma, conditioning)
    assert torch.isfinite(conditioning.maps).all() and torch.isfinite(conditioning.gain).all()
    torch.testing.assert_close(output, conditioning.posterior.given(x_t, sigma).mean)
