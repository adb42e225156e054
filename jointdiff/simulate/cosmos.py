"""Real galaxies: HST images of COSMOS in GalSim's RealGalaxyCatalog format (Mandelbaum et al. 2012, MNRAS 420, 1518).

GalSim deconvolves each stamp by its own PSF and convolves it with the library's. What is real is the morphology. The
images have noise, which in a truth has no place: a galaxy is therefore taken from among those much brighter than it is
to be, dimmed, and shrunk as galaxies of that magnitude are smaller; its noise is dimmed with it. For a magnitude that
no galaxy of the sample can be dimmed to, GalSim's models stand in. There is one band, F814W, so a galaxy has one colour
throughout, that of a template of `jointdiff.sed` at the type and redshift usual for its magnitude.
"""

from functools import cache
from pathlib import Path

import numpy as np

from jointdiff.errors import InputError
from jointdiff.simulate.galaxies import Component, SourceSettings, draw_type_and_redshift, galaxy_colours
from jointdiff.units import flux as flux_of_magnitude

DIMMED = 2.0
"""Magnitudes by which a galaxy is dimmed, at least: its noise falls to a sixth or less."""

_SIZE_SLOPE = 0.269  # of ln r with magnitude (Miller et al. 2013, as in galaxies.draw_scale_length)


def galaxies_of(folder: Path) -> list[str]:
    """The identifiers of a folder's galaxies. Raises InputError as catalogue_of does."""
    return [str(name) for name in catalogue_of(folder).ident]


@cache
def catalogue_of(folder: Path):
    """The galsim.RealGalaxyCatalog of a folder: the first real_galaxy_catalog_….fits whose images are there.

    Raises InputError where there is none, or its files are not what they should be.
    """
    import galsim

    paths = [
        p for p in sorted(folder.glob("real_galaxy_catalog*.fits")) if not p.stem.endswith(("_fits", "_selection"))
    ]
    lacking = []
    for path in paths:
        try:
            catalogue = galsim.RealGalaxyCatalog(path.name, dir=str(folder))
            needed = [*catalogue.gal_file_name, *catalogue.psf_file_name]
        except (OSError, KeyError, ValueError, galsim.GalSimError) as error:
            raise InputError(
                f"library.images: not a RealGalaxyCatalog: {' '.join(str(error).split())} ({path})"
            ) from error
        names = dict.fromkeys(Path(str(name)).name for name in needed)
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return catalogue
        lacking.append(f"{path.name} lacks {missing[0]}")
    told = "; ".join(lacking) or "no real_galaxy_catalog….fits"
    raise InputError(f"library.images: {told} ({folder})")


def holds(folder: Path, magnitude: float) -> bool:
    """Whether the sample has a galaxy that can be dimmed to this magnitude."""
    return float(np.min(catalogue_of(folder).mag)) <= magnitude - DIMMED


def draw_cosmos(
    folder: Path, rng: np.random.Generator, magnitude: float, filters: tuple[str, ...], settings: SourceSettings
) -> tuple[list[Component], dict]:
    """A galaxy of this VIS magnitude (one that ``holds``) with the shape of a real one, at a random angle."""
    import galsim

    catalogue = catalogue_of(folder)
    brightness = np.asarray(catalogue.mag, float)
    fit = np.flatnonzero(brightness <= magnitude - DIMMED)
    index = int(fit[rng.integers(len(fit))])
    spectral_type, redshift = draw_type_and_redshift(rng, magnitude, settings.max_redshift)
    angle, mirror = float(rng.uniform(0, 2 * np.pi)), float(rng.choice((-1, 1)))
    profile = galsim.RealGalaxy(catalogue, index=index, flux=1.0)
    profile = profile.dilate(float(np.exp(-_SIZE_SLOPE * (magnitude - brightness[index]))))
    profile = profile.transform(1, 0, 0, mirror).rotate(angle * galsim.radians)
    image = galsim.Convolve(profile, galsim.Gaussian(fwhm=settings.psf_fwhm))
    fluxes = flux_of_magnitude(magnitude) * galaxy_colours(spectral_type, redshift, filters)
    properties = {"kind": "galaxy", "group": str(catalogue.ident[index]), "redshift": redshift, "angle": angle}
    return [Component(image, fluxes)], properties | {"spectral_type": spectral_type}
