"""The commands: one function each, from settings to what is left in the run folder.

Only the standard library is imported at the top: ``--help`` must not wait for torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jointdiff import build
from jointdiff.errors import InputError
from jointdiff.run_folder import refuse_other_run
from jointdiff.settings import Config, Method, require
from jointdiff.suites import EvaluateConfig


@dataclass(frozen=True)
class ReconstructConfig:
    """One reconstruction: scene files in, posterior samples and a catalog out.

    Attributes:
        scene: A scene.yaml; repeat the option for more.
        output: Folder to write to, one folder a scene inside.
        method: How to reconstruct.
        mode: How the diffusion method sees the data: all of them, or VIS alone, led by the ground's likelihood; both:
            the first, and sources that a few samples of the second disagree on are flagged.
        num_samples: Posterior samples per scene.
        evaluations: Evaluations of the network per sample.
        seed: Seed of the samples.
        align: Correct the positions of the images against the reference by their own light; true or false.
        stars: Subtract a star that outshines all else, and mask what that leaves; false keeps it as a source.
        refine: Let the data speak again where the network is known to be less exact; false takes its samples as drawn.
        guard: Let the Gaussian posterior stand in where the network contradicts the data; false takes it at its word.
        aliases: Columns of the catalog again under the names of Euclid's MER catalogue, or of Rubin's.
        ecsv: Write every catalog as ECSV (text), too; true or false.
        morphology: Samples that statmorph measures Sérsic index, C, A, Gini and M20 on; 0 for none.
        tile: Side (pixels) of the tiles that a larger field is cut into; 0 for 256, of fields above 512 × 512 alone.
        checkpoint: Folder model/ of a trained run; without it, the weights packaged with jointdiff.
    """

    scene: tuple[str, ...] = ()
    output: str = ""
    method: Method = "diffusion"
    mode: Literal["amortized", "factorized", "both"] = "amortized"
    num_samples: int = 32
    evaluations: int = 8
    seed: int = 0
    align: bool = True
    stars: bool = True
    guard: bool = True
    refine: bool = True
    aliases: Literal["none", "mer", "lsst"] = "none"
    ecsv: bool = False
    morphology: int = 0
    tile: int = 0
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.scene), "scene", "missing", "--scene FILE")
        require(all(isinstance(path, str) for path in self.scene), "scene", list(self.scene), "file names")
        require(bool(self.output), "output", "missing", "--output FOLDER")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.num_samples >= 2, "num_samples", self.num_samples, "at least 2, whose scatter is the error")
        require(self.evaluations >= 3, "evaluations", self.evaluations, "at least 3")
        measured = range(2, self.num_samples + 1)
        require(self.morphology in (0, *measured), "morphology", self.morphology, f"0, or 2 to {self.num_samples}")
        require(self.tile == 0 or self.tile >= 32, "tile", self.tile, "0, or at least 32")
        expected = f"amortized with method {self.method}: the other modes are of method diffusion"
        require(self.method == "diffusion" or self.mode == "amortized", "mode", self.mode, expected)


PATIENCE = 24
"""Hours that processes wait for the first of them, which draws the library and validates alone. The defaults of torch,
10 to 30 minutes, would end a large run there; a process that dies is noticed by the launcher, not by this."""

_ENDING = """
What was made, in {run}/:
  model/             the denoiser: weights, Γ, configuration and calibration of its errors (no pickle)
  tensorboard/       losses, scores and pictures:   {tensorboard} --logdir {run}
  scenes/            three ready fields as an archive would serve them, with their truth
  reconstructions/   their posterior samples, catalogs and figures; catalog.fits holds all sources
  evaluation/        scoreboard.txt, catalogs and figures of the tables above; calibration.ecsv, the last of them
Next: look at reconstructions/lsst/figure.png; reconstruct a field of your own with
  {python} -m jointdiff reconstruct --scene YOUR/scene.yaml --checkpoint {run}/model --output OUT"""


def save_config(config: Config | ReconstructConfig, path: str | Path) -> None:
    """Write the resolved config as YAML that ``--config`` reads back; whole or not at all."""
    import yaml

    from jointdiff.io.atomic import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(asdict(config), sort_keys=False))


def _use_cores() -> None:
    """All cores for the processes of this machine: ``accelerate launch`` gives one thread to each."""
    import os

    import torch

    from jointdiff.simulate.library import available_cores

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(max(1, available_cores() // processes))


def _program(name: str) -> str:
    """A program of this environment, as it is called from here: after ``make demo`` nothing is activated."""
    import sys

    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name


def simulate(config: Config) -> None:
    """Draw the library of galaxies and stars, and ready scenes of galaxies kept for tests."""
    from jointdiff.simulate.library import build_library

    build.check_bands(config)
    run, library, settings = Path(config.run), config.library, build.sources(config)
    sizes = (library.count, config.seed, library.workers, library.shard_size)
    build_library(run / "library", build.library_bands(config), settings, *sizes, images=build.images(config))
    for number, geometry in enumerate(config.scene.geometries):
        _draw_ready_scene(config, geometry, number)
    print(f"{library.count} sources in {run / 'library'}/, ready scenes in {run / 'scenes'}/")


def _draw_ready_scene(config: Config, geometry: str, number: int) -> None:
    """A field of galaxies kept for tests; one that is there stays, unless it was drawn with other settings."""
    from jointdiff.io.atomic import atomic_path
    from jointdiff.simulate.fields import write_mock_field

    folder, key = Path(config.run) / "scenes" / geometry, build.digest(config)
    mark = folder / "settings.sha256"
    if mark.is_file() and mark.read_text() == key and (folder / "scene.yaml").is_file():
        return
    mark.unlink(missing_ok=True)  # until the new scene is whole
    margin = build.margin_pixels(config)
    simulator = build.simulator(config, "test", margin, (geometry,))
    mock = simulator.expose(1, build.number_of(config, "ready scenes", number))
    layout = (build.bands(config), simulator.grid, config.scene.target_fwhm, margin)
    write_mock_field(folder, geometry, mock, *layout)
    with atomic_path(mark) as temporary:
        temporary.write_text(key)


def train(config: Config) -> None:
    """Train the denoiser on fresh mocks, from the run's library."""
    from datetime import timedelta

    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, set_seed

    from jointdiff.diffusion.denoiser import Denoiser
    from jointdiff.reconstruct.checkpoint import network_dtype
    from jointdiff.training import Trainer, resume_states

    run = Path(config.run)
    # Our own setting is the network's precision; Accelerate's would reach the Gaussian algebra, and give NaN.
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=PATIENCE))
    accelerator = Accelerator(
        mixed_precision="no", log_with="tensorboard", project_dir=str(run), kwargs_handlers=[patient]
    )
    _use_cores()
    refuse_other_run(config, run)
    with accelerator.main_process_first():
        if not (run / "library" / "index.json").is_file():
            simulate(config)
    states = resume_states(run)
    finished = bool(states) and states[-1].name == f"step_{config.training.steps:08d}"
    if finished and (run / "model").is_dir():
        accelerator.print(f"already trained: {run / 'model'}/")
        if accelerator.is_main_process:  # a run may have been killed before
            _calibrate(config, accelerator.device)
        return
    require(config.resume or not states, "resume", "off", f"--resume, or a --run without the unfinished {run}")
    set_seed(config.seed)
    simulator = build.simulator(config, "train", device=accelerator.device)
    prior = build.measure_prior(config, simulator)
    scene, network = config.scene, config.network
    bands = [(band.name, band.filter) for band in build.bands(config)]
    size = (scene.pixel_scale, scene.target_fwhm, len(prior.wavenumbers))
    levels = [scene.jitter, scene.zero_point_error, scene.psf_error, scene.sky_error]
    denoiser = Denoiser(bands, *size, widths=network.widths, blocks=network.blocks, levels=levels)
    denoiser.set_prior(prior)
    denoiser.network_dtype = network_dtype(config.training.mixed_precision, accelerator.device)
    trainer = Trainer(accelerator, denoiser, simulator, config.training, run)
    if states:
        trainer.resume()
    elif config.resume:
        accelerator.print(f"nothing to resume in {run / 'checkpoints'}/: starting at step 1")
    if accelerator.is_main_process:
        save_config(config, run / "config.yaml")
    trackers = {"tensorboard": {"purge_step": trainer.progress.step + 1}}
    accelerator.init_trackers("tensorboard", init_kwargs=trackers)
    trainer.run(config.seed, build.validator(config, accelerator) if accelerator.is_main_process else None)
    if accelerator.is_main_process:
        _calibrate(config, accelerator.device)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    accelerator.print(f"model in {run / 'model'}/, logs in {run / 'tensorboard'}/")


def _calibrate(config: Config, device=None):
    """The run's calibration.json, fitted where it is missing or of other settings or weights, and network_errors."""
    from jointdiff.measure.conformal import read_calibration
    from jointdiff.reconstruct.checkpoint import fingerprint, load_denoiser, state_network_errors

    folder = Path(config.run) / "model"
    try:
        old = read_calibration(folder)
    except InputError:  # of other weights, or broken: made again
        old = None
    denoiser = load_denoiser(folder, device)
    new = build.calibration(config, denoiser, fingerprint(folder), old, progress=True)
    if new.network_errors is not None and new.network_errors != denoiser.network_errors:
        state_network_errors(new.network_errors, folder)  # first, for all else is of samples that allow for them
    if new != old and (new.errors or new.modes):
        new.write(folder)
    return new


def reconstruct(config: ReconstructConfig) -> None:
    """Sample the sharp sky of scene files, and measure it."""
    from jointdiff.evaluate.exports import Extras, export
    from jointdiff.evaluate.field import Treatment
    from jointdiff.evaluate.mosaic import Workers, job_of
    from jointdiff.io.products import merge_catalogs
    from jointdiff.io.scene_files import read_fields
    from jointdiff.ondisk import HELD
    from jointdiff.reconstruct.api import build_reconstructor
    from jointdiff.reconstruct.checkpoint import checkpoint_folder, fingerprint, load_denoiser

    output = Path(config.output)
    require(output.is_dir() or not output.exists(), "output", output, "a folder")
    folder, workers = checkpoint_folder(config.checkpoint), Workers.launched(PATIENCE)
    denoiser, both = load_denoiser(folder, workers.device), config.mode == "both"
    own = "amortized" if both else config.mode
    reconstructor = build_reconstructor(config.method, denoiser, config.evaluations, own, config.guard, config.refine)
    check = (
        build_reconstructor(config.method, denoiser, config.evaluations, "factorized", refine=config.refine)
        if both
        else None
    )
    provenance = reconstructor.provenance(config.seed, fingerprint(folder))
    # Every field is read and checked before the first is sampled: a mistake in the last costs no time.
    extras = Extras(config.aliases, config.ecsv, config.morphology)
    calibration = _calibration_for(config, folder, reconstructor)
    treatment = Treatment(config.align, calibration, check, extras, config.stars)
    given = (reconstructor, config.num_samples, treatment, config.tile, workers)
    jobs = [job_of(field, *given) for field in read_fields(config.scene, HELD)]
    catalogs = [job.run(output / job.field.name, config.seed, provenance) for job in jobs if job is not None]
    if not workers.first:
        return
    export(output, merged := merge_catalogs(catalogs), provenance, config.ecsv)
    save_config(config, output / "reconstruct.yaml")
    print(f"{len(merged)} sources of {len(jobs)} field{'s' * (len(jobs) > 1)}: {output / 'catalog.fits'}")


def _calibration_for(config: ReconstructConfig, folder: Path, reconstructor):
    """The checkpoint's calibration, if it is of samples drawn so; None where errors are stated raw."""
    import warnings

    from jointdiff.measure.conformal import FILE, drawn_by, read_calibration

    if config.method != "diffusion":  # the factors are of the network's errors
        return None
    found = read_calibration(folder)
    drawn = reconstructor.mode, reconstructor.evaluations, reconstructor.network_errors
    fitting = found if found and found.suits(*drawn) else None
    if config.mode == "both" and not (fitting and fitting.modes):
        told = "none that says how far they may differ; evaluate.py --calibration.mode_scenes 24 writes one"
        held = f"that of {found.drawn}" if found and found.modes else told
        raise InputError(f"mode both with {drawn_by(*drawn[1:])}: {folder / FILE} is {held}")
    if found and not fitting:
        asked = f"mode {drawn[0]} with {drawn_by(*drawn[1:])}"
        warnings.warn(
            f"errors are stated raw: {FILE} is of mode {found.mode} with {found.drawn}, not of {asked}", stacklevel=3
        )
    return fitting


def evaluate(config: EvaluateConfig) -> None:
    """Score a trained run against the truth, beside the joint Wiener filter, on galaxies that it never saw."""
    from jointdiff import suites
    from jointdiff.reconstruct.checkpoint import fingerprint, load_denoiser
    from jointdiff.reconstruct.diffusion import Diffusion

    run = Path(config.run)
    _use_cores()
    refuse_other_run(config, run)
    scoreboard = config.suite == "scoreboard" and not config.leave_one_out
    calibration = _calibrate(config) if scoreboard else None  # first: it may find the network's errors
    denoiser = load_denoiser(run / "model")
    provenance = Diffusion(denoiser, config.sampling.evaluations).provenance(config.seed, fingerprint(run / "model"))
    if config.leave_one_out:
        return suites.leave_one_out(config.leave_one_out, config, denoiser, provenance)
    if calibration is None:
        return suites.run(config.suite, config, denoiser, provenance)
    print(suites.scoreboard(config, denoiser, provenance, calibration))
    print(_ENDING.format(run=run, python=_program("python"), tensorboard=_program("tensorboard")))
