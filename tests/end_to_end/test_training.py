"""Training as a user runs it, in processes of its own: killed and resumed step for step, on one process and on two."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from safetensors import safe_open

from jointdiff import cli
from jointdiff.io.products import read_catalog
from jointdiff.measure.conformal import read_calibration
from jointdiff.reconstruct.checkpoint import fingerprint, load_denoiser
from tests.runs import TINY, finish, hyperparameters, kill_after, make_library, new_run, pictures, scalars, start

STEPS = 8


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    return make_library(tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def runs(request, simulated, tmp_path_factory) -> tuple[Path, Path, set[str]]:
    """An uninterrupted run; one that was killed with -9 after its first state, and resumed; what the kill left."""
    folder = tmp_path_factory.mktemp("runs")
    whole, cut = (new_run(folder / name, simulated) for name in ("whole", "cut"))
    process = start(whole, "--resume", processes=request.param)  # with nothing to resume it just starts
    assert finish(process) == 0, (whole / "output.txt").read_text()
    kill_after(start(cut, processes=request.param), cut / "checkpoints" / "step_00000003")
    check_whole(cut)
    left = {path.name for path in (cut / "checkpoints").glob("step_*")}
    assert finish(start(cut, "--resume", processes=request.param)) == 0, (cut / "output.txt").read_text()
    return whole, cut, left


def check_whole(run: Path) -> None:
    """Nothing under a final name is half written: weights can be read, every state holds the same files."""
    states = list((run / "checkpoints").glob("step_*"))
    assert states
    assert len({tuple(sorted(path.name for path in state.iterdir())) for state in states}) == 1
    for path in [state / "model.safetensors" for state in states]:
        with safe_open(path, "pt") as file:
            assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
    load_denoiser(run / "model")  # saved before the state that was waited for


def test_resume_takes_the_same_steps(runs):
    whole, cut, left = runs
    assert "step_00000003" in left
    assert "step_00000008" not in left, "it was killed on the way"
    expected = dict(scalars(whole)["loss/train"])
    assert sorted(expected) == list(range(1, STEPS + 1))
    found = scalars(cut)["loss/train"]  # of both its lives: some steps were taken twice
    assert {step for step, _ in found} == set(expected)
    assert all(value == expected[step] for step, value in found)
    assert len(set(expected.values())) == STEPS


def test_resume_ends_in_the_same_model(runs):
    """Bit for bit: weights, Γ, config, and what they are calibrated by."""
    whole, cut, _ = runs
    for name in ("model.safetensors", "config.json", "calibration.json"):
        assert (whole / "model" / name).read_bytes() == (cut / "model" / name).read_bytes()


def test_nothing_but_the_results_is_left(runs):
    for run in runs[:2]:
        check_whole(run)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000006", "step_00000008"]
        names = ["checkpoints", "config.yaml", "library", "model", "output.txt", "tensorboard", "validation"]
        assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".model.")) == names


def test_a_finished_run_is_reused(runs, capsys):
    run = runs[0]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    begin = time.monotonic()
    assert cli.main(["train", "--config", str(TINY), "--run", str(run)]) == 0
    assert time.monotonic() - begin < 10
    assert "already trained" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_tensorboard_says_how_it_went(runs):
    run = runs[0]
    logged = scalars(run)
    for method in ("jointdiff", "wiener"):
        for band in ("VIS", *"grizy"):
            numbers = ["image/image_error", "image/chi2", "calibration/crps", "calibration/pull_width"]
            numbers += ["calibration/coverage", "intervals/coverage_low", "validation_cut/image/chi2"]
            for number in numbers:
                ((step, value),) = logged[f"{number}/{band}/{method}"]
                assert step == STEPS
                assert np.isfinite(value)
    for band in ("VIS", *"grizy"):
        assert f"accuracy/flux_bias/{band}/jointdiff" in logged
        assert f"accuracy/flux_scatter/{band}/wiener" in logged
        assert f"intervals/crps_ratio_high/{band}/jointdiff" in logged
    for bins in ("by_magnitude", "by_snr"):
        assert any(tag.startswith(f"{bins}/sources/VIS/wiener/") for tag in logged)
    assert "colour/bias/g-r/jointdiff" in logged
    rate = dict(logged["rate/learning_rate"])
    assert rate[1] == pytest.approx(5e-4)
    assert rate[2] == rate[5] == pytest.approx(1e-3)
    assert rate[8] < rate[7] < rate[6] < rate[5]
    assert all(value > 0 for _, value in logged["rate/images_per_second"])
    assert all(0 < value < 1 for _, value in logged["rate/data_share"])
    levels = [tag for tag in logged if tag.startswith("loss_by_noise_level/")]
    assert len(levels) == 8
    assert {f"figures/{name}" for name in ("photometry", "magnitude", "snr", "scene_0000")} <= pictures(run)
    assert {f"validation_cut/figures/{name}" for name in ("photometry", "cut_0000")} <= pictures(run)
    settings, compared = hyperparameters(run)
    assert settings["training.learning_rate"] == pytest.approx(1e-3) and settings["filters.g"] == "hsc-g"
    assert compared and compared <= logged.keys(), "scores that runs are compared by"
    assert [path for path in (run / "tensorboard").iterdir() if path.is_dir()] == [], "one run in the list, not two"


def test_each_validation_leaves_its_catalog(runs):
    folder = runs[0] / "validation" / "step_00000008"
    catalog = read_catalog(folder / "catalog.fits")
    assert len(catalog) >= 1
    assert catalog.meta["CKPTSHA"] == fingerprint(runs[0] / "model"), "the last validation is of the model that is left"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"cut"}
    for part in (folder, folder / "cut"):
        assert {path.suffix for path in part.iterdir() if path.is_file()} == {".ecsv", ".fits", ".png"}


def test_an_evaluation_scores_raw_and_scaled_errors(runs, tmp_path, capsys, own_process):
    """With the factors that training left; other settings fit others, and the scores are made again."""
    run = tmp_path / "run"
    for name in ("library", "model"):
        shutil.copytree(runs[0] / name, run / name)
    shutil.copy(runs[0] / "config.yaml", run)
    known = read_calibration(run / "model")
    assert known is not None and known.errors is not None and known.errors.scenes == 3
    command = ["evaluate", "--config", str(TINY), "--run", str(run)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "  scaled" in printed and "scaled width" in printed and " bars met; " in printed
    assert "mode both: how often it flags" in printed
    assert read_calibration(run / "model") == known
    folder = run / "evaluation"
    catalog = read_catalog(folder / "catalog.fits")
    assert (catalog.meta["ERRSCALE"], catalog.meta["CALSHA"]) == ("conformal", known.sha256)
    for part in (folder, folder / "cut"):
        table = Table.read(part / "calibration.ecsv")
        assert len(table) == 6 * 5 and {"pull_width", "pull_width_scaled_met", "coverage_scaled_low"} <= set(
            table.colnames
        )
    logged = scalars(run)
    assert {"calibration/pull_width/VIS/jointdiff", "calibration/pull_width_scaled/VIS/jointdiff"} <= logged.keys()
    before = (folder / "scoreboard.txt").read_bytes()
    assert cli.main(command) == 0 and (folder / "scoreboard.txt").read_bytes() == before
    assert cli.main([*command, "--calibration.scenes", "4"]) == 0
    assert read_calibration(run / "model").errors.scenes == 4
    assert (folder / "scoreboard.txt").read_bytes() != before
    assert len(scalars(run)["calibration/pull_width/VIS/jointdiff"]) == 1, "an older evaluation's log is removed"
