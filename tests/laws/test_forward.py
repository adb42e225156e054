"""Laws of the forward model: exact adjoint, linearity, flux, batch = loop."""

from dataclasses import replace

import pytest
import torch

from jointdiff.forward import ForwardModel
from jointdiff.scene import Band, Frame, Grid, Observation
from tests.observing import BANDS, gaussian_psf, geometries, observe

SCENE = Grid.centred((20, 23), 0.1)
CASES = list(geometries(SCENE))


def _model(geometry: str, seed: int = 0, scene: Grid = SCENE):
    generator = torch.Generator().manual_seed(seed)
    grid = geometries(scene)[geometry]
    observations = [observe(band, grid, generator, size=8 + i) for i, band in enumerate(BANDS)]
    # A filter that is none of the scene's own sees several bands at once.
    observations.append(observe(Band("g", "lsst-g"), grid, generator))
    return ForwardModel(scene, BANDS, 0.2, observations), observations, generator


@pytest.mark.parametrize("scene", [SCENE, Grid.centred((16, 20), 0.1)], ids=["odd", "even"])
@pytest.mark.parametrize("geometry", CASES)
def test_adjoint_is_exact(geometry, scene):
    model, observations, generator = _model(geometry, scene=scene)
    x = torch.randn(2, 3, *scene.shape, dtype=torch.float64, generator=generator)
    images = [o.image for o in observations]
    forward = torch.stack([(a * b).sum((1, 2)) for a, b in zip(model(x), images, strict=True)]).sum(0)
    backward = (x * model.adjoint(images)).sum((1, 2, 3))
    scale = torch.stack([a.square().sum((1, 2)) for a in model(x)]).sum(0).sqrt()
    assert ((forward - backward).abs() / scale).max() < 1e-13


@pytest.mark.parametrize("geometry", CASES)
def test_linear(geometry):
    model, _, generator = _model(geometry)
    x, z = torch.randn(2, 2, 3, *SCENE.shape, dtype=torch.float64, generator=generator)
    for joint, a, b in zip(model(2 * x - 3 * z), model(x), model(z), strict=True):
        torch.testing.assert_close(joint, 2 * a - 3 * b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("shape", "scale"), [((24, 24), 0.1), ((12, 12), 0.2), ((40, 40), 0.06)])
def test_flux_is_conserved(shape, scale):
    """An image that tiles the periodic scene holds all of its flux."""
    scene = Grid.centred((24, 24), 0.1)
    psf = gaussian_psf(1, 9, 1.4)
    blank = torch.zeros(1, *shape, dtype=torch.float64)
    frame = Frame(Grid.centred(shape, scale), psf, shift=torch.tensor([[0.013, -0.04]], dtype=torch.float64))
    model = ForwardModel(scene, BANDS[:1], 0.2, [Observation(BANDS[0], frame, blank, blank)])
    x = torch.randn(1, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x)[0].sum(), x.sum(), rtol=1e-10, atol=1e-10)


def test_batch_is_a_loop():
    model, observations, generator = _model("hsc_rotated")
    x = torch.randn(2, 3, *SCENE.shape, dtype=torch.float64, generator=generator)
    together = model(x)
    for index in range(2):
        one = slice(index, index + 1)
        alone = [
            replace(
                o,
                frame=replace(o.frame, psf=o.frame.psf[one], shift=o.frame.shift[one]),
                image=o.image[one],
                ivar=o.ivar[one],
            )
            for o in observations
        ]
        for a, b in zip(ForwardModel(SCENE, BANDS, 0.2, alone)(x[one]), together, strict=True):
            torch.testing.assert_close(a, b[one], rtol=1e-12, atol=1e-12)


def test_aligned_and_direct_sums_agree():
    """The same grid, once through DFT matrices and once through the direct sum."""
    from jointdiff.forward import FourierSum

    grid = Grid.centred((11, 12), 0.168)
    fast = FourierSum(SCENE, grid, torch.float64, torch.device("cpu"))
    tilted = Grid.centred((11, 12), 0.168, angle=1e-4)
    slow = FourierSum(SCENE, tilted, torch.float64, torch.device("cpu"))
    assert fast.aligned and not slow.aligned
    x = torch.randn(1, *SCENE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fast(torch.fft.rfft2(x)), slow(torch.fft.rfft2(x)), rtol=0, atol=2e-2)


def test_a_shift_moves_the_pixels():
    """Shifting the frame by one pixel step is sampling one pixel further."""
    grid = Grid.centred((12, 12), 0.2)
    psf = gaussian_psf(1, 9, 1.4)
    blank = torch.zeros(1, 12, 12, dtype=torch.float64)
    x = torch.randn(1, 1, *SCENE.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def image(frame):
        return ForwardModel(SCENE, BANDS[:1], 0.2, [Observation(BANDS[0], frame, blank, blank)])(x)[0]

    still = image(Frame(grid, psf))
    moved = image(Frame(grid, psf, shift=torch.tensor([[0.2, 0.0]], dtype=torch.float64)))
    torch.testing.assert_close(moved[:, :-1], still[:, 1:], rtol=1e-10, atol=1e-10)
