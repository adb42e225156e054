"""Laws of the methods without a posterior: what they conserve, what they minimise, and how fast."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.errors import InputError
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior
from jointdiff.reconstruct.api import reconstruct
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.richardson_lucy import RichardsonLucy, gaussian, multiplicative, poisson
from jointdiff.reconstruct.starlet import Blobs, Starlet, fista, operator_norm, shrunk, splines
from jointdiff.reconstruct.wiener import BandWiener
from jointdiff.scene import Frame, Grid, Observation
from tests.denoisers import untrained
from tests.observing import BANDS, gaussian_psf
from tests.oracles import TORUS, blank_survey, draw

PAIRS = [(band.name, band.filter) for band in BANDS]


def _positive_problem(seed: int = 0, pixels: int = 30):
    """A blurring of a line that is positive everywhere, as matrix K; a sky u, and weights with a masked pixel."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.arange(pixels, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / 2.0) ** 2) + 1e-3
    sky = torch.rand(1, pixels, dtype=torch.float64, generator=generator) ** 4 * 50
    weights = 0.1 + torch.rand(1, pixels, dtype=torch.float64, generator=generator)
    weights[0, 7] = 0
    return kernel, sky, weights, generator


def _run(kernel, data, weights, pedestal, start, iterations, update):
    pedestals = [torch.tensor(pedestal, dtype=torch.float64)]
    return multiplicative(
        lambda u: [u @ kernel.T], lambda y: y[0] @ kernel, [data], [weights], pedestals, start, iterations, update
    )


@pytest.mark.parametrize("update", [poisson, gaussian])
@pytest.mark.parametrize("pedestal", [0.0, 3.0])
def test_the_truth_is_a_fixed_point_without_noise(update, pedestal):
    kernel, sky, weights, _ = _positive_problem()
    again = _run(kernel, sky @ kernel.T, weights, pedestal, sky, 5, update)
    torch.testing.assert_close(again, sky, rtol=1e-12, atol=0)


def test_richardson_lucy_conserves_the_flux_that_was_seen():
    """Without a pedestal Σ m K u = Σ m y after every iteration, noise and mask or not."""
    kernel, sky, weights, generator = _positive_problem()
    data = sky @ kernel.T * (0.5 + torch.rand(sky.shape, dtype=torch.float64, generator=generator))
    seen = (weights > 0).double()
    for iterations in (1, 2, 10):
        found = _run(kernel, data, weights, 0.0, torch.ones_like(sky), iterations, poisson)
        assert float((seen * (found @ kernel.T)).sum()) == pytest.approx(float((seen * data).sum()), rel=1e-12)


@pytest.mark.parametrize("update", [poisson, gaussian])
@pytest.mark.parametrize("pedestal", [0.0, 3.0])
def test_each_form_climbs_its_own_likelihood(update, pedestal):
    """χ² of ISRA, and the Poisson deviance of Richardson–Lucy, fall at every step, with noise and a masked pixel."""
    kernel, sky, weights, generator = _positive_problem()
    data = (sky @ kernel.T + 2 * torch.randn(sky.shape, dtype=torch.float64, generator=generator)).clamp(min=0)
    found, losses = torch.ones_like(sky), []
    for _ in range(40):
        model, raised = found @ kernel.T + pedestal, data + pedestal
        if update is gaussian:
            losses.append(float((weights * (model - raised).square()).sum()))
        else:
            losses.append(float(((weights > 0) * (model - raised * model.log())).sum()))
        found = _run(kernel, data, weights, pedestal, found, 1, update)
    assert (np.diff(losses) < 0).all()


def _survey(amplitude: float) -> tuple[torch.Tensor, list[Observation]]:
    """Two round blobs of FWHM 0.5 arcsec and different colours at the target PSF, seen in three bands with noise."""
    axis = torch.arange(32, dtype=torch.float64) - 16
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 2.0**2)) / (2 * np.pi * 2.0**2)
    colours = torch.tensor([[1.0, 0.5, 2.0], [2.0, 4.0, 3.0]], dtype=torch.float64)
    places = torch.stack([blob.roll((-6, 5), (0, 1)), blob.roll((4, -7), (0, 1))])
    truth = amplitude * torch.einsum("kc,khw->chw", colours, places)[None]
    empty = blank_survey(1, fwhm=0.6)
    generator = torch.Generator().manual_seed(3)
    images = ForwardModel(TORUS, BANDS, 0.2, empty)(truth)
    noise = [torch.randn(i.shape, dtype=torch.float64, generator=generator) for i in images]
    return truth, [replace(o, image=i + n * o.ivar.rsqrt()) for o, i, n in zip(empty, images, noise, strict=True)]


@pytest.mark.parametrize("method", [RichardsonLucy, Starlet])
def test_a_sky_without_noise_comes_out(method):
    """At the target PSF, from coarser pixels: within 5 % in each band; fluxes within 2 %, which Starlet's λ takes.

    The same images without deconvolution would be wrong by half: seeing of 0.6 arcsec doubles the area of the blobs.
    """
    truth, observations = _survey(amplitude=3e5)
    options = {"vis": 50, "ground": 1000} if method is RichardsonLucy else {"iterations": 150}
    found = method(untrained(PAIRS), **options).estimator(observations, TORUS)([o.image for o in observations])
    error = (found - truth).norm(dim=(-2, -1)) / truth.norm(dim=(-2, -1))
    assert (error < 0.05).all(), error
    torch.testing.assert_close(found.sum((-2, -1)), truth.sum((-2, -1)), rtol=0.02, atol=0)


def test_the_operator_norm_is_the_largest_eigenvalue():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(20, 30, dtype=torch.float64, generator=generator)
    normal = root.T @ root
    found = operator_norm(lambda v: v @ normal, torch.randn(1, 30, dtype=torch.float64, generator=generator), 300)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(normal).max()), rel=1e-6)


def _lasso(joint: bool, condition: float = 2.0):
    """A dense group lasso of 12 places in 3 bands, β as (1, 3, 12, 1): gradient, shrink, step, objective."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(24, 36, dtype=torch.float64, generator=generator) @ torch.diag(
        torch.logspace(0, -condition, 36, dtype=torch.float64)
    )
    data, level = 3 * torch.randn(24, dtype=torch.float64, generator=generator), 0.3
    step = 1 / operator_norm(lambda v: v @ (matrix.T @ matrix), torch.ones(36, dtype=torch.float64), 1000)

    def gradient(beta):
        return ((matrix @ beta.flatten() - data) @ matrix).view_as(beta)

    def objective(beta):
        size = beta.norm(dim=-3) if joint else beta.abs()
        return float(0.5 * (matrix @ beta.flatten() - data).square().sum() + level * size.sum())

    return gradient, lambda b: shrunk(b, step * level, joint), step, objective, level


@pytest.mark.parametrize("joint", [True, False])
def test_fista_keeps_its_rate_and_beats_ista(joint):
    """Below the bound of Beck & Teboulle's theorem 4.4 at every k; ISTA falls at every step, and is left behind."""
    gradient, shrink, step, objective, _ = _lasso(joint)
    start = torch.zeros(1, 3, 12, 1, dtype=torch.float64)
    best = fista(gradient, shrink, step, start, 5_000)
    bound = 2 * float((start - best).square().sum()) / step
    for k in (1, 3, 10, 30, 100, 300):
        assert objective(fista(gradient, shrink, step, start, k)) - objective(best) <= bound / (k + 1) ** 2
    slow = [objective(fista(gradient, shrink, step, start, k, momentum=False)) for k in range(30)]
    assert (np.diff(slow) < 0).all()
    left = [objective(fista(gradient, shrink, step, start, 100, m)) - objective(best) for m in (True, False)]
    assert left[0] < 0.1 * left[1]


@pytest.mark.parametrize("joint", [True, False])
def test_the_optimum_of_fista_satisfies_the_conditions_of_karush_kuhn_and_tucker(joint):
    """With r = −∇f: where β > 0, r = λ β/‖β‖; elsewhere r ≤ 0 beside light of other bands, or ‖r₊‖ ≤ λ in the dark."""
    gradient, shrink, step, _, level = _lasso(joint, condition=0.5)
    beta = fista(gradient, shrink, step, torch.zeros(1, 3, 12, 1, dtype=torch.float64), 5_000)
    force = -gradient(beta)
    size = beta.norm(dim=-3, keepdim=True).expand_as(beta) if joint else beta
    light = beta > 0
    assert 0 < light.sum() < light.numel()
    torch.testing.assert_close(force[light], (level * beta / size)[light], rtol=1e-6, atol=1e-8)
    assert (force[(size > 0) & ~light] <= 1e-8).all()
    dark = force.clamp(min=0).norm(dim=-3, keepdim=True).expand_as(beta) if joint else force
    assert (dark[size == 0] <= level + 1e-8).all()


def test_blobs_widen_twofold_and_hold_unit_flux():
    atoms = torch.as_tensor(splines(Grid.centred((64, 64), 0.1), 5))
    images = torch.fft.irfft2(atoms.to(torch.complex128))
    torch.testing.assert_close(images.sum((-2, -1)), torch.ones(5, dtype=torch.float64))
    assert (images > -1e-12).all()  # a positive sky is a positive sum
    axis = torch.fft.fftfreq(64, 1 / 64).double()
    widths = (images.sum(-1) * axis.square()).sum(-1)
    # (1, 4, 6, 4, 1)/16 à trous has variance 4^j, and variances add
    torch.testing.assert_close(widths, torch.tensor([0.0, 1, 5, 21, 85], dtype=torch.float64))


def test_blobs_are_measured_in_units_of_their_noise():
    """The gradient of pure noise has unit variance at every size and in every band; and its transpose is exact."""
    generator = torch.Generator().manual_seed(0)
    observations = blank_survey(1)
    blobs = Blobs(ForwardModel(TORUS, BANDS, 0.2, observations), observations, 3)
    noise = [o.ivar.rsqrt() * torch.randn(40, *o.image.shape[1:], dtype=torch.float64, generator=generator)
             for o in observations]  # fmt: skip
    found = blobs.adjoint(noise)
    # 40 skies; the widest blobs leave some 16 independent places in each: 640 values, 3 × √(2/640) = 0.17.
    torch.testing.assert_close(found.var((0, -2, -1)), torch.ones(3, 3, dtype=torch.float64), rtol=0.17, atol=0)
    beta = torch.randn(40, 3, 3, *TORUS.shape, dtype=torch.float64, generator=generator)
    forward = float((blobs.normal(beta) * beta).sum())
    images = blobs._model(blobs.sky(beta))
    assert forward == pytest.approx(
        float(sum((o.ivar * i.square()).sum() for o, i in zip(observations, images, strict=True)))
    )


def test_steps_of_all_sizes_are_bounded_by_the_operator():
    """‖√s M √s‖ ≤ 1, and not by much: the sums of rows are nearly reached."""
    observations = blank_survey(1)
    blobs = Blobs(ForwardModel(TORUS, BANDS, 0.2, observations), observations, 4)
    root = blobs.steps.sqrt()
    start = torch.randn(1, 4, 3, *TORUS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert 0.5 < operator_norm(lambda b: root * blobs.normal(root * b), start, 100) <= 1 + 1e-12  # rounding
    assert (blobs.steps[:-1] > blobs.steps[1:]).all()


def test_an_empty_sky_stays_empty_as_often_as_the_threshold_says():
    """At 4 sigma some 0.1 of 3 × 1,024 places pass by chance, 5 sizes together 0.5: light is rare and faint."""
    _, observations = _survey(amplitude=0.0)
    found = Starlet(untrained(PAIRS), sigmas=4.0).estimator(observations, TORUS)([o.image for o in observations])
    assert (found.abs() > 1e-9).double().mean() < 0.5
    assert float(found.abs().max()) < 0.5  # of a noise of 1 to 4 nJy a pixel


def test_wiener_by_band_is_the_joint_filter_of_a_diagonal_gamma():
    """And what one band shows then changes no other, at the same amplitude."""
    _, observations = draw(blank_survey(1), (1.0,), 0)
    observations = [o.to(torch.float32) for o in observations]
    denoiser = untrained(PAIRS)
    draws = BandWiener(denoiser).sample(observations, TORUS, 2, NoiseStream(0, "a"))
    gamma = torch.diag_embed(denoiser.prior.on(TORUS).diagonal(dim1=-2, dim2=-1))
    model = denoiser.forward_model(observations, TORUS)
    exact = GaussianPosterior(model, observations, gamma)
    torch.testing.assert_close(draws.mean, exact.mean[0])
    darker = [observations[0], replace(observations[1], image=0 * observations[1].image), observations[2]]
    other = GaussianPosterior(model, darker, gamma, exact.amplitude)
    torch.testing.assert_close(other.mean[:, [0, 2]], exact.mean[:, [0, 2]])
    assert (other.mean[:, 1] - exact.mean[:, 1]).abs().max() > 0.1 * exact.mean[:, 1].abs().max()


@pytest.mark.parametrize("method", ["richardson-lucy", "starlet"])
def test_a_band_that_was_not_observed_is_refused(method):
    core = Grid.centred((20, 20), 0.1)
    psf = gaussian_psf(1, 9, 1.5, torch.float32)
    image = torch.ones(1, 20, 20)
    seen = [Observation(band, Frame(core, psf), image, torch.ones_like(image)) for band in BANDS[:2]]
    with pytest.raises(InputError, match=rf"^scene: i not observed, and method {method} infers no band from others"):
        reconstruct(seen, untrained(PAIRS), 2, method=method, grid=core)


def test_samples_scatter_as_the_estimate_does():
    """A linear estimate: the bootstrap's covariance is that of the estimate under the noise, whatever the image."""
    from jointdiff.reconstruct.bootstrap import PointEstimate

    class Doubled(PointEstimate):
        method = "doubled"

        def estimator(self, observations, grid):
            return lambda images: 2 * images[0].unsqueeze(1)

    sigma = torch.linspace(1, 3, 256).view(1, 16, 16)
    grid = Grid.centred((16, 16), 0.1)
    seen = Observation(BANDS[0], Frame(grid, gaussian_psf(1, 9, 1.5)), torch.full((1, 16, 16), 7.0), sigma**-2)
    seen.ivar[0, 0, 0] = 0
    draws = Doubled(untrained(PAIRS)).sample([seen], grid, 400, NoiseStream(0, "a"))
    assert (draws.mean == 14).all()
    ratio = draws.samples.std(0)[0] / (2 * sigma[0])
    assert ratio[0, 0] == 0, "a masked pixel has no noise to add"
    assert float(ratio.flatten()[1:].mean()) == pytest.approx(1, abs=3 * (0.5 / 400 / 255) ** 0.5)
