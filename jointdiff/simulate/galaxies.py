"""Draw one source, a galaxy or a star, as a noiseless multi-band stamp with GalSim.

A galaxy is a bulge (Sersic, n = 2 to 5), an inclined exponential disk and star-forming clumps. Each component has one
morphology, drawn once, and its own spectrum, so the colours change across the galaxy. A star is a point and a black
body. Where the numbers come from:

- counts: dN/dm rises as 10^(0.31 m) in i (LSST Science Book 2009, eq. 3.7, from the CFHTLS Deep fields). The default
  slope is flatter, 0.2, so that one galaxy in ten is brighter than 22 (one in 25 otherwise) and the bright end is
  learnt too; weights of 10^(0.11 m) give the true counts back.
- spectral type and redshift given magnitude: Benitez (2000, ApJ 536, 571), eqs. 29 and 30 and table 1. His i magnitude
  is our VIS, his classes are the CWW templates of `jointdiff.sed`.
- disk scale length, bulge ellipticity: Miller et al. (2013, MNRAS 429, 2858), appendix B; inclination isotropic.
- bulge fraction: Simien & de Vaucouleurs (1986, ApJ 302, 564), from S0 to Scd.
- clumps: in 60 % of late types (Guo et al. 2015, ApJ 800, 39), a few each, with about a fifth of the light of the
  young population (Soto et al. 2017, ApJ 837, 6).

What no paper gave, a choice of ours that looks right, says so where it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from jointdiff.errors import InputError
from jointdiff.sed import TEMPLATES, blackbody_fluxes, template_fluxes
from jointdiff.units import SIGMA_PER_FWHM
from jointdiff.units import flux as flux_of_magnitude

RECIPE = 1
"""Raised whenever a change here makes another source of the same random numbers: old shards are then not reused."""

# Benitez (2000), table 1, for the TEMPLATES E, Sbc, Scd and Im: spectral types 0, 1, 2 and 3.
_PIVOT = 20.0  # his m_0; brighter galaxies are treated as of this magnitude
_ALPHA = np.array([2.46, 1.81, 1.81, 0.91])
_Z0 = np.array([0.431, 0.390, 0.390, 0.063])
_KM = np.array([0.091, 0.0636, 0.0636, 0.123])
_FRACTION = np.array([0.35, 0.25, 0.25])  # at the pivot, of all but Im; his spirals are shared by Sbc and Scd
_DECLINE = np.array([0.450, 0.147, 0.147])  # per magnitude

_THICKNESS = 0.1  # scale height over scale length of a disk: GalSim's default
_BULGE_EDGE = 7.0  # half-light radii; SDSS cuts de Vaucouleurs models there (Stoughton et al. 2002)
_KEEP = 0.995  # share of the VIS flux that a stamp should hold
_TAPER = 0.8  # radius, over the stamp's half side, where the taper to zero begins


@dataclass(frozen=True)
class SourceSettings:
    """What a library holds.

    pixel_scale: arcsec per stamp pixel. psf_fwhm: of the Gaussian library PSF, arcsec, at least two pixels.
    stamp_sizes: sides that a stamp may have, pixels. magnitudes: brightest and faintest VIS magnitude.
    counts_slope: d log10 N / dm. star_fraction: of all sources. Raises InputError for impossible values.
    """

    pixel_scale: float = 0.05
    psf_fwhm: float = 0.1
    stamp_sizes: tuple[int, ...] = (64, 128)
    magnitudes: tuple[float, float] = (19.0, 26.5)
    counts_slope: float = 0.2
    star_fraction: float = 0.08
    max_redshift: float = 4.0

    def __post_init__(self):
        object.__setattr__(self, "stamp_sizes", tuple(sorted(self.stamp_sizes)))
        object.__setattr__(self, "magnitudes", tuple(self.magnitudes))
        bright, faint = self.magnitudes
        if not bright < faint:
            raise InputError(f"magnitudes [{bright}, {faint}]: expected brightest < faintest")
        if not 0 <= self.star_fraction <= 1:
            raise InputError(f"star_fraction {self.star_fraction}: expected 0 to 1")
        if not self.psf_fwhm >= 2 * self.pixel_scale > 0:
            raise InputError(f"psf_fwhm {self.psf_fwhm} arcsec: expected at least two pixels of {self.pixel_scale}")
        if not self.stamp_sizes or not 16 <= self.stamp_sizes[0] <= self.stamp_sizes[-1] <= 1024:
            raise InputError(f"stamp_sizes {list(self.stamp_sizes)}: expected sides of 16 to 1024 pixels")
        if not 0 < self.max_redshift <= 4:
            raise InputError(f"max_redshift {self.max_redshift}: expected up to 4, where the templates end")


@dataclass(frozen=True)
class Component:
    """A unit-flux GalSim profile, seen through the library PSF, and its flux in VIS and each band (1 + C,), nJy."""

    profile: object
    fluxes: np.ndarray


class Images(Protocol):
    """A set of pictures of galaxies (simulate/images.py); fraction: of the galaxies that are drawn from it.

    holds: whether a galaxy of this VIS magnitude can be drawn. draw: the components of one of them, and what it is: its
    ``group``, and its own ``mag_VIS`` if it has one.
    """

    @property
    def fraction(self) -> float: ...

    def holds(self, magnitude: float) -> bool: ...

    def draw(
        self, rng: np.random.Generator, magnitude: float, filters: tuple[str, ...], settings: SourceSettings
    ) -> tuple[list[Component], dict]: ...


@dataclass(frozen=True)
class Source:
    """A noiseless stamp (C, n, n), nJy per stamp pixel, and what it is.

    properties: kind (galaxy or star), mag_VIS (before the stamp's edge), r50 (circular half-light radius in VIS, with
    the library PSF, arcsec), kept (share of the VIS flux inside the stamp), offset ((y, x) of the centre from the
    stamp's, pixels) and, by kind, redshift, spectral_type (0 to 3: E, Sbc, Scd, Im), bulge_fraction and clump_fraction
    (of VIS), scale_length (arcsec), cos_inclination, angle (radians, x to y) or temperature (K). A galaxy from an image
    has a ``group`` instead: the galaxy that was pictured.
    """

    stamp: np.ndarray
    properties: dict

    @property
    def flux(self) -> np.ndarray:
        """(C,), nJy in the stamp."""
        return self.stamp.sum((1, 2), dtype=float)


def draw_source(
    rng: np.random.Generator, filters: Sequence[str], settings: SourceSettings, pictures: Images | None = None
) -> Source:
    """A source drawn at random, seen through ``filters`` (keys of survey.FILTERS, one for each band).

    Filter names, not Bands, so that a worker process need not import torch. pictures: of galaxies, in the place of
    some or all models. Raises InputError for an unknown filter.
    """
    filters = ("VIS", *filters)  # magnitudes are VIS magnitudes, whatever the bands
    magnitude = draw_magnitude(rng, settings)
    make = _star if rng.random() < settings.star_fraction else _galaxy
    if pictures is not None and make is _galaxy and rng.random() < pictures.fraction and pictures.holds(magnitude):
        make = pictures.draw
    components, properties = make(rng, magnitude, filters, settings)
    magnitude = properties.pop("mag_VIS", magnitude)
    offset = rng.uniform(-0.5, 0.5, 2)
    for n in settings.stamp_sizes:
        images = np.stack([_draw(component.profile, n, offset, settings) for component in components]) * taper(n)
        fluxes = np.stack([component.fluxes for component in components])
        kept = float(fluxes[:, 0] @ images.sum((1, 2)) / fluxes[:, 0].sum())
        if kept >= _KEEP:
            break
    stamp = np.einsum("kc,kij->cij", fluxes, images)
    assert np.isfinite(stamp).all(), f"GalSim drew a stamp that is not finite: {properties}"
    properties |= {"mag_VIS": magnitude, "r50": _half_light_radius(stamp[0], offset) * settings.pixel_scale}
    properties |= {"kept": kept, "offset": offset.tolist()}
    return Source(stamp[1:].astype(np.float32), properties)


def draw_magnitude(rng: np.random.Generator, settings: SourceSettings) -> float:
    """A VIS magnitude from counts that rise as 10^(counts_slope · m) between the two ends."""
    bright, faint = settings.magnitudes
    growth = settings.counts_slope * np.log(10)
    if abs(growth) < 1e-6:
        return float(rng.uniform(bright, faint))
    return float(bright + np.log1p(rng.random() * np.expm1(growth * (faint - bright))) / growth)


def draw_type_and_redshift(rng: np.random.Generator, magnitude: float, max_redshift: float) -> tuple[float, float]:
    """Spectral type (0 to 3, continuous) and redshift of a galaxy, given its VIS magnitude (Benitez 2000).

    p(T|m) = f_T exp(-k_T (m - 20)) and p(z|T, m) ∝ z^α exp(-(z/z_m)^α), z_m = z_0 + k_m (m - 20): then (z/z_m)^α
    follows a gamma distribution of index 1 + 1/α. Types spread over half a class, so that colours are continuous.
    """
    fainter = max(magnitude - _PIVOT, 0.0)
    early = _FRACTION * np.exp(-_DECLINE * fainter)
    kind = rng.choice(4, p=[*early, 1 - early.sum()])
    scale = _Z0[kind] + _KM[kind] * fainter
    redshift = np.inf
    while redshift > max_redshift:
        redshift = scale * rng.gamma(1 + 1 / _ALPHA[kind]) ** (1 / _ALPHA[kind])
    spectral_type = abs(kind + rng.uniform(-0.5, 0.5))
    return float(min(spectral_type, 6 - spectral_type)), float(redshift)


def galaxy_colours(spectral_type: float, redshift: float, filters: tuple[str, ...]) -> np.ndarray:
    """Flux in each filter over that in the first (len(filters),), from the two templates and redshifts nearest."""
    lower = min(int(spectral_type), len(TEMPLATES) - 2)
    weights = (lower + 1 - spectral_type, spectral_type - lower)
    colours = np.zeros(len(filters))
    for weight, template in zip(weights, TEMPLATES[lower : lower + 2], strict=True):
        redshifts, table = template_fluxes(template, filters)
        step = redshift / redshifts[1]
        below = min(int(step), len(redshifts) - 2)
        colours += weight * (table[below] + (step - below) * (table[below + 1] - table[below]))
    return colours


def draw_scale_length(rng: np.random.Generator, magnitude: float) -> float:
    """Disk scale length, arcsec, along the major axis (Miller et al. 2013, appendix B1, from Simard et al. 2002).

    p(r) ∝ r exp(-(r/a)^(4/3)) about the median ln r_d = -1.145 - 0.269 (m - 23), so (r/a)^(4/3) is a gamma variate of
    index 3/2, of median 1.183.
    """
    median = np.exp(-1.145 - 0.269 * (magnitude - 23))
    return float(median * (rng.gamma(1.5) / 1.183) ** 0.75)


def draw_bulge_ellipticity(rng: np.random.Generator) -> float:
    """(1 - q)/(1 + q) of a bulge: p(e) ∝ e exp(-2.368 e - 6.691 e²) (Miller et al. 2013, appendix B2), q ≥ 0.1."""
    e = np.linspace(0, 0.8, 161)
    cumulative = np.cumsum(e * np.exp(-2.368 * e - 6.691 * e**2))
    return float(np.interp(rng.random() * cumulative[-1], cumulative, e))


def _star(rng, magnitude, filters, settings):
    """Temperatures are log-uniform from M dwarfs to A stars (a choice): the colours of the stellar locus, evenly."""
    import galsim

    temperature = float(np.exp(rng.uniform(np.log(2800), np.log(12000))))
    fluxes = flux_of_magnitude(magnitude) * blackbody_fluxes(temperature, filters)
    return [Component(galsim.Gaussian(fwhm=settings.psf_fwhm), fluxes)], {"kind": "star", "temperature": temperature}


def _galaxy(rng, magnitude, filters, settings):
    spectral_type, redshift = draw_type_and_redshift(rng, magnitude, settings.max_redshift)
    # Ellipticals, then the means of Simien & de Vaucouleurs for S0, Sbc and Scd; the scatter is a choice.
    mean = np.interp(spectral_type, (0.2, 0.5, 1, 2, 3), (1, 0.57, 0.16, 0.05, 0))
    bulge_fraction = float(mean ** np.exp(rng.normal(0, 0.4)))
    bulge_fraction = bulge_fraction if bulge_fraction > 1e-3 else 0.0  # too faint to be worth drawing
    clumpy = rng.random() < np.interp(spectral_type, (0.5, 1.5), (0, 0.6))
    clump_fraction = float((1 - bulge_fraction) * rng.beta(2, 8)) if clumpy else 0.0
    shape = {
        "scale_length": draw_scale_length(rng, magnitude),
        "cos_inclination": float(rng.random()),
        "angle": float(rng.uniform(0, np.pi)),
    }
    # Bulges are redder than their disks, clumps bluer: old, mixed and young populations of one galaxy.
    parts = (
        (bulge_fraction, min(spectral_type, 0.5), lambda: _bulge(rng, bulge_fraction, shape, settings)),
        (1 - bulge_fraction - clump_fraction, max(spectral_type, 0.5), lambda: _disk(shape, settings)),
        (clump_fraction, 3.0, lambda: _clumps(rng, shape, settings)),
    )
    total = flux_of_magnitude(magnitude)
    components = [
        Component(profile(), total * share * galaxy_colours(kind, redshift, filters))
        for share, kind, profile in parts
        if share > 0
    ]
    properties = {"kind": "galaxy", "redshift": redshift, "spectral_type": spectral_type}
    return components, properties | {"bulge_fraction": bulge_fraction, "clump_fraction": clump_fraction} | shape


def _bulge(rng, fraction, shape, settings):
    """A sheared Sersic profile, its position angle the disk's.

    Half-light radius (major axis): the scale length for a pure bulge (Miller et al. 2013), 0.15 of it for the smallest
    (as in Euclid Collaboration: Congedo et al. 2024). Sersic n rises with the fraction, from 2-3 to 4-5 (a choice), in
    steps of 0.25, because GalSim tabulates each n it meets.
    """
    import galsim

    index = round(4 * (rng.uniform(2, 3) + 2 * fraction)) / 4
    e = draw_bulge_ellipticity(rng)
    radius = shape["scale_length"] * (0.15 + 0.85 * fraction) * np.sqrt((1 - e) / (1 + e))
    profile = galsim.Sersic(index, half_light_radius=radius, trunc=_BULGE_EDGE * radius)
    profile = profile.shear(g=e, beta=shape["angle"] * galsim.radians)
    return galsim.Convolve(profile, galsim.Gaussian(fwhm=settings.psf_fwhm))


def _disk(shape, settings):
    """An optically thin exponential disk of sech² vertical profile, isotropically inclined."""
    import galsim

    inclination = np.arccos(shape["cos_inclination"]) * galsim.radians
    profile = galsim.InclinedExponential(inclination, scale_radius=shape["scale_length"], scale_h_over_r=_THICKNESS)
    return galsim.Convolve(profile.rotate(shape["angle"] * galsim.radians), galsim.Gaussian(fwhm=settings.psf_fwhm))


def _clumps(rng, shape, settings):
    """A few Gaussian clumps strewn over the disk as its light is; sizes and shares of the light are a choice."""
    import galsim

    count = 2 + rng.poisson(3)
    radius = shape["scale_length"] * np.minimum(rng.gamma(2, size=count), 4)
    azimuth = rng.uniform(0, 2 * np.pi, count)
    x, y = radius * np.cos(azimuth), radius * np.sin(azimuth) * shape["cos_inclination"]
    cos, sin = np.cos(shape["angle"]), np.sin(shape["angle"])
    sigma = np.hypot(0.12 * shape["scale_length"] * rng.lognormal(0, 0.4, count), settings.psf_fwhm * SIGMA_PER_FWHM)
    shares = rng.dirichlet(np.ones(count))
    return galsim.Add(
        [
            galsim.Gaussian(sigma=s, flux=f).shift(cos * u - sin * v, sin * u + cos * v)
            for s, f, u, v in zip(sigma, shares, x, y, strict=True)
        ]
    )


def _draw(profile, n: int, offset: np.ndarray, settings: SourceSettings) -> np.ndarray:
    """The profile at the pixel centres times the pixel's area (n, n); its sum is the share of flux inside."""
    y, x = offset
    image = profile.drawImage(nx=n, ny=n, scale=settings.pixel_scale, method="no_pixel", offset=(x, y), dtype=float)
    return image.array


@cache
def taper(n: int) -> np.ndarray:
    """1 inside, falling as cos² to 0 at the inscribed circle (n, n): neither a square edge nor corners once rotated."""
    axis = (np.arange(n) - (n - 1) / 2) / (n / 2)
    radius = np.hypot(axis, axis[:, None])
    return np.cos(np.pi / 2 * np.clip((radius - _TAPER) / (1 - _TAPER), 0, 1)) ** 2


def _half_light_radius(image: np.ndarray, offset: np.ndarray) -> float:
    """Radius (pixels) of the circle about the centre that holds half of the image's flux."""
    centre = (len(image) - 1) / 2 + offset
    y, x = np.arange(len(image)) - centre[:, None]
    radius = np.hypot(y[:, None], x).ravel()
    order = np.argsort(radius)
    cumulative = np.cumsum(image.ravel()[order])
    return float(radius[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
