"""The only place that turns settings into objects: one function per command.

Only the standard library is imported at the top: ``--help`` must not wait for torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jointdiff.settings import Config, require


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
        require(self.num_samples >= 2, "num_samples", self.num_samples, "at least 2, whose scatter is the error")
        require(self.evaluations >= 3, "evaluations", self.evaluations, "at least 3")
        require(self.mode == "amortized", "mode", self.mode, "amortized, the only mode so far")


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
    from importlib.metadata import version

    import torch

    from jointdiff.evaluate.field import FieldJob
    from jointdiff.io.products import merge_catalogs, write_catalog
    from jointdiff.io.scene_files import read_fields
    from jointdiff.reconstruct.api import build_reconstructor
    from jointdiff.reconstruct.checkpoint import checkpoint_folder, fingerprint, load_denoiser

    output = Path(config.output)
    require(output.is_dir() or not output.exists(), "output", output, "a folder")
    folder = checkpoint_folder(config.checkpoint)
    denoiser = load_denoiser(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    reconstructor = build_reconstructor(config.method, denoiser, config.evaluations)
    provenance = {
        "version": version("jointdiff"),
        "checkpoint": fingerprint(folder),
        "seed": config.seed,
        "method": reconstructor.method,
        "mode": reconstructor.mode,
        "evaluations": reconstructor.evaluations,
    }
    # Every field is read and checked before the first is sampled: a mistake in the last costs no time.
    jobs = [FieldJob(field, reconstructor, config.num_samples) for field in read_fields(config.scene)]
    catalogs = [job.run(output / job.field.name, config.seed, provenance) for job in jobs]
    merged = merge_catalogs(catalogs)
    write_catalog(output / "catalog.fits", merged, provenance)
    save_config(config, output / "reconstruct.yaml")
    print(f"{len(merged)} sources of {len(jobs)} field{'s' * (len(jobs) > 1)}: {output / 'catalog.fits'}")


def evaluate(config: Config) -> None:
    """Score a trained run against the truth."""
    raise NotImplementedError("evaluate")
