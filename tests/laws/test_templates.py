"""Laws of photometry with given shapes: exact without noise, no less uncertain than the Cramér–Rao limit, nor more."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.evaluate.accuracy import efficiency
from jointdiff.evaluate.report import format_table
from jointdiff.evaluate.scores import score
from jointdiff.evaluate.sources import ORACLE, Estimate, ScoredScene, measure_scenes
from jointdiff.evaluate.templates import Photometry, Templates, oracle
from jointdiff.forward import ForwardModel
from jointdiff.measure.detection import Segments
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.scene import Band
from tests.denoisers import untrained
from tests.observing import BANDS
from tests.oracles import TORUS, blank_survey

PLACES = ((9.0, 8.0), (20.0, 22.0), (23.0, 12.0))
"""The last two lie 10 pixels apart: their light meets in seeing of 0.8 arcsec."""


def _blob(y: float, x: float, width: float) -> torch.Tensor:
    rows, columns = (torch.arange(32, dtype=torch.float64) - c for c in (y, x))
    light = torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * width**2))
    return light / light.sum()


def _templates() -> torch.Tensor:
    return torch.stack([_blob(*place, width=1.5).expand(3, -1, -1) for place in PLACES])


def _flux(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.tensor([[500.0, 900, 700], [300, 50, 800], [400, 600, 100]], dtype=torch.float64)


def _see(sky: torch.Tensor, observations, noisy: int | None = None):
    images = ForwardModel(TORUS, BANDS, 0.2, observations)(sky)
    generator = torch.Generator().manual_seed(noisy or 0)
    noise = [torch.randn(i.shape, dtype=torch.float64, generator=generator) * (noisy is not None) for i in images]
    return [replace(o, image=i + n * o.ivar.rsqrt()) for o, i, n in zip(observations, images, noise, strict=True)]


def test_fluxes_are_exact_without_noise():
    """Blended sources, a masked corner and a filter of another survey, whose colour terms mix the bands."""
    observations = blank_survey(1)
    observations[1] = replace(observations[1], band=Band("g", "lsst-g"))
    observations[2].ivar[:, :4] = 0
    sky = torch.einsum("kc,kchw->chw", _flux(), _templates())[None]
    seen = _see(sky, observations)
    found = Photometry.fit(_templates(), ForwardModel(TORUS, BANDS, 0.2, observations), seen)
    torch.testing.assert_close(found.flux, _flux(), rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(found.sky(), sky, rtol=1e-8, atol=1e-6)


def test_errors_are_those_of_the_information():
    """A lone source: σ⁻² = tᵀ N⁻¹ t. Three: (f̂ − f)ᵀ C⁻¹ (f̂ − f) is 9 on the average of 60 skies; so drawn, too."""
    observations, templates = blank_survey(1), _templates()
    model = ForwardModel(TORUS, BANDS, 0.2, observations)
    lone = Photometry.fit(templates[:1], model, _see(0 * templates[:1], observations))
    for band in range(3):
        light = model(torch.zeros(1, 3, 32, 32).double().index_copy(1, torch.tensor([band]), templates[:1, :1]))
        information = sum(float((o.ivar * i.square()).sum()) for o, i in zip(observations, light, strict=True))
        assert float(lone.root[band].square().sum()) == pytest.approx(1 / information, rel=1e-9)
    sky = torch.einsum("kc,kchw->chw", _flux(), templates)[None]
    fits = [Photometry.fit(templates, model, _see(sky, observations, noisy=n)) for n in range(60)]
    inverse = torch.linalg.inv(fits[0].root @ fits[0].root.T)
    errors = torch.stack([(fit.flux - _flux()).flatten() for fit in fits])
    assert float(((errors @ inverse) * errors).sum(1).mean()) == pytest.approx(9, abs=3 * (18 / 60) ** 0.5)
    draws = fits[0].draws(2000, NoiseStream(0, "a"))
    whole = draws.samples.sum((-2, -1)).var(0)  # of all three sources together
    expected = torch.stack([fits[0].root[band::3].sum(0).square().sum() for band in range(3)])
    torch.testing.assert_close(whole, expected, rtol=4 * (2 / 2000) ** 0.5, atol=0)


def _segments() -> Segments:
    labels = np.zeros((32, 32), dtype=int)
    rows, columns = np.mgrid[:32, :32]
    for number, (y, x) in enumerate(PLACES, 1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= 9] = number
    return Segments(labels, np.array([x for _, x in PLACES]), np.array([y for y, _ in PLACES]))


def test_the_oracle_is_unbiased_and_as_uncertain_as_it_says():
    """Its templates hold all light of the truth: pulls of aperture fluxes over skies have mean 0 and width 1."""
    observations, templates = blank_survey(1), _templates()
    truth = torch.einsum("kc,kchw->chw", _flux(), templates)
    model = ForwardModel(TORUS, BANDS, 0.2, observations)
    pulls = []
    for number in range(20):
        seen = _see(truth[None], observations, noisy=number)
        estimate = oracle(truth, _segments(), model, seen, 40, NoiseStream(number, "a"))
        apertures = aperture_map(_segments().x, _segments().y, 5.0, (32, 32))
        sigma = fluxes(estimate.samples, apertures).std(0)
        pulls.append((fluxes(estimate.mean, apertures) - fluxes(truth, apertures)) / sigma)
    values = torch.stack(pulls)  # 180, of which blends are correlated
    assert abs(float(values.mean())) < 3 / 180**0.5 * 1.2
    assert float(values.square().mean()) == pytest.approx(1, abs=3 * (2 / 180) ** 0.5 * 1.2)
    assert estimate.photometry_only


def test_templates_of_vis_measure_bright_sources_of_that_shape():
    """Found on VIS alone, all of one shape in all bands: fluxes come out, but for what lies beyond the segments."""
    observations = blank_survey(1)
    truth = torch.einsum("kc,kchw->chw", _flux(100.0), _templates())
    seen = [o.to(torch.float32) for o in _see(truth[None], observations, noisy=1)]
    draws = Templates(untrained([(b.name, b.filter) for b in BANDS])).sample(seen, TORUS, 3, NoiseStream(0, "a"))
    apertures = aperture_map(_segments().x, _segments().y, 5.0, (32, 32))
    found, expected = (fluxes(s, apertures) for s in (draws.mean, truth.float()))
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    assert draws.samples.shape == (3, 3, 32, 32)


def test_an_empty_sky_has_no_fluxes():
    observations = [o.to(torch.float32) for o in _see(torch.zeros(1, 3, 32, 32).double(), blank_survey(1), noisy=1)]
    draws = Templates(untrained([(b.name, b.filter) for b in BANDS])).sample(
        observations, TORUS, 2, NoiseStream(0, "a")
    )
    assert draws.samples.shape == (2, 3, 32, 32) and not draws.samples.any()


def test_efficiency_is_the_ratio_of_variances():
    rng = np.random.default_rng(0)
    sigma = 10 ** rng.uniform(-1, 1, 20_000)
    limit, twice = (f * sigma * rng.normal(size=sigma.size) for f in (1, 2))
    assert efficiency(limit, limit, sigma) == 1
    assert efficiency(twice, limit, sigma) == pytest.approx(0.25, rel=0.05)  # NMADs of 20,000: 1.2 % each


def test_photometry_alone_has_no_image_to_score():
    """Its cells stay empty; the column of efficiencies appears with the oracle, which has 1 by definition."""
    rng = np.random.default_rng(1)
    scenes = []
    for number in range(12):
        truth = torch.einsum("kc,kchw->chw", _flux(), _templates())
        noisy = [truth + torch.as_tensor(rng.normal(size=(9, *truth.shape))) for _ in range(2)]
        wiener, limit = (
            Estimate(n[1:], n[0], photometry_only=only) for n, only in zip(noisy, (False, True), strict=True)
        )
        scenes.append(ScoredScene(f"s{number}", truth, {"wiener": wiener, ORACLE: limit}))
    names = ("VIS", "g", "i")
    scores = score(measure_scenes(scenes, names), np.random.default_rng(0))
    for name in names:
        assert scores[ORACLE][name]["efficiency"] == 1
        assert scores["wiener"][name]["efficiency_low"] < 1 < scores["wiener"][name]["efficiency_high"]  # alike
        assert "image_error" not in scores[ORACLE][name] and "image_error" in scores["wiener"][name]
    assert "efficiency" in format_table(scores, names).splitlines()[0]
    plain = [replace(s, estimates={"wiener": s.estimates["wiener"]}) for s in scenes]
    assert "efficiency" not in format_table(score(measure_scenes(plain, names), np.random.default_rng(0)), names)
