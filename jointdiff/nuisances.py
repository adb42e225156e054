"""What nobody knows of an observation: its exact position, zero point, PSF width and sky level (METHOD section 5).

Each is one number an observation, and moves all of its pixels together: to first order by an image m times a number of
unit deviation, so that the noise has the covariance N + Σ m mᵀ (Bridle et al. 2002, MNRAS 335, 1193, for calibration
and beam). A variance pixel by pixel would not do: it averages out over a source, and the error does not.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from jointdiff.forward import ForwardModel, wavevectors
from jointdiff.gaussian import GaussianPosterior
from jointdiff.scene import Observation

_WIDER = 0.02
"""Half the step of the derivative by the PSF's width."""


@dataclass(frozen=True)
class Levels:
    """Standard deviations, as of simulate.observe.Conditions.

    jitter: arcsec along each axis, but for VIS. zero_point, psf: fractions. sky: over the noise of the deepest pixel.
    """

    jitter: float = 0.0
    zero_point: float = 0.0
    psf: float = 0.0
    sky: float = 0.0


def marginal_posterior(
    model: ForwardModel, observations: Sequence[Observation], gamma: Tensor, levels: Levels, **options
) -> GaussianPosterior:
    """The Gaussian posterior whatever the nuisances; without any, the posterior itself. options: of GaussianPosterior.

    The images m are those of the posterior mean, not the data, whose noise would correlate with its own weight.
    """
    plain = GaussianPosterior(model, observations, gamma, **options)
    if not any(astuple(levels)):
        return plain
    open_ = with_modes(model, observations, plain.mean, levels)
    return GaussianPosterior(model, open_, gamma, **options | {"amplitude": plain.amplitude, "start": plain.mean})


def with_modes(
    model: ForwardModel, observations: Sequence[Observation], mean: Tensor, levels: Levels
) -> list[Observation]:
    """The observations with the modes that a scene (B, C, H, W) and the levels give them."""
    light = model(mean)
    wide, narrow = (_stretched(model, observations, factor)(mean) for factor in (1 + _WIDER, 1 - _WIDER))
    k = 2j * torch.pi * torch.as_tensor(wavevectors(model.grid)).to(mean)
    slopes = [model.times(k[..., axis])(mean) for axis in (0, 1)]
    opened = []
    for number, o in enumerate(observations):
        level = o.ivar.amax((1, 2), keepdim=True).clamp(min=1e-30).rsqrt()
        width = (wide[number] - narrow[number]) / (2 * _WIDER)
        modes = [levels.zero_point * light[number], levels.psf * width, levels.sky * level.expand_as(o.image)]
        modes += [(o.band.name != "VIS") * levels.jitter * slope[number] for slope in slopes]
        opened.append(replace(o, modes=torch.stack(modes, 1) * (o.ivar > 0).unsqueeze(1)))
    return opened


def _stretched(model: ForwardModel, observations: Sequence[Observation], factor: float) -> ForwardModel:
    """The model with every PSF, its pixel included, wider by a factor."""
    frames = [replace(o.frame, psf_scale=factor * o.frame.psf_scale) for o in observations]
    seen = [replace(o, frame=frame) for o, frame in zip(observations, frames, strict=True)]
    return ForwardModel(model.grid, model.bands, model.target_fwhm, seen)
