"""Laws of composed skies, and GalSim as a reference for the true scene."""

from dataclasses import replace

import galsim
import numpy as np
import pytest
import torch

from jointdiff.scene import Grid
from jointdiff.simulate.compose import Crowding, compose, scene_of, sky_grid
from tests.mocks import BANDS, PIXEL, PSF_FWHM, TARGET_FWHM, gaussian_library, gaussian_stamp, library_of

SCENE = Grid.centred((32, 32), 0.1)
SKY = sky_grid(SCENE, PIXEL)
ALONE = Crowding(mean_sources=1.0, empty=0.0, flux_scatter=0.0)


def skies(library, crowding, batch, seed=0):
    return compose(library, BANDS, SKY, crowding, batch, torch.Generator().manual_seed(seed))


def test_skies_follow_the_seed():
    library, crowding = gaussian_library(), Crowding()
    assert torch.equal(skies(library, crowding, 3, 5), skies(library, crowding, 3, 5))
    assert not torch.equal(skies(library, crowding, 3, 5), skies(library, crowding, 3, 6))


@pytest.mark.parametrize("size", [48, 96], ids=["smaller than the torus", "larger"])
def test_a_lone_source_is_rolled_round_the_torus(size):
    """Wherever it lies, edges and corners included: the stamp folded onto the torus. Float32 sums: 1e-6."""
    library = library_of([gaussian_stamp([1e3] * 6, 1.2, size)])
    stamp = library.stamps[size][0, :6].double() * library.scales[size][0].double()
    folded = torch.zeros(6, *SKY.shape, dtype=torch.double)
    for row in range(size):
        for column in range(size):
            folded[:, row % SKY.shape[0], column % SKY.shape[1]] += stamp[:, row, column]
    drawn, places = skies(library, ALONE, 40).double(), set()
    peak = divmod(int(folded[0].argmax()), SKY.shape[1])
    for sky in drawn:
        row, column = divmod(int(sky[0].argmax()), SKY.shape[1])
        shift = (row - peak[0], column - peak[1])
        places.add(shift)
        # The middle of an even stamp lies between four equal pixels, of which rounding may pick any.
        tries = [folded.roll((shift[0] + i, shift[1] + j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert min(float((sky - t).abs().max()) for t in tries) < 1e-6 * float(folded.max())
    assert len(places) > 30


def test_turns_are_the_eight_of_the_square():
    """A stamp without symmetry appears in all eight, each equally often, and with its flux."""
    rng = np.random.default_rng(1)
    stamp = rng.uniform(0.5, 1.0, (6, 16, 16))
    library = library_of([stamp])
    held = (library.stamps[16][0, :6] * library.scales[16][0]).numpy()
    turned = [np.rot90(held, k, (1, 2)) for k in range(4)]
    turned += [image[:, :, ::-1] for image in turned]
    counts = np.zeros(8)
    for sky in skies(library, ALONE, 240).numpy():
        seen = sky[0] > 0
        # Roll the source off the edges: its first row and column follow an empty one.
        row = next(i for i in range(64) if seen[i].any() and not seen[i - 1].any())
        column = next(i for i in range(64) if seen[:, i].any() and not seen[:, i - 1].any())
        found = np.roll(sky, (-row, -column), (1, 2))[:, :16, :16]
        counts[[np.array_equal(found, image) for image in turned].index(True)] += 1
    assert counts.sum() == 240
    assert ((counts - 30) ** 2 / 30).sum() < 24.3  # χ² of 7 degrees of freedom: one seed in a thousand


def test_flux_and_numbers_of_sources():
    """Equal sources, so that a sky's flux counts them: 1 + Poisson, and empty skies as often as asked for."""
    library, crowding = library_of([gaussian_stamp([100.0] * 6, 0.3, 32)]), Crowding(4.0, 0.1, flux_scatter=0.0)
    flux = float(library.flux[32][0, 0])
    counts = skies(library, crowding, 600).double().sum((2, 3)) / flux
    whole = counts.round()
    torch.testing.assert_close(counts, whole, rtol=1e-5, atol=1e-5)
    numbers = whole[:, 0]
    filled = numbers[numbers > 0]
    assert abs(float((numbers == 0).double().mean()) - 0.1) < 4 * (0.1 * 0.9 / 600) ** 0.5
    assert abs(float(filled.mean()) - 4) < 4 * (3 / len(filled)) ** 0.5
    assert abs(float(filled.var()) - 3) < 4 * (3 * (1 + 2 * 3) / len(filled)) ** 0.5  # Poisson: λ(1 + 2λ)/n


def test_flux_scatter_is_lognormal():
    library = library_of([gaussian_stamp([100.0] * 6, 0.3, 32)])
    crowding = replace(ALONE, flux_scatter=0.2)
    logs = (skies(library, crowding, 400).sum((2, 3))[:, 0] / library.flux[32][0, 0]).log10()
    assert abs(float(logs.mean())) < 4 * 0.2 / 20
    assert abs(float(logs.std()) - 0.2) < 4 * 0.2 / (2 * 400) ** 0.5


@pytest.mark.parametrize("profile", ["exponential", "star"])
def test_the_true_scene_is_galsims(profile):
    """At the target PSF, at the scene's pixel centres. To 2e-4 of the peak: float16 stamps and the stamp's edge."""
    source = galsim.Exponential(half_light_radius=0.2) if profile == "exponential" else galsim.Gaussian(fwhm=1e-3)
    size, scene = 256, Grid.centred((128, 128), 0.1)
    seen = galsim.Convolve(source, galsim.Gaussian(fwhm=PSF_FWHM)).withFlux(500.0)
    stamp = seen.drawImage(nx=size, ny=size, scale=PIXEL, method="no_pixel", dtype=float).array
    sky = torch.tensor(stamp.copy())[None, None]
    found = scene_of(sky, sky_grid(scene, PIXEL), PSF_FWHM, scene, TARGET_FWHM)[0, 0].numpy()
    # Scene pixel (0, 0) lies on sky pixel (0, 0), so the stamp's middle is 0.25 scene pixels beyond the scene's.
    target = galsim.Convolve(source, galsim.Gaussian(fwhm=TARGET_FWHM)).withFlux(500.0)
    expected = target.drawImage(nx=128, ny=128, scale=0.1, method="no_pixel", offset=(0.25, 0.25), dtype=float).array
    assert np.abs(found - expected).max() < 2e-4 * expected.max()
    assert found.sum() == pytest.approx(stamp.sum(), rel=1e-9)
