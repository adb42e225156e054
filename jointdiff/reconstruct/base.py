"""Reconstructor: observations in, samples of the sharp sky out. Every method, classical or diffusion, is one.

A Reconstructor works on a periodic grid, as simulated scenes are; field.py brings real fields to one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.nuisances import Belief
from jointdiff.scene import Frame, Grid, Observation
from jointdiff.seeds import seed_of

CHUNK = 16
"""Samples drawn at a time, which bounds memory."""

BLOCK = 64
"""Side (pixels) of the squares of the sky that have random numbers of their own."""


@dataclass(frozen=True)
class NoiseStream:
    """The random numbers of one scene: each of its samples has its own, whatever is drawn beside it.

    CPU generators keyed on (seed, scene name, sample number) and, for noise on pixels, on what is noisy and on the
    pixels' place on the sky: batch size, order, rank and device change nothing, nor does how a field is cut.
    """

    seed: int
    name: str

    def apart(self, purpose: str) -> "NoiseStream":
        """Another stream of the scene's."""
        return NoiseStream(self.seed, f"{self.name} {purpose}")

    def white(self, numbers: range, grid: Grid, like: Tensor, purpose: str = "sky", channels: int = 0) -> Tensor:
        """White noise of the samples ``numbers`` on the pixels of a grid, (S, channels, H, W) or, for none, (S, H, W).

        The same in each pixel on all grids that are cuts of one (Grid.lattice): drawn by squares of BLOCK pixels.
        """
        return torch.stack([self._white(number, grid, purpose, channels) for number in numbers]).to(like)

    def data(self, numbers: range, observations: Sequence[Observation], like: Tensor) -> list[Tensor]:
        """White noise (S, h, w) on the pixels of each observation, by its band and filter: others change nothing."""
        labels = [f"{o.band.name} {o.band.filter}" for o in observations]
        purposes = [f"{label} {labels[:place].count(label)}" for place, label in enumerate(labels)]
        return [self.white(numbers, o.frame.grid, like, p) for o, p in zip(observations, purposes, strict=True)]

    def _white(self, number: int, grid: Grid, purpose: str, channels: int) -> Tensor:
        lead = (channels,) if channels else ()
        spans = [(first // BLOCK, (first + n - 1) // BLOCK) for first, n in zip(grid.lattice, grid.shape, strict=True)]
        rows, columns = (range(low, high + 1) for low, high in spans)
        drawn = torch.empty(*lead, BLOCK * len(rows), BLOCK * len(columns))
        for y in rows:
            for x in columns:
                key = seed_of(self.seed, number, self.name, purpose, y, x)
                square = torch.randn(*lead, BLOCK, BLOCK, generator=torch.Generator().manual_seed(key))
                top, left = BLOCK * (y - rows[0]), BLOCK * (x - columns[0])
                drawn[..., top : top + BLOCK, left : left + BLOCK] = square
        (top, left), (height, width) = (n % BLOCK for n in grid.lattice), grid.shape
        return drawn[..., top : top + height, left : left + width]

    def normal(self, numbers: range, shapes: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, ...]:
        """White numbers without a place on the sky: a tensor (len(numbers), *shape) for each shape, as ``like``."""
        draws = []
        for number in numbers:
            generator = torch.Generator().manual_seed(seed_of(self.seed, number, self.name))
            draws.append([torch.randn(*shape, generator=generator) for shape in shapes])
        return tuple(torch.stack(parts).to(like) for parts in zip(*draws, strict=True))


@dataclass(frozen=True)
class Shared:
    """What a tile has in common with the others of its field, so that they agree where they meet.

    amplitude: (1,). weights: (O, 1), the inverse variance of each observation per scene pixel of the field, nJy⁻².
    mean: (1, C, H, W), the Gaussian posterior mean, of the field or on the tile's torus: of a stopped solver, which
    stops elsewhere on other tori. belief: of what nobody knows of the observations; None for nothing.
    """

    amplitude: Tensor
    weights: Tensor
    mean: Tensor
    belief: Belief | None = None

    def to(self, like: Tensor) -> "Shared":
        """In the precision and on the device of a tensor."""
        belief = None if self.belief is None else self.belief.to(like)
        return Shared(self.amplitude.to(like), self.weights.to(like), self.mean.to(like), belief)

    @property
    def stationary(self) -> dict:
        """As GaussianPosterior takes them."""
        return {"amplitude": self.amplitude, "weights": list(self.weights)}

    def told(self, mean: Tensor | None) -> dict:
        """As Denoiser.condition takes them: a mean, the field's if none is given, as it is."""
        return self.stationary | {"start": self.mean if mean is None else mean, "tolerance": math.inf}


@dataclass(frozen=True)
class Draws:
    """What a method says about one sky: samples (S, C, H, W) and posterior mean (C, H, W), nJy per pixel.

    converged: whether every linear system on the way was solved to its tolerance. offsets: what each sample takes each
    image to be off by, (S, h, w) in nJy per pixel; none where images are taken as they are. replaced: (H, W), share
    of the samples for which the Gaussian posterior stands in (guard.py); None where nobody looked.
    """

    samples: Tensor
    mean: Tensor
    converged: bool = True
    offsets: Sequence[Tensor] = ()
    replaced: Tensor | None = None


def misfits(images: Sequence[Tensor], models: Sequence[Tensor], offsets: Sequence[Tensor]) -> list[Tensor]:
    """y − A x − M ν, (S, h, w) for each image (h, w) or (1, h, w), of samples, or the first of them, whose skies look
    like ``models`` (S, h, w), and what they take the images to be off by, if they do."""
    left = [image - seen for image, seen in zip(images, models, strict=True)]
    return [a - b[: len(a)].to(a) for a, b in zip(left, offsets, strict=True)] if offsets else left


class Reconstructor(ABC):
    """A method: posterior samples of a sky given its observations.

    denoiser: holds what all methods share: the bands, the pixel scale, the target PSF and Γ.
    method, mode, evaluations: of the network per sample; None where a method has no such thing.
    shared: of the field that it samples a tile of; None for a whole one. guard: whether the Gaussian posterior stands
    in where a sample contradicts the data (guard.py). network_errors: that its samples allow for (refine.py), by band;
    none where it has no network, or takes it at its word.
    """

    method: str
    mode: str | None = None
    evaluations: int | None = None
    shared: Shared | None = None
    guard: bool = False
    network_errors: tuple[float, ...] = ()

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    @property
    def seamless(self) -> bool:
        """Whether tiles of one field, sampled each by itself, meet without a seam."""
        return False

    @property
    def belief(self) -> Belief | None:
        """Of the errors of a field's observations, where a tile of it is sampled; None for what its own data tell."""
        return self.shared.belief if self.shared else None

    def sharing(self, shared: Shared) -> "Reconstructor":
        """The same method for the tiles of a field. The method must be seamless."""
        assert self.seamless, f"{self.method} knows no tiles"
        other = copy(self)
        other.shared = shared
        return other

    def provenance(self, seed: int, checkpoint: str) -> dict[str, object]:
        """What a product says of its making (io.products.PROVENANCE). checkpoint: sha256 of the weights."""
        made: dict[str, object] = {"version": version("jointdiff"), "seed": seed, "checkpoint": checkpoint}
        made |= {"method": self.method, "mode": self.mode, "evaluations": self.evaluations}
        told = " ".join(f"{error:g}" for error in self.network_errors) or None
        return made | {"guard": self.guard, "network_errors": told}

    def check(self, observations: Sequence[Observation], label: str) -> None:  # noqa: B027
        """Raises InputError, naming the field ``label``, for observations that the method cannot take."""

    @abstractmethod
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        """``count`` samples of one sky (B = 1) that is periodic on the grid."""


def single_scenes(observations: Sequence[Observation]) -> Iterator[list[Observation]]:
    """The scenes of a batch one by one, each with B = 1."""
    for scene in range(len(observations[0].image)):
        yield [_single(observation, slice(scene, scene + 1)) for observation in observations]


def _single(observation: Observation, scene: slice) -> Observation:
    frame = observation.frame
    shift = None if frame.shift is None else frame.shift[scene]
    single: Frame = replace(frame, psf=frame.psf[scene], shift=shift)
    correlation = None if observation.correlation is None else observation.correlation[scene]
    image, ivar = observation.image[scene], observation.ivar[scene]
    return replace(observation, frame=single, image=image, ivar=ivar, correlation=correlation)


def chunks(count: int, most: int) -> Iterator[range]:
    """Sample numbers 0 … count − 1 in runs of at most ``most``."""
    for start in range(0, count, most):
        yield range(start, min(start + most, count))
