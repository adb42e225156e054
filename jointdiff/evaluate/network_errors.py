"""Fitting the error of a trained network (reconstruct/refine.py): that with which its samples score best."""

import warnings
from dataclasses import replace

import numpy as np
import torch

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.calibration import crps
from jointdiff.evaluate.conformal import apertures
from jointdiff.evaluate.validation import Trial, Validation
from jointdiff.measure.photometry import fluxes
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.refine import refined

CANDIDATES = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Errors that are tried."""

SCENES, SAMPLES = 24, 15
"""Simulated scenes that they are tried on, with some 90 sources, and samples of each."""


@torch.no_grad()
def fit_network_errors(trials: Validation, denoiser: Denoiser, progress: bool = False) -> tuple[float, ...]:
    """Of CANDIDATES, band by band, the one whose aperture fluxes have the smallest mean CRPS on simulated scenes.

    Over the deviation of the network's own samples, so that no source counts for its brightness. All bands try one at
    once, for E leaves what a band tells of another to the network. Nothing is returned where no source was found.
    """
    from rich.progress import track

    bar = track(trials.trials, "network's errors", disable=not progress)
    scores = np.concatenate([_scores(trial, trials, denoiser) for trial in bar], axis=1)
    return tuple(CANDIDATES[best] for best in scores.mean(1).argmin(0)) if scores.size else ()


def _scores(trial: Trial, trials: Validation, denoiser: Denoiser) -> np.ndarray:
    """CRPS (candidates, K, C) of the K sources of one scene."""
    grid, stream = trials.grid, NoiseStream(trials.seed, f"network {trial.name}")
    method = Diffusion(denoiser, trials.evaluations, guard=False, refine=False)
    draws = method.sample(trial.observations, grid, trials.samples, stream)
    circles = apertures(draws.samples, denoiser, grid)
    truth = fluxes(trial.truth[None].cpu(), circles).numpy()[0]
    posterior = denoiser.condition(trial.observations, grid).posterior
    offsets = draws.offsets or [torch.zeros(())] * len(trial.observations)
    images = [
        replace(o, image=o.image - offset.to(o.image)) for o, offset in zip(trial.observations, offsets, strict=True)
    ]
    scores, numbers = [], range(trials.samples)
    for candidate in CANDIDATES:
        errors = [candidate] * len(denoiser.bands)
        tried, solved = refined(draws.samples, posterior, images, posterior.mean, errors, numbers, stream)
        if not solved:
            warnings.warn(f"{trial.name}: a network error of {candidate:g} was tried in part only", stacklevel=2)
        scores.append(crps(fluxes(tried.cpu(), circles).numpy(), truth))
    return np.stack(scores) / fluxes(draws.samples.cpu(), circles).numpy().std(0, ddof=1)
