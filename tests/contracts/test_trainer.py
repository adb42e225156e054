"""The training loop: states that are whole and resumed step for step, and random numbers of every process's own."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.seeds import seed_of
from jointdiff.settings import TrainingConfig
from jointdiff.training import Trainer, learning_rate, resume_states
from tests.denoisers import untrained
from tests.mocks import simulator

pytestmark = pytest.mark.usefixtures("own_process")

SETTINGS = TrainingConfig(steps=6, batch_size=2, warmup_steps=2, checkpoint_every=2, validate_every=3, log_every=1)


def trainer_of(folder: Path, settings: TrainingConfig = SETTINGS, denoiser: Denoiser | None = None) -> Trainer:
    source = simulator(("lsst",), size=16)
    return Trainer(Accelerator(cpu=True), denoiser or untrained(), source, settings, folder)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.average.denoiser.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that took all of its six steps."""
    folder = tmp_path_factory.mktemp("trained")
    trainer_of(folder).run(0)
    return folder


@pytest.fixture
def states(trained, tmp_path) -> Path:
    """A copy of its folder."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_the_last_states_are_kept(trained):
    assert [path.name for path in resume_states(trained)] == ["step_00000004", "step_00000006"]
    assert sorted(path.name for path in (trained / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_going_back_to_a_state_and_on_again(trained, states):
    """Another trainer, without the last state: the same weights in the end."""
    shutil.rmtree(states / "checkpoints" / "step_00000006")
    trainer = trainer_of(states)
    trainer.resume()
    assert trainer.progress.step == 4
    trainer.run(0)
    model = Path("model") / "model.safetensors"
    assert (states / model).read_bytes() == (trained / model).read_bytes()


def test_another_seed_is_another_run(trained, tmp_path):
    trainer_of(tmp_path).run(1)
    model = Path("model") / "model.safetensors"
    assert (tmp_path / model).read_bytes() != (trained / model).read_bytes()


def test_a_lost_model_is_written_again(trained, states):
    shutil.rmtree(states / "model")
    trainer = trainer_of(states)
    trainer.resume()
    trainer.run(0)
    model = Path("model") / "model.safetensors"
    assert (states / model).read_bytes() == (trained / model).read_bytes()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in "):
        trainer_of(tmp_path).resume()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"]
)
@pytest.mark.parametrize("broken", ["missing", "empty", "cut", "junk"])
def test_a_broken_state_is_named(states, name, broken):
    path = states / "checkpoints" / "step_00000006" / name
    whole = path.read_bytes()
    path.unlink()
    if broken != "missing":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "junk": b"\x93" * len(whole)}[broken])
    with pytest.raises(InputError) as error:
        trainer_of(states).resume()
    message = str(error.value)
    assert "step_00000006" in message
    assert "remove it to go on from step_00000004" in message
    assert "\n" not in message


def test_a_save_that_breaks_off_leaves_the_last_state(states, monkeypatch):
    """As by a kill: what was half written is never taken for a state, and is cleared away by the next."""
    trainer = trainer_of(states, replace(SETTINGS, steps=10))
    trainer.resume()
    save_state = trainer.accelerator.save_state

    def break_off(folder, **options):
        save_state(folder, **options)
        (Path(folder) / "optimizer.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.accelerator, "save_state", break_off)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(0)
    assert [path.name for path in resume_states(states)] == ["step_00000004", "step_00000006"]
    assert (states / "checkpoints" / ".step_00000008").is_dir()
    again = trainer_of(states, replace(SETTINGS, steps=10))
    again.resume()
    assert again.progress.step == 6
    again.run(0)
    assert sorted(p.name for p in (states / "checkpoints").iterdir()) == ["step_00000008", "step_00000010"]


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    denoiser = untrained()
    denoiser.network.exit.bias.data.fill_(torch.nan)
    trainer = trainer_of(tmp_path, denoiser=denoiser)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        trainer.run(0)
    assert not resume_states(tmp_path)
    assert not (tmp_path / "model").exists()


def test_every_process_and_step_has_its_own_numbers():
    keys = {
        seed_of("step", seed, rank, images) for seed in range(3) for rank in range(4) for images in range(0, 400, 8)
    }
    assert len(keys) == 3 * 4 * 50
    assert all(0 <= number < 2**63 for number in keys)
    assert seed_of("step", 0, 1, 8) == seed_of("step", 0, 1, 8)


def test_processes_draw_mocks_of_their_own(tmp_path, monkeypatch):
    """No two ranks, and no two steps, ever learn from the same mock."""
    truths = []
    for rank in (0, 1):
        trainer = trainer_of(tmp_path / str(rank), replace(SETTINGS, steps=3))
        monkeypatch.setattr(type(trainer.accelerator), "process_index", rank)
        draw = trainer.simulator.draw

        def watched(batch, seed, draw=draw):
            mock = draw(batch, seed)
            truths.append(mock.truth)
            return mock

        trainer.simulator.draw = watched
        trainer.run(0)
    assert len(truths) == 6
    assert all(not torch.equal(a, b) for i, a in enumerate(truths) for b in truths[:i])


def test_validation_comes_when_it_is_due(tmp_path):
    """On the averaged weights, and without a trace in the training."""
    seen, plain = [], trainer_of(tmp_path / "plain")
    trainer = trainer_of(tmp_path / "validated")
    trainer.run(0, lambda denoiser, step: seen.append((denoiser is trainer.average.denoiser, step, torch.rand(3))))
    assert [(average, step) for average, step, _ in seen] == [(True, 3), (True, 6)]
    plain.run(0)
    assert equal(weights(plain), weights(trainer))


def test_the_learning_rate_rises_stays_and_falls():
    settings = TrainingConfig(steps=100, warmup_steps=10, decay=0.4, learning_rate=1e-3)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9:61] == pytest.approx([1e-3] * 52)
    assert rates[80] == pytest.approx(5e-4)
    assert rates[99] == pytest.approx(1e-3 / 40)
    assert learning_rate(100, settings) == 0
