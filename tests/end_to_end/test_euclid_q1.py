"""A real Euclid Q1 field, from its MER products to samples, catalog and figure, with an untrained denoiser."""

import numpy as np
import pytest

from jointdiff import cli
from jointdiff.io.products import read_catalog, read_reconstruction
from jointdiff.reconstruct.checkpoint import save_denoiser
from tests.denoisers import DEMO_BANDS, untrained

NAMES = [name for name, _ in DEMO_BANDS]


@pytest.fixture(scope="module", params=["wiener", "diffusion"])
def output(request, real_data, tmp_path_factory):
    """The folder of the field's products."""
    scene = real_data / "euclid_q1" / "scene.yaml"
    if not scene.is_file():
        pytest.skip(f"no Euclid Q1 field: {scene} is absent")
    folder = tmp_path_factory.mktemp("q1")
    save_denoiser(untrained(), folder / "model")
    options = f"--method {request.param} --num_samples 24 --evaluations 4 --checkpoint {folder / 'model'}".split()
    with (
        pytest.warns(UserWarning, match=r"VIS: PSF sums to 0\.9453 and is normalised"),
        pytest.warns(UserWarning, match=r"r: noise is correlated \(lag-1 0\.68\): spectrum and level, 0\.1"),
    ):
        status = cli.main(["reconstruct", "--scene", str(scene), "--output", str(folder / "out"), *options])
    assert status == 0
    return folder / "out" / "EUCLJ174517", request.param


def test_every_band_is_reconstructed(output):
    """i and y were never observed: they are there, finite, and surer than nothing but less sure than VIS."""
    result = read_reconstruction(output[0] / "reconstruction.fits")
    assert [band.name for band in result.bands] == NAMES
    assert result.samples.shape == (24, 6, 100, 100)
    assert all(np.isfinite(cube).all() for cube in (result.mean, result.std, result.samples))
    noise = dict(zip(NAMES, np.median(result.std, axis=(1, 2)), strict=True))
    assert noise["VIS"] < noise["i"]
    assert noise["VIS"] < noise["g"]


def test_catalog_holds_the_lens(output):
    """The lens galaxy in the middle, at the field's sky position, its VIS flux as the data have it."""
    catalog = read_catalog(output[0] / "catalog.fits")
    assert len(catalog) >= 3
    distance = np.hypot(catalog["x"] - 49.5, catalog["y"] - 49.5)
    lens = catalog[np.argmin(distance)]
    assert distance.min() < 5
    result = read_reconstruction(output[0] / "reconstruction.fits")
    ra, dec = result.wcs.wcs_pix2world(lens["x"], lens["y"], 0)
    assert (lens["ra"], lens["dec"]) == pytest.approx((float(ra), float(dec)), abs=1e-7)
    assert (lens["ra"], lens["dec"]) == pytest.approx((266.3232, 65.9368), abs=1e-3)
    for band in ("VIS", "z"):
        assert lens[f"flux_{band}"] > 20 * lens[f"flux_err_{band}"] > 0
    assert lens["aper_flux_VIS"] < lens["flux_VIS"]
    # The Wiener mean is exact; an untrained denoiser stops four steps on the way there.
    tolerance = {"wiener": 0.03, "diffusion": 0.2}[output[1]]
    assert lens["flux_VIS"] / lens["flux_ml_VIS"] == pytest.approx(1, abs=tolerance)
    assert lens["flux_z"] / lens["flux_ml_z"] == pytest.approx(1, abs=0.1)
    assert np.isnan(lens["flux_ml_i"])
    assert lens["flags"] & 4, "i and y have no data"
    assert (catalog["flags"] & 32).all(), "the ground bands were resampled: their noise is correlated"
    assert np.isfinite(lens["flux_cov"]).all()


def test_figure_is_drawn(output):
    from matplotlib.image import imread

    picture = imread(output[0] / "figure.png")[..., :3]
    assert min(picture.shape[:2]) > 1000
    assert picture.std() > 0.1
