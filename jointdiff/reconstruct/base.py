"""Reconstructor: observations in, samples of the sharp sky out. Every method, classical or diffusion, is one.

A Reconstructor works on a periodic grid, as simulated scenes are; field.py brings real fields to one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.scene import Frame, Grid, Observation
from jointdiff.seeds import seed_of

CHUNK = 16
"""Samples drawn at a time, which bounds memory."""


@dataclass(frozen=True)
class NoiseStream:
    """The random numbers of one scene: each of its samples has its own, whatever is drawn beside it.

    A CPU generator a sample, keyed on (seed, scene name, sample number): batch size, order, rank and device
    change nothing.
    """

    seed: int
    name: str

    def normal(self, numbers: range, shapes: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, ...]:
        """White noise of the samples ``numbers``: a tensor (len(numbers), *shape) for each shape, as ``like``."""
        draws = []
        for number in numbers:
            generator = torch.Generator().manual_seed(seed_of(self.seed, number, self.name))
            draws.append([torch.randn(*shape, generator=generator) for shape in shapes])
        return tuple(torch.stack(parts).to(like) for parts in zip(*draws, strict=True))


@dataclass(frozen=True)
class Draws:
    """What a method says about one sky: samples (S, C, H, W) and posterior mean (C, H, W), nJy per pixel.

    converged: whether every linear system on the way was solved to its tolerance. offsets: what each sample takes each
    image to be off by, (S, h, w) in nJy per pixel; none where images are taken as they are.
    """

    samples: Tensor
    mean: Tensor
    converged: bool = True
    offsets: Sequence[Tensor] = ()


def misfits(images: Sequence[Tensor], models: Sequence[Tensor], offsets: Sequence[Tensor]) -> list[Tensor]:
    """y − A x − M ν, (S, h, w) for each image (h, w) or (1, h, w), of samples, or the first of them, whose skies look
    like ``models`` (S, h, w), and what they take the images to be off by, if they do."""
    left = [image - seen for image, seen in zip(images, models, strict=True)]
    return [a - b[: len(a)].to(a) for a, b in zip(left, offsets, strict=True)] if offsets else left


class Reconstructor(ABC):
    """A method: posterior samples of a sky given its observations.

    denoiser: holds what all methods share: the bands, the pixel scale, the target PSF and Γ.
    method, mode, evaluations: of the network per sample; None where a method has no such thing.
    """

    method: str
    mode: str | None = None
    evaluations: int | None = None

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    def provenance(self, seed: int, checkpoint: str) -> dict[str, object]:
        """What a product says of its making (io.products.PROVENANCE). checkpoint: sha256 of the weights."""
        made: dict[str, object] = {"version": version("jointdiff"), "seed": seed, "checkpoint": checkpoint}
        return made | {"method": self.method, "mode": self.mode, "evaluations": self.evaluations}

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
