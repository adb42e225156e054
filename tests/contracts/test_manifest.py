"""data_manifest/: complete descriptions, and files on disk that are theirs."""

import hashlib

import pytest
import yaml

from jointdiff import cli
from jointdiff.io.manifest import read_manifest, verify

GOOD = {
    "name": "set", "title": "A set", "version": "1", "page": "https://example.org", "licence": "MIT", "size": "1 MB",
    "bands": ["VIS"], "pixel_scale": "0.1 arcsec", "folder": "set", "get": ["Get it."], "cite": ["A paper"],
    "use": "it",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A manifest of one set of two files, beside the files."""
    (tmp_path / "data" / "set").mkdir(parents=True)
    files = []
    for name, content in (("a.fits", b"abc"), ("b/c.fits", b"defg")):
        path = tmp_path / "data" / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        files.append({"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    write(tmp_path, files=files)
    return tmp_path


def write(root, **keys) -> None:
    (root / "manifest").mkdir(exist_ok=True)
    content = {key: value for key, value in (GOOD | keys).items() if value is not None}
    (root / "manifest" / "set.yaml").write_text(yaml.safe_dump(content))


def run(folder) -> int:
    return cli.main(["data", "verify", str(folder / "data"), "--manifest", str(folder / "manifest")])


def test_the_manifest_is_complete(repository):
    sets = read_manifest(repository / "data_manifest")
    assert [data.name for data in sets] == sorted(path.stem for path in (repository / "data_manifest").glob("*.yaml"))
    assert len({data.folder for data in sets}) == len(sets)
    for data in sets:
        assert data.page.startswith("https://")
        assert all(len(step) > 20 for step in data.get)


def test_real_files_are_those_of_the_manifest(repository, real_data):
    found = {data.name: verify(data, real_data) for data in read_manifest(repository / "data_manifest")}
    assert any("whole" in line for line in found.values()), found


def test_whole_files_are_told_as_such(folder, capsys):
    assert run(folder) == 0
    assert capsys.readouterr().out.startswith("set: 2 files whole (")


def test_what_is_absent_is_no_mistake(folder, capsys):
    write(folder, folder="elsewhere")
    assert run(folder) == 0
    assert "set: absent" in capsys.readouterr().out


def _corrupt(folder):
    (folder / "data" / "set" / "a.fits").write_bytes(b"abd")


def _cut(folder):
    (folder / "data" / "set" / "a.fits").write_bytes(b"ab")


def _remove(folder):
    (folder / "data" / "set" / "b" / "c.fits").unlink()


@pytest.mark.parametrize(
    ("breaker", "told"),
    [
        (_corrupt, "set: sha256 "),
        (_cut, "set: 2 bytes, expected 3"),
        (_remove, "set: 1 of 2 files are missing"),
        (lambda folder: write(folder, lisence="MIT"), "unknown key 'lisence'; did you mean 'licence'?"),
        (lambda folder: write(folder, page=None), "manifest: missing page"),
        (lambda folder: write(folder, version=1.0), "version is 1.0, expected text, in quotes"),
        (lambda folder: write(folder, bands="VIS"), "bands is 'VIS', expected a list of texts"),
        (lambda folder: write(folder, files=[{"path": "a"}]), "is not a file of path, bytes and sha256"),
        (
            lambda folder: write(folder, files=[{"path": "../a", "bytes": 1, "sha256": "0" * 64}]),
            "'../a' leaves the set's folder",
        ),
        (lambda folder: (folder / "manifest" / "set.yaml").unlink(), "manifest: no *.yaml in"),
    ],
)
def test_one_line_for_every_mistake(breaker, told, folder, capsys):
    breaker(folder)
    assert run(folder) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
