"""Laws of observations on disk: window by window they are what they would be in memory, however they are stored."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from jointdiff import ondisk
from jointdiff.correlation import power_spectrum
from jointdiff.io.scene_files import read_field
from jointdiff.ondisk import OnDisk
from jointdiff.reconstruct.api import reconstruct
from jointdiff.reconstruct.field import REACH, _cropped, pad_field
from jointdiff.reconstruct.stars import subtract_stars
from jointdiff.reconstruct.tiles import Tiling, divided
from jointdiff.scene import Grid, Observation
from tests.denoisers import untrained
from tests.laws.test_reconstruct import PAIRS, _blank
from tests.laws.test_tiles import SIZE, field
from tests.scene_folders import write_good_scene

STRIDE = 4


@pytest.fixture
def little(monkeypatch):
    """As if a process held no more than 100 pixels."""
    monkeypatch.setattr(ondisk, "HELD", 100)


def on_disk(o: Observation, lags: torch.Tensor | None = None) -> OnDisk:
    """The same pixels behind a reader. lags: of its noise."""
    return OnDisk.of(o.band, o.frame, o.pixels, None if lags is None else power_spectrum(lags, (128, 128)))


def noisy(o: Observation, generator: torch.Generator) -> Observation:
    """Noise, and twelve stars that raise the aliasing floor; some masks and uneven weights."""
    h, w = o.frame.grid.shape
    image = torch.randn(o.image.shape, generator=generator) / o.ivar.sqrt()
    for y, x in torch.rand(12, 2, generator=generator).tolist():
        image[0, int(y * h), int(x * w)] += 300
    ivar = o.ivar * (0.5 + torch.rand(o.ivar.shape, generator=generator))
    ivar[0, h // 3 : h // 3 + 9, w // 2 : w // 2 + 5] = 0
    return replace(o, image=image, ivar=ivar)


def test_tiles_see_of_images_on_disk_what_they_see_of_images_in_memory(little):
    """VIS beyond the core, a band of other pixels, one that is binned and of correlated noise: pixel by pixel."""
    generator, denoiser = torch.Generator().manual_seed(0), untrained(PAIRS)
    core = Grid.centred((300, 200), 0.1)
    grids = core.padded((4, 6), (2, 2)), Grid.centred((151, 100), 0.2), core
    settings = zip(denoiser.bands, grids, (0.2, 0.7, 0.6), (1.0, 2.0, 2.0), strict=True)
    vis, g, r = (noisy(_blank(*setting), generator) for setting in settings)
    steps = torch.arange(-4, 5).square()
    lags = (0.6 ** (steps[:, None] + steps).float())[None]
    told = replace(r, correlation=power_spectrum(lags, r.frame.grid.shape))
    held = pad_field([vis, g, told], core, denoiser)
    kept = pad_field([on_disk(vis), on_disk(g), on_disk(r, lags)], core, denoiser)
    assert all(isinstance(o, OnDisk) for o in kept.observations)
    assert [o.frame.grid for o in kept.observations][2] == held.observations[2].frame.grid  # binned alike
    torch.testing.assert_close(Tiling(kept, 150, STRIDE).weights, Tiling(held, 150, STRIDE).weights)
    for one, other in zip(kept.observations, held.observations, strict=True):
        torch.testing.assert_close(one.deepest, other.deepest, rtol=1e-3, atol=0)
    assert held.observations[0].ivar.min() < 0.5 * held.observations[0].ivar.median(), "no floor: what is this for?"
    for tile in Tiling(held, 150, STRIDE).tiles:
        ours, theirs = (Tiling(f, 150, STRIDE).view(tile).field for f in (kept, held))
        assert ours.grid == theirs.grid and ours.corner == theirs.corner
        for a, b in zip(ours.observations, theirs.observations, strict=True):
            assert not isinstance(a, OnDisk) and a.band == b.band
            np.testing.assert_allclose(a.frame.grid.origin, b.frame.grid.origin, atol=1e-9)
            torch.testing.assert_close(a.image, b.image)
            torch.testing.assert_close(a.ivar, b.ivar)
            if b.correlation is not None:
                torch.testing.assert_close(a.correlation, b.correlation, rtol=1e-3, atol=1e-4)


def overlapping() -> tuple[Grid, list[Observation]]:
    """A core, and images of it: a larger one, one that shares a corner of 8 × 7 pixels with it, and one beside it,
    turned by 45 degrees, none of whose pixels are in the core, though its rows and columns run through it."""
    generator, bands = torch.Generator().manual_seed(4), untrained(PAIRS).bands
    core = Grid.centred((60, 60), 0.1)
    corner = Grid((30, 30), ((0.1, 0.0), (0.0, 0.1)), (-5.2, -5.3))
    turned = Grid.centred((40, 40), 0.1, math.pi / 4)
    beside = replace(turned, origin=(turned.origin[0] + 6.4, turned.origin[1] + 0.7))
    grids = core.padded((9, 9), (9, 9)), corner, beside
    settings = zip(bands, grids, (0.2, 0.7, 0.6), (1.0, 2.0, 2.0), strict=True)
    return core, [noisy(_blank(*setting), generator) for setting in settings]


def test_what_is_not_large_in_the_core_is_held():
    """However large the image: then it is cut, and stars are taken out of it, as if it had been in memory. In memory
    it is, too, where the whole field is to be sampled at once."""
    (core, seen), denoiser = overlapping(), untrained(PAIRS)
    held = pad_field(seen, core, denoiser)
    assert [o.band.name for o in held.observations] == ["VIS", "g"]
    for most, whole in ((10_000, False), (100, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ondisk, "HELD", most)
            kept = pad_field([on_disk(o) for o in seen], core, denoiser, whole=whole)
        for one, other in zip(kept.observations, held.observations, strict=True):
            assert not isinstance(one, OnDisk) and one.frame.grid == other.frame.grid
            assert torch.equal(one.image, other.image) and torch.equal(one.ivar, other.ivar)


@pytest.mark.parametrize("masked", [False, True])
def test_large_images_without_a_pixel_in_the_core_are_dropped(masked, little):
    """As they are in memory; one with pixels there that are all masked stays, and was not observed."""
    core, (vis, _, beside) = overlapping()
    if masked:
        vis = replace(vis, ivar=torch.zeros_like(vis.ivar))
    cropped = _cropped(on_disk(beside), core)
    assert cropped is not None and cropped.large
    kept = pad_field([on_disk(vis), on_disk(beside)], core, untrained(PAIRS)).observations
    assert [(o.band.name, bool(o.present)) for o in kept] == [("VIS", not masked)]


def test_stars_are_left_where_an_image_is_on_disk(little):
    core, (vis, *_) = overlapping()
    seen = pad_field([on_disk(vis)], core, untrained(PAIRS))
    with pytest.warns(UserWarning, match="^a: no star is subtracted, for VIS is read part by part$"):
        assert subtract_stars(seen, "a") == (seen, ())


def test_images_on_disk_are_moved_as_those_in_memory(little, monkeypatch):
    """g lies 50 mas off: that is found, and tiles see the moved image. What else tiles share takes time."""
    monkeypatch.setattr(Tiling, "shared", lambda *_: None)
    off = torch.tensor([0.05, 0.0])

    def displaced(o: Observation) -> Observation:
        y, x = o.frame.grid.origin
        grid = replace(o.frame.grid, origin=(y - 0.05, x))
        return replace(o, frame=replace(o.frame, grid=grid)) if o.band.name == "g" else o

    denoiser, found = untrained(PAIRS), []
    for seen in (field(displaced, 4), field(lambda o: on_disk(displaced(o)), 4)):
        tiling, alignment, _ = divided(seen, SIZE, denoiser, True)
        assert alignment is not None and alignment.bands == ("VIS", "g", "i")
        g = tiling.view(tiling.tiles[0]).field.observations[1]
        torch.testing.assert_close(g.frame.shift, alignment.applied[1:2].float())
        found.append(alignment.shifts)
        assert ((found[-1].value[0, 1] - off) / found[-1].error[0, 1]).abs().max() < 4
        assert alignment.applied[1].any()
    assert isinstance(tiling.field.observations[1], OnDisk)
    torch.testing.assert_close(found[1].value, found[0].value, rtol=1e-3, atol=1e-5)


def test_a_field_on_disk_can_be_sampled_whole(tmp_path, little):
    """The library's one call: the same samples as of images in memory."""
    path, denoiser = write_good_scene(tmp_path / "good"), untrained(PAIRS)
    fields = [read_field(path, most) for most in (100, None)]
    assert isinstance(fields[0].observations[0], OnDisk)
    ours, theirs = (reconstruct(f.observations, denoiser, 2, method="wiener", grid=f.grid).samples for f in fields)
    assert torch.equal(ours, theirs)


def test_a_step_sees_as_far_as_it_reaches():
    """A mean over REACH pixels on either side comes out right in a window's corner, and at the image's edge."""
    image = torch.randn(1, 400, 300, generator=torch.Generator().manual_seed(1))
    o = replace(_blank(untrained(PAIRS).bands[0], Grid.centred((400, 300), 0.1), 0.2, 1.0), image=image)

    def mean(seen: Observation) -> Observation:
        wide = torch.nn.functional.avg_pool2d(seen.image, 2 * REACH + 1, 1, REACH, count_include_pad=False)
        return replace(seen, image=wide)

    part = on_disk(o).through(mean, REACH).window(range(330, 400), range(100, 101))
    torch.testing.assert_close(part.image, mean(o).image[:, 330:400, 100:101], rtol=1e-4, atol=1e-5)


def rewritten(path: Path, how: str) -> Path:
    """The image g of a scene folder in another layout of the same numbers; its address."""
    data, header = fits.getdata(path, header=True)
    name = path.with_name("g2.fits.gz" if how == "gzip" else "g2.fits")
    if how == "compressed":
        lossless = fits.CompImageHDU(data.astype(np.float32), header, compression_type="GZIP_2", quantize_level=0)
        fits.HDUList([fits.PrimaryHDU(), lossless]).writeto(name)
        return name
    hdu = fits.PrimaryHDU(data.astype(np.float32), header)
    if how == "scaled":
        hdu = fits.PrimaryHDU(np.round(1000 * data).astype(np.int16), header)
        hdu.header["BSCALE"], hdu.header["BZERO"] = 0.001, 1.5
    hdu.writeto(name)
    return name


@pytest.mark.parametrize("how", ["plain", "scaled", "compressed", "gzip"])
def test_windows_of_files_are_those_of_the_image(how, tmp_path):
    """Whatever its numbers are stored as. What is packed as a whole is held."""
    path = write_good_scene(tmp_path / "good")
    name = rewritten(path.parent / "g.fits", how).name
    path.write_text(path.read_text().replace("image: g.fits", f"image: {name}"))
    whole, kept = read_field(path), read_field(path, most=100)
    assert isinstance(kept.observations[1], OnDisk) == (how != "gzip") and isinstance(kept.observations[0], OnDisk)
    for a, b in zip(kept.observations, whole.observations, strict=True):
        ours, theirs = (o.window(range(3, 17), range(5, 6)) for o in (a, b))
        assert torch.equal(ours.image, theirs.image) and torch.equal(ours.ivar, theirs.ivar)
        assert ours.frame.grid == theirs.frame.grid and theirs.image.abs().max() > 0
        assert torch.equal(a.window(*map(range, b.frame.grid.shape)).image, b.image)
