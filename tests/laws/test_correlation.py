"""Correlated noise: its spectra, N⁻¹, the posterior under it, and decimation, against dense linear algebra."""

from dataclasses import replace

import pytest
import torch

from jointdiff.correlation import FLOOR, correlation_function, power_at, power_spectrum, resized
from jointdiff.decimate import decimated
from jointdiff.forward import ForwardModel, frequencies
from jointdiff.gaussian import Conditional, GaussianPosterior, apply, field, spectrum
from jointdiff.scene import Grid, Observation
from tests.laws.test_gaussian import AMPLITUDE, GRID, prior
from tests.observing import BANDS, geometries, observe


def lags(one: float, reach: int = 3) -> torch.Tensor:
    """c(l) = one^(l²), as smoothing by a Gaussian leaves it, (1, 2·reach + 1, 2·reach + 1)."""
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2
    return (one ** (axis[:, None] + axis))[None]


def dense_correlation(power: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """C (P, P) of one image from c(l) alone, pixel pair by pixel pair."""
    function = torch.fft.irfft2(power[0].to(torch.complex128), s=shape)
    y, x = (a.flatten() for a in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    return function[(y[:, None] - y) % shape[0], (x[:, None] - x) % shape[1]]


def dense_inverse(observation: Observation, scene: int) -> torch.Tensor:
    """N⁻¹ (P, P): the inverse of the seen pixels' own covariance, zero for the others."""
    ivar, shape = observation.ivar[scene].flatten(), observation.frame.grid.shape
    if observation.correlation is None:
        return torch.diag(ivar)
    seen = ivar > 0
    deviation = ivar[seen].rsqrt()
    covariance = deviation[:, None] * dense_correlation(observation.correlation, shape)[seen][:, seen] * deviation
    inverse = torch.zeros(len(ivar), len(ivar), dtype=torch.float64)
    inverse[torch.outer(seen, seen)] = torch.linalg.inv(covariance).flatten()
    return inverse


def correlated(observation: Observation, one: float = 0.35, gone: float = 0.0, uneven: bool = False) -> Observation:
    generator = torch.Generator().manual_seed(11)
    draw = torch.rand(2, *observation.ivar.shape, dtype=torch.float64, generator=generator)
    ivar = observation.ivar * (draw[0] >= gone) * (0.5 + draw[1] if uneven else 1.0)
    return replace(observation, ivar=ivar, correlation=power_spectrum(lags(one), observation.frame.grid.shape))


def survey(one=0.35, gone=0.0, uneven=False, rough=0.3) -> list[Observation]:
    """VIS of white noise, two ground bands of correlated noise."""
    generator = torch.Generator().manual_seed(0)
    grids = [geometries(GRID)[name] for name in ("same", "lsst", "lsst")]
    seen = [observe(b, g, generator, size=7, ivar=4.0, rough=rough) for b, g in zip(BANDS, grids, strict=True)]
    return [seen[0], *(correlated(o, one, gone, uneven) for o in seen[1:])]


def dense_model(model: ForwardModel, scene: int) -> torch.Tensor:
    """A (P, 3HW)."""
    size = 3 * GRID.shape[0] * GRID.shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, 3, *GRID.shape)
    columns = []
    for c, transfer, total in zip(model.responses, model.transfers, model.sums, strict=True):
        seen = torch.einsum("nchw,c->nhw", torch.fft.rfft2(basis), c.to(torch.complex128))
        columns.append(total(transfer[scene] * seen).flatten(1))
    return torch.cat(columns, 1).T


def dense_prior(scene: int) -> torch.Tensor:
    size = 3 * GRID.shape[0] * GRID.shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, 3, *GRID.shape)
    return field(apply(prior().on(GRID), spectrum(basis)), GRID).flatten(1) * AMPLITUDE[scene] ** 2


@pytest.mark.parametrize("shape", [(12, 16), (9, 15), (12, 7)])
def test_spectrum_and_function_say_the_same(shape):
    function = lags(0.4)
    power = power_spectrum(function, shape)
    assert power.shape == (1, shape[0], shape[1] // 2 + 1)
    torch.testing.assert_close(correlation_function(power, shape, 3), function)
    torch.testing.assert_close(resized(power, shape, (20, 21)), power_spectrum(function, (20, 21)))


def test_a_spectrum_is_floored_and_of_mean_one():
    """A box of 3 × 3 lags is no noise's: its power is negative here and there."""
    power = power_spectrum(torch.ones(1, 3, 3, dtype=torch.float64), (12, 12))
    full = torch.fft.irfft2(power.to(torch.complex128), s=(12, 12))
    assert float(full[0, 0, 0]) == pytest.approx(1, abs=1e-12)
    assert float(power.min()) == pytest.approx(FLOOR * float(power.median()), rel=1e-9)


def test_spectra_are_folded_into_the_band():
    """At the image's own frequencies ρ itself; at their aliases and opposites, the same; between them, a mean."""
    grid = Grid.centred((12, 16), 0.2)
    tilted = torch.rand(1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    power = power_spectrum(lags(0.3) * (1 + 0.1 * (tilted + tilted.flip(1, 2))), grid.shape)
    q = frequencies(grid)
    for shift in ((0, 0), (1, 0), (-1, 2)):
        torch.testing.assert_close(power_at(power, grid.shape, q + shift), power)
        torch.testing.assert_close(power_at(power, grid.shape, -q + shift), power)
    between = power_at(power, grid.shape, q[2:4, 3:5].mean((0, 1)))
    torch.testing.assert_close(between, power[:, 2:4, 3:5].mean((1, 2)))


@pytest.mark.parametrize("gone", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("one", [0.3, 0.45])
def test_weighing_is_the_inverse_of_the_seen_pixels_covariance(one, gone):
    """To the tolerance of what is behind the masks, 1e-4 of the whole; symmetric, and zero at masks."""
    generator = torch.Generator().manual_seed(3)
    o = correlated(observe(BANDS[1], Grid.centred((9, 12), 0.2), generator), one, gone, uneven=True)
    o = replace(o, ivar=o.ivar.index_fill(0, torch.tensor([1]), 0.0))  # a scene without data
    found = o.weigh(o.image)
    for scene in (0, 1):
        exact = (dense_inverse(o, scene) @ o.image[scene].flatten()).view(9, 12)
        error = (found[scene] - exact).norm() / exact.norm().clamp(min=1e-30)
        assert float(error) < 1e-3
    assert not found[o.ivar == 0].any()


def test_weighed_noise_has_the_covariance_of_the_weights():
    """⟨n nᵀ⟩ = N⁻¹, from n = M w for white w: M Mᵀ, column by column."""
    generator = torch.Generator().manual_seed(4)
    o = correlated(observe(BANDS[1], Grid.centred((6, 8), 0.2), generator, batch=1), gone=0.2, uneven=True)
    rows = o.weighed_noise(torch.eye(48, dtype=torch.float64).view(48, 6, 8)).flatten(1)
    torch.testing.assert_close(rows.T @ rows, dense_inverse(o, 0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("gone", "uneven"), [(0.0, False), (0.2, True)])
def test_mean_is_the_dense_wiener_filter(gone, uneven):
    observations = survey(gone=gone, uneven=uneven)
    model = ForwardModel(GRID, BANDS, 0.2, observations)
    options = {"amplitude": AMPLITUDE, "tolerance": 1e-7, "max_steps": 300}
    posterior = GaussianPosterior(model, observations, prior().on(GRID), **options)
    for scene in (0, 1):
        matrix = dense_model(model, scene)
        weight = torch.block_diag(*(dense_inverse(o, scene) for o in observations))
        data = torch.cat([o.image[scene].flatten() for o in observations])
        precision = matrix.T @ weight @ matrix + torch.linalg.inv(dense_prior(scene))
        expected = torch.linalg.solve(precision, matrix.T @ (weight @ data))
        # What is behind masks is known to 1e-4 of the data.
        bound = 1e-3 if gone else 1e-5
        torch.testing.assert_close(posterior.mean[scene].flatten(), expected, rtol=bound, atol=bound)


def test_covariance_is_the_dense_one():
    """S of ``given`` is the inverse of the dense precision, x_t included, where noise is even and the grids tile."""
    observations = survey(rough=0.0)  # band-limited: nothing is aliased
    model = ForwardModel(GRID, BANDS, 0.2, observations)
    posterior = GaussianPosterior(model, observations, prior().on(GRID), amplitude=AMPLITUDE)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    conditional = posterior.given(torch.zeros(2, 3, *GRID.shape, dtype=torch.float64), sigma)
    size = 3 * GRID.shape[0] * GRID.shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, 3, *GRID.shape)
    for scene in (0, 1):
        matrix = dense_model(model, scene)
        weight = torch.block_diag(*(dense_inverse(o, scene) for o in observations))
        precision = matrix.T @ weight @ matrix + torch.linalg.inv(dense_prior(scene))
        expected = torch.linalg.inv(precision + torch.eye(size) / sigma[scene] ** 2)
        one = Conditional(conditional.mean[scene : scene + 1], conditional.lower[scene : scene + 1], GRID)
        colour = one.colour(basis).flatten(1)  # rows: S^{1/2} e_i
        torch.testing.assert_close(colour.T @ colour, expected, rtol=2e-3, atol=1e-5)


def test_white_noise_said_as_a_spectrum_changes_nothing():
    plain = survey(one=0.0)
    power = plain[1].correlation
    torch.testing.assert_close(power, torch.ones_like(power))
    white = [replace(o, correlation=None) for o in plain]
    posteriors = []
    for observations in (plain, white):
        model = ForwardModel(GRID, BANDS, 0.2, observations)
        posteriors.append(GaussianPosterior(model, observations, prior().on(GRID)))
    for name in ("mean", "precision", "amplitude", "coverage", "footprint"):
        one, other = (getattr(posterior, name) for posterior in posteriors)
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(12, 16), (13, 15)])
def test_a_decimated_observation_is_seen_exactly_by_its_frame(shape):
    """Sums of 2 × 2 pixels of A x are A of the new frame, wherever the grid lies: PSF, pixel centres and flux."""
    generator = torch.Generator().manual_seed(6)
    grid = Grid(shape, ((0.1, 0.01), (-0.01, 0.1)), (-0.63, -0.71))
    o = observe(BANDS[1], grid, generator, size=9)
    scene = torch.randn(2, 3, *GRID.shape, dtype=torch.float64, generator=generator)
    (fine,) = ForwardModel(GRID, BANDS, 0.2, [o])(scene)
    new = decimated(replace(o, image=fine))
    (seen,) = ForwardModel(GRID, BANDS, 0.2, [new])(scene)
    assert new.frame.grid.shape == (shape[0] // 2, shape[1] // 2)
    torch.testing.assert_close(new.image, seen)


def test_a_block_is_masked_where_a_pixel_is():
    o = observe(BANDS[1], Grid.centred((8, 8), 0.1), torch.Generator().manual_seed(6))
    ivar, image = o.ivar.clone(), o.image.clone()
    ivar[0, 2, 5], image[0, 2, 5] = 0.0, torch.nan
    new = decimated(replace(o, ivar=ivar, image=image))
    assert (new.ivar == 0).nonzero().tolist() == [[0, 1, 2]]
    assert new.image[0, 1, 2] == 0 and new.image.isfinite().all()
    assert new.ivar[1, 0, 0] == 0.25  # four variances of 1


def test_the_noise_of_a_block_is_that_of_its_pixels():
    """Variance and correlation of block sums, against the dense covariance of the pixels."""
    o = correlated(observe(BANDS[1], Grid.centred((16, 20), 0.1), torch.Generator().manual_seed(6)), 0.6)
    new = decimated(o)
    blocks = torch.zeros(80, 16, 20, dtype=torch.float64)
    for number in range(80):
        y, x = 2 * (number // 10), 2 * (number % 10)
        blocks[number, y : y + 2, x : x + 2] = 1
    blocks = blocks.flatten(1)
    pixels = dense_correlation(o.correlation, (16, 20)) / o.ivar[0, 0, 0]
    expected = blocks @ pixels @ blocks.T
    found = dense_correlation(new.correlation, (8, 10)) / new.ivar[0, 0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.max()))
    assert new.correlation.max() / new.correlation.min() < o.correlation.max() / o.correlation.min() / 3
