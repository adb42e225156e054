"""Stated errors are true under real noise: Wiener on skies of its own prior, where in theory nothing is left over."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from jointdiff.correlation import convolved, power_spectrum
from jointdiff.evaluate.calibration import COVERAGE_LEVEL, covered, ranks
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.reconstruct.wiener import MAX_STEPS, TOLERANCE
from jointdiff.scene import Observation
from jointdiff.simulate.observe import significant_flux
from tests.observing import BANDS
from tests.oracles import AMPLITUDE, TORUS, blank_survey, gamma

SCENES, SAMPLES = 96, 7
APERTURES = np.array([[y, x] for y in (5, 16, 27) for x in (5, 16, 27)])
"""(y, x) of circles of 0.5 arcsec that hardly touch on the torus of 3.2 arcsec."""

BOUND = 0.04
"""Four sampling errors of the 2,592 fluxes of 96 skies, whose apertures and bands share some of their errors."""

POISSON = 0.1
"""nJy of variance per nJy of flux and nJy of VIS sky noise: 2.5 times Euclid's, 10 times the ground's."""

LAGS = 0.45
"""Correlation of neighbours at which HSC and MegaCam images of Euclid's MER pipeline are left once decimated: 0.28 to
0.43, and its fourth power at two pixels."""


def uneven(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return 4.0 ** torch.rand(pixels.shape, dtype=pixels.dtype, generator=generator).mul(2).sub(1)


def bad_columns(pixels: Tensor, generator: torch.Generator) -> Tensor:
    seen = torch.ones_like(pixels)
    seen[..., [3, 4, pixels.shape[-1] // 2]] = 0
    return seen


def star_mask(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A disc of 0.7 arcsec around the middle, in every band."""
    axis = 3.2 * ((torch.arange(pixels.shape[-1]) + 0.5) / pixels.shape[-1] - 0.5)
    return (axis.square() + axis[:, None].square() > 0.49).to(pixels).expand(pixels.shape)


def a_fifth_gone(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(pixels.shape, dtype=pixels.dtype, generator=generator) >= 0.2).to(pixels)


def coverage(observations: list[Observation], stated=lambda o: o, poisson: float = 0.0) -> tuple[float, float]:
    """Coverage of aperture fluxes by posterior samples of what is ``stated`` of the noise, and its error over skies.

    poisson: nJy of variance per nJy of the sky's positive flux; what is stated of it comes from the image alone.
    """
    generator = torch.Generator().manual_seed(3)

    def normal(shape) -> Tensor:
        return torch.randn(shape, generator=generator)

    prior = gamma().float()
    truth = field(AMPLITUDE * apply(torch.linalg.cholesky(prior), spectrum(normal((SCENES, 3, *TORUS.shape)))), TORUS)
    model, seen = ForwardModel(TORUS, BANDS, 0.2, observations), []
    for o, image in zip(observations, model(truth), strict=True):
        white = normal(image.shape)
        shared = white if o.correlation is None else convolved(white, o.correlation.sqrt())
        sky = torch.where(o.ivar > 0, o.ivar.rsqrt(), 0.0)
        image = image + shared * (sky.square() + poisson * image.clamp(min=0)).sqrt()
        known = sky.square() + poisson * significant_flux(image, sky)
        ivar = torch.where(o.ivar > 0, 1 / known, 0.0)
        seen.append(stated(replace(o, image=torch.where(ivar > 0, image, 0.0), ivar=ivar)))
    posterior = GaussianPosterior(model, seen, prior, torch.full((SCENES,), AMPLITUDE), TOLERANCE, MAX_STEPS)
    samples = [posterior.perturbed(normal(truth.shape), [normal(o.image.shape) for o in seen]) for _ in range(SAMPLES)]
    circles = aperture_map(APERTURES[:, 1], APERTURES[:, 0], 5.0, TORUS.shape)
    drawn, true = fluxes(torch.stack(samples), circles).numpy(), fluxes(truth, circles).numpy()
    rng = np.random.default_rng(0)
    inside = covered(ranks(drawn, true, rng), SAMPLES, rng).mean((1, 2))
    return float(inside.mean()), float(inside.std() / SCENES**0.5)


def survey(pattern=None, lags: float = 0.0) -> list[Observation]:
    """VIS and two ground bands; ``pattern`` multiplies the inverse variances, the ground's noise is correlated."""
    generator = torch.Generator().manual_seed(8)
    observations = [o.to(torch.float32) for o in blank_survey(SCENES)]
    if pattern is not None:
        observations = [replace(o, ivar=o.ivar * pattern(o.ivar[:1], generator)) for o in observations]
    axis = torch.arange(-3, 4) ** 2
    function = (lags ** (axis[:, None] + axis))[None]
    power = [power_spectrum(function, o.frame.grid.shape) for o in observations[1:]] if lags else [None, None]
    return [observations[0], *(replace(o, correlation=p) for o, p in zip(observations[1:], power, strict=True))]


CASES = {
    "even": {},
    "uneven": {"pattern": uneven},
    "bad columns": {"pattern": bad_columns},
    "star mask": {"pattern": star_mask},
    "a fifth gone": {"pattern": a_fifth_gone},
    "correlated": {"lags": LAGS},
    "correlated, a fifth gone": {"pattern": a_fifth_gone, "lags": LAGS},
}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_true(case):
    found, error = coverage(survey(**CASES[case]))
    assert error < 0.013
    assert found == pytest.approx(COVERAGE_LEVEL, abs=BOUND)


def test_errors_are_true_under_source_poisson_noise():
    """Its variance is stated from the noisy image, as a pipeline's is."""
    found, _ = coverage(survey(), poisson=POISSON)
    assert found == pytest.approx(COVERAGE_LEVEL, abs=BOUND)


def test_correlated_noise_taken_for_white_makes_errors_too_small():
    found, _ = coverage(survey(lags=LAGS), stated=lambda o: replace(o, correlation=None))
    assert found < COVERAGE_LEVEL - 2 * BOUND
