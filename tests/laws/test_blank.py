"""Laws of the blank suite: limits, pulls, what counts as a source of the samples, sources as bright as asked."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from jointdiff.evaluate import blank
from jointdiff.evaluate.suite import Kept
from jointdiff.measure.catalog import find_sources
from jointdiff.measure.data_checks import Data
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.simulate.observe import GEOMETRIES
from tests.denoisers import untrained
from tests.mocks import gaussian_library, simulator

SIZE = 96
NAMES = ("VIS", "g")


def faint_simulator(geometry: str = "lsst", size: int = SIZE):
    library = gaussian_library()
    magnitudes = {n: torch.full_like(m, 25.0) for n, m in library.magnitude.items()}
    return simulator((geometry,), library=replace(library, magnitude=magnitudes), size=size)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_limit_is_where_so_few_are_improbable(count):
    limit = blank.poisson_upper_limit(count)
    assert poisson.cdf(count, limit) == pytest.approx(0.05)
    assert poisson.cdf(count, blank.poisson_upper_limit(count, 0.9)) == pytest.approx(0.1)


def test_the_area_is_enough():
    assert blank.poisson_upper_limit(0) / blank.AREA < 0.5


def test_fluxes_on_empty_sky_have_their_errors():
    """No network takes part: pulls of flux_ml are white noise through a linear map, exactly Gaussian of unit width."""
    denoiser, pulls = untrained(), []
    for number, geometry in enumerate(GEOMETRIES):
        source = faint_simulator(geometry, 192)
        mock = blank.nothing(source, number)
        data = Data.of(denoiser.forward_model(mock.observations, source.grid), mock.observations, denoiser.bands)
        places = blank.cells(source.grid.shape, blank.CELL, np.random.default_rng(number))
        flux, error = blank.point_fluxes(places, denoiser, data, source.grid.shape)
        assert flux.shape == (36, 6)
        pulls.append(flux / error)
    pulls = np.concatenate(pulls)
    assert abs(pulls.mean()) < 4 / math.sqrt(pulls.size)
    assert pulls.std() == pytest.approx(1, abs=4 / math.sqrt(2 * pulls.size))


def _blob(y: float, x: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 0.85**2))


def test_a_source_of_half_of_the_samples_is_told_that_hides_in_its_own_scatter():
    """The catalog misses it: where it may or may not be, samples scatter by half of its brightness."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(8, 2, 64, 64, generator=generator)
    samples[:4] += 20 * _blob(20, 20)
    samples[:2] += 20 * _blob(44, 40)
    places, share = blank.persistent(samples, NAMES, 0.1, 0.2, noise=0.5)
    found = {tuple(np.round(place).astype(int)): s for place, s in zip(places, share, strict=True)}
    assert found == {(20, 20): 0.5, (44, 40): 0.25}
    segments = find_sources(samples, samples.mean(0), NAMES)
    assert not np.any(np.hypot(segments.y - 20, segments.x - 20) < 4)


def test_a_source_of_all_samples_is_one_source():
    samples = torch.randn(6, 2, 64, 64, generator=torch.Generator().manual_seed(1)) + 20 * _blob(30.3, 25.8)
    places, share = blank.persistent(samples, NAMES, 0.1, 0.2)
    (certain,) = places[share == 1]
    assert certain == pytest.approx([30.3, 25.8], abs=0.3)


def test_noise_of_the_detection_image_is_that_of_the_filtered_peak():
    """A point source at the target PSF, filtered by it: flux over 4πσ² at its peak."""
    from scipy.ndimage import gaussian_filter

    sigma = 0.2 / 0.1 / math.sqrt(8 * math.log(2))
    point = np.zeros((33, 33))
    point[16, 16] = 50.0
    peak = gaussian_filter(gaussian_filter(point, sigma), sigma).max()
    assert blank.detection_noise(50.0, 0.1, 0.2) == pytest.approx(peak, rel=0.03)  # sampled, not integrated


def test_sources_are_sown_as_bright_as_asked():
    source, rng = faint_simulator(), np.random.default_rng(0)
    places = blank.cells(source.grid.shape, blank.CELL, rng)
    asked = np.linspace(5, 20, len(places))
    mock, at = blank.sown(source, 3, places, asked, rng)
    assert np.abs(at - places).max() < 0.5
    vis = next(o for o in mock.observations if o.band.name == "VIS")
    light = fluxes(mock.truth[0], aperture_map(at[:, 1], at[:, 0], 5.0, (SIZE, SIZE)))[:, NAMES.index("VIS")].numpy()
    noise = math.sqrt(math.pi * 5**2 / float(vis.ivar.median()))
    np.testing.assert_allclose(light / noise, asked, rtol=0.05)  # the light of neighbours, 3″ away
    rows, columns = np.mgrid[:SIZE, :SIZE]
    near = np.hypot(rows - at[-1][0], columns - at[-1][1]) < 5
    total = float(vis.image[0][torch.as_tensor(near)].sum())
    noise = math.sqrt(near.sum() / float(vis.ivar.median()))
    assert total / noise == pytest.approx(asked[-1], abs=4)  # its own noise is one, the PSF takes some 10 % out


def test_the_suite_counts_and_keeps_what_it_has(tmp_path, monkeypatch):
    denoiser, source = untrained(), faint_simulator()
    monkeypatch.setattr(blank, "SAMPLES", 4)

    def run():
        return blank.study(denoiser, [source], 3, 0, Kept(tmp_path, "key"), area=0.04, injected=1)

    outcome = run()
    assert len(list(tmp_path.glob("empty_*.json"))) == 2  # a field is (9.6″)² = 0.0256 arcmin²
    table = outcome.table
    pulls = [row for row in table if row["what"].startswith("flux_ml")]
    assert [row["number"] for row in pulls] == [2 * 9] * 6
    false = next(row for row in table if row["what"].endswith("in the catalog"))
    assert false["high"] == pytest.approx(blank.poisson_upper_limit(int(false["number"])) / (2 * 0.16**2))
    found = [row for row in table if row["what"].startswith("completeness")]
    assert [row["what"].removeprefix("completeness, S/N ") for row in found] == ["5", "7", "10", "14", "20"]
    assert [row["number"] for row in found] == [2, 2, 3, 1, 1]  # of nine places, six are one turn of SNRS
    monkeypatch.setattr(Diffusion, "sample", lambda *_: pytest.fail("it was sampled before"))
    assert run().text == outcome.text
