"""Laws of tiles: they cover the field once, and what they say of a pixel is what one patch says."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.forward import ForwardModel
from jointdiff.gaussian import evidence_amplitude
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.nuisances import Levels, nuisances_of
from jointdiff.reconstruct import align
from jointdiff.reconstruct.align import PRIOR
from jointdiff.reconstruct.base import Draws, NoiseStream, Shared
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.field import PaddedField, pad_field
from jointdiff.reconstruct.tiles import (
    CONTEXT,
    MOST_EVIDENCE,
    MOST_TOLD,
    TILE,
    WHOLE,
    Tile,
    Tiling,
    padded_crop,
    tile_size,
)
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid, Observation
from jointdiff.units import SIGMA_PER_FWHM
from tests.denoisers import untrained
from tests.laws.test_nuisances import LEVELS
from tests.laws.test_reconstruct import PAIRS, _blank

CORE = Grid.centred((96, 36), 0.1)
SIZE = 70
STRIDE = 4
SAMPLES = 6


def field(observed=lambda o: o, brighter: float = 1.0) -> PaddedField:
    """VIS and two ground bands of a long field with four sources, the third in the middle: on the seam of two tiles."""
    generator, denoiser = torch.Generator().manual_seed(0), untrained(PAIRS)
    grids = CORE, Grid.centred((48, 18), 0.2), Grid.centred((57, 21), 0.168)
    settings = zip(denoiser.bands, grids, (0.2, 0.7, 0.6), (1.0, 2.0, 2.0), strict=True)
    empty = [_blank(*setting) for setting in settings]
    big = CORE.padded((30, 30), (30, 30))
    y, x = np.ogrid[: big.shape[0], : big.shape[1]]
    sky = torch.zeros(1, 3, *big.shape)
    for row, column, flux in ((18, 20, 400.0), (30, 12, 150.0), (48, 18, 300.0), (76, 25, 600.0)):
        light = torch.tensor(np.exp(-((y - row - 30) ** 2 + (x - column - 30) ** 2) / (2 * (4 * SIGMA_PER_FWHM) ** 2)))
        sky += brighter * flux * (light / light.sum()).float() * torch.tensor([1.0, 0.7, 1.3]).view(1, 3, 1, 1)
    images = ForwardModel(big, denoiser.bands, denoiser.target_fwhm, empty)(sky)
    noisy = [
        replace(o, image=a + o.ivar.rsqrt() * torch.randn(o.image.shape, generator=generator))
        for o, a in zip(empty, images, strict=True)
    ]
    return pad_field([observed(o) for o in noisy], CORE, denoiser)


def reconstructed(method, seen: PaddedField, count: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor, Tiling]:
    """Samples (S, C, H, W) on the padded grid: in tiles, and in one patch with the same amplitude and Gaussian mean."""
    tiling, stream = Tiling(seen, SIZE, STRIDE), NoiseStream(2, "a")
    shared = tiling.shared(method.denoiser)
    tiled = tiling.sample_all(method, count, stream, shared).samples
    one = method.sharing(shared)
    return tiled, one.sample(seen.observations, seen.grid, count, stream).samples, tiling


@pytest.mark.parametrize(("shape", "size"), [((96, 36), 40), ((700, 520), 256), ((301, 1000), 100), ((50, 50), 256)])
def test_tiles_cover_a_field_once_and_are_seen_alike(shape, size):
    core = Grid.centred(shape, 0.1)
    seen = pad_field([_blank(untrained(PAIRS).bands[0], core, 0.2, 1.0)], core, untrained(PAIRS))
    tiling = Tiling(seen, size, STRIDE)
    count = np.zeros(seen.grid.shape, dtype=int)
    for tile in tiling.tiles:
        assert max(tile.shape) <= max(size, 0)
        count[tile.within(0, 0)] += 1
    assert (count == 1).all()
    assert len({tile.name for tile in tiling.tiles}) == len(tiling)
    for tile in (tiling.tiles[0], tiling.tiles[len(tiling) // 2], tiling.tiles[-1]):
        view = tiling.view(tile)
        assert view.field.grid.shape == tiling.shape
        assert all(side % STRIDE == 0 for side in tiling.shape)
        sky = np.asarray(seen.grid.matrix) @ view.corner + seen.grid.origin
        np.testing.assert_allclose(view.field.grid.origin, sky, atol=1e-9)
        (vis,) = view.field.observations  # on the scene's pixels: what a tile sees, and no more
        spans = zip(tile.spans, seen.corner, shape, vis.image.shape[1:], strict=True)
        for span, first, side, found in spans:
            low, high = max(span.start - first - CONTEXT, 0), min(span.stop - first + CONTEXT, side)
            assert found == high - low


@pytest.mark.parametrize(
    ("shape", "most", "count"),
    [
        ((9, 9), MOST_TOLD, 9),
        ((9, 9), MOST_EVIDENCE, 64),
        ((17, 17), MOST_TOLD, 9),
        ((17, 17), MOST_EVIDENCE, 64),
        ((2, 30), MOST_TOLD, 8),
        ((30, 3), MOST_EVIDENCE, 63),
        ((1, 40), MOST_TOLD, 9),
        ((3, 3), MOST_TOLD, 9),
        ((2, 3), MOST_EVIDENCE, 6),
    ],
)
def test_tiles_that_are_asked_are_spread_over_the_field(shape, most, count):
    """As many as may be, or nearly, each once; of both halves of the rows, and of the columns, alike but for one."""
    core = Grid.centred((32 * shape[0] - 20, 32 * shape[1] - 20), 0.1)
    vis = _blank(untrained(PAIRS).bands[0], core, 0.2, 1.0)
    tiling = Tiling(pad_field([vis], core, untrained(PAIRS)), 32, STRIDE)
    assert tuple(n + 1 for n in tiling.tiles[-1].place) == shape
    asked = [tile.place for tile in tiling.spread(most)]
    assert len(asked) == len(set(asked)) == count <= most
    assert [view.corner for view in tiling.views(most)] == [tiling.view(t).corner for t in tiling.spread(most)]
    for axis, side in enumerate(shape):
        places = {place[axis] for place in asked}
        low, high = (sum(sign * (2 * n + 1 - side) > 0 for n in places) for sign in (-1, 1))
        assert abs(low - high) <= 1 and (min(low, high) > 0 or side == 1)


def test_which_fields_are_cut():
    assert tile_size((WHOLE, WHOLE), 0) == tile_size((100, 200), 200) == 0
    assert tile_size((WHOLE, WHOLE + 1), 0) == TILE
    assert tile_size((100, 201), 200) == 200


def uncertain(method, levels=LEVELS):
    """The same method, of a denoiser that knows of errors of the observations."""
    method.denoiser = copy(method.denoiser)
    method.denoiser.levels = levels
    return method


def refining(errors=(0.1, 0.4, 0.4)) -> Diffusion:
    """Of a network whose own errors are known."""
    denoiser = untrained(PAIRS, seed=3)
    denoiser.network_errors = errors
    return Diffusion(denoiser, 4)


@pytest.mark.parametrize(
    "method",
    [
        Wiener(untrained(PAIRS)),
        Diffusion(untrained(PAIRS, seed=3), 4),
        uncertain(Wiener(untrained(PAIRS))),
        uncertain(Diffusion(untrained(PAIRS, seed=3), 4)),
        uncertain(Diffusion(untrained(PAIRS, seed=3), 4), Levels(sky=1.0)),
        refining(),
        uncertain(refining()),
    ],
    ids=[
        "wiener",
        "diffusion",
        "wiener, errors",
        "diffusion, errors",
        "diffusion, sky level",
        "refined",
        "refined, errors",
    ],
)
def test_a_source_on_a_seam_has_the_flux_and_the_error_of_one_patch(method):
    """In each sample, within 0.06 of the posterior deviation: solvers stop 0.01 deviations (Wiener) or one blended
    mean (diffusion) from the answer, and CONTEXT leaves less. Blending independent samples would halve the variance;
    here tiles have the scatter of the patch within 3 %. Errors of the observations are drawn for the field: a level of
    sky of its own in each tile would move fluxes by deviations."""
    tiled, one, tiling = reconstructed(method, field())
    seam = tiling.tiles[0].rows.stop
    top, left = tiling.field.corner
    places = np.array([(seam, left + 18), (seam - 0.5, left + 9), (seam - 3, left + 27), (top + 18, left + 20)])
    assert len(tiling) == 2 and abs(seam - top - 48) <= 4  # the third source is on it
    circles = aperture_map(places[:, 1], places[:, 0], 5.0, tuple(tiling.field.grid.shape))
    ours, theirs = (fluxes(images, circles) for images in (tiled, one))
    deviation = theirs.std(0)
    assert ((ours - theirs).abs() / deviation).max() < 0.06
    torch.testing.assert_close(ours.std(0), deviation, rtol=0.03, atol=0)


def test_tiles_believe_of_the_observations_what_the_field_does():
    """Their skies count as independent, and M is that of their own means: deviations within 5 %, the mean of levels and
    positions within 0.3 of them; what is left to its prior stays there."""
    seen, denoiser = field(), uncertain(Wiener(untrained(PAIRS))).denoiser
    tiling = Tiling(seen, SIZE, STRIDE)
    amplitude = tiling.amplitude(denoiser)
    found = tiling.belief(denoiser, amplitude)
    whole = nuisances_of(denoiser.condition(seen.observations, seen.grid, amplitude).posterior, denoiser.levels)
    assert found is not None and found.count == 13
    torch.testing.assert_close(found.noise, whole.belief.noise)
    ours, theirs = (b.root.square().sum(1).sqrt() for b in (found, whole.belief))
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0)
    assert ((found.mean - whole.belief.mean) / theirs).abs().max() < 0.3
    assert not found.mean[~whole.learnt].any() and theirs[whole.learnt].max() < 0.95


def test_nothing_is_seen_of_a_seam_in_pixels():
    tiled, one, tiling = reconstructed(Diffusion(untrained(PAIRS, seed=3), 4), field())
    seam, crop = tiling.tiles[0].rows.stop, tiling.field.crop
    error = ((tiled - one) / one.std(0).mean((-2, -1), keepdim=True)).square()
    rms = error[..., seam - 1 : seam + 1, :].mean().sqrt()
    assert rms < 0.03
    jump, usual = (crop(s)[..., 1:, :] - crop(s)[..., :-1, :] for s in (tiled, one))
    row = seam - tiling.field.corner[0] - 1  # the step across the seam is that of any two rows
    assert jump[..., row, :].std() == pytest.approx(float(usual[..., row, :].std()), rel=0.02)


class Marking(Wiener):
    """Draws what only the place of a pixel tells."""

    def sample(self, observations, grid, count, stream) -> Draws:
        like = observations[0].image
        samples = stream.white(range(count), grid, like, "samples", 3)
        return Draws(samples, samples[0], replaced=stream.white(range(1), grid, like)[0])


def test_all_that_is_drawn_of_tiles_is_joined_in_its_place():
    seen, stream, method = field(), NoiseStream(2, "a"), Marking(untrained(PAIRS))
    tiling = Tiling(seen, 40, STRIDE)
    shared = Shared(torch.ones(1), tiling.weights, torch.zeros(1, 3, *seen.grid.shape))
    ours, theirs = tiling.sample_all(method, 2, stream, shared), method.sample(seen.observations, seen.grid, 2, stream)
    assert len(tiling) > 2 and ours.replaced is not None and theirs.replaced is not None
    for one, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_the_amplitude_of_tiles_is_that_of_the_field():
    seen, denoiser = field(), untrained(PAIRS)
    model, gamma = denoiser.forward_model(seen.observations, seen.grid), denoiser.prior.on(seen.grid)
    whole = float(evidence_amplitude(model, seen.observations, gamma))
    assert float(Tiling(seen, SIZE, STRIDE).amplitude(denoiser)) == pytest.approx(whole, rel=0.15)
    assert float(Tiling(seen, SIZE, STRIDE).shared(denoiser).amplitude) == pytest.approx(whole, rel=1e-4)
    alone = Tiling(seen, 1000, STRIDE)
    assert len(alone) == 1
    assert float(alone.amplitude(denoiser)) == pytest.approx(whole, rel=1e-4)
    posterior = denoiser.condition(seen.observations, seen.grid).posterior
    torch.testing.assert_close(alone.mean(denoiser, posterior.amplitude), posterior.mean, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("lost", ["band", "all"])
def test_a_tile_without_a_band_or_without_any_data(lost):
    """Half of the rows are masked in g, or in all bands: tiles there are drawn from the rest, or the prior."""

    def masked(o: Observation) -> Observation:
        ivar = o.ivar.clone()
        if lost == "all" or o.band.name == "g":
            ivar[:, : len(ivar[0]) // 2] = 0
        return replace(o, ivar=ivar)

    seen = field(masked)
    method = Diffusion(untrained(PAIRS, seed=3), 4)
    tiling = Tiling(seen, 24, STRIDE)
    shared = tiling.shared(method.denoiser)
    assert torch.isfinite(shared.mean).all()
    stream, skies = NoiseStream(0, "a"), []
    for hidden in (masked, lambda o: replace(masked(o), image=1e6 * (masked(o).ivar == 0) + masked(o).image)):
        dark = Tiling(field(hidden), 24, STRIDE)
        tile = next(tile for tile in dark.tiles if tile.place == (1, 1))  # whose own rows are all masked
        own = replace(shared, mean=padded_crop(shared.mean, dark.view(tile).torus))
        skies.append(dark.sample(method, tile, 2, stream, own).samples)
    assert torch.isfinite(skies[0]).all()
    torch.testing.assert_close(skies[1], skies[0])  # what is masked tells nothing


def test_a_crop_beyond_the_image_is_zero():
    image = torch.arange(12.0).view(3, 4)
    cut = padded_crop(image, Tile((0, 0), range(-1, 3), range(2, 6)))
    assert cut.shape == (4, 4)
    assert torch.equal(cut[1:, :2], image[:, 2:])
    assert not cut[0].any() and not cut[:, 2:].any()


def test_shifts_of_tiles_are_averaged_by_what_they_know():
    """Two tiles of equal errors and one that knows nothing but the prior; the reference stays where it is."""
    still = torch.zeros(2), torch.zeros(2)

    def told(value: float, error: float):
        return torch.full((2,), value), torch.full((2,), error)

    fits = [(0, {0: still, 2: told(v, e)}) for v, e in ((0.02, 0.01), (0.04, 0.01), (0.0, PRIOR))]
    found = align._averaged(fits, ["VIS", "g", "r"])
    assert found is not None and found.bands == ("VIS", "r")
    torch.testing.assert_close(found.shifts.value[0, 1], torch.full((2,), 0.03), rtol=0.01, atol=0)
    torch.testing.assert_close(found.shifts.error[0, 1], torch.full((2,), 0.01 / 2**0.5), rtol=0.01, atol=0)
    assert not found.shifts.value[0, 0].any()
    assert align._averaged([], []) is None
