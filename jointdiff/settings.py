"""Settings: plain dataclasses with defaults and bounds, that YAML fills and every module may read.

The defaults are the demo's (configs/demo.yaml says the same), so an installed wheel needs no file.
Only the standard library is imported: ``--help`` must not wait for torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from jointdiff.errors import InputError

Geometry = Literal["lsst", "hsc", "mer"]
Precision = Literal["auto", "no", "bf16"]
Baseline = Literal[
    "wiener-band",
    "richardson-lucy",
    "isra",
    "starlet",
    "scarlet2",
    "dps",
    "dps-vis",
    "pigdm",
    "pigdm-vis",
    "mmps",
    "mmps-vis",
]
"""Methods to compare with (METHOD section 11)."""
Method = Literal["diffusion", "wiener", Baseline]
"""How to reconstruct."""
Compared = Literal[Baseline, "templates", "oracle"]
"""What a scoreboard can hold beside our own method and the joint Wiener filter: two of them are photometry alone."""


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuse a value of the right type but out of range; NaN fails every comparison, so it is refused too."""
    if not condition:
        raise InputError(f"{key} is {value}, expected {expected}")


def positive(section: object, prefix: str, names: str) -> None:
    for name in names.split():
        value = getattr(section, name)
        require(0 < value < float("inf"), prefix + name, value, "more than 0")


def fractions(section: object, prefix: str, names: str) -> None:
    for name in names.split():
        value = getattr(section, name)
        require(0 <= value <= 1, prefix + name, value, "a fraction from 0 to 1")


@dataclass(frozen=True)
class LibraryConfig:
    """The library of noiseless galaxy and star stamps.

    Attributes:
        count: Number of stamps.
        shard_size: Stamps per shard; a killed simulation loses at most one shard.
        workers: Processes that draw; 0 means every core.
        magnitudes: Brightest and faintest VIS magnitude (AB).
        star_fraction: Fraction of the stamps that are stars.
        stamp_sizes: Sides that a stamp may have, in pixels of half a scene pixel; the smallest that holds the source.
        source: Where galaxies come from: GalSim's models, SKIRT images of simulated ones (tng), or HST's (cosmos).
        images: Folder of the images, for tng and cosmos.
        image_fraction: Fraction of the galaxies that are drawn from the images; GalSim's models are the others.
        redshifts: Redshifts between which simulated galaxies (tng) are seen.
    """

    count: int = 3000
    shard_size: int = 125
    workers: int = 0
    magnitudes: tuple[float, float] = (19.0, 26.5)
    star_fraction: float = 0.08
    stamp_sizes: tuple[int, ...] = (64, 128, 192)
    source: Literal["galsim", "tng", "cosmos"] = "galsim"
    images: str = ""
    image_fraction: float = 1.0
    redshifts: tuple[float, float] = (0.2, 1.0)

    def __post_init__(self) -> None:
        positive(self, "library.", "count shard_size")
        require(self.workers >= 0, "library.workers", self.workers, "at least 0")
        bright, faint = self.magnitudes
        require(bright < faint, "library.magnitudes", [bright, faint], "the brighter (smaller) magnitude first")
        fractions(self, "library.", "star_fraction image_fraction")
        expected = "the folder of the images" if self.source != "galsim" else "nothing for source galsim"
        require(bool(self.images) == (self.source != "galsim"), "library.images", self.images or "missing", expected)
        near, far = self.redshifts
        require(0 < near <= far <= 4, "library.redshifts", [near, far], "two above 0, the nearer first, at most 4")


@dataclass(frozen=True)
class SceneConfig:
    """The scenes composed from the library, and how they are observed.

    The four errors are those that nobody knows of: scenes that a run is scored and calibrated on have them, and its
    model's samples allow for them in any field. Training needs none.

    Attributes:
        size: Scene pixels on a side.
        pixel_scale: Scene pixel in arcsec.
        target_fwhm: FWHM of the Gaussian target PSF in arcsec; at least two pixels.
        mean_sources: Mean number of sources in a scene that is not empty; at least 1.
        empty_fraction: Fraction of scenes that are empty sky.
        geometries: Ground pixel grids to train on, one per batch.
        margin: Fraction of scenes observed only in a central core.
        drop_band: Probability that a ground band is missing.
        drop_ground: Probability that every ground band is missing.
        drop_vis: Probability that VIS is missing.
        drop_all: Probability that every observation is missing.
        jitter: Error of the served position of a ground image along each axis, arcsec.
        zero_point_error: Fractional error of the served zero point.
        psf_error: Fractional error of the served PSF's width; in VIS its change with colour.
        sky_error: Error of the subtracted sky over the sky noise of a pixel.
    """

    size: int = 64
    pixel_scale: float = 0.1
    target_fwhm: float = 0.2
    mean_sources: float = 4.0
    empty_fraction: float = 0.06
    geometries: tuple[Geometry, ...] = ("lsst", "hsc", "mer")
    margin: float = 0.3
    drop_band: float = 0.1
    drop_ground: float = 0.03
    drop_vis: float = 0.03
    drop_all: float = 0.02
    jitter: float = 0.0
    zero_point_error: float = 0.0
    psf_error: float = 0.0
    sky_error: float = 0.0

    def __post_init__(self) -> None:
        positive(self, "scene.", "size pixel_scale")
        least = 2 * self.pixel_scale
        expected = f"at least {least:g}, two pixels, or the scene would be aliased"
        require(least * (1 - 1e-9) <= self.target_fwhm < float("inf"), "scene.target_fwhm", self.target_fwhm, expected)
        require(1 <= self.mean_sources < float("inf"), "scene.mean_sources", self.mean_sources, "at least 1")
        fractions(self, "scene.", "empty_fraction margin drop_band drop_ground drop_vis drop_all")
        for name, most in {"jitter": 0.2, "zero_point_error": 0.1, "psf_error": 0.1, "sky_error": 1.0}.items():
            value = getattr(self, name)
            require(0 <= value <= most, f"scene.{name}", value, f"0 to {most:g}")
        require(bool(self.geometries), "scene.geometries", "empty", "at least one geometry")


@dataclass(frozen=True)
class NetworkConfig:
    """The network inside the denoiser.

    Attributes:
        widths: Channels at each resolution, from half the scene's down.
        blocks: Residual blocks per resolution, on the way down and up.
    """

    widths: tuple[int, ...] = (64, 96, 128)
    blocks: int = 2

    def __post_init__(self) -> None:
        positive(self, "network.", "blocks")
        require(bool(self.widths), "network.widths", "empty", "at least one width")
        require(all(width > 0 for width in self.widths), "network.widths", list(self.widths), "more than 0")

    @property
    def stride(self) -> int:
        """Scene pixels on a side of the coarsest network pixel: UNet.stride."""
        return 2 ** len(self.widths)


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop.

    Attributes:
        steps: Optimiser steps.
        batch_size: Scenes per step and process.
        noise_levels: Noise levels that each scene is seen at in a step.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        decay: Last part of the run, over which the learning rate falls to zero.
        weight_decay: Decoupled weight decay.
        ema_halflife: Half-life of the weights' moving average in steps.
        gradient_clip: Largest norm of the gradient.
        checkpoint_every: Steps between resume states.
        validate_every: Steps between validations.
        validation_scenes: Scenes in a validation, seen whole.
        validation_cut_scenes: Scenes beside them whose edge cuts sources; 0 for none.
        validation_samples: Posterior samples of each of them.
        log_every: Steps between lines in TensorBoard.
        mixed_precision: auto takes bf16 where the device has it.
    """

    steps: int = 2400
    batch_size: int = 4
    noise_levels: int = 2
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    decay: float = 0.4
    weight_decay: float = 0.01
    ema_halflife: float = 50.0
    gradient_clip: float = 0.5
    checkpoint_every: int = 400
    validate_every: int = 1200
    validation_scenes: int = 8
    validation_cut_scenes: int = 4
    validation_samples: int = 8
    log_every: int = 20
    mixed_precision: Precision = "auto"

    def __post_init__(self) -> None:
        positive(self, "training.", "steps batch_size noise_levels learning_rate ema_halflife gradient_clip")
        positive(self, "training.", "checkpoint_every validate_every validation_scenes log_every")
        cut = self.validation_cut_scenes
        require(cut >= 0, "training.validation_cut_scenes", cut, "at least 0")
        require(self.validation_samples >= 2, "training.validation_samples", self.validation_samples, "at least 2")
        fractions(self, "training.", "decay")
        require(self.warmup_steps >= 0, "training.warmup_steps", self.warmup_steps, "at least 0")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True)
class SamplingConfig:
    """Posterior sampling, and the scenes that a trained run is scored on.

    Attributes:
        scenes: Simulated scenes with every band present, of galaxies never trained on, seen whole.
        cut_scenes: Scenes beside them whose edge cuts sources, as a real field's does; 0 for none.
        samples: Samples per scene; 31 makes ranks easy.
        evaluations: Evaluations of the network per sample.
        baselines: Methods to compare with, beside the joint Wiener filter.
    """

    scenes: int = 48
    cut_scenes: int = 12
    samples: int = 15
    evaluations: int = 8
    baselines: tuple[Compared, ...] = ()

    def __post_init__(self) -> None:
        positive(self, "sampling.", "scenes")
        require(self.cut_scenes >= 0, "sampling.cut_scenes", self.cut_scenes, "at least 0")
        require(self.samples >= 2, "sampling.samples", self.samples, "at least 2, whose scatter is the error")
        require(self.evaluations >= 3, "sampling.evaluations", self.evaluations, "at least 3")


@dataclass(frozen=True)
class CalibrationConfig:
    """calibration.json beside the weights: fitted after training, on galaxies that neither training nor scores see.

    Attributes:
        scenes: Simulated scenes that the factors of stated errors are fitted on; 0 fits none.
        samples: Samples per scene.
        mode_scenes: Scenes on which both modes are compared, for reconstruct's --mode both; each takes as long as
            some 40 others; 0 for none.
    """

    scenes: int = 48
    samples: int = 15
    mode_scenes: int = 0

    def __post_init__(self) -> None:
        for name in ("scenes", "mode_scenes"):
            require(getattr(self, name) >= 0, f"calibration.{name}", getattr(self, name), "at least 0")
        require(self.samples >= 2, "calibration.samples", self.samples, "at least 2, whose scatter is the error")


def _demo_filters() -> dict[str, str]:
    return {"VIS": "VIS"} | {band: f"hsc-{band}" for band in "grizy"}


@dataclass(frozen=True)
class Config:
    """One run, from the galaxy library to the scoreboard.

    Attributes:
        run: Folder of the run.
        seed: Seed of everything random.
        bands: Scene bands, VIS among them, in the order of the scene's channels.
        filters: Filter curve of each scene band.
        resume: Continue from the run's last checkpoint.
    """

    run: str = "runs/demo"
    seed: int = 0
    bands: tuple[str, ...] = ("VIS", "g", "r", "i", "z", "y")
    filters: dict[str, str] = field(default_factory=_demo_filters)
    library: LibraryConfig = field(default_factory=LibraryConfig)
    scene: SceneConfig = field(default_factory=SceneConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    resume: bool = False

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        size, stride = self.scene.size, self.network.stride
        expected = f"a multiple of {stride} for network.widths {list(self.network.widths)}"
        require(size % stride == 0, "scene.size", size, expected)
        require("VIS" in self.bands, "bands", list(self.bands), "VIS among them: its pixels are the scene's")
        for band in self.bands:
            require(self.bands.count(band) == 1, "bands", list(self.bands), f"band {band} once")
            require(band in self.filters, f"filters.{band}", "missing", "a filter for every band")
