"""scarlet2: each source one positive shape times one spectrum, all fitted together (Melchior et al. 2018, A&C 24, 129).

    x = Σ_k s_k ⊗ m_k,    minimise ½ ‖N^{-1/2}(y − A x)‖² over s_k > 0 and m_k > 0, by Adam from Gaussian moments

Sources, shapes, spectra, constraints, initialisation and optimiser are the package's, as its authors use them.
Rendering is our own A, for two reasons: every method is then compared through the same physics, and the package's own
rendering at several resolutions is off by half a pixel for stamps of even size (scarlet2 0.5.1).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.forward import ForwardModel
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.bootstrap import Estimator, PointEstimate
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid, Observation
from jointdiff.units import SIGMA_PER_FWHM

BOXES = (9, 13, 19, 27, 39, 55)
"""Sides of the boxes in which moments are taken, pixels: odd, so that a source has a central one. The package grows
them as long as the colour at their edge is that of the centre, which the noise of the first look ends early, so fits
have boxes twice as wide. In them as they are a fifth to a third of the flux of blended sources was lost; three times as
wide, noise counted as flux (1.4 times too much in VIS of one blend)."""

EMPTY = 1e-3
"""Of the peak: what a fit starts with in the wider box."""

SPECTRUM_STEP, SHAPE_STEP = 0.05, 0.1
"""Of Adam, in the logarithm: over the norm of the spectrum, and of a pixel of the shape; as the authors have them."""

FIRST_LOOK = 15
"""Samples of the Wiener filter whose scatter is the noise in which sources are found."""

THRESHOLD = 4.0
"""Significance of the pixels of a source in that first look."""

FAINTEST = 1e-3
"""Least flux of a source in a band, over its largest, with which the fit starts: logarithms have no zero."""


class Scarlet(PointEstimate):
    """The fit of the sources that the joint Wiener filter of the observations shows; light of no source is lost.

    iterations: most steps of Adam. tolerance: relative change of every parameter at which the fit ends. Noise counts as
    white. Raises InputError where scarlet2, the extra ``baselines``, is not installed.
    """

    method = "scarlet2"

    def __init__(self, denoiser: Denoiser, iterations: int = 200, tolerance: float = 1e-4):
        super().__init__(denoiser)
        self.iterations, self.tolerance = iterations, tolerance
        try:
            import scarlet2  # noqa: F401
        except ImportError as error:
            raise InputError("method scarlet2: not installed; pip install 'jointdiff[baselines]'") from error

    def estimator(self, observations: Sequence[Observation], grid: Grid) -> Estimator:
        # From the given noise, not from the stream of samples: the sources are the same in every bootstrap.
        first = Wiener(self.denoiser).sample(observations, grid, FIRST_LOOK, NoiseStream(0, "first look"))
        names = [band.name for band in self.denoiser.bands]
        centres = _peaks(first.samples, first.mean)
        if not len(centres):
            return lambda images: torch.zeros(len(images[0]), *first.mean.shape).to(first.mean)
        torus = Torus(self.denoiser.forward_model(observations, grid), observations)
        sigma = SIGMA_PER_FWHM * self.denoiser.target_fwhm / grid.scale
        scene = _scene(torus, names, centres, first.mean, first.samples.var(0), sigma)
        weights, renderer = torus.flat([o.ivar for o in observations]), _renderer(torus)

        def estimate(images: Sequence[Tensor]) -> Tensor:
            skies = []
            for number in range(len(images[0])):
                data = torus.flat([image[number : number + 1] for image in images])
                fitted = scene.fit(
                    [_seen(data, weights, renderer)],
                    max_iter=self.iterations,
                    e_rel=self.tolerance,
                    progress_bar=False,
                )
                skies.append(torus.fold(torch.tensor(np.array(fitted()))))
            return torch.cat(skies).to(images[0])

        return estimate


class Torus:
    """A as a function of numpy arrays, of a frame that is wider than the torus by half its side all around.

    scarlet2 knows no torus: a source that leaves it goes on in the margin, which is folded back.
    """

    def __init__(self, model: ForwardModel, observations: Sequence[Observation]):
        self.model, self.shapes = model, [o.image.shape[-2:] for o in observations]
        self.grid = model.grid
        self.margin = tuple(side // 2 for side in self.grid.shape)
        self.frame = tuple(side + 2 * margin for side, margin in zip(self.grid.shape, self.margin, strict=True))
        self.bands = len(model.bands)
        self.pixels = sum(h * w for h, w in self.shapes)

    def fold(self, sky: Tensor) -> Tensor:
        """(C, ·, ·) on the frame to (1, C, H, W) on the torus."""
        for axis, (side, margin) in enumerate(zip(self.grid.shape, self.margin, strict=True), 1):
            index = (torch.arange(side + 2 * margin) - margin) % side
            shape = list(sky.shape)
            shape[axis] = side
            sky = sky.new_zeros(shape).index_add(axis, index, sky)
        return sky[None]

    def unfold(self, sky: Tensor) -> Tensor:
        """The transpose of fold: (1, C, H, W) to the frame, every pixel of it as the torus has it."""
        sky = sky[0]
        for axis, (side, margin) in enumerate(zip(self.grid.shape, self.margin, strict=True), 1):
            sky = sky.index_select(axis, (torch.arange(side + 2 * margin) - margin) % side)
        return sky

    @staticmethod
    def flat(images: Sequence[Tensor]) -> np.ndarray:
        """Images (1, h, w), masked pixels zero, as one row (1, 1, N)."""
        return torch.nan_to_num(torch.cat([image.flatten() for image in images]))[None, None].cpu().numpy()

    def forward(self, sky: Any) -> np.ndarray:
        """A of a frame (C, ·, ·): (1, 1, N)."""
        return self.flat(self.model(self.fold(_tensor(sky))))

    def backward(self, row: Any) -> np.ndarray:
        """Aᵀ of (1, 1, N), on the frame."""
        parts = _tensor(row).flatten().split([h * w for h, w in self.shapes])
        images = [part.view(1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return self.unfold(self.model.adjoint(images)).numpy()


def _peaks(samples: Tensor, mean: Tensor) -> np.ndarray:
    """Barycentres (K, 2), pixels (y, x), of the sources of a sky (C, H, W), bands weighed by their noise in samples."""
    import sep

    weights = 1 / samples.var(0).mean((-2, -1), keepdim=True)
    light, noise = ((sky * weights).sum(-3).double() for sky in (mean, samples))
    found = sep.extract(light.numpy(), THRESHOLD, err=noise.std(0).numpy(), minarea=5, deblend_cont=0.005)
    return np.stack([found["y"], found["x"]], 1)


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array), dtype=torch.float32)


def _renderer(torus: Torus):
    """A as a renderer of scarlet2, whose derivative is Aᵀ."""
    import jax
    import jax.numpy as jnp
    from scarlet2.renderer import Renderer

    rows = jax.ShapeDtypeStruct((1, 1, torus.pixels), jnp.float32)
    skies = jax.ShapeDtypeStruct((torus.bands, *torus.frame), jnp.float32)

    @jax.custom_vjp
    def render(sky):
        return jax.pure_callback(torus.forward, rows, sky)

    def onward(sky):
        return render(sky), None

    def back(_, row):
        return (jax.pure_callback(torus.backward, skies, row),)

    render.defvjp(onward, back)

    class Ours(Renderer):
        def __call__(self, model, key=None):
            return render(model)

    return Ours()


def _seen(data: np.ndarray, weights: np.ndarray, renderer):
    """All images as one Observation of scarlet2."""
    from scarlet2 import Observation as Seen

    return Seen(data, weights, channels=["all"], renderer=renderer)


def _scene(torus: Torus, names: Sequence[str], centres: np.ndarray, mean: Tensor, variance: Tensor, sigma: float):
    """A Scene of scarlet2 on the frame: sources at centres (K, 2) of the torus, with the moments of a mean there."""
    import jax.numpy as jnp
    from numpyro.distributions import constraints
    from scarlet2 import Box, Frame, GaussianPSF, Parameter, Parameters, Scene, Source, relative_step, set_validation

    set_validation(False)  # its checks print, and expect images where ours are one row of pixels
    psf = GaussianPSF(sigma)
    frame = Frame(Box((len(names), *torus.frame)), psf=psf, channels=list(names))
    look = _first_look(torus, names, mean, variance, psf)
    with Scene(frame) as scene:
        for centre in centres:
            at = jnp.array(centre + np.array(torus.margin))
            Source(at, *_start(look, at))
    with Parameters(scene):
        for number, source in enumerate(scene.sources):
            kept = {"constraint": constraints.positive}
            step = partial(relative_step, factor=SPECTRUM_STEP)
            Parameter(source.spectrum, name=f"spectrum:{number}", stepsize=step, **kept)
            Parameter(source.morphology, name=f"morphology:{number}", stepsize=SHAPE_STEP, **kept)
    return scene


def _first_look(torus: Torus, names: Sequence[str], mean: Tensor, variance: Tensor, psf):
    """The Wiener mean as an Observation on the frame, from which sources are initialised."""
    from scarlet2 import Observation as Seen

    light, weights = (torus.unfold(sky[None]).cpu().numpy() for sky in (mean, 1 / variance))
    stamp = np.broadcast_to(np.asarray(psf()), (len(names), *psf().shape))
    return Seen(light, weights, psf=np.array(stamp), channels=list(names), renderer=_same)


def _same(model, key=None):
    return model


def _start(look, at) -> tuple:
    """Spectrum and shape with which a source's fit starts: of its moments or, where it has none, a point's."""
    import jax.numpy as jnp
    from scarlet2 import init

    try:
        spectrum, shape = init.from_gaussian_moments(look, at, box_sizes=list(BOXES), min_corr=0.99)
        good = bool(jnp.isfinite(spectrum).all() & jnp.isfinite(shape).all() & (spectrum.max() > 0))
    except (ValueError, AssertionError, IndexError, TypeError):
        good = False
    if not good:
        spectrum, shape = init.pixel_spectrum(look, at), init.compact_morphology()
    least = FAINTEST * float(jnp.abs(spectrum).max())
    shape = jnp.pad(shape, shape.shape[0] // 2, constant_values=EMPTY)
    return jnp.maximum(spectrum, max(least, 1e-6)), shape
