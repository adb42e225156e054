"""Joint multi-band deconvolution: sharp and blurred images of one sky in, posterior samples of the sharp sky out.

    import jointdiff
    denoiser = jointdiff.load_denoiser("runs/demo/model")
    sky = jointdiff.reconstruct(observations, denoiser, num_samples=32, seed=0)

Names are imported when first used: ``import jointdiff`` is instant.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "InputError": "errors",
    "Band": "scene",
    "Grid": "scene",
    "Frame": "scene",
    "Observation": "scene",
    "Scene": "scene",
    "ForwardModel": "forward",
    "GaussianPosterior": "gaussian",
    "read_field": "io.scene_files",
    "Denoiser": "diffusion.denoiser",
    "Reconstructor": "reconstruct.base",
    "load_denoiser": "reconstruct.checkpoint",
    "read_calibration": "measure.conformal",
    "measure": "measure.catalog",
}
"""The module of each public name; ``reconstruct`` is a package that can be called."""

__all__ = ["reconstruct", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "reconstruct":
        return import_module("jointdiff.reconstruct")
    if name in _HOMES:
        return getattr(import_module(f"jointdiff.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jointdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
