"""The scoreboard and the other suites of ``evaluate``: what each is run on, and where its results go.

Only the standard library is imported at the top: ``--help`` must not wait for torch.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from jointdiff import benchmark, build
from jointdiff.benchmark import BenchmarkConfig
from jointdiff.errors import InputError
from jointdiff.run_folder import flat, length_of
from jointdiff.settings import Config, require

Suite = Literal["scoreboard", "solver", "blank", "outside", "shift", "morphology", "length", "benchmark"]


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """An evaluation of a run: its settings, and what is evaluated.

    Attributes:
        suite: The scoreboard, or one of the other suites (METHOD section 8), which leave theirs in evaluation/SUITE/.
        leave_one_out: A scene.yaml whose observations are each predicted from the others; repeat the option for more.
        runs: Folders of finished runs that differ from this one in training.steps alone, for suite length.
    """

    suite: Suite = "scoreboard"
    leave_one_out: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "scoreboard, which it leaves out, with leave_one_out"
        require(self.suite == "scoreboard" or not self.leave_one_out, "suite", self.suite, expected)
        expected = "folders of runs with suite length, and with no other suite"
        require(bool(self.runs) == (self.suite == "length"), "runs", list(self.runs), expected)


def scoreboard(config: Config, denoiser, provenance: dict[str, object], calibration) -> str:
    """The tables of whole and of cut scenes; evaluation/ and TensorBoard get them with their catalogs and figures.

    They are kept, and made again for other weights, settings or errors.
    """
    from jointdiff.evaluate import validation
    from jointdiff.io.atomic import atomic_path
    from jointdiff.measure.modes import UNMEASURED

    done = Path(config.run) / "evaluation" / "scoreboard.txt"
    key = _key(config, provenance, calibration=calibration.sha256)
    if not (done.is_file() and done.read_text().startswith(key)):
        sampling, tables, device = config.sampling, [], denoiser.wavenumbers.device
        counts = (sampling.scenes, sampling.cut_scenes, sampling.samples)
        with _log(config, "evaluation") as writer:
            for suite, trials in build.validations(config, "test", *counts, device, sampling.baselines).items():
                report = trials.run(denoiser, progress=True, calibration=calibration)
                figures = trials.figures(report)
                validation.write(report, figures, done.parent / build.FOLDERS[suite], provenance)
                validation.log(report, figures, writer, config.training.steps, build.PREFIXES[suite])
                count = f"{len(trials.trials)} {suite} scenes, {sampling.samples} samples each"
                tables.append(f"{count}\n{validation.table(report)}\n")
        tables.append(f"mode both: {calibration.modes.text if calibration.modes else UNMEASURED}\n")
        with atomic_path(done) as temporary:
            temporary.write_text("\n".join([f"{key}\n", *tables]))
    return done.read_text().split("\n\n", 1)[1]


def run(name: str, config: Config, denoiser, provenance: dict[str, object]) -> None:
    """Run the suite ``name`` on the run's denoiser; write it to evaluation/<name>/ and TensorBoard, and print it."""
    _run(name, SUITES[name], config, denoiser, provenance)


def _run(name: str, suite, config: Config, denoiser, provenance: dict[str, object]) -> None:
    from jointdiff.evaluate.suite import Kept, write

    folder = Path(config.run) / "evaluation" / name
    outcome = suite(config, denoiser, Kept(folder / "rows", _key(config, provenance)))
    with _log(config, name) as writer:
        write(outcome, folder, name, provenance, writer)
    print(f"{outcome.text}\nwrote {folder}/")


def _key(config: Config, provenance: dict[str, object], **more: object) -> str:
    """All that results depend on, in one line."""
    made = {**provenance, **asdict(config.sampling), "simulation": build.digest(config), **more}
    return "  ".join(f"{name}={value}" for name, value in made.items())


def _log(config: Config, name: str):
    """A SummaryWriter beside the training's, whose charts it shares; what an earlier one of the name logged is gone."""
    import shutil

    from torch.utils.tensorboard import SummaryWriter

    folder = Path(config.run) / "tensorboard" / name
    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))


def _solver(config: Config, denoiser, kept):
    from jointdiff.evaluate import solver_study

    sampling, device = config.sampling, denoiser.wavenumbers.device
    suites = build.validations(config, "test", sampling.scenes, 0, sampling.samples, device)
    return solver_study.study(denoiser, suites[build.WHOLE], kept)


def _shift(config: Config, denoiser, kept):
    from jointdiff.evaluate import shift

    sampling, device = config.sampling, denoiser.wavenumbers.device
    lots = build.simulators(config, "test", sampling.scenes, 0, "test", device)
    lsst = []
    if shift.LSST in config.scene.geometries:
        alone = replace(config, scene=replace(config.scene, geometries=(shift.LSST,)))
        lsst = build.simulators(alone, "test", sampling.scenes, 0, "test", device)
    return shift.study(denoiser, lots, lsst, sampling.samples, sampling.evaluations, config.seed, kept)


def _blank(config: Config, denoiser, kept):
    from jointdiff.evaluate import blank

    large = replace(config, scene=replace(config.scene, size=blank.SIDE))
    device = denoiser.wavenumbers.device
    simulators = [build.simulator(large, "test", 0, (name,), device) for name in config.scene.geometries]
    return blank.study(denoiser, simulators, config.sampling.evaluations, config.seed, kept)


def _outside(config: Config, denoiser, kept):
    from jointdiff.evaluate import outside

    device = denoiser.wavenumbers.device
    simulators = [build.simulator(config, "test", 0, (name,), device) for name in config.scene.geometries]
    return outside.study(denoiser, simulators, config.sampling.evaluations, config.seed, kept)


def _morphology(config: Config, denoiser, kept):
    from jointdiff.evaluate import morphology_study
    from jointdiff.measure.morphology import require_statmorph

    require_statmorph("suite morphology")
    sampling, device = config.sampling, denoiser.wavenumbers.device
    suites = build.validations(config, "test", sampling.scenes, 0, morphology_study.SAMPLES, device)
    return morphology_study.study(denoiser, suites[build.WHOLE], kept)


def _length(config, denoiser, kept):
    from jointdiff.evaluate import length_study

    sampling, own, device = config.sampling, Path(config.run), denoiser.wavenumbers.device
    runs: dict[int, length_study.Trained] = {}
    for run in dict.fromkeys([own, *map(Path, config.runs)]):
        steps = length_of(run, own)
        require(steps not in runs, "runs", f"{run} of {steps} steps", "one run of each length")
        runs[steps] = _trained(config, run, denoiser)
    suites = build.validations(config, "test", sampling.scenes, 0, sampling.samples, device)
    return length_study.study(runs, suites[build.WHOLE], kept)


def _trained(config: Config, run: Path, first):
    """A run with its denoiser, and its calibration, which is fitted where it has none of these settings.

    Raises InputError for another Γ, which is that of the library, than that of the denoiser ``first``.
    """
    from jointdiff.evaluate.length_study import Trained
    from jointdiff.measure.conformal import read_calibration
    from jointdiff.reconstruct.checkpoint import fingerprint, load_denoiser

    model = run / "model"
    denoiser, weights, old = load_denoiser(model), fingerprint(model), read_calibration(model)
    usual = first.covariances
    deviation = usual.diagonal(dim1=-2, dim2=-1).sqrt()  # at each wavenumber: Γ falls by orders of magnitude
    close = 1e-3 * deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    if bool(((denoiser.covariances - usual).abs() > close).any()):
        raise InputError(f"runs: Γ is not that of {config.run}, so it is of another library ({run})")
    calibrate = partial(build.calibration, config, denoiser, weights, old, progress=True)
    key = f"run={weights}  calibration={config.calibration.scenes}x{config.calibration.samples}"
    key += f"  measured={old.sha256}" if old else ""
    return Trained(key, denoiser, calibrate)


def _benchmark(config, denoiser, kept):
    from jointdiff.evaluate.sources import ORACLE
    from jointdiff.evaluate.validation import METHOD, method_of

    names, settings = [band.name for band in denoiser.bands], config.benchmark
    for name in benchmark.methods(settings):
        if name not in (METHOD, ORACLE):
            method_of(name, denoiser)  # one that is not installed is told before hours are spent on the others
    about = {"run": config.run, "made with": kept.key}
    return benchmark.run(config, settings, names, kept.folder, kept.key, about, benchmark_command(config))


def benchmark_command(config: EvaluateConfig) -> str:
    """What makes the same benchmark: every setting that differs from those of configs/benchmark.yaml, which are the
    defaults, but for the number of processes."""
    free = frozenset(["run", "benchmark.workers", "library.workers", "resume"])
    own, usual = (flat(asdict(c), free) for c in (config, EvaluateConfig(suite="benchmark")))
    changed = [f"--{name} {shlex.quote(str(value))}" for name, value in own.items() if value != usual.get(name)]
    return " ".join(
        ["python scripts/evaluate.py --config configs/benchmark.yaml --run", shlex.quote(config.run), *changed]
    )


SUITES = {
    "solver": _solver,
    "blank": _blank,
    "outside": _outside,
    "shift": _shift,
    "morphology": _morphology,
    "length": _length,
    "benchmark": _benchmark,
}
"""By name: functions of the settings, the denoiser and where rows are kept, to an Outcome."""


def leave_one_out(scenes: Sequence[str], config: Config, denoiser, provenance: dict[str, object]) -> None:
    """Each observation of real fields predicted from the others, beside the joint Wiener filter; no truth is needed."""
    from jointdiff.evaluate import leave_one_out as leaving
    from jointdiff.io.scene_files import read_fields
    from jointdiff.reconstruct.diffusion import Diffusion
    from jointdiff.reconstruct.wiener import Wiener

    sampling = config.sampling
    methods = [Diffusion(denoiser, sampling.evaluations), Wiener(denoiser)]
    fields = read_fields(scenes)

    def suite(_config, _denoiser, _kept):
        return leaving.study(methods, fields, sampling.samples, config.seed)

    _run("leave_one_out", suite, config, denoiser, provenance)
