"""Libraries of sources whose colours no training source has: dust, emission lines, quasars.

Every source keeps its place and its light in VIS; its other bands are multiplied by what the changed spectrum has
there. They are tests of a trained model, never its training.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jointdiff.sed import changed_fluxes, lines, starburst_attenuation
from jointdiff.simulate.library import Library

DUST = {"redshift": 0.7, "excess": 0.5}
"""A screen of E(B-V) = 0.5: as the dustiest of ordinary galaxies have."""

LINES = ((5007.0, 700.0), (6563.0, 500.0))
"""[O III] and Hα of green peas (Cardamone et al. 2009, MNRAS 399, 1191): rest wavelength and equivalent width, Å."""

LINES_REDSHIFT = 0.5
"""Brings [O III] into i and VIS, and Hα into y."""

QUASAR_SLOPE = -0.44
QUASAR_LINES = ((1216.0, 93.0), (1549.0, 24.0), (1909.0, 21.0), (2799.0, 32.0), (4861.0, 46.0), (6563.0, 195.0))
QUASAR_REDSHIFTS = (0.5, 2.5)
"""f_nu ∝ nu^slope, and the strongest lines (Vanden Berk et al. 2001, AJ 122, 549, table 2): Å at rest."""


def dusty(library: Library) -> Library:
    """Every source behind a screen of DUST (Calzetti et al. 2000)."""
    stretch = 1 + DUST["redshift"]
    return _recoloured(library, lambda w: 10 ** (-0.4 * DUST["excess"] * starburst_attenuation(w / stretch)))


def line_emitting(library: Library) -> Library:
    """Every source with the LINES of an extreme star-forming galaxy."""
    return _recoloured(library, lambda w: lines(w, LINES_REDSHIFT, LINES, width=1e-3))


def quasars(library: Library) -> Library:
    """The library's stars alone, each with the spectrum of a quasar of a redshift of its own.

    Raises AssertionError for a library without stars.
    """
    kept = {n: stars for n, stars in library.is_star.items() if bool(stars.any())}
    assert kept, "quasars take the places of stars"
    low, high = QUASAR_REDSHIFTS
    filters = tuple(band.filter for band in library.bands)
    stamps, fluxes, count = {}, {}, 0
    for n, stars in kept.items():
        factors = []
        for flux in library.flux[n][stars].cpu().numpy().astype(float):
            redshift = low + (high - low) * (0.6180339887 * count % 1)  # evenly over the range, whatever their number
            change = changed_fluxes(partial(_quasar, redshift=redshift), ("VIS", *filters))
            vis = flux[filters.index("VIS")]
            factors.append(change[1:] / change[0] * vis / flux)
            count += 1
        factor = torch.tensor(np.array(factors)).to(library.flux[n])
        stamps[n] = library.stamps[n][stars].float() * factor[..., None, None]
        fluxes[n] = library.flux[n][stars] * factor

    def stars_of(values: dict[int, Tensor]) -> dict[int, Tensor]:
        return {n: values[n][stars] for n, stars in kept.items()}

    scales, is_star, magnitude = map(stars_of, (library.scales, library.is_star, library.magnitude))
    return Library(library.bands, library.pixel_scale, library.psf_fwhm, stamps, scales, fluxes, is_star, magnitude)


def _quasar(wavelength: np.ndarray, redshift: float) -> np.ndarray:
    slope = (wavelength / 5000) ** -QUASAR_SLOPE
    return slope * lines(wavelength, redshift, QUASAR_LINES, width=0.01)


def _recoloured(library: Library, change: Callable[[np.ndarray], np.ndarray]) -> Library:
    """The library with each band's light multiplied by what ``change`` is there, relative to VIS."""
    vis, *bands = changed_fluxes(change, ("VIS", *(band.filter for band in library.bands)))

    def times(tensor: Tensor, *ones: int) -> Tensor:
        factor = torch.tensor(bands).to(tensor.device, torch.float32) / vis
        return tensor.float() * factor.view(-1, *ones)

    return replace(
        library,
        stamps={n: times(stamps, 1, 1) for n, stamps in library.stamps.items()},
        flux={n: times(flux) for n, flux in library.flux.items()},
    )
