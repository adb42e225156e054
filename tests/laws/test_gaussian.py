"""Laws of the Gaussian posterior, against dense linear algebra."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.forward import ForwardModel
from jointdiff.gaussian import (
    GaussianPosterior,
    GaussianPrior,
    apply,
    evidence_amplitude,
    field,
    fit_prior,
    spectrum,
)
from jointdiff.linear import conjugate_gradient
from jointdiff.scene import Band, Grid
from tests.observing import BANDS, geometries, observe

GRID = Grid.centred((8, 10), 0.1)
AMPLITUDE = torch.tensor([3.0, 0.5], dtype=torch.float64)


def prior() -> GaussianPrior:
    k = torch.linspace(0, 8, 9, dtype=torch.float64)
    mixing = torch.tensor([[1.0, 0, 0], [0.6, 0.7, 0], [0.8, 0.3, 0.4]], dtype=torch.float64)
    return GaussianPrior(k, torch.exp(-k / 1.5)[:, None, None] * (mixing @ mixing.T))


def posterior_of(names=("same", "lsst", "lsst"), ivar=4.0, rough=0.3, bands=BANDS, **options):
    generator = torch.Generator().manual_seed(0)
    observations = [
        observe(b, geometries(GRID)[n], generator, size=7, ivar=ivar, rough=rough)
        for b, n in zip(bands, names, strict=True)
    ]
    model = ForwardModel(GRID, BANDS, 0.2, observations)
    return (
        GaussianPosterior(model, observations, prior().on(GRID), amplitude=AMPLITUDE, **options),
        model,
        observations,
    )


def _dense(model, observations, scene: int):
    """A, N⁻¹, the prior covariance, and y as dense arrays for one scene of the batch."""
    size = 3 * GRID.shape[0] * GRID.shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, 3, *GRID.shape)
    columns = []
    for c, transfer, total in zip(model.responses, model.transfers, model.sums, strict=True):
        seen = torch.einsum("nchw,c->nhw", torch.fft.rfft2(basis), c.to(torch.complex128))
        columns.append(total(transfer[scene] * seen).flatten(1))
    covariance = field(apply(prior().on(GRID), spectrum(basis)), GRID).flatten(1)
    data = torch.cat([o.image[scene].flatten() for o in observations])
    weight = torch.cat([o.ivar[scene].flatten() for o in observations])
    return torch.cat(columns, 1).T, weight, covariance * AMPLITUDE[scene] ** 2, data


@pytest.mark.parametrize("uneven", [False, True])
def test_mean_is_the_dense_wiener_filter(uneven):
    """CG finds the exact mean for even noise, and with masks and uneven noise."""
    _, model, observations = posterior_of()
    if uneven:
        generator = torch.Generator().manual_seed(1)
        observations = [
            replace(
                o, ivar=o.ivar * torch.rand(o.ivar.shape, dtype=torch.float64, generator=generator).round(decimals=1)
            )
            for o in observations
        ]
    posterior = GaussianPosterior(
        model, observations, prior().on(GRID), amplitude=AMPLITUDE, tolerance=1e-7, max_steps=300
    )
    for scene in range(2):
        matrix, weight, covariance, data = _dense(model, observations, scene)
        precision = matrix.T @ (weight[:, None] * matrix) + torch.linalg.inv(covariance)
        expected = torch.linalg.solve(precision, matrix.T @ (weight * data))
        torch.testing.assert_close(posterior.mean[scene].flatten(), expected, rtol=1e-4, atol=1e-5)


def test_covariance_is_the_dense_one():
    """S of ``given`` is the inverse of the dense precision, x_t included, where noise is even and the grids tile."""
    posterior, model, observations = posterior_of(rough=0.0)  # band-limited: nothing is aliased
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    conditional = posterior.given(torch.zeros(2, 3, *GRID.shape, dtype=torch.float64), sigma)
    size = 3 * GRID.shape[0] * GRID.shape[1]
    for scene in range(2):
        matrix, weight, covariance, _ = _dense(model, observations, scene)
        precision = (
            matrix.T @ (weight[:, None] * matrix) + torch.linalg.inv(covariance) + torch.eye(size) / sigma[scene] ** 2
        )
        one = replace_lower(conditional, scene)
        basis = torch.eye(size, dtype=torch.float64).view(size, 3, *GRID.shape)
        colour = one.colour(basis).flatten(1)  # rows: S^{1/2} e_i
        torch.testing.assert_close(colour.T @ colour, torch.linalg.inv(precision), rtol=2e-3, atol=1e-5)


def replace_lower(conditional, scene):
    from jointdiff.gaussian import Conditional

    return Conditional(conditional.mean[scene : scene + 1], conditional.lower[scene : scene + 1], GRID)


def test_whiten_undoes_colour():
    posterior, *_ = posterior_of()
    white = torch.randn(2, 3, *GRID.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    conditional = posterior.given(white, torch.tensor([0.1, 1.0], dtype=torch.float64))
    torch.testing.assert_close(conditional.whiten(conditional.colour(white)), white)


def test_whitened_norm_is_the_mahalanobis_distance():
    """‖Lᵀ r‖² = rᵀ P r: the loss is the posterior's own metric."""
    posterior, *_ = posterior_of()
    r = torch.randn(2, 3, *GRID.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whitened = posterior.marginal().whiten(r).square().sum((1, 2, 3))
    image = field(apply(posterior.precision, spectrum(r)), GRID)
    torch.testing.assert_close(whitened, (r * image).sum((1, 2, 3)))


def test_missing_bands_have_no_precision():
    posterior, *_ = posterior_of(ivar=0.0)
    assert posterior.data_precision.abs().max() == 0
    assert posterior.mean.abs().max() == 0
    torch.testing.assert_close(posterior.coverage, torch.zeros_like(posterior.coverage))


def test_given_without_information_is_theposterior_of():
    """σ → ∞ gives μ₀; σ → 0 gives x_t."""
    posterior, *_ = posterior_of()
    x = torch.randn(2, 3, *GRID.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(
        posterior.given(x, torch.full((2,), 1e6, dtype=torch.float64)).mean, posterior.mean, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        posterior.given(x, torch.full((2,), 1e-5, dtype=torch.float64)).mean, x, rtol=1e-5, atol=1e-5
    )


def test_evidence_finds_the_amplitude():
    """Scenes drawn from the prior at known amplitudes, observed with noise."""
    grid, batch = Grid.centred((32, 32), 0.1), 24
    generator = torch.Generator().manual_seed(5)
    truth = torch.logspace(0, 2.5, batch, dtype=torch.float64)
    gamma = prior().on(grid)
    white = torch.randn(batch, 3, 32, 32, dtype=torch.float64, generator=generator)
    lower = torch.linalg.cholesky(gamma)
    scenes = truth.view(-1, 1, 1, 1) * field(apply(lower, spectrum(white)), grid)
    observations = [
        observe(b, geometries(grid)[n], generator, batch=batch, rough=0.0)
        for b, n in zip(BANDS, ("same", "lsst", "lsst"), strict=True)
    ]
    model = ForwardModel(grid, BANDS, 0.2, observations)
    seen = [replace(o, image=a + o.image) for a, o in zip(model(scenes), observations, strict=True)]
    found = evidence_amplitude(model, seen, gamma)
    error = (found / truth).log()[truth > 5]  # some 600 modes vote: 3 % each
    assert error.std() < 0.06
    assert error.mean().abs() < 0.03


def test_fitted_prior_is_the_one_the_scenes_were_drawn_from():
    grid = Grid.centred((32, 32), 0.1)
    gamma = prior().on(grid)
    white = torch.randn(400, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    scenes = field(apply(torch.linalg.cholesky(gamma), spectrum(white)), grid)
    amplitude = scenes.square().mean((0, 1, 2, 3)).sqrt()
    fitted = fit_prior(7 * scenes, grid).on(grid) * amplitude**2
    ratio = fitted[2:10, 2:10, 0, 1] / gamma[2:10, 2:10, 0, 1]
    assert (ratio - 1).abs().max() < 0.15


def test_conjugate_gradient_stops_at_the_tolerance():
    diagonal = torch.linspace(1, 30, 50, dtype=torch.float64).expand(2, 50)
    rhs = torch.ones(2, 50, dtype=torch.float64)
    calls = []

    def operator(x):
        calls.append(1)
        return diagonal * x

    x = conjugate_gradient(operator, lambda r: r, rhs, torch.zeros_like(rhs), tolerance=1e-3, steps=200)
    assert np.sqrt(float((rhs - diagonal * x).square().sum(1).max()) / 50) <= 1e-3
    assert len(calls) < 40


def test_conjugate_gradient_stops_each_scene_by_itself():
    """Its answer does not depend on what else is in the batch, to rounding."""
    diagonal = torch.stack([torch.linspace(1, high, 50, dtype=torch.float64) for high in (2, 300)])
    rhs = torch.ones(2, 50, dtype=torch.float64)

    def solution(rows):
        return conjugate_gradient(lambda x: diagonal[rows] * x, lambda r: r, rhs[rows], 0 * rhs[rows], 1e-2, 200)

    both = solution([0, 1])
    for row in (0, 1):
        torch.testing.assert_close(both[[row]], solution([row]), rtol=1e-12, atol=1e-14)


def test_coverage_is_the_own_precision_of_each_band():
    """Σ_o c_ob² T_oᵀ N⁻¹ T_o 1, against the dense matrices of each band alone, though filters see other bands too."""
    bands = (BANDS[0], Band("g", "lsst-g"), Band("i", "lsst-i"))
    posterior, model, observations = posterior_of(bands=bands)
    assert any(len(c.nonzero()) > 1 for c in model.responses)  # a colour term
    for scene in (0, 1):
        transfer, weight, _, _ = _dense(model, observations, scene)
        size, start = GRID.shape[0] * GRID.shape[1], 0
        own = torch.zeros(3, size, dtype=torch.float64)
        for o in observations:
            rows = slice(start, start := start + o.image[scene].numel())
            for band in range(3):
                part = transfer[rows, band * size : (band + 1) * size]
                own[band] += part.T @ (weight[rows] * (part @ torch.ones(size, dtype=torch.float64)))
        mean = own.mean(1, keepdim=True)
        torch.testing.assert_close(posterior.coverage[scene].flatten(1), own / mean)


def test_modes_of_a_deep_band_beside_one_that_was_not_observed():
    """Eigenvalues that span 1e8, beyond float32, are those of the precision: to some roundings of s and U, 6e-8."""
    _, _, observations = posterior_of()
    observations = [o.to("cpu", torch.float32) for o in observations[:2]]
    model = ForwardModel(GRID, BANDS, 0.2, observations)
    gamma, amplitude = prior().on(GRID).float(), torch.tensor([1e3, 1e4])
    posterior = GaussianPosterior(model, observations, gamma, amplitude)
    s, vectors = posterior.modes
    found = (vectors.double() * s.double().square().unsqueeze(-2)) @ vectors.double().mT
    expected = torch.linalg.inv(posterior.precision.double())
    sd = expected.diagonal(dim1=-2, dim2=-1).sqrt()
    error = (found - expected).abs() / (sd.unsqueeze(-1) * sd.unsqueeze(-2))
    assert (s.amax() / s.amin()).square() > 1e8
    assert error.max() < 1e-6
