"""Fluxes through real filters against GalSim's photometry."""

from pathlib import Path

import galsim
import numpy as np
import pytest
import torch

from jointdiff.sed import template_fluxes
from jointdiff.simulate.observe import GEOMETRIES
from jointdiff.survey import filter_curve
from tests.mocks import BANDS, LSST, STEADY, gaussian_stamp, library_of, simulator

NAMES = tuple(band.filter for band in (*BANDS, *LSST))


def galsim_fluxes(sed: galsim.SED) -> np.ndarray:
    """AB flux densities through every filter, relative to VIS."""
    magnitudes = []
    for name in NAMES:
        curve = filter_curve(name)
        table = galsim.LookupTable(curve.wavelength, np.maximum(curve.response, 0), interpolant="linear")
        magnitudes.append(sed.calculateMagnitude(galsim.Bandpass(table, "Angstrom").withZeropoint("AB")))
    return 10 ** (-0.4 * (np.array(magnitudes) - magnitudes[0]))


def template(name: str) -> galsim.SED:
    path = Path(galsim.meta_data.share_dir) / "SEDs" / f"CWW_{name}_ext_more.sed"
    return galsim.SED(str(path), "Angstrom", "flambda", fast=False)


@pytest.mark.parametrize("name", ["E", "Sbc", "Im"])
def test_template_fluxes_are_galsims(name):
    """At rest and redshifted. The two sum over other wavelengths: ours over the filter's, every 10 Å in HSC."""
    redshifts, table = template_fluxes(name, NAMES)
    for step in (0, 25, 60):
        expected = galsim_fluxes(template(name).atRedshift(redshifts[step]))
        print(name, redshifts[step], np.abs(table[step] / expected - 1).max())
        np.testing.assert_allclose(table[step], expected, rtol=2e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("spectrum", ["flat", "red"])
def test_an_observed_source_has_galsims_flux(geometry, spectrum):
    """Through the survey's own filters. A flat f_nu is the same in all; an elliptical at z = 0.5 rises by a factor."""
    redshifts, table = template_fluxes("E", NAMES)
    fluxes = np.ones(len(NAMES)) if spectrum == "flat" else table[25]
    sed = galsim.SED("1", "Angstrom", "fnu") if spectrum == "flat" else template("E").atRedshift(redshifts[25])
    expected = dict(zip(NAMES, galsim_fluxes(sed), strict=True))
    source = simulator((geometry,), STEADY, library_of([gaussian_stamp(1e12 * fluxes, 0.5, 64)]), 84)
    mock = source.expose(2, 0)
    total = mock.truth[:, 0].sum((1, 2))
    for o in mock.observations:
        # 8.4 arcsec hold a whole number of pixels in every geometry, so that the image holds all of the flux.
        assert o.frame.grid.shape[0] * o.frame.grid.scale == pytest.approx(8.4)
        density = o.image.sum((1, 2)) / total
        torch.testing.assert_close(density, torch.full_like(density, expected[o.band.filter]), rtol=1e-3, atol=0)
    if spectrum == "red":
        assert expected["lsst-z"] > 5 * expected["lsst-g"]
