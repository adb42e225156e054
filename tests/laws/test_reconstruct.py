"""Laws of reconstruction: exact samples, own random numbers, padding that keeps flux and sky."""

from dataclasses import replace

import pytest
import torch

from jointdiff.gaussian import GaussianPosterior
from tests.laws.test_gaussian import AMPLITUDE, GRID, _dense, posterior_of, prior


def _uneven(observations):
    """One scene of the observations, with masks and weights that differ from pixel to pixel."""
    generator = torch.Generator().manual_seed(1)
    uneven = []
    for o in observations:
        weight = torch.rand(o.ivar[:1].shape, dtype=torch.float64, generator=generator).round(decimals=1)
        frame = replace(o.frame, psf=o.frame.psf[:1], shift=o.frame.shift[:1])
        uneven.append(replace(o, frame=frame, image=o.image[:1], ivar=o.ivar[:1] * weight))
    return uneven


def test_perturbed_samples_have_the_dense_posterior_mean_and_covariance():
    """The map from white noise to a sample, applied to a basis, gives P⁻¹ and μ, with masks and uneven noise."""
    _, _, observations = posterior_of()
    observations = _uneven(observations)
    from jointdiff.forward import ForwardModel
    from tests.observing import BANDS

    model = ForwardModel(GRID, BANDS, 0.2, observations)
    posterior = GaussianPosterior(
        model, observations, prior().on(GRID), amplitude=AMPLITUDE[:1], tolerance=1e-8, max_steps=400
    )
    shapes = [posterior.mean.shape[1:], *(o.image.shape[1:] for o in observations)]
    sizes = [s.numel() for s in shapes]
    basis = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, dim=1)
    scene, *data = (b.reshape(len(b), *s) for b, s in zip(basis, shapes, strict=True))
    columns = (posterior.perturbed(scene, data) - posterior.mean).flatten(1)
    matrix, weight, covariance, y = _dense(model, observations, 0)
    exact = torch.linalg.inv(matrix.T @ (weight[:, None] * matrix) + torch.linalg.inv(covariance))
    torch.testing.assert_close(columns.T @ columns, exact, rtol=1e-5, atol=1e-6)
    still = posterior.perturbed(torch.zeros_like(scene[:1]), [torch.zeros_like(d[:1]) for d in data])
    torch.testing.assert_close(still[0].flatten(), exact @ (matrix.T @ (weight * y)), rtol=1e-5, atol=1e-6)
    assert posterior.error(posterior.mean) < 1e-7
