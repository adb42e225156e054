"""The layout law: a module imports only from those above it, and stays small and safe."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# fmt: off
ORDER = [
    "errors", "package", "settings", "seeds", "linear", "units", "survey", "sed", "correlation", "scene", "ondisk",
    "decimate", "forward", "gaussian", "nuisances", "io", "simulate", "diffusion", "reconstruct", "measure", "evaluate",
    "training", "run_folder", "build", "benchmark", "suites", "config", "archives", "cli", "__main__", "__init__",
]
# fmt: on
"""From top to bottom; the package's own __init__ offers what all of them define, so it comes last."""

SLOW = {"galsim", "speclite", "surveycodex", "matplotlib", "sep", "statmorph"}
"""Imported inside functions only, so that ``--help`` is quick."""

FORBIDDEN_MODULES = {"torchvision", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "matplotlib.pyplot", "pylab"}
FORBIDDEN_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}

AT_TARGET = {"find_sources": 6, "measure": 11, "gaussian_fluxes": 4, "find": 6, "ScoredScene": 6}
"""What is measured at a target PSF, whose default is the demo's, and how many positional arguments hold it."""

PACKAGE = Path(__file__).parents[2] / "jointdiff"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_SCRIPT_LINES = 25


def imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Every absolute dotted name that is imported; ``from a import b`` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def folder_of(parts: tuple[str, ...]) -> str:
    """The entry of ORDER that a module below jointdiff/ belongs to."""
    return parts[0].removesuffix(".py")


def upward_imports(source: str, path: Path) -> list[str]:
    """Imports of ``path`` (relative to jointdiff/) that point down the order."""
    own = folder_of(path.parts)
    wrong = []
    for name in imports(ast.parse(source), ["jointdiff", *path.parent.parts]):
        head, *rest = name.split(".")
        if head != "jointdiff":
            continue
        target = rest[0] if rest and rest[0] in ORDER else "__init__"
        sibling = target == own and len(path.parts) > 1
        if not sibling and ORDER.index(target) >= ORDER.index(own):
            wrong.append(name)
    return wrong


def forbidden(source: str) -> list[str]:
    """Imports and calls that can run foreign code or hold global plotting state."""
    tree = ast.parse(source)
    found = []
    for name in imports(tree, []):
        prefixes = {name[:end] for end in range(len(name) + 1) if end == len(name) or name[end] == "."}
        found += sorted(prefixes & FORBIDDEN_MODULES)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found += [name for name in (ast.unparse(call.func) for call in calls) if name in FORBIDDEN_CALLS]
    return found + [word.arg for call in calls for word in call.keywords if word.arg == "allow_pickle"]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("scene.py", "from jointdiff.forward import ForwardModel"),
        ("scene.py", "def late():\n    import jointdiff.training"),
        ("scene.py", "from jointdiff import forward"),
        ("scene.py", "from jointdiff import __version__"),
        ("io/fits.py", "from jointdiff.measure.catalog import Catalog"),
        ("io/fits.py", "from ..simulate import galaxies"),
        ("io/fits.py", "from .. import config"),
        ("cli.py", "from .__main__ import main"),
    ],
)
def test_the_checker_sees_a_downward_import(path, source):
    assert upward_imports(source, Path(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("forward.py", "from jointdiff.scene import Scene\nimport numpy"),
        ("io/fits.py", "from jointdiff.io.atomic import atomic_path\nfrom . import wcs\nfrom ..scene import Grid"),
        ("__init__.py", "from jointdiff.reconstruct import reconstruct"),
    ],
)
def test_the_checker_lets_an_upward_import_pass(path, source):
    assert upward_imports(source, Path(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from matplotlib import pyplot",
        "import matplotlib.pyplot as plt",
        "from torchvision.transforms import Crop",
        "torch.load('model.pt')",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_checker_sees_what_is_forbidden(source):
    assert forbidden(source)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_from_above(path):
    assert upward_imports(path.read_text(), path.relative_to(PACKAGE)) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_has_a_place_in_the_order(path):
    assert folder_of(path.relative_to(PACKAGE).parts) in ORDER


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_small_and_safe(path):
    source = path.read_text()
    assert len(source.splitlines()) < MAX_FILE_LINES, "look for the concept that is missing"
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 >= MAX_FUNCTION_LINES]
    assert long == []
    assert forbidden(source) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_slow_libraries_are_imported_late(path):
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for node in top for name in imports(node, ["jointdiff"])}
    assert not names & SLOW


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_everything_is_measured_at_the_target_psf_of_its_own_denoiser(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [(node, node.func.id) for node in calls if isinstance(node.func, ast.Name) and node.func.id in AT_TARGET]
    told = {"target_fwhm", None}  # None: **options
    forgotten = [
        (name, node.lineno)
        for node, name in named
        if len(node.args) < AT_TARGET[name] and not told & {keyword.arg for keyword in node.keywords}
    ]
    assert forgotten == []


def test_scripts_are_thin():
    scripts = sorted((PACKAGE.parent / "scripts").glob("*.py"))
    assert {path.stem for path in scripts} == {"simulate", "train", "reconstruct", "evaluate", "ingest", "data"}
    lengths = {path.name: len(path.read_text().splitlines()) for path in scripts}
    assert max(lengths.values()) <= MAX_SCRIPT_LINES, lengths


def test_tests_are_small():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE.parent / "tests").rglob("*.py")}
    assert max(lengths.values()) < MAX_FILE_LINES, lengths
