"""What a run folder promises, and every way to break that promise: one line and status 2."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from jointdiff import build, cli, config
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.loss import DenoisingLoss
from jointdiff.errors import InputError
from jointdiff.io.scene_files import read_field
from jointdiff.run_folder import refuse_other_run
from jointdiff.settings import Config, NetworkConfig, SceneConfig
from tests.denoisers import DEMO_BANDS, untrained
from tests.runs import TINY, make_library, new_run, tiny_config

pytestmark = pytest.mark.usefixtures("own_process")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return make_library(tmp_path_factory.mktemp("simulated"))


@pytest.fixture
def run(simulated, tmp_path) -> Path:
    return new_run(tmp_path / "run", simulated)


@pytest.fixture
def refuse(capsys):
    """Runs a command that must fail; returns its one line."""

    def call(run: Path, *options: str, command: str = "train") -> str:
        assert cli.main([command, "--config", str(TINY), "--run", str(run), *options]) == 2
        told = capsys.readouterr()
        assert told.err.count("\n") == 1, told.err
        assert "Traceback" not in told.err
        return told.err

    return call


def unfinished(run: Path, step: int = 3) -> Path:
    """A run as one that was killed left it."""
    state = run / "checkpoints" / f"step_{step:08d}"
    state.mkdir(parents=True)
    config.save_config(tiny_config(run), run / "config.yaml")
    return state


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_unfinished_run_wants_to_be_resumed(run, refuse):
    unfinished(run)
    before = contents(run)
    line = refuse(run)
    assert "resume is off, expected --resume" in line
    assert str(run) in line
    assert contents(run) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--training.learning_rate", "5e-4"], "training.learning_rate is 0.0005, expected 0.001 as in "),
        (["--network.widths", "[16,32]"], "network.widths is [16, 32], expected [16, 16] as in "),
        (["--seed", "1"], "seed is 1, expected 0 as in "),
        (["--scene.drop_vis", "0.5", "--resume"], "scene.drop_vis is 0.5, expected 0.03 as in "),
    ],
)
def test_another_configuration_is_refused(run, refuse, options, told):
    unfinished(run)
    line = refuse(run, *options)
    assert told in line
    assert str(run / "config.yaml") in line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--bands", "[VIS,g,u]", "--filters.u", "cfht-u", "--scene.geometries", "[lsst]"],
            "library: no band u (cfht-u): the library has VIS (VIS), g (hsc-g), ",
        ),
        (["--filters.g", "cfht-r"], "library: no band g (cfht-r): the library has VIS (VIS), g (hsc-g), "),
        (["--library.magnitudes", "[20,25]"], "library.magnitudes is [20.0, 25.0], expected [19.0, 26.5] as in "),
        (["--library.stamp_sizes", "[32]"], "library.stamp_sizes is [32], expected [32, 64] as in "),
        (["--library.star_fraction", "0.2"], "library.star_fraction is 0.2, expected 0.08 as in "),
        (["--library.count", "80"], "library.count is 80, expected 60 as in "),
        (["--scene.pixel_scale", "0.08"], "scene.pixel_scale is 0.08, expected 0.1 as in "),
        (["--seed", "3"], "seed is 3, expected 0 as in "),
    ],
)
def test_another_library_is_refused(run, refuse, options, told):
    line = refuse(run, *options)
    assert told in line
    assert str(run / "library") in line


@pytest.mark.parametrize("command", ["simulate", "train"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--bands", "[VIS,u]", "--filters.u", "cfht-u"],
            "bands is ['VIS', 'u'], expected VIS and some of g, r, i, z, y, which scene.geometries hsc observes",
        ),
        (["--filters.g", "wfc-g"], "filters.g is wfc-g, expected one of VIS, cfht-u, "),
    ],
)
def test_bands_that_cannot_be_simulated_are_refused_before_work(command, options, told, tmp_path, refuse):
    assert told in refuse(tmp_path / "run", *options, command=command)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["seed: [1\n", "- 3\n", "", "\x00"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_broken_configuration_of_a_run_is_named(command, text, run, refuse):
    (run / "config.yaml").write_text(text)
    assert str(run / "config.yaml") in refuse(run, command=command)


def test_what_is_watched_may_change(run):
    """How often a run is logged, saved and scored does not make it another."""
    unfinished(run)
    watched = ["checkpoint_every", "log_every", "validate_every"]
    watched += ["validation_scenes", "validation_cut_scenes", "validation_samples"]
    options = [text for name in watched for text in (f"--training.{name}", "7")]
    refuse_other_run(tiny_config(run, *options, "--library.workers", "2", "--sampling.scenes", "9"), run)
    with pytest.raises(InputError, match=r"training\.batch_size is 7, expected 2 as in "):
        refuse_other_run(tiny_config(run, "--training.batch_size", "7"), run)


def test_ready_scenes_are_drawn_again_only_for_other_settings(simulated, tmp_path):
    folder = Path(shutil.copytree(simulated, tmp_path / "run"))
    scene = folder / "scenes" / "lsst"

    def drawn(*options: str) -> dict[Path, int]:
        config.simulate(tiny_config(folder, *options))
        return {path: path.stat().st_mtime_ns for path in scene.iterdir() if path.suffix == ".fits"}

    first = drawn()
    truth = (scene / "truth.fits").read_bytes()
    assert drawn("--training.steps", "3", "--library.workers", "2") == first
    other = drawn("--scene.mean_sources", "20")
    assert all(other[path] > first[path] for path in first)
    assert (scene / "truth.fits").read_bytes() != truth
    (scene / "settings.sha256").unlink()  # as a kill on the way leaves it
    drawn("--scene.mean_sources", "20")
    drawn()
    assert (scene / "truth.fits").read_bytes() == truth


def test_the_digest_is_of_what_scenes_are_made_from(tmp_path):
    """The key of ready scenes and of the cached scoreboard."""
    digest = build.digest(tiny_config(tmp_path))
    for option in ("--training.steps", "--library.workers", "--library.shard_size", "--sampling.scenes"):
        assert build.digest(tiny_config(tmp_path / "moved", option, "7")) == digest
    others = [("--seed", "1"), ("--bands", "[VIS,g]"), ("--scene.drop_vis", "0.5"), ("--library.count", "61")]
    others.append(("--filters.g", "lsst-g"))
    found = {build.digest(tiny_config(tmp_path, *option)) for option in others}
    assert len(found | {digest}) == len(others) + 1


def test_the_digest_is_of_the_code_too(tmp_path):
    """A copy of the package with one line more has another digest."""
    package = Path(build.__file__).parent
    shutil.copytree(package, tmp_path / "jointdiff", ignore=shutil.ignore_patterns("__pycache__"))
    script = "from jointdiff import build, settings; print(build.__file__, build.digest(settings.Config()))"

    def found() -> list[str]:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()

    file, before = found()
    assert Path(file).is_relative_to(tmp_path) and before == build.digest(Config())
    with open(tmp_path / "jointdiff" / "simulate" / "observe.py", "a") as source:
        source.write("# changed\n")
    assert found()[1] != before


def test_fewer_bands_than_the_librarys_will_do(run):
    some = build.simulator(tiny_config(run, "--bands", "[i,VIS]"), "train").draw(1, 0)
    every = build.simulator(tiny_config(run), "train").draw(1, 0)
    assert [o.band.name for o in some.observations] == ["i", "VIS"]
    torch.testing.assert_close(some.truth, every.truth[:, [3, 0]])


def test_training_scenes_have_no_errors_and_scored_ones_do(run):
    """One setting for the scenes that are scored and for what samples allow for; a denoiser is asked of neither."""
    config = tiny_config(run, "--scene.jitter", "0.02", "--scene.sky_error", "0.1")
    training, scored = (build.simulator(config, "train", margin).conditions for margin in (None, 0))
    assert (training.jitter, training.sky_error) == (0, 0)
    assert (scored.jitter, scored.sky_error) == (0.02, 0.1)


def test_a_library_without_the_surveys_filters_is_refused(tmp_path, refuse):
    """Drawn for HSC alone, wanted for LSST too."""
    run = tmp_path / "run"
    config.simulate(tiny_config(run, "--scene.geometries", "[hsc]"))
    assert "library: no band g (lsst-g): the library has VIS (VIS), g (hsc-g), " in refuse(run)
    assert len(build.simulator(tiny_config(run), "train", geometries=("mer",)).draw(1, 0).observations) == 6


def test_ready_scenes_name_the_filters_that_saw_them(simulated):
    for geometry, family in (("lsst", "lsst"), ("hsc", "hsc"), ("mer", "hsc")):
        field = read_field(simulated / "scenes" / geometry / "scene.yaml")
        assert [o.band.filter for o in field.observations] == ["VIS", *(f"{family}-{band}" for band in "grizy")]


def test_a_truncated_shard_is_named(run, refuse):
    path = run / "library" / "shard_00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    line = refuse(run)
    assert str(path) in line
    assert str(len(whole)) in line
    assert str(len(whole) - 100) in line
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize(("size", "widths", "stride"), [(36, (16, 16, 16), 8), (33, (16,), 2), (64, (8,) * 7, 128)])
def test_a_scene_that_the_network_cannot_halve_is_refused(refuse, tmp_path, size, widths, stride):
    line = refuse(tmp_path, "--scene.size", str(size), "--network.widths", str(list(widths)).replace(" ", ""))
    assert f"scene.size is {size}, expected a multiple of {stride} for network.widths {list(widths)}" in line
    with pytest.raises(InputError, match=f"scene.size is {size}"):
        Config(scene=SceneConfig(size=size), network=NetworkConfig(widths=widths))


@pytest.mark.parametrize("widths", [(16,), (16, 16), (16, 24, 32)])
def test_the_stride_is_the_networks(widths):
    network = Denoiser(DEMO_BANDS, 0.1, 0.2, 4, widths, 1).network
    assert NetworkConfig(widths=widths).stride == network.stride


@pytest.mark.parametrize("options", [["--bands", "[VIS,g]"], ["--scene.mean_sources", "9"], ["--seed", "4"]])
def test_evaluation_of_another_run_is_refused(run, refuse, options):
    unfinished(run)
    line = refuse(run, *options, command="evaluate")
    assert f"{options[0][2:]} is " in line
    assert str(run / "config.yaml") in line


def test_cut_scenes_are_seen_in_the_scored_core_alone(run):
    """With sky composed all around, and sides that the network can halve."""
    settings = tiny_config(run, "--network.widths", "[16,16,16]")
    suites = build.validations(settings, "validation", 0, 3, 2)
    assert set(suites) == {"cut"}
    (trials,) = suites.values()
    assert trials.weight.sum() == settings.scene.size**2
    assert len(trials.trials) == 3
    for trial in trials.trials:
        assert trial.truth.shape[1:] == trials.grid.shape == trials.weight.shape
        assert trial.truth.shape[1] % settings.network.stride == 0
        assert trial.truth[:, trials.weight == 0].abs().sum() > 0
        vis = next(o for o in trial.observations if o.band.name == "VIS")
        assert ((vis.ivar[0] > 0).numpy() == (trials.weight > 0)).all()


def test_baselines_stand_in_the_scoreboard_beside_ours(run):
    """One method of each kind; photometry alone has fluxes and no images. All are finite, and measured alike."""
    names = ("wiener-band", "isra", "mmps-vis", "templates", "oracle")
    (trials,) = build.validations(tiny_config(run), "validation", 2, 0, 2, baselines=names).values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network that was never trained need not converge
        report = trials.run(untrained(DEMO_BANDS))
    assert list(report.scores) == ["jointdiff", "wiener", *names]
    for scene in report.scenes:
        assert all(bool(e.samples.isfinite().all()) and len(e.samples) == 2 for e in scene.estimates.values())
    for method, rows in report.scores.items():
        assert ("image_error" in rows["VIS"]) == (method not in ("templates", "oracle"))
        assert rows["VIS"]["sources"] == report.scores["wiener"]["VIS"]["sources"]


def test_evaluation_of_an_untrained_run_is_refused(run, refuse):
    assert str(run / "model") in refuse(run, command="evaluate")


def test_a_launcher_cannot_change_the_precision(run, monkeypatch):
    """Accelerate's autocast would reach the Gaussian algebra: only the network's precision is a setting."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    seen, loss = [], DenoisingLoss.forward

    def watched(self, *args):
        seen.append(torch.is_autocast_enabled("cpu"))
        each = loss(self, *args)
        seen.append(each[0].dtype != torch.float32)
        return each

    monkeypatch.setattr(DenoisingLoss, "forward", watched)
    monkeypatch.setattr(build, "PRIOR_SCENES", 64)
    monkeypatch.setattr(build, "validator", lambda *_: None)
    config.train(tiny_config(run, "--training.steps", "2", "--training.warmup_steps", "1"))
    assert seen == [False] * 4
    assert AcceleratorState().mixed_precision == "no"
