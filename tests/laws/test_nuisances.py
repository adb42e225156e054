"""Laws of the nuisances: the joint posterior against dense algebra, and the coverage that it restores."""

import json
from copy import copy
from dataclasses import astuple, replace
from itertools import islice

import numpy as np
import pytest
import torch

from jointdiff import nuisances as module
from jointdiff.correlation import power_spectrum
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.calibration import COVERAGE_LEVEL, covered, ranks
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.nuisances import Levels, nuisances_of
from jointdiff.reconstruct.align import PRIOR, fit_shifts
from jointdiff.reconstruct.base import NoiseStream, misfits, single_scenes
from jointdiff.reconstruct.checkpoint import load_denoiser, save_denoiser
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid, Observation
from tests.denoisers import untrained
from tests.laws.test_align import PAIRS, surveyed
from tests.observing import BANDS
from tests.oracles import TORUS, blank, blank_survey, gamma

LEVELS = Levels(jitter=0.02, zero_point=0.01, psf=0.015, sky=0.1)
SCENES, SAMPLES, BRIGHT = 100, 7, 100.0
APERTURES = np.array([[y, x] for y in (5, 16, 27) for x in (5, 16, 27)])


def knowing(levels: Levels):
    """The untrained denoiser of BANDS, allowing for these levels."""
    denoiser = copy(untrained(PAIRS))
    denoiser.levels = levels
    return denoiser


def exact(seen: list[Observation], grid: Grid = TORUS, amplitude: float = BRIGHT) -> GaussianPosterior:
    prior = untrained(PAIRS).double().prior.on(grid)
    given = torch.tensor([amplitude], dtype=torch.float64)
    return GaussianPosterior(ForwardModel(grid, BANDS, 0.2, seen), seen, prior, given, 1e-9, 1000)


def uneven(generator: torch.Generator) -> tuple[Grid, list[Observation]]:
    """12 × 12 scene pixels; a band with a hole, one of correlated noise, one of uneven weights."""
    grid, ground = Grid.centred((12, 12), 0.1), Grid.centred((6, 6), 0.2)
    seen = [blank(b, g, 1, f, 1.0) for b, g, f in zip(BANDS, (grid, ground, ground), (0.2, 0.5, 0.6), strict=True)]
    lags = torch.arange(-2, 3).square()
    power = power_spectrum((0.4 ** (lags[:, None] + lags).double())[None], (6, 6))
    seen[0].ivar[0, 3:6, 4:8] = 0
    seen[1] = replace(seen[1], correlation=power)
    seen[2].ivar[0] *= torch.rand(6, 6, dtype=torch.float64, generator=generator) + 0.1
    images = [30 * torch.randn(o.image.shape, dtype=torch.float64, generator=generator) for o in seen]
    return grid, [replace(o, image=image * (o.ivar > 0)) for o, image in zip(seen, images, strict=True)]


def dense(posterior: GaussianPosterior, modes: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the sky for the noise N + M Mᵀ of each observation, by matrices."""
    shape = posterior.mean.shape[1:]
    unit = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    precision = field(apply(posterior.prior_precision, spectrum(unit)), posterior.grid).flatten(1)
    right = torch.zeros(shape.numel(), dtype=torch.float64)
    for o, seen, m in zip(posterior.observations, posterior.model(unit), modes, strict=True):
        used = o.ivar.flatten() > 0
        pixels = torch.eye(used.numel(), dtype=torch.float64).view(-1, *o.image.shape[1:])
        noise = torch.linalg.inv(o.weigh(pixels).flatten(1)[used][:, used])
        a, own = seen.flatten(1)[:, used].T, m.flatten(1)[:, used]
        heavy = a.T @ torch.linalg.inv(noise + own.T @ own)
        precision, right = precision + heavy @ a, right + heavy @ o.image.flatten()[used]
    covariance = torch.linalg.inv(precision)
    return (covariance @ right).view(1, *shape), covariance


def test_the_joint_posterior_is_that_of_the_wider_noise(monkeypatch):
    """Whatever the masks, weights and correlations; an observation of nothing has no nuisances."""
    monkeypatch.setattr(module, "_ERROR", 1e-7)
    grid, seen = uneven(torch.Generator().manual_seed(0))
    posterior = exact(seen, grid)
    found = nuisances_of(posterior, replace(LEVELS, zero_point=0.0, psf=0.0))
    assert found.belief.count == 1 + 3 + 3
    mean, covariance = dense(posterior, list(found.modes))
    deviation = covariance.diagonal().sqrt().view_as(mean)
    assert ((found.sky(found.belief.mean[None]) - mean) / deviation).abs().max() < 1e-5
    plain, pull = dense(posterior, [0 * m for m in found.modes])[1], found.pull.flatten(1)
    spread = plain + (pull.T @ found.belief.root) @ (pull.T @ found.belief.root).T
    scale = deviation.flatten()
    assert ((spread - covariance) / (scale * scale[:, None])).abs().max() < 1e-5
    assert (covariance.diagonal() / plain.diagonal()).max() > 1.3, "what is this for?"
    # Those left to their prior: given them, the others are as in images without them.
    both = nuisances_of(posterior, LEVELS)
    fixed = torch.where(both.learnt, 0.0, torch.randn(13, generator=torch.Generator().manual_seed(2)).double())
    assert both.belief.count == 13 and torch.equal(both.belief.draw(fixed[None])[0, ~both.learnt], fixed[~both.learnt])
    with monkeypatch.context() as patch:  # the same M, which is that of the mean of the images as they were served
        patch.setattr(module, "modes_of", lambda *_: ([m[both.learnt] for m in both.modes], both.learnt[both.learnt]))
        again = nuisances_of(exact(both.corrected(fixed[None]), grid), LEVELS)
    given = both.sky(both.belief.draw(fixed[None]))
    assert ((given - again.sky(again.belief.mean[None])) / deviation).abs().max() < 1e-5
    seen[2].ivar.zero_()
    assert nuisances_of(exact(seen, grid), LEVELS).belief.count == 3 + 5


def test_what_conjugate_gradients_leave_is_of_second_order(monkeypatch):
    """Deviations of ν are within a twentieth, and its mean within a fifth of them, of the exact ones."""
    grid, seen = uneven(torch.Generator().manual_seed(1))
    posterior = exact(seen, grid)
    rough = nuisances_of(posterior, LEVELS)
    monkeypatch.setattr(module, "_ERROR", 1e-7)
    fine = nuisances_of(posterior, LEVELS)
    assert (rough.pull - fine.pull).norm() > 1e-3 * fine.pull.norm(), "solved exactly: what is this for?"
    whitened = torch.linalg.solve(fine.belief.root, rough.belief.root)
    assert torch.linalg.eigvalsh(whitened @ whitened.mT - torch.eye(13)).abs().max() < 0.1
    assert torch.linalg.solve(fine.belief.root, rough.belief.mean - fine.belief.mean).abs().max() < 0.2


def test_modes_are_the_derivatives_of_the_images():
    """Against finite differences in each nuisance by one deviation: what is left is of second order."""
    posterior = exact(surveyed(1, BRIGHT, 4))
    modes = nuisances_of(posterior, LEVELS).modes
    own = [list(m[a:b]) for m, (a, b) in zip(modes, ((0, 3), (3, 8), (8, 13)), strict=True)]
    light = posterior.model(posterior.mean)
    for o, image, (zero_point, width, level, *slopes) in zip(posterior.observations, light, own, strict=True):
        torch.testing.assert_close(zero_point, 0.01 * image[0])
        torch.testing.assert_close(level, 0.1 * o.ivar[0].rsqrt())
        cases = [(replace(o.frame, psf_scale=1 - LEVELS.psf), -width)]  # narrower, so that no frequency is lost
        for axis, slope in enumerate(slopes):
            shift = torch.zeros(1, 2, dtype=torch.float64)
            shift[0, axis] = LEVELS.jitter
            cases.append((replace(o.frame, shift=shift), slope))
        for frame, mode in cases:
            found = ForwardModel(TORUS, BANDS, 0.2, [replace(o, frame=frame)])(posterior.mean)[0] - image
            assert (found - mode).norm() <= 0.1 * found.norm()


def widened(psf: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Gaussian stamps (B, n, n), each wider by its fraction (B,): their logarithm is a parabola."""
    wider = (psf.log() - psf.amax((1, 2), keepdim=True).log()) / (1 + by.view(-1, 1, 1)).square()
    return wider.exp() / wider.exp().sum((1, 2), keepdim=True)


def mistaken(count: int, generator: torch.Generator) -> tuple[torch.Tensor, list[Observation]]:
    """Bright skies (B, C, H, W) of the prior, and what instruments that are off by LEVELS make of them."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    root, seen = torch.linalg.cholesky(gamma()), []
    skies = BRIGHT * field(apply(root, spectrum(normal(count, 3, *TORUS.shape))), TORUS)
    for o in blank_survey(count):
        shift = LEVELS.jitter * normal(count, 2) * (o.band.name != "VIS")
        true = replace(o, frame=replace(o.frame, psf=widened(o.frame.psf, LEVELS.psf * normal(count)), shift=shift))
        image = ForwardModel(TORUS, BANDS, 0.2, [true])(skies)[0]
        noise = o.ivar.rsqrt() * (normal(*o.image.shape) + LEVELS.sky * normal(count, 1, 1))
        seen.append(replace(o, image=(1 + LEVELS.zero_point * normal(count, 1, 1)) * image + noise).to(torch.float32))
    return skies.float(), seen


@pytest.mark.parametrize("method", [Wiener, lambda denoiser: Diffusion(denoiser, 3)], ids=["wiener", "zero network"])
def test_fluxes_are_covered_whatever_the_nuisances(method):
    """Of a network that puts out nothing, too: within 4 points, three sampling errors; without levels, far less."""
    skies, seen = mistaken(SCENES, torch.Generator().manual_seed(3))
    circles = aperture_map(APERTURES[:, 1], APERTURES[:, 0], 5.0, TORUS.shape)
    true, shares = fluxes(skies, circles).numpy(), {}
    for levels, count in ((LEVELS, SCENES), (Levels(), SCENES // 3)):
        reconstructor = method(knowing(levels))
        drawn = [
            reconstructor.sample(scene, TORUS, SAMPLES, NoiseStream(0, str(number))).samples
            for number, scene in enumerate(islice(single_scenes(seen), count))
        ]
        samples = fluxes(torch.stack(drawn, 1), circles).numpy()
        rng = np.random.default_rng(0)
        shares[levels] = covered(ranks(samples, true[:count], rng), SAMPLES, rng).mean((1, 2))
    found, without = shares.values()
    print(found.mean(), found.std() / SCENES**0.5, without.mean())
    assert found.mean() == pytest.approx(COVERAGE_LEVEL, abs=0.04)
    assert without.mean() < COVERAGE_LEVEL - 0.1


@pytest.mark.parametrize("mode", ["wiener", "amortized", "factorized"])
def test_a_sample_is_one_of_images_without_its_errors(mode):
    """Every sample of a Gaussian sky is that of known errors, moved by −V ν; without levels, it is that very sample."""
    seen = [o.to(torch.float32) for o in surveyed(1, BRIGHT, 5)]

    def draws(levels: Levels):
        denoiser = knowing(levels)
        method = Wiener(denoiser) if mode == "wiener" else Diffusion(denoiser, 3, mode=mode)
        return method.sample(seen, TORUS, 6, NoiseStream(0, "a"))

    plain, open_, same = draws(Levels()), draws(LEVELS), draws(Levels(jitter=0.0))
    assert torch.equal(plain.samples, same.samples) and torch.equal(plain.mean, same.mean)
    moved = (open_.samples - plain.samples).double()
    left = misfits([o.image for o in seen], ForwardModel(TORUS, BANDS, 0.2, seen)(open_.samples), open_.offsets)
    for o, residual in zip(seen, left, strict=True):  # of 6 samples, which share the noise of 256 pixels at least
        assert float((residual.square() * o.ivar).mean()) == pytest.approx(1, abs=4 * (2 / 256) ** 0.5)
    amplitude = None
    if mode == "factorized":  # that of VIS alone
        amplitude = knowing(Levels()).condition(seen[:1], TORUS).posterior.amplitude
    posterior = knowing(Levels()).condition(seen, TORUS, amplitude).posterior
    found = nuisances_of(posterior, LEVELS)
    pull = found.pull.flatten(1).double()
    values = torch.linalg.lstsq(pull.T, -moved.flatten(1).T).solution
    left = moved.flatten(1) + (pull.T @ values).T
    deviation = plain.samples.std(0).flatten().double()
    assert (left / deviation).square().mean().sqrt() < 0.05  # the tolerance of μ₀ is 0.03
    pulls = torch.linalg.solve(found.belief.root.double(), values - found.belief.mean.double()[:, None])
    assert pulls.square().mean() == pytest.approx(1, abs=4 * (2 / pulls.numel()) ** 0.5)


def test_a_checkpoint_keeps_its_levels(tmp_path):
    """One that was written before there were any knows of no errors."""
    pairs, sizes = [list(pair) for pair in PAIRS], {"wavenumbers": 24, "widths": [16, 32], "blocks": 1}
    save_denoiser(Denoiser(pairs, 0.1, 0.2, **sizes, levels=astuple(LEVELS)), tmp_path)
    assert load_denoiser(tmp_path).levels == LEVELS
    described = json.loads((tmp_path / "config.json").read_text())
    del described["levels"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert load_denoiser(tmp_path).levels == Levels()


def test_an_alignment_is_counted_once():
    """An aligned image is uncertain by the evidence's error, which already holds all that the data say; one that the
    data contradict themselves about, by the usual one."""
    seen = surveyed(1, 6.0, 2)
    shifts = fit_shifts(seen, TORUS, untrained(PAIRS), 0)
    placed = [
        replace(o, frame=replace(o.frame, shift=shift[None].double()), position_error=PRIOR * (o.band.name != "VIS"))
        for o, shift in zip(seen, shifts.value[0], strict=True)
    ]
    untold = [replace(o, position_told=False) for o in seen]
    posterior = exact(placed, amplitude=float(knowing(Levels()).double().condition(seen, TORUS).posterior.amplitude))
    found = nuisances_of(posterior, Levels(jitter=0.02))
    error = PRIOR * found.belief.root.square().sum(1).sqrt().view(2, 2)
    assert found.learnt.all() and not nuisances_of(exact(untold), Levels(jitter=0.02)).learnt.any()
    ratio = (error / shifts.error[0, 1:]).log().mean().exp()
    assert ratio == pytest.approx(1, abs=0.1)  # expected for observed information; counted twice it would be 0.71
    place = PRIOR * found.belief.mean.view(2, 2)
    assert (place / error).abs().max() < 0.3  # the fit stops within a fifth of its errors
