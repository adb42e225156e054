"""The wheel is complete, and its commands run far from the repository on nothing but what it says it needs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution, requires
from pathlib import Path

import pytest

from jointdiff.reconstruct.checkpoint import save_denoiser
from tests.denoisers import DEMO_BANDS, untrained
from tests.scene_folders import edit_pixels, write_good_scene

pytest.importorskip("build", reason="the build front end comes with the dev extra")

MISSING = """
import ast, importlib.util, pathlib, jointdiff
package = pathlib.Path(jointdiff.__file__).parent
nodes = [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
print(*sorted(name for name in {name.split(".")[0] for name in names} if importlib.util.find_spec(name) is None))
"""
"""Every package that is imported, inside functions, too, and that this environment does not have."""

OPTIONAL = {"jax": "baselines", "numpyro": "baselines", "scarlet2": "baselines", "statmorph": "morphology"}
"""Packages of extras, imported where they are used alone."""

EVERYTHING = """
import importlib, pkgutil, jointdiff
for module in pkgutil.walk_packages(jointdiff.__path__, "jointdiff."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def run(*command: str | Path, cwd: Path, status: int = 0) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = tuple(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """Built from a copy: a stale build/ in the repository would hide a missing module."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(repository / "jointdiff", source / "jointdiff", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(repository / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", source, cwd=source)
    return next((source / "dist").glob("*.whl"))


def dependencies(requirements: list[str], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """All that the requirements lead to, extras aside, as this environment has it."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = distribution(name)
        dependencies(requires(name) or [], found)
    return found


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """The python of a new environment that holds the wheel and what its metadata requires, and no more.

    The wheel is installed; its requirements are linked from this environment, where pip put them from the same pins:
    to download and unpack them again takes minutes and 1.6 GB.
    """
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, *install, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (metadata,) = packages.glob("jointdiff-*.dist-info")
    for part in dependencies(Distribution.at(metadata).requires or [], {}).values():
        for top in {file.parts[0] for file in part.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(part.locate_file(top))))
    return python


def test_wheel_holds_every_file(wheel, repository):
    files = [path.relative_to(repository) for path in (repository / "jointdiff").rglob("*") if path.is_file()]
    sources = {str(path) for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("jointdiff/")}
    assert packed == sources


def test_what_the_package_imports_is_required(clean, tmp_path):
    assert run(sys.executable, "-m", "pip", "--python", clean, "check", cwd=tmp_path).returncode == 0
    assert run(clean, "-c", MISSING, cwd=tmp_path).stdout.split() == sorted(OPTIONAL)
    assert set(OPTIONAL.values()) < set(distribution("jointdiff").metadata.get_all("Provides-Extra"))
    run(clean, "-c", EVERYTHING, cwd=tmp_path)
    # Of the dev extra: here, but not there.
    assert run(clean, "-c", "import pytest", cwd=tmp_path, status=1).stderr.endswith("No module named 'pytest'\n")


def test_wheel_runs_in_a_clean_environment(clean, tmp_path):
    origin = run(clean, "-c", "import jointdiff; print(jointdiff.__file__)", cwd=tmp_path).stdout
    assert Path(origin.strip()).is_relative_to(clean.parents[1])
    assert "reconstruct" in run(clean, "-m", "jointdiff", "--help", cwd=tmp_path).stdout
    assert "--num_samples" in run(clean.with_name("jointdiff"), "reconstruct", "--help", cwd=tmp_path).stdout
    assert "run: runs/demo" in run(clean, "-m", "jointdiff", "train", "--print_config", cwd=tmp_path).stdout


def test_wheel_reconstructs_and_refuses_in_a_clean_environment(clean, tmp_path):
    save_denoiser(untrained(DEMO_BANDS[:2]), tmp_path / "model")
    scene = write_good_scene(tmp_path / "good")
    command = [clean, "-m", "jointdiff", "reconstruct", "--scene", scene, "--checkpoint", "model", "--output", "out"]
    run(*command, "--num_samples", "2", cwd=tmp_path)
    assert (tmp_path / "out" / "good" / "figure.png").is_file()
    edit_pixels(scene.parent / "g_psf.fits", lambda psf: psf * 0.52)
    told = run(*command, cwd=tmp_path, status=2).stderr
    assert told == f"jointdiff: g: PSF sums to 0.52, expected 0.9 to 1.1 ({scene.parent / 'g_psf.fits'})\n"
