"""Spectra: the template library that gives galaxies and stars their colours, seen through real filters.

Galaxies: the Coleman, Wu & Weedman (1980) templates, extended as in GalSim (E, Sbc, Scd, Im). Stars: black bodies.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from jointdiff.survey import filter_curve

TEMPLATES = ("E", "Sbc", "Scd", "Im")


@cache
def _template(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Wavelength (Å) and f_lambda (arbitrary units) of a CWW template at rest."""
    import galsim

    path = Path(galsim.meta_data.share_dir) / "SEDs" / f"CWW_{name}_ext_more.sed"
    return tuple(np.loadtxt(path, unpack=True))


@cache
def template_fluxes(
    template: str, filters: tuple[str, ...], z_max: float = 4.0, steps: int = 201
) -> tuple[np.ndarray, np.ndarray]:
    """Redshifts (steps,) and AB flux densities (steps, len(filters)) of a template, relative to the first filter."""
    wavelength, flux = _template(template)
    redshifts = np.linspace(0, z_max, steps)
    table = np.array([[_ab_flux(wavelength * (1 + z), flux, name) for name in filters] for z in redshifts])
    return redshifts, table / table[:, :1]


def emitted_fluxes(filter_name: str, redshift: float) -> np.ndarray:
    """L_ν (len(TEMPLATES),) of each template, in one arbitrary unit, where a filter sees it from this redshift."""
    spectra = [_template(name) for name in TEMPLATES]
    seen = [_ab_flux(wavelength * (1 + redshift), flux, filter_name) for wavelength, flux in spectra]
    return np.array(seen) / (1 + redshift) ** 2  # f_λ(λ) stands for L_λ(λ / (1 + z)), and L_ν ∝ L_λ λ² at the emitted λ


def blackbody_fluxes(temperature: float, filters: tuple[str, ...]) -> np.ndarray:
    """AB flux densities (len(filters),) of a black body (K), relative to the first filter."""
    wavelength = np.linspace(2000, 12000, 2001)
    flux = wavelength**-5.0 / np.expm1(1.438777e8 / (wavelength * temperature))
    fluxes = np.array([_ab_flux(wavelength, flux, name) for name in filters])
    return fluxes / fluxes[0]


def changed_fluxes(change: Callable[[np.ndarray], np.ndarray], filters: tuple[str, ...]) -> np.ndarray:
    """Factors (len(filters),) of the AB flux densities of a source of flat f_nu whose spectrum is multiplied.

    change: wavelength (Å) as observed → factor, both (L,).
    """
    wavelength = np.linspace(2500, 12500, 10001)
    flat = wavelength**-2.0
    changed = flat * change(wavelength)
    return np.array([_ab_flux(wavelength, changed, name) / _ab_flux(wavelength, flat, name) for name in filters])


def starburst_attenuation(wavelength: np.ndarray) -> np.ndarray:
    """k = A/E(B-V) at rest wavelengths (Å) of 1200 to 22000 (Calzetti et al. 2000, ApJ 533, 682, eq. 4)."""
    x = 1e4 / np.asarray(wavelength)  # per µm
    red = 2.659 * (-1.857 + 1.040 * x)
    blue = 2.659 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3)
    return 4.05 + np.where(x < 1 / 0.63, red, blue)


def lines(wavelength: np.ndarray, redshift: float, rest: Sequence[tuple[float, float]], width: float) -> np.ndarray:
    """What emission lines multiply a continuum by, (L,): 1 + Σ EW · (a Gaussian of unit area).

    rest: wavelength and equivalent width (Å) of each line at rest. width: a line's standard deviation over its
    wavelength.
    """
    total = np.ones_like(wavelength)
    for centre, equivalent in rest:
        middle = centre * (1 + redshift)
        profile = np.exp(-(((wavelength - middle) / (width * middle)) ** 2) / 2)
        total += equivalent * (1 + redshift) * profile / (np.sqrt(2 * np.pi) * width * middle)
    return total


def _ab_flux(wavelength: np.ndarray, flux: np.ndarray, filter_name: str) -> float:
    """Mean AB flux density of a photon-counting detector, up to a constant (Fukugita et al. 1996, eq. 7)."""
    curve = filter_curve(filter_name)
    lam, response = curve.wavelength, curve.response
    f_lambda = np.interp(lam, wavelength, flux, left=0, right=0)
    return np.trapezoid(f_lambda * lam * response, lam) / np.trapezoid(response / lam, lam)


@cache
def colour_terms(observed: str, scene: tuple[str, ...], nearest: int) -> tuple[tuple[float, ...], float]:
    """The response of a filter to the scene's bands: coefficients (C,) and their fractional scatter.

    One-hot where the filter is one of the scene's. Elsewhere the combination of scene bands that best predicts it over
    the templates at 0 < z < 2, by ridge regression around the ``nearest`` band alone, so that neighbouring bands never
    enter with large opposite signs; its rms fractional residual is a floor on the error (METHOD section 4).
    """
    if observed in scene:
        return tuple(float(name == observed) for name in scene), 0.0
    fluxes = []
    for template in TEMPLATES:
        z, table = template_fluxes(template, (observed, *scene))
        fluxes.append(table[z < 2])
    table = np.concatenate(fluxes)[:, 1:]  # relative to the observed filter: residuals are fractional
    start = np.eye(len(scene))[nearest]
    normal = table.T @ table / len(table) + _RIDGE * np.eye(len(scene))
    coefficients = start + np.linalg.solve(normal, table.T @ (1 - table @ start) / len(table))
    scatter = np.sqrt(np.mean((table @ coefficients - 1) ** 2))
    return tuple(coefficients.tolist()), float(scatter)


_RIDGE = 1e-3
"""Prior precision of a colour term, in units of the mean square band ratio. Ten times it keeps lsst-z from hsc-i, which
it overlaps, and scatters by a third more; a tenth of it gains nothing more but larger opposite signs."""
