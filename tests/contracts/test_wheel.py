"""The wheel is complete: every module is in it, and its command runs far from the repository."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="the build front end comes with the dev extra")


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """Built from a copy: a stale build/ in the repository would hide a missing module."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(repository / "jointdiff", source / "jointdiff", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (repository / name).exists():
            shutil.copy(repository / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", source, cwd=source)
    return next((source / "dist").glob("*.whl"))


def test_wheel_holds_every_module(wheel, repository):
    modules = {str(path.relative_to(repository)) for path in (repository / "jointdiff").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("jointdiff/")}
    assert modules <= packed
    assert not any("__pycache__" in name for name in packed)


def test_wheel_runs_in_a_clean_environment(wheel, repository, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, *install, cwd=tmp_path)
    # The dependencies are this environment's: only jointdiff itself is new. A .pth line adds the folder but
    # reads no .pth file inside it, so an editable install of the repository stays out of sight.
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    origin = run(python, "-c", "import jointdiff; print(jointdiff.__file__)", cwd=tmp_path)
    assert Path(origin.strip()).is_relative_to(packages)
    assert "reconstruct" in run(python, "-m", "jointdiff", "--help", cwd=tmp_path)
    assert "--training.steps" in run(python, "-m", "jointdiff", "train", "--help", cwd=tmp_path)
    assert "run: runs/demo" in run(python, "-m", "jointdiff", "train", "--print_config", cwd=tmp_path)
    assert (tmp_path / "venv" / "bin" / "jointdiff").exists()
