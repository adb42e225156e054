"""Laws of the symmetries that samples are seen through."""

import pytest
import torch

from jointdiff.diffusion.sampler import noise_levels
from jointdiff.diffusion.symmetry import Symmetry, seen_through
from jointdiff.reconstruct.base import single_scenes
from jointdiff.scene import Grid
from tests.denoisers import untrained
from tests.laws.test_reconstruct import PAIRS, TORUS, _batch

STRIDE = 8


@pytest.mark.parametrize("shape", [(16, 16), (8, 24)])
def test_every_symmetry_keeps_the_grid_and_has_its_inverse(shape):
    image = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    views = [Symmetry.numbered(number, Grid.centred(shape, 0.1), STRIDE) for number in range(40)]
    for view in views:
        seen = view(image)
        assert seen.shape == image.shape
        assert torch.equal(view.inverse(seen), image)
    distinct = {(view.mirrored, view.turns) for view in views}
    assert len(distinct) == (8 if shape[0] == shape[1] else 4)
    assert len({view.shift for view in views}) > 20
    assert views[:3] == [Symmetry.numbered(number, Grid.centred(shape, 0.1), STRIDE) for number in range(3)]


def test_symmetries_turn_neighbours_into_neighbours():
    """A point and its right-hand neighbour stay side by side, also across the border of the torus."""
    image = torch.zeros(16, 16)
    image[4, 15], image[4, 0] = 1, 2
    for number in range(16):
        seen = Symmetry.numbered(number, Grid.centred(image.shape[-2:], 0.1), STRIDE)(image)
        first, second = (torch.nonzero(seen == value)[0] for value in (1, 2))
        apart = (first - second).abs()
        assert torch.minimum(apart, 16 - apart).sort().values.tolist() == [0, 1]


def test_a_network_that_has_the_symmetries_does_not_see_them():
    images = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    views = [Symmetry.numbered(number, TORUS, STRIDE) for number in range(8)]

    def blur(x):
        return sum(x.roll(s, d) for s in (1, -1) for d in (-2, -1)) * x

    torch.testing.assert_close(seen_through(views, blur, images), blur(images))
    lopsided = seen_through(views, lambda x: x.roll(1, -1), images)
    assert len({tuple((image - lopsided[0]).flatten().tolist()) for image in images}) == 8
    assert not torch.allclose(lopsided, images.roll(1, -1))


def test_a_denoiser_shows_its_network_turned_features_and_turns_the_answer_back():
    """D − μ through a symmetry is D − μ of the turned problem: here, with the network alone turned by hand."""
    denoiser = untrained(PAIRS, seed=3)
    observations = next(single_scenes(_batch()))
    conditioning = denoiser.condition(observations, TORUS)
    sigma = noise_levels(conditioning.posterior, 4)[1]
    views = [Symmetry.numbered(number, TORUS, denoiser.network.stride) for number in (3, 6)]
    x_t = torch.randn(2, 3, *TORUS.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = denoiser.correction(x_t, sigma, conditioning, views)
        plain = denoiser.correction(x_t, sigma, conditioning)
        features, scalars, given = denoiser.inputs(x_t, sigma, conditioning)
        turned = torch.cat(
            [v.inverse(denoiser.network(v(f[None]), s[None])) for v, f, s in zip(views, features, scalars, strict=True)]
        )
        expected = given.colour(conditioning.scale * turned)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.std()))
    assert (found - plain).std() > 0.01 * plain.std()
