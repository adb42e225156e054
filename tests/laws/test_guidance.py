"""Laws of the factorized mode: exact where all is Gaussian, whatever the ground data; never silent where it fails."""

from dataclasses import replace

import pytest
import torch

from jointdiff.diffusion.guidance import Factorized, gmres
from jointdiff.diffusion.sampler import noise_levels, sample
from jointdiff.diffusion.solvers import DEFAULT
from jointdiff.errors import InputError
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import apply, field, solve_lower, spectrum
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.scene import Grid, Observation
from tests.denoisers import untrained
from tests.laws.test_solvers import ENOUGH, MIXTURE, _of_modes, _pooled
from tests.observing import BANDS, geometries, observe
from tests.oracles import TORUS, Oracle, blank, blank_survey, draw

LEVELS = (30.0, 3.0, 0.3)
"""σ around the posterior deviations, which span 0.05 to 5."""


def _coarse(batch: int) -> list[Observation]:
    """VIS, and one ground band alone, of 1.2 arcsec seeing in 0.32 arcsec pixels, which alias nothing of it."""
    return [blank(BANDS[0], TORUS, batch, 0.2, 1.0), blank(BANDS[1], Grid.centred((10, 10), 0.32), batch, 1.2, 4.0)]


SURVEYS = {"two bands": blank_survey, "one band": _coarse}


def _unseen(residual):
    """An oracle is the same through any symmetry."""
    return lambda x_t, sigma, _: residual(x_t, sigma)


def _factorized(observations, scales, **options) -> tuple[Factorized, Oracle, Oracle]:
    """The guidance of the exact denoiser of VIS; that oracle; and the one that sees all the data."""
    vis, full = Oracle(observations[:1], scales), Oracle(observations, scales)
    ground = observations[1:]
    model = ForwardModel(TORUS, BANDS, 0.2, ground)
    residual = _unseen(vis.residual)
    return Factorized(residual, vis.posterior, full.posterior, model, ground, **options), vis, full


def _state(oracle: Oracle, level: float, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """x_t about the posterior mean at σ = level."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(oracle.posterior.mean.shape, dtype=torch.float64, generator=generator)
    x_t = oracle.posterior.mean + oracle.posterior.marginal().colour(white) + level * white.flip(-1)
    return x_t, torch.full((len(white),), level, dtype=torch.float64)


@pytest.mark.parametrize("survey", SURVEYS)
@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("level", LEVELS)
def test_a_gaussian_sky_of_any_amplitude_is_exact(survey, scale, level):
    """D′ is E[x | x_t, all the data]; for Γ itself, where F = 0, at the first step of GMRES."""
    _, observations = draw(SURVEYS[survey](2), (scale,), 0)
    guided, _, full = _factorized(observations, (scale,), tolerance=1e-8, steps=1 if scale == 1 else 40)
    x_t, sigma = _state(full, level)
    given = full.posterior.given(x_t, sigma)
    difference = given.whiten(guided.residual(x_t, sigma) - full.residual(x_t, sigma))
    assert guided.convergence.converged
    assert float(difference.abs().max()) < 1e-6


def test_zero_network_samples_are_those_of_all_the_data():
    _, observations = draw(blank_survey(1), (1.0,), 0)
    guided, _, full = _factorized(observations, (1.0,))
    noise = torch.randn(4, 3, *TORUS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = sample(guided.residual, guided.posterior, noise_levels(guided.posterior, 4), [noise])
    s, vectors = full.posterior.modes
    exact = full.posterior.mean + field(apply(vectors, s * apply(vectors.mT, spectrum(noise))), TORUS)
    torch.testing.assert_close(drawn, exact, rtol=1e-6, atol=1e-6)


def test_masks_and_turned_pixels_of_the_ground_are_exact():
    """For F = 0 D′ solves (P_VIS + Aᵀ N⁻¹ A) D′ = P_VIS μ_VIS + Aᵀ N⁻¹ y, however uneven N is."""
    generator = torch.Generator().manual_seed(3)
    ground = observe(BANDS[1], geometries(TORUS)["hsc_rotated"], generator, batch=1)
    ground = replace(ground, ivar=ground.ivar * torch.rand(ground.ivar.shape, generator=generator).round(decimals=1))
    observations = [draw(blank_survey(1), (1.0,), 0)[1][0], ground]
    guided, vis, full = _factorized(observations, (1.0,), tolerance=1e-8, steps=60)
    x_t, sigma = _state(full, 1.0)
    found = guided.residual(x_t, sigma) + full.posterior.given(x_t, sigma).mean
    assert guided.convergence.converged
    prior, given = vis.posterior.given(x_t, sigma), full.posterior.given(x_t, sigma)
    model = ForwardModel(TORUS, BANDS, 0.2, [ground])
    precise = field(apply(prior.lower, apply(prior.lower.mT, spectrum(found - prior.mean))), TORUS)
    left = precise - model.adjoint([ground.ivar * (ground.image - model(found)[0])])
    error = given.colour(field(solve_lower(given.lower, spectrum(left)), TORUS))  # S left, in the sky's own units
    assert float(error.abs().max()) < 1e-6 < 1e-3 * float((found - prior.mean).abs().max())


def test_variances_of_a_mixture_are_near():
    """Moment matching is no longer exact. Pooled over 8 scenes."""
    _, observations = draw(blank_survey(8), MIXTURE, 0)
    guided, _, full = _factorized(observations, MIXTURE)
    noise = torch.randn(8, 3, *TORUS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = noise_levels(guided.posterior, ENOUGH[DEFAULT])
    mean, covariance = full.moments()
    difference = spectrum(sample(guided.residual, guided.posterior, levels, [noise])) - mean
    found = apply(full.posterior.modes[1].mT, difference).abs().square()
    assert guided.convergence.converged
    assert _pooled(full, found / _of_modes(full, covariance)) == pytest.approx(1, abs=0.05)


def test_what_does_not_converge_is_told_and_takes_the_covariance_of_gamma():
    """A denoiser whose derivative is nonsense for one sample of two: D − μ and S give that one its answer."""
    _, observations = draw(blank_survey(1), (1.0,), 0)
    _, vis, full = _factorized(observations, (1.0,))
    model = ForwardModel(TORUS, BANDS, 0.2, observations[1:])
    wild = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)

    def residual(x, *_):
        return wild * torch.sin(1e4 * x.roll(5, -1))

    guided = Factorized(residual, vis.posterior, full.posterior, model, observations[1:])
    x_t, sigma = _state(full, 1.0)
    x_t = x_t.expand(2, -1, -1, -1)
    found = guided.residual(x_t, sigma)
    assert guided.convergence.failed[0].tolist() == [False, True]
    assert not guided.convergence.converged
    still = Factorized(
        lambda x, *_: residual(x).detach(), vis.posterior, full.posterior, model, observations[1:], tolerance=1e-6
    )
    expected = still.residual(x_t, sigma)
    error = full.posterior.given(x_t, sigma).whiten(found - expected).square().mean((1, 2, 3)).sqrt()
    assert (error < 0.01).all()  # the tolerance


def test_gmres_solves_systems_that_are_not_symmetric():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(12, dtype=torch.float64) + 0.5 * torch.randn(3, 12, 12, dtype=torch.float64, generator=generator)
    rhs = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    rhs[1] = 0
    x, error = gmres(lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1), rhs, 1e-10, 12)
    torch.testing.assert_close((matrix @ x.unsqueeze(-1)).squeeze(-1), rhs)
    assert (error < 1e-9).all()
    _, error = gmres(lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1), rhs, 1e-10, 3)
    assert error[0] > 1e-3 and error[1] == 0


def test_gmres_solves_each_system_by_itself():
    """One that never converges, or has no finite image, changes no other."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.eye(12, dtype=torch.float64) + 0.1 * torch.randn(3, 12, 12, dtype=torch.float64, generator=generator)
    matrix[2] = float("nan")
    rhs = torch.randn(3, 12, dtype=torch.float64, generator=generator)

    def solution(rows):
        return gmres(lambda v: (matrix[rows] @ v.unsqueeze(-1)).squeeze(-1), rhs[rows], 1e-4, 9)

    x, error = solution([0, 1, 2])
    for row in (0, 1):
        torch.testing.assert_close(x[[row]], solution([row])[0], rtol=1e-9, atol=1e-12)
        assert error[row] <= 1e-4
    assert not error[2] <= 1e-4


def _field(grid: Grid, bands=(0, 1, 2)) -> list[Observation]:
    """One sky in float32: VIS on the grid's pixels and ground bands on coarser ones."""
    generator = torch.Generator().manual_seed(0)
    names = ("same", "lsst", "lsst")
    seen = [observe(BANDS[i], geometries(grid)[names[i]], generator, batch=1) for i in bands]
    return [replace(o.to(torch.float32), image=10 * o.image.float()) for o in seen]


def test_a_network_is_guided_too():
    """In float32 and through its own derivative, without failure; and it draws otherwise than the amortized mode."""
    grid = Grid.centred((16, 16), 0.1)
    denoiser = untrained([(band.name, band.filter) for band in BANDS], seed=3)
    denoiser.network.exit.weight.data *= 0.1  # of order one, and as steep as noise is, no solution converges
    draws = [
        Diffusion(denoiser, mode=mode).sample(_field(grid), grid, 3, NoiseStream(0, "a"))
        for mode in ("factorized", "amortized")
    ]
    assert all(d.converged and bool(d.samples.isfinite().all()) for d in draws)
    assert draws[0].samples.shape == (3, 3, 16, 16)
    assert not torch.allclose(draws[0].samples, draws[1].samples, rtol=0.1)


@pytest.mark.parametrize(("bands", "missing"), [((1, 2), "VIS"), ((0,), "the ground")])
def test_factorized_needs_vis_and_the_ground(bands, missing):
    grid = Grid.centred((16, 16), 0.1)
    denoiser = untrained([(band.name, band.filter) for band in BANDS])
    with pytest.raises(InputError, match=f"no observation of {missing}"):
        Diffusion(denoiser, mode="factorized").sample(_field(grid, bands), grid, 2, NoiseStream(0, "a"))
