"""The library's format, and its promises: reproducible, resumable, split by galaxy, clear when broken."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from jointdiff.errors import InputError
from jointdiff.io import shards
from jointdiff.scene import Band
from jointdiff.simulate.galaxies import SourceSettings, draw_source
from jointdiff.simulate.library import build_library, load_library, split_of

BANDS = (Band("VIS", "VIS"), Band("g", "hsc-g"), Band("i", "hsc-i"))
SETTINGS = SourceSettings()
COUNT, SEED = 40, 11


def build(folder, count=COUNT, seed=SEED, settings=SETTINGS, bands=BANDS, workers=1, shard_size=10):
    build_library(folder, bands, settings, count, seed, workers=workers, shard_size=shard_size, progress=False)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("library"))


@pytest.fixture
def copy(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_index_says_what_is_in_the_library(folder):
    index = json.loads((folder / "index.json").read_text())
    assert index["format"] == shards.FORMAT
    assert index["bands"] == [{"name": b.name, "filter": b.filter} for b in BANDS]
    assert index["settings"]["pixel_scale"] == 0.05
    assert index["seed"] == SEED
    assert [e["number"] for s in index["shards"] for e in s["entries"]] == list(range(COUNT))
    assert shards.verify_library(folder) == COUNT


def test_stamps_come_back_as_drawn(folder):
    """To float16: half a unit in the last of 11 bits."""
    index = shards.read_index(folder)
    for split in ("train", "validation", "test"):
        library = load_library(folder, split)
        assert library.bands == BANDS
        assert (library.pixel_scale, library.psf_fwhm) == (0.05, 0.1)
        for n, stamps in library.stamps.items():
            entries = [e for s in index["shards"] for e in s["entries"] if e["size"] == n and e["split"] == split]
            assert stamps.dtype == torch.float16
            assert len(entries) == len(stamps) == len(library.flux[n])
            decoded = stamps.double() * library.scales[n].double()[:, None, None, None]
            for row, entry in enumerate(entries):
                rng = np.random.default_rng(np.random.SeedSequence((SEED, entry["number"])))
                source = draw_source(rng, [b.filter for b in BANDS], SETTINGS)
                error = np.abs(decoded[row].numpy() - source.stamp)
                assert (error <= 2**-11 * np.abs(source.stamp) + 1e-10 * source.stamp.max()).all()
                np.testing.assert_allclose(library.flux[n][row], source.flux, rtol=1e-6)
                np.testing.assert_allclose(decoded[row].sum((1, 2)), source.flux, rtol=3e-4)
                assert library.is_star[n][row] == (source.properties["kind"] == "star")
                assert library.magnitude[n][row] == pytest.approx(source.properties["mag_VIS"], rel=1e-6)


def test_two_workers_make_the_same_bytes(folder, tmp_path):
    assert contents(build(tmp_path, workers=2)) == contents(folder)


def test_shard_size_changes_no_source(folder, tmp_path):
    first, second = load_library(folder, "train"), load_library(build(tmp_path, shard_size=16), "train")
    for n in first.stamps:
        assert torch.equal(first.stamps[n], second.stamps[n])


def test_resume_after_losing_a_shard_and_the_index(folder, copy):
    """A killed run: a shard missing, another cut short, a temporary file left behind, no index."""
    (copy / "shard_00001.safetensors").unlink()
    (copy / "index.json").unlink()
    broken = copy / "shard_00002.safetensors"
    broken.write_bytes(broken.read_bytes()[:5000])
    leftover = copy / ".shard_00003.safetensors.999.safetensors"
    leftover.write_bytes(b"half a shard")
    kept = (copy / "shard_00000.safetensors").stat().st_mtime_ns
    with pytest.raises(InputError, match=r"index\.json"):
        load_library(copy, "train")
    build(copy)
    leftover.unlink()
    assert contents(copy) == contents(folder)
    assert (copy / "shard_00000.safetensors").stat().st_mtime_ns == kept


def test_a_growing_library_moves_no_source(folder, copy):
    build(copy, count=55)
    assert shards.verify_library(copy) == 55
    before, after = ([e for s in shards.read_index(f)["shards"] for e in s["entries"]] for f in (folder, copy))
    assert after[:COUNT] == before
    numbers = {split: {e["number"] for e in after if e["split"] == split} for split in ("train", "validation", "test")}
    assert sorted(set.union(*numbers.values())) == list(range(55))
    assert sum(map(len, numbers.values())) == 55


def test_a_growing_library_completes_its_last_shard(tmp_path):
    build(tmp_path, count=12)
    build(tmp_path, count=15)
    assert [len(s["entries"]) for s in shards.read_index(tmp_path)["shards"]] == [10, 5]


def test_splits_have_their_shares():
    splits = [split_of(0, number) for number in range(20000)]
    shares = [splits.count(name) / 20000 for name in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, (0.8, 0.1, 0.1), atol=0.01)


@pytest.mark.parametrize(
    "change", [{"seed": 12}, {"settings": SourceSettings(star_fraction=0.5)}, {"bands": BANDS[:2]}, {"count": 20}]
)
def test_a_folder_with_another_library_is_refused(folder, change):
    before = contents(folder)
    with pytest.raises(InputError, match=r"shard_0000\d\.safetensors"):
        build(folder, **change)
    assert contents(folder) == before


def test_a_truncated_shard_is_named_with_its_bytes(copy):
    path = copy / "shard_00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    for check in (lambda: load_library(copy, "train"), lambda: shards.verify_library(copy)):
        with pytest.raises(InputError) as error:
            check()
        message = str(error.value)
        assert "shard_00001.safetensors" in message
        assert str(len(whole)) in message
        assert str(len(whole) - 100) in message
        assert "\n" not in message


def test_a_missing_shard_is_named(copy):
    (copy / "shard_00003.safetensors").unlink()
    with pytest.raises(InputError, match="shard_00003"):
        load_library(copy, "train")


def test_a_changed_byte_is_found_by_verify(copy):
    path = copy / "shard_00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"shard_00002.*sha256"):
        shards.verify_library(copy)


@pytest.mark.parametrize("junk", [b"", b"abc", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_junk_is_no_shard(tmp_path, junk):
    path = tmp_path / "shard_00000.safetensors"
    path.write_bytes(junk)
    with pytest.raises(InputError, match=r"shard_00000\.safetensors"):
        shards.read_header(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1}'])
def test_junk_is_no_index(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=r"index\.json"):
        load_library(tmp_path, "train")


def test_bands_are_chosen_by_name_and_filter(folder):
    whole, some = load_library(folder, "train"), load_library(folder, "train", bands=(BANDS[2], BANDS[0]))
    assert some.bands == (BANDS[2], BANDS[0])
    for n in whole.stamps:
        assert torch.equal(some.stamps[n], whole.stamps[n][:, [2, 0]])
        assert torch.equal(some.flux[n], whole.flux[n][:, [2, 0]])
        assert torch.equal(some.scales[n], whole.scales[n])


@pytest.mark.parametrize("band", [Band("y", "hsc-y"), Band("g", "lsst-g")])
def test_a_band_of_another_name_or_filter_is_refused(folder, band):
    with pytest.raises(InputError, match=rf"no band {band.name} \({band.filter}\)"):
        load_library(folder, "train", bands=(band,))


def test_memory_is_bounded(folder):
    with pytest.raises(InputError, match="at most 1000"):
        load_library(folder, "train", max_bytes=1000)


def test_other_mistakes_have_one_line(folder, tmp_path):
    with pytest.raises(InputError, match="unknown split 'trian'"):
        load_library(folder, "trian")
    with pytest.raises(InputError, match="library of 0"):
        build(tmp_path, count=0)


def test_a_worker_does_not_import_torch():
    """Two seconds and 200 MB a worker otherwise."""
    code = "import sys, jointdiff.simulate.library; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
