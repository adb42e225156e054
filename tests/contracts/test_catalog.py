"""The catalog's columns, units and flags; what it does with one sample, no source, no data; the pictures."""

import numpy as np
import pytest
import torch
from astropy.wcs import WCS
from matplotlib.figure import Figure
from matplotlib.image import imread

from jointdiff.errors import InputError
from jointdiff.evaluate.figures import View, save_figure, scene_figure, views_of
from jointdiff.evaluate.score_figures import binned_figure, photometry_figure
from jointdiff.evaluate.scores import score_by
from jointdiff.evaluate.sources import Estimate, ScoredScene, measure_scenes
from jointdiff.io.products import merge_catalogs, read_catalog, write_catalog
from jointdiff.measure.catalog import FLAGS, measure
from jointdiff.measure.data_checks import Data
from jointdiff.scene import Band, Frame, Grid, Observation

NAMES = ("VIS", "g", "r")
SIZE = 48


def scene(sources=((14, 14, 60.0), (32, 30, 40.0)), samples: int = 31, seed: int = 0):
    """Samples (S, 3, H, W) and truth (3, H, W) of Gaussian blobs at (y, x, peak)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    light = sum((p * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8) for cy, cx, p in sources), np.zeros((SIZE, SIZE)))
    truth = np.stack([light, 0.5 * light, 0.8 * light])
    mean = truth + rng.normal(size=truth.shape)
    return torch.as_tensor(mean + rng.normal(size=(samples, *truth.shape))), torch.as_tensor(truth)


def identity(truth: torch.Tensor, observed=(0, 1, 2)) -> Data:
    return Data(
        lambda x: [x[:, b] for b in observed],
        [truth[b] for b in observed],
        [torch.ones(SIZE, SIZE)] * len(observed),
        observed,
    )


@pytest.fixture
def wcs() -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [15, 15]
    wcs.wcs.cdelt = [-0.1 / 3600, 0.1 / 3600]
    return wcs


def test_columns_and_units(wcs):
    samples, truth = scene()
    table = measure(samples, NAMES, "field", 0.1, wcs=wcs, data=identity(truth))
    assert len(table) == 2 and table.colnames[:6] == ["object_id", "scene", "ra", "dec", "x", "y"]
    for band in NAMES:
        for kind in ("flux", "aper_flux", "flux_ml"):
            assert str(table[f"{kind}_{band}"].unit) == str(table[f"{kind}_err_{band}"].unit) == "nJy"
            assert (table[f"{kind}_err_{band}"] > 0).all()
        assert str(table[f"mag_{band}"].unit) == "mag" and f"chi2_{band}" in table.colnames
    assert table["flux_cov"].shape == (2, 3, 3) and str(table["flux_cov"].unit) == "nJy2"
    assert str(table["r50"].unit) == "arcsec" and (table["r50_err"] > 0).all()
    assert all(table[name].description for name in table.colnames)
    assert table.meta["APERRAD"] == 0.5 and table.meta["FLAG4"] == FLAGS[4]


def test_numbers_are_those_of_the_samples(wcs):
    samples, truth = scene()
    table = measure(samples, NAMES, "field", 0.1, wcs=wcs, data=identity(truth))
    np.testing.assert_allclose(table["mag_g"], 31.4 - 2.5 * np.log10(table["flux_g"]))
    np.testing.assert_allclose(np.sqrt(table["flux_cov"][:, 1, 1]), table["flux_err_g"])
    np.testing.assert_allclose(table["flux_ml_VIS"], [60 * 8 * np.pi, 40 * 8 * np.pi], rtol=0.05)
    np.testing.assert_allclose(table["r50"], 0.1 * 2 * np.sqrt(2 * np.log(2)), rtol=0.05)
    first = int(np.argmin(table["x"]))
    assert abs(table["ra"][first] - 150) * 3600 < 0.02 and abs(table["dec"][first] - 2) * 3600 < 0.02


def test_errors_do_not_depend_on_the_mean_given():
    samples, _ = scene()
    a = measure(samples, NAMES, "f", 0.1)
    b = measure(samples, NAMES, "f", 0.1, mean=samples.mean(0) + 0.01)
    np.testing.assert_allclose(a["aper_flux_err_g"], b["aper_flux_err_g"], rtol=0.02)
    assert (b["aper_flux_g"] > a["aper_flux_g"]).all()


def test_one_sample_has_values_but_no_errors():
    samples, _ = scene(samples=1)
    table = measure(samples, NAMES, "field", 0.1)
    assert len(table) == 2 and np.isfinite(table["flux_g"]).all() and np.isfinite(table["r50"]).all()
    for name in ("flux_err_g", "aper_flux_err_r", "mag_err_g", "r50_err", "e1_err"):
        assert np.isnan(table[name]).all()
    assert np.isnan(table["flux_cov"]).all() and np.isnan(table["ra"]).all() and np.isnan(table["flux_ml_g"]).all()


def test_empty_scene_gives_an_empty_catalog_of_the_same_columns(wcs):
    samples, truth = scene(())
    full, full_truth = scene()
    empty = measure(samples, NAMES, "empty", 0.1, wcs=wcs, data=identity(truth))
    table = measure(full, NAMES, "full", 0.1, wcs=wcs, data=identity(full_truth))
    assert len(empty) == 0 and empty.colnames == table.colnames
    assert len(merge_catalogs([empty, table])) == 2


def test_survives_a_fits_file(tmp_path, wcs):
    samples, truth = scene()
    table = measure(samples, NAMES, "field", 0.1, wcs=wcs, data=identity(truth))
    write_catalog(tmp_path / "catalog.fits", table, {})
    again = read_catalog(tmp_path / "catalog.fits")
    assert again.colnames == table.colnames and again.meta["APERRAD"] == 0.5 and again.meta["FLAG1"] == FLAGS[1]
    for name in table.colnames:
        np.testing.assert_array_equal(again[name], table[name])
        assert again[name].unit == table[name].unit


def test_flags():
    samples, truth = scene(((3, 20, 60.0), (30, 20, 60.0), (30, 29, 60.0)))
    weight = np.ones((SIZE, SIZE))
    data = identity(truth, observed=(0, 2))
    table = measure(samples, NAMES, "field", 0.1, weight=weight, data=data)
    table.sort(["y", "x"])
    edge, *pair = (int(f) for f in table["flags"])
    assert edge & 1 and not edge & 2
    assert all(f & 2 and not f & 1 for f in pair)
    assert all(f & 4 for f in (edge, *pair)) and np.isnan(table["flux_ml_g"]).all()
    weight[:, 34:] = 0
    flagged = measure(samples, NAMES, "field", 0.1, weight=weight)
    assert flagged["flags"][np.argmax(flagged["x"])] & 1


def test_masked_light_is_flagged():
    samples, truth = scene()
    data = identity(truth)
    data.ivars[1] = torch.ones(SIZE, SIZE)
    data.ivars[1][12:15, 12:17] = 0
    table = measure(samples, NAMES, "field", 0.1, data=data)
    table.sort("x")
    assert table["flags"][0] & 8 and not table["flags"][1] & 8


def test_samples_of_other_bands_are_refused():
    samples, _ = scene()
    with pytest.raises(InputError, match=r"field: samples have shape \(31, 3, 48, 48\), expected \(S, 2, H, W\)"):
        measure(samples, NAMES[:2], "field", 0.1)


@pytest.mark.parametrize("observed", [NAMES, ("VIS",), ()])
@pytest.mark.parametrize("with_truth", [True, False])
def test_scene_figure_with_and_without_truth_and_bands(tmp_path, observed, with_truth):
    samples, truth = (a.numpy() for a in scene())
    views = [View(b, truth[NAMES.index(b)][::2, ::2] * 4, 0.2, np.zeros((24, 24))) for b in observed]
    mean, std = samples.mean(0), samples.std(0)
    figure = scene_figure(views, NAMES, mean, samples, std, truth if with_truth else None, title="field")
    titles = {axes.get_title() for axes in _axes(figure)}
    assert ("Truth" in titles) == with_truth and {"Posterior mean", "Sample 1", "Sample 2"} <= titles
    blank = [text for axes in _axes(figure) for text in axes.texts if text.get_text() == "not observed"]
    assert len(blank) == 2 * (3 - len(observed))
    save_figure(figure, tmp_path / "figure.png", dpi=40)
    picture = imread(tmp_path / "figure.png")
    assert picture.std() > 0.05 and [p.name for p in tmp_path.iterdir()] == ["figure.png"]


def test_views_leave_out_what_was_not_observed():
    frame = Frame(Grid.centred((6, 6), 0.2), torch.ones(2, 1, 1))
    image, ivar = torch.full((2, 6, 6), 5.0), torch.full((2, 6, 6), 4.0)
    image[1, 2, 3], ivar[1, 2, 3] = torch.nan, 0
    seen = Observation(Band("g", "hsc-g"), frame, image, ivar)
    missing = Observation(Band("r", "hsc-r"), frame, image, torch.zeros_like(ivar))
    (view,) = views_of([seen, missing], [torch.full((2, 6, 6), 4.0)] * 2, scene=1)
    assert view.band == "g" and view.scale == pytest.approx(0.2)
    assert np.isnan(view.image).sum() == np.isnan(view.residual).sum() == 1
    assert np.nanmean(view.residual) == 2


def _axes(figure: Figure):
    return [axes for part in figure.subfigs for axes in part.axes]


def test_photometry_and_binned_figures(tmp_path):
    scenes = []
    for i in range(4):
        samples, truth = scene(seed=i)
        scenes.append(ScoredScene(f"s{i}", truth, {"wiener": Estimate(samples, samples.mean(0))}))
    sources = measure_scenes(scenes, NAMES)
    edges = (5.0, 20.0, np.inf)
    binned = score_by(sources, sources.snr, edges, np.random.default_rng(0))
    assert binned["wiener"]["VIS"]["sources"].sum() == 8
    figures = (
        photometry_figure(sources, np.random.default_rng(0)),
        binned_figure(binned, edges, NAMES, "signal to noise"),
    )
    ranks = figures[0].axes[2]
    assert sum(patch.get_height() for patch in ranks.patches) == 8  # each source has one rank
    assert [tick.get_text() for tick in figures[1].axes[-1].get_xticklabels()] == ["5-20", ">20"]
    for number, figure in enumerate(figures):
        save_figure(figure, tmp_path / f"{number}.png", dpi=40)
        assert imread(tmp_path / f"{number}.png").std() > 0.02
