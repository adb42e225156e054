"""Laws of the denoising loss: what a network of zeros scores, and what the weights may depend on."""

from dataclasses import replace

import pytest
import torch

from jointdiff import gaussian
from jointdiff.diffusion.denoiser import LARGEST_NOISE, bounded
from jointdiff.diffusion.loss import WIDER, DenoisingLoss, spectral_norm
from jointdiff.diffusion.sampler import REACH
from jointdiff.gaussian import apply, field, spectrum
from jointdiff.scene import Grid
from jointdiff.simulate.observe import Conditions
from tests.denoisers import untrained
from tests.mocks import STEADY, gaussian_library, simulator

LEVELS = 4
VARIED = replace(Conditions(), drop_all=0.0, margin=0.5, margin_width=(0.0, 1.0))


def mock_of(conditions=VARIED, batch=4, seed=3, size=32):
    source = simulator(("lsst",), conditions, size=size)
    return source.draw(batch, seed), source.grid


def evaluate(denoiser, mock, grid, seed=0, truth=None):
    generator = torch.Generator().manual_seed(seed)
    truth = mock.truth if truth is None else truth
    return DenoisingLoss(denoiser, LEVELS)(truth, mock.observations, grid, generator)


def test_zero_network_scores_the_whitened_residual():
    """The loss is the weighted norm of Lᵀ (x − μ) / g, with μ from the denoiser's own forward pass."""
    denoiser = untrained()
    mock, grid = mock_of()
    loss, each, shares = evaluate(denoiser, mock, grid)
    conditioning = denoiser.condition(mock.observations, grid)
    low, high = conditioning.posterior.sigma_range
    weight = conditioning.weight
    generator = torch.Generator().manual_seed(0)
    torch.rand(4, generator=generator)  # the levels
    total = norm = 0.0
    for level, share in enumerate(shares.chunk(LEVELS)):
        sigma = low / WIDER * (high / low * WIDER * REACH) ** share
        x_t = mock.truth + sigma.view(-1, 1, 1, 1) * torch.randn(mock.truth.shape, generator=generator)
        mean = denoiser(x_t, sigma, conditioning)
        residual = conditioning.posterior.given(x_t, sigma).whiten(mock.truth - mean) / conditioning.gain
        score, seen = spectral_norm(weight.sqrt() * residual, grid), weight.mean((1, 2, 3))
        torch.testing.assert_close(each[4 * level : 4 * level + 4], score / seen, rtol=1e-4, atol=1e-5)
        total, norm = total + score.sum(), norm + seen.sum()
    torch.testing.assert_close(loss, total / norm, rtol=1e-4, atol=0)


def gaussian_skies(denoiser, grid: Grid, amplitude: float, count: int, seed: int):
    """Draws (N, C, H, W) of the Gaussian prior itself."""
    white = torch.randn(count, 6, *grid.shape, generator=torch.Generator().manual_seed(seed))
    lower = torch.linalg.cholesky(denoiser.prior.on(grid))
    return amplitude * field(apply(lower, spectrum(white)), grid)


def test_zero_network_scores_one_on_gaussian_skies(monkeypatch):
    """Where the Gaussian posterior is the truth, every mode of the target has unit variance at every noise level."""
    monkeypatch.setattr(gaussian, "evidence_amplitude", lambda *_: torch.full((12,), 3.0))  # an estimate has errors
    denoiser = untrained()
    mock, grid = mock_of(STEADY, batch=12)
    truth = gaussian_skies(denoiser, grid, 3.0, 12, 1)
    model = denoiser.forward_model(mock.observations, grid)
    generator = torch.Generator().manual_seed(2)
    observations = []
    for o, seen in zip(mock.observations, model(truth), strict=True):
        ivar = o.ivar.mean((1, 2), keepdim=True).expand_as(o.ivar)
        noise = torch.randn(seen.shape, generator=generator)
        observations.append(replace(o, image=seen + noise / ivar.sqrt(), ivar=ivar))
    loss, each, _ = evaluate(denoiser, replace(mock, truth=truth, observations=observations), grid)
    # 12 skies of 6 · 32² modes, each at four levels that are not independent: four sampling errors of 0.5 %.
    assert float(loss.detach()) == pytest.approx(1, abs=0.02)
    assert each.view(LEVELS, 12).mean(1).tolist() == pytest.approx([1] * LEVELS, abs=0.02)


def test_weights_do_not_depend_on_the_truth():
    """With zeros for a network the loss is then quadratic in the truth: one second difference wherever it is taken."""
    denoiser = untrained().double()
    mock, grid = mock_of()
    mock = replace(mock, truth=mock.truth.double(), observations=[o.to(torch.float64) for o in mock.observations])
    step = gaussian_skies(untrained(), grid, 100.0, 4, 5).double()

    def second_difference(centre):
        losses = [evaluate(denoiser, mock, grid, truth=centre + sign * step)[1] for sign in (-1, 0, 1)]
        return losses[0] - 2 * losses[1] + losses[2]

    here, there = second_difference(mock.truth), second_difference(20 * mock.truth.flip(-1))
    assert (here > 0).all()
    torch.testing.assert_close(here, there, rtol=1e-6, atol=0)


def test_weights_cover_the_data_alone():
    """1 where some band sees, 0 well inside the margin, and 1 everywhere in a scene that nothing sees."""
    denoiser = untrained()
    mock, grid = mock_of(replace(STEADY, margin=1.0, margin_width=(1.6, 1.6)), size=64)
    conditioning = denoiser.condition(mock.observations, grid)
    weight = conditioning.weight
    assert weight.shape == (4, 1, 64, 64)
    assert 0 <= float(weight.min()) <= float(weight.max()) <= 1
    assert float(weight[..., 24:40, 24:40].min()) > 0.9
    assert float(weight[..., :4, :].max()) == 0
    torch.testing.assert_close(conditioning.scale, conditioning.gain * weight)  # F speaks where it is trained
    blind, grid = mock_of(replace(STEADY, drop_all=1.0))
    amplitude = torch.ones(4)
    assert (denoiser.condition(blind.observations, grid, amplitude).weight == 1).all()


def test_levels_are_evenly_spread():
    """Each scene is seen once in each of the equal parts of the range, at the same place in each."""
    denoiser = untrained()
    mock, grid = mock_of()
    places = []
    for seed in range(12):
        shares = evaluate(denoiser, mock, grid, seed)[2].view(LEVELS, 4)
        assert torch.equal((shares * LEVELS).long(), torch.arange(LEVELS)[:, None].expand(LEVELS, 4))
        torch.testing.assert_close(shares - shares[0], torch.arange(LEVELS)[:, None].expand(LEVELS, 4) / LEVELS)
        places.append(LEVELS * shares[0])
    places = torch.cat(places)
    assert abs(float(places.mean()) - 0.5) < 4 / (12 * 48) ** 0.5
    assert len(places.unique()) == 48


@pytest.mark.parametrize("crowding", ["filled", "empty"])
def test_a_scene_without_data_is_finite(crowding):
    """Alone in its batch or beside others; without sources too, where the truth has no amplitude."""
    denoiser = untrained(seed=0)
    blind, grid = mock_of(replace(STEADY, drop_all=1.0))
    seen, _ = mock_of(STEADY)
    mixed = [
        replace(o, image=torch.cat([b.image[:2], o.image[2:]]), ivar=torch.cat([b.ivar[:2], o.ivar[2:]]))
        for b, o in zip(blind.observations, seen.observations, strict=True)
    ]
    truth = blind.truth if crowding == "filled" else torch.zeros_like(blind.truth)
    for observations in (blind.observations, mixed):
        denoiser.zero_grad()
        loss, each, _ = evaluate(denoiser, replace(blind, truth=truth, observations=observations), grid)
        loss.backward()
        assert torch.isfinite(each).all()
        assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters() if p.grad is not None)
        assert any(p.grad.abs().max() > 0 for p in denoiser.parameters() if p.grad is not None)


def test_gradients_reach_every_parameter():
    """Once the layers that start as zeros have left it."""
    denoiser = untrained()
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    mock, grid = mock_of()
    evaluate(denoiser, mock, grid)[0].backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_loss_is_that_of_each_scene():
    """The batch's loss is the weighted mean of its scenes': a scene counts by how much of it was seen."""
    denoiser = untrained(seed=0)
    mock, grid = mock_of()
    loss, each, _ = evaluate(denoiser, mock, grid)
    weight = denoiser.condition(mock.observations, grid).weight.mean((1, 2, 3)).repeat(LEVELS)
    torch.testing.assert_close(loss.detach(), (weight * each).sum() / weight.sum())


def test_spectral_norm_is_a_weighted_mean_square():
    """White noise has norm 1, and a large wave counts eleven times as much as a small one of the same power."""
    _, grid = mock_of()
    white = torch.randn(64, 6, *grid.shape, generator=torch.Generator().manual_seed(0))
    assert abs(float(spectral_norm(white, grid).mean()) - 1) < 0.02
    y = torch.arange(grid.shape[0]) * 2 * torch.pi / grid.shape[0]
    large, small = (torch.cos(n * y).view(1, 1, -1, 1).expand(1, 1, *grid.shape) for n in (1, grid.shape[0] // 2 - 1))
    assert 10 < float(spectral_norm(large, grid) / spectral_norm(small, grid)) < 11


def test_the_network_is_not_led_by_impossible_states():
    """Noise like noise passes through; beyond it the feature stays within its bound."""
    white = torch.randn(10000, generator=torch.Generator().manual_seed(0))
    assert ((bounded(white) - white).abs() <= white.abs() ** 3 / (3 * LARGEST_NOISE**2) + 1e-5).all()  # tanh's series
    assert bounded(torch.tensor([1e4, -1e4])).tolist() == [LARGEST_NOISE, -LARGEST_NOISE]
    denoiser = untrained()
    mock, grid = mock_of(STEADY)
    conditioning = denoiser.condition(mock.observations, grid)
    sigma = torch.ones(4)
    features, _, _ = denoiser.inputs(mock.truth + 1e4 * torch.randn(mock.truth.shape), sigma, conditioning)
    assert features[:, 6:12].abs().max() <= LARGEST_NOISE


def test_the_posterior_mean_has_converged_under_bright_sources_that_the_edge_cuts():
    """Left short of it, it misses such a source by more than any network makes good."""
    cut = replace(STEADY, margin=1.0, margin_width=(1.0, 1.6))
    source = simulator(("hsc",), cut, gaussian_library(brightness=3.0))
    for seed in range(3):
        mock = source.draw(4, seed)
        posterior = untrained().condition(mock.observations, source.grid).posterior
        assert (posterior.error(posterior.mean) < 0.035).all()  # 0.03, and rounding in float32
