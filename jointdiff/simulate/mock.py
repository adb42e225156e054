"""Mock observations of scenes whose truth is known: the library, composed and observed, by number."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jointdiff.decimate import at_its_resolution
from jointdiff.forward import with_floors
from jointdiff.scene import Band, Grid, Observation
from jointdiff.seeds import seed_of
from jointdiff.simulate.compose import Crowding, compose, scene_of, sky_grid
from jointdiff.simulate.library import Library
from jointdiff.simulate.observe import GEOMETRIES, Conditions, Geometry, Telescope


@dataclass(frozen=True)
class Mock:
    """A batch: true scenes (B, C, H, W) in nJy per pixel, and their observations."""

    truth: Tensor
    observations: list[Observation]


class Simulator:
    """Draws mocks on the scene's torus, each a function of its key alone.

    library: on the device that draws, in the scene's bands and in those that the geometries see. geometries: names of
    GEOMETRIES; one serves a whole batch.
    """

    def __init__(
        self,
        library: Library,
        bands: Sequence[Band],
        grid: Grid,
        target_fwhm: float,
        crowding: Crowding,
        conditions: Conditions,
        geometries: Sequence[str],
    ):
        self.library, self.bands, self.grid, self.target_fwhm = library, tuple(bands), grid, target_fwhm
        self.crowding, self.conditions, self.geometries = crowding, conditions, tuple(geometries)
        self.device = next(iter(library.stamps.values())).device
        self.sky = sky_grid(grid, library.pixel_scale)
        self._telescope = Telescope(grid, self.sky, library.psf_fwhm, bands, conditions)

    def but(
        self,
        library: Library | None = None,
        conditions: Conditions | None = None,
        crowding: Crowding | None = None,
    ) -> "Simulator":
        """The same simulator of other sources, thrown otherwise, or under other conditions."""
        layout = (self.bands, self.grid, self.target_fwhm, crowding or self.crowding)
        return Simulator(library or self.library, *layout, conditions or self.conditions, self.geometries)

    def composed(self, geometry: Geometry) -> list[Band]:
        """The channels of a sky that a geometry is to see: the scene's bands, then filters other than the scene's."""
        return list(dict.fromkeys([*self.bands, *map(geometry.seen, self.bands)]))

    def skies(self, batch: int, generator: torch.Generator, bands: Sequence[Band] | None = None) -> Tensor:
        """Composed skies (B, C, ·, ·) on the fine grid, in the scene's bands or those given. generator: on the CPU."""
        return compose(self.library, bands or self.bands, self.sky, self.crowding, batch, generator)

    def scenes(self, skies: Tensor) -> Tensor:
        """The true scenes (B, C, H, W) of skies."""
        return scene_of(skies, self.sky, self.library.psf_fwhm, self.grid, self.target_fwhm)

    def draw(self, batch: int, seed: int) -> Mock:
        """Mocks as every method takes them: decimated, with the variance of all that the forward model leaves out."""
        return self.admitted(self.expose(batch, seed))

    def expose(self, batch: int, seed: int) -> Mock:
        """Mocks as an archive serves them: the same for the same seed, on one kind of device."""
        composer = torch.Generator().manual_seed(seed_of("compose", seed))
        geometry = GEOMETRIES[self.geometries[int(torch.randint(len(self.geometries), (), generator=composer))]]
        return self.expose_skies(self.skies(batch, composer, self.composed(geometry)), geometry, seed)

    def expose_skies(self, skies: Tensor, geometry: Geometry, seed: int) -> Mock:
        """Mocks of given skies (B, C, ·, ·), whose channels are ``composed(geometry)``, as an archive serves them.

        PSFs, depths, dithers and white noise are functions of the seed alone.
        """
        observer = torch.Generator(self.device).manual_seed(seed_of("observe", seed))
        channels = self.composed(geometry)
        through = skies[:, [channels.index(geometry.seen(band)) for band in self.bands]]
        mistakes = torch.Generator(self.device).manual_seed(seed_of("mistakes", seed))
        observations = self._telescope.observe(through, geometry, observer, mistakes)
        return Mock(self.scenes(skies[:, : len(self.bands)]), observations)

    def admitted(self, mock: Mock) -> Mock:
        """A mock as every method takes it: decimated, with the variance of all that the forward model leaves out."""
        seen = [with_floors(at_its_resolution(o, self.grid.scale), self.bands) for o in mock.observations]
        return replace(mock, observations=seen)


def complete(conditions: Conditions) -> Conditions:
    """The same conditions, errors that nobody knows of included, with every band observed, over the whole scene."""
    return replace(conditions, margin=0.0, drop_band=0.0, drop_ground=0.0, drop_vis=0.0, drop_all=0.0)
