"""Laws of the nuisances: the noise that they add, against dense algebra, and the coverage that it restores."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum
from jointdiff.nuisances import Levels, marginal_posterior, with_modes
from jointdiff.scene import Observation
from tests.laws.test_align import surveyed
from tests.observing import BANDS
from tests.oracles import TORUS, blank_survey, gamma

LEVELS = Levels(jitter=0.02, zero_point=0.01, psf=0.015, sky=0.1)
SCENES = 500
RADIUS = 0.4


def test_modes_add_their_outer_products_to_the_noise():
    """N⁻¹, and draws of covariance N⁻¹, of 12 × 10 pixels, some masked, white and correlated; and of many images."""
    generator = torch.Generator().manual_seed(0)
    shape = (12, 10)
    ivar = torch.rand(1, *shape, dtype=torch.float64, generator=generator).round(decimals=1)
    modes = torch.randn(1, 3, *shape, dtype=torch.float64, generator=generator) * (ivar > 0).unsqueeze(1)
    basis = torch.eye(120, dtype=torch.float64).view(120, *shape)
    o = replace(surveyed(1, 0.0, 0)[0], image=torch.zeros_like(ivar), ivar=ivar)
    pixels = o.weigh(basis).flatten(1)
    flat = modes[0].flatten(1)
    seen = ivar.flatten() > 0
    noise = torch.linalg.inv(pixels[seen][:, seen]) + (flat.T @ flat)[seen][:, seen]
    opened = replace(o, modes=modes)
    found = opened.weigh(basis).flatten(1)
    torch.testing.assert_close(found[seen][:, seen], torch.linalg.inv(noise))
    assert not found[~seen].any()
    root = opened.weighed_noise(basis).flatten(1)  # rows: the map of each white pixel
    torch.testing.assert_close(root.T @ root, found)


def mistaken(observations: list[Observation], skies: torch.Tensor, generator: torch.Generator) -> list[Observation]:
    """The skies as instruments that are off by LEVELS see them."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    seen = []
    for o in observations:
        batch = len(o.image)
        shift = LEVELS.jitter * normal(batch, 2) * (o.band.name != "VIS")
        true = replace(o, frame=replace(o.frame, psf=widened(o.frame.psf, LEVELS.psf * normal(batch)), shift=shift))
        image = ForwardModel(TORUS, BANDS, 0.2, [true])(skies)[0]
        noise = o.ivar.rsqrt() * (normal(*o.image.shape) + LEVELS.sky * normal(batch, 1, 1))
        seen.append(replace(o, image=(1 + LEVELS.zero_point * normal(batch, 1, 1)) * image + noise))
    return seen


def widened(psf: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Gaussian stamps (B, n, n), each wider by its fraction (B,): their logarithm is a parabola."""
    wider = (psf.log() - psf.amax((1, 2), keepdim=True).log()) / (1 + by.view(-1, 1, 1)).square()
    return wider.exp() / wider.exp().sum((1, 2), keepdim=True)


def coverage(amplitude: float, levels: Levels) -> np.ndarray:
    """Share of SCENES (3 bands) whose flux within RADIUS lies within one stated deviation: 68.3 % if that is true."""
    generator = torch.Generator().manual_seed(3)
    white = torch.randn(SCENES, 3, *TORUS.shape, dtype=torch.float64, generator=generator)
    skies = amplitude * field(apply(torch.linalg.cholesky(gamma()), spectrum(white)), TORUS)
    seen = mistaken(blank_survey(SCENES), skies, generator)
    model = ForwardModel(TORUS, BANDS, 0.2, seen)
    given = torch.full((SCENES,), amplitude, dtype=torch.float64)
    options = {"amplitude": given, "tolerance": 1e-3, "max_steps": 300}
    posterior: GaussianPosterior = marginal_posterior(model, seen, gamma(), levels, **options)
    y, x = np.ogrid[:32, :32]
    circle = torch.tensor(np.hypot(y - 15.5, x - 15.5) * 0.1 <= RADIUS).double()
    shares = []
    for band in range(3):
        template = torch.zeros(SCENES, 3, *TORUS.shape, dtype=torch.float64)
        template[:, band] = circle
        error = ((template * posterior.solve(template, 1e-3)).sum((1, 2, 3))).sqrt()
        miss = ((posterior.mean - skies) * template).sum((1, 2, 3))
        shares.append(float((miss.abs() < error).double().mean()))
    return np.array(shares)


@pytest.mark.parametrize("amplitude", [3.0, 100.0])
def test_fluxes_are_covered_whatever_the_nuisances(amplitude):
    """Within 4 points on the mean of three bands, whose sampling error is 1.2 to 2; bright skies without them, not."""
    found = coverage(amplitude, LEVELS)
    print(amplitude, found, without := coverage(amplitude, Levels()))
    assert found.mean() == pytest.approx(0.683, abs=0.04)
    if amplitude > 10:
        assert without.mean() < 0.683 - 0.04


def test_without_levels_nothing_changes():
    observations = surveyed(2, 3.0, 1)
    model = ForwardModel(TORUS, BANDS, 0.2, observations)
    plain = GaussianPosterior(model, observations, gamma())
    assert torch.equal(plain.mean, marginal_posterior(model, observations, gamma(), Levels()).mean)


def test_modes_are_the_derivatives_of_the_images():
    """Against finite differences in each nuisance by one deviation: what is left is of second order."""
    generator = torch.Generator().manual_seed(4)
    observations = blank_survey(1)
    model = ForwardModel(TORUS, BANDS, 0.2, observations)
    white = torch.randn(1, 3, *TORUS.shape, dtype=torch.float64, generator=generator)
    sky = field(apply(torch.linalg.cholesky(gamma()), spectrum(white)), TORUS)
    opened = with_modes(model, observations, sky, LEVELS)
    for o, light in zip(opened, model(sky), strict=True):
        zero_point, width, level, north, east = o.modes[0]
        torch.testing.assert_close(zero_point, 0.01 * light[0])
        torch.testing.assert_close(level, 0.1 * o.ivar[0].rsqrt())
        bare = replace(o, modes=None)
        wider = replace(bare, frame=replace(o.frame, psf=widened(o.frame.psf, torch.tensor([LEVELS.psf]))))
        cases = [(wider, width)]
        for axis, mode in enumerate((north, east)):
            shift = torch.zeros(1, 2, dtype=torch.float64)
            shift[0, axis] = LEVELS.jitter * (o.band.name != "VIS")
            cases.append((replace(bare, frame=replace(o.frame, shift=shift)), mode))
        for changed, mode in cases:
            found = ForwardModel(TORUS, BANDS, 0.2, [changed])(sky)[0] - light[0]
            assert (found - mode).norm() <= 0.1 * found.norm() + 1e-9
