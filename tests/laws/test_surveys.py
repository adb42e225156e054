"""What is made of archive images: noise from their sky, and what VIS would have seen of HST's."""

import numpy as np
import pytest
from astropy.wcs import WCS

from jointdiff.io.observations import Exposure
from jointdiff.io.surveys.hst import F814W
from jointdiff.io.surveys.product import Product
from jointdiff.io.surveys.sky import Sky, measure_sky, variance_of
from jointdiff.simulate import mock_vis as module
from jointdiff.survey import load_survey
from tests.scene_folders import CENTRE, gaussian_psf, tan_header


def test_a_star_seen_by_hst_becomes_the_vis_psf():
    """Without noise, and with the star on a VIS pixel: 205 pixels of 0.03 arcsec and 61 of 0.1 share their middle."""
    image, stamp = np.zeros((205, 205)), gaussian_psf(51, 1.4)
    image[77:128, 77:128] = 5000 * stamp
    header = tan_header(205, 0.03)
    exposure = Exposure(F814W, image, np.full(image.shape, 1e8), stamp, 0.03, WCS(header), "acs.fits")
    vis = module.mock_vis(Product(exposure)).exposure
    noiseless = module._resample(exposure, exposure.grid(CENTRE), vis.grid(CENTRE))[0]
    assert vis.image.shape == (61, 61)
    seen = noiseless[10:51, 10:51]
    share = seen.sum() / 5000
    assert 0.98 < share < 1, "the wings that a stamp of 4.1 arcsec leaves out"
    np.testing.assert_allclose(seen / share, 5000 * vis.psf, rtol=0, atol=1e-3 * 5000 * vis.psf.max())
    assert vis.psf[20, 20] == pytest.approx(0.174, rel=0.05), "as in Q1's MER PSF, of sum 1"


@pytest.mark.parametrize("seed", range(3))
def test_sky_noise_is_found_among_sources(seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(0.3, 2.0, (120, 120))
    stamp = gaussian_psf(31, 3.0)
    for _ in range(25):
        y, x = rng.integers(0, 90, 2)
        image[y : y + 31, x : x + 31] += 2000 * stamp
    sky = measure_sky(image, np.ones(image.shape, bool), "g", "g.fits")
    # About 6000 sky pixels: MAD is good to 1.2 %; wings and the 3 sigma cut cost some more.
    assert sky.sigma == pytest.approx(2.0, rel=0.05)
    assert sky.level == pytest.approx(0.3, abs=0.2)


def test_a_source_as_bright_as_the_sky_doubles_the_variance():
    depth = load_survey("hsc").depths["i"]
    bright = depth.sky_sigma**2 * depth.electrons_per_njy
    image = np.zeros((40, 40))
    image[10:30, 10:30] = bright
    variance = variance_of(image, Sky(0.0, 0.5, 1.0), depth)
    assert variance[20, 20] == pytest.approx(0.5)
    assert variance[2, 2] == pytest.approx(0.25)
    # The same numbers for the survey's own depth: shot noise of the source, in its own electrons.
    variance = variance_of(image, Sky(0.0, depth.sky_sigma, 1.0), depth)
    assert variance[20, 20] - depth.sky_sigma**2 == pytest.approx(bright / depth.electrons_per_njy)
