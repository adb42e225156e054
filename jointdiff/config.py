"""The only place that turns settings into objects: one function per command.

Only the standard library is imported at the top: ``--help`` must not wait for torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jointdiff.settings import Config, positive, require

@dataclass(frozen=True)
class ReconstructConfig:
    """One reconstruction: scene files in, posterior samples and a catalog out.

    Attributes:
        scene: A scene.yaml; repeat the option for more.
        output: Folder to write to, one folder a scene inside.
        method: How to reconstruct.
        mode: How the diffusion method sees the data.
        num_samples: Posterior samples per scene.
        evaluations: Evaluations of the network per sample.
        seed: Seed of the samples.
        checkpoint: Folder model/ of a trained run; without it, the weights packaged with jointdiff.
    """

    scene: tuple[str, ...] = ()
    output: str = ""
    method: Literal["diffusion", "wiener"] = "diffusion"
    mode: Literal["amortized", "factorized"] = "amortized"
    num_samples: int = 32
    evaluations: int = 8
    seed: int = 0
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.scene), "scene", "missing", "--scene FILE")
        require(all(isinstance(path, str) for path in self.scene), "scene", list(self.scene), "file names")
        require(bool(self.output), "output", "missing", "--output FOLDER")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        positive(self, "", "num_samples evaluations")


def save_config(config: Config | ReconstructConfig, path: str | Path) -> None:
    """Write the resolved config as YAML that ``--config`` reads back; whole or not at all."""
    import yaml

    from jointdiff.io.atomic import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(asdict(config), sort_keys=False))


def simulate(config: Config) -> None:
    """Draw the library of galaxies and stars."""
    raise NotImplementedError("simulate")


def train(config: Config) -> None:
    """Train the denoiser."""
    raise NotImplementedError("train")


def reconstruct(config: ReconstructConfig) -> None:
    """Sample the sharp sky of scene files, and measure it."""
    raise NotImplementedError("reconstruct")


def evaluate(config: Config) -> None:
    """Score a trained run against the truth."""
    raise NotImplementedError("evaluate")
