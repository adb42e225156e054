"""A wrong archive file is named as what it is, in one line, with exit status 2."""

import numpy as np
from astropy.io import fits

from jointdiff import cli
from tests.archive_files import TILE, write_afw_psf, write_coadd, write_mosaic, write_tile
from tests.contracts.test_ingest import field, ingest
from tests.scene_folders import edit_header, edit_pixels, gaussian_psf, tan_header


def assert_told(cases, folder, capsys):
    """Cases (survey, files, options, told): each is refused in one line that tells it, and leaves no scene."""
    for number, (survey, files, options, told) in enumerate(cases):
        capsys.readouterr()
        assert ingest(survey, files, folder / f"out{number}", *options) == 2, (survey, told)
        captured = capsys.readouterr()
        assert told in captured.err, captured.err
        assert captured.err.count("\n") == 1, captured.err
        assert captured.out == ""
        assert not (folder / f"out{number}" / "scene.yaml").exists()


def write_catalogue(folder):
    path = folder / f"EUC_MER_FINAL-CAT_{TILE}"
    table = fits.BinTableHDU.from_columns([fits.Column("ID", "J", array=[1])])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    return path


def test_one_line_names_what_is_wrong_with_a_tile(tmp_path, capsys):
    tile, coadd, catalogue = write_tile(tmp_path / "tile"), write_coadd(tmp_path / "r.fits"), write_catalogue(tmp_path)
    grid = tmp_path / f"EUC_MER_GRID-PSF-VIS_{TILE}"
    fits.writeto(grid, gaussian_psf())
    text = tmp_path / "notes.txt"
    text.write_text("no FITS")
    hollow = tmp_path / "hollow.fits"
    hollow.write_bytes(b"")
    small = write_tile(tmp_path / "small", shape=(50, 80))
    bare, negative, beside, flux, shallow = (
        write_tile(tmp_path / name) for name in ("bare", "negative", "beside", "flux", "shallow")
    )
    edit_header(bare["image"], MAGZERO=None)
    edit_pixels(negative["rms"], lambda rms: -rms)
    with fits.open(beside["psf"], mode="update") as hdus:
        hdus[1].data[:] = np.roll(hdus[1].data, 6, axis=1)
    edit_header(flux["image"], BUNIT="nJy")
    edit_pixels(shallow["rms"], np.zeros_like)
    four = list(tile.values())
    far = ("--centre", "[10,-5]")
    cases = [
        (["nix.fits"], (), "no such file (nix.fits)"),
        ([text], (), "not a readable FITS file"),
        ([*four, catalogue], (), "this is the MER catalogue, expected BGSUB-MOSAIC"),
        ([*four, grid], (), "this is a MER grid of PSFs"),
        ([coadd], (), "nor named as a MER tile"),
        ([tile["image"], tile["psf"]], (), "VIS: no RMS mosaic"),
        ([tile["image"], tile["rms"]], (), "VIS: no PSF file"),
        ([tile["rms"], tile["psf"]], (), "VIS: no mosaic (EUC_MER_BGSUB-MOSAIC"),
        ([tile["image"], small["rms"], tile["psf"]], (), "VIS: 50 × 80 pixels, but the image has 60 × 80"),
        (bare.values(), (), "VIS: MAGZERO is None"),
        (negative.values(), (), "VIS: rms is negative in 4800 pixels"),
        (four, far, "VIS: (10.00000, -5.00000) is outside the image, whose middle is at (150."),
        (four, ("--bands", "[VIS,g]"), "bands is ['VIS', 'g'], expected some of VIS"),
        (four, ("--add",), "no scene to add to"),
        (beside.values(), (), "VIS: PSF is 6.0 pixels from the middle of its stamp"),
        (flux.values(), (), "VIS: BUNIT is nJy, expected counts of a MER mosaic"),
        (shallow.values(), (), "VIS: no pixel has a finite, positive variance"),
        ([hollow], (), "not a readable FITS file"),
    ]
    assert_told([("euclid-q1", *case) for case in cases], tmp_path, capsys)


def test_one_line_names_what_is_wrong_with_a_coadd(tmp_path, capsys):
    coadd, psf = write_coadd(tmp_path / "coadd_r.fits"), write_afw_psf(tmp_path / "psf_r.fits")
    narrow = write_coadd(tmp_path / "u.fits", "NB0816", scale=0.168)
    cut = tmp_path / "coadd_i.fits"
    cut.write_bytes(coadd.read_bytes()[:9000])
    flat = tmp_path / "band.fits"
    fits.writeto(flat, gaussian_psf())
    hsc = tmp_path / "cutout-HSC-R.fits"
    fits.writeto(hsc, np.zeros((30, 30)), tan_header(30, 0.168))
    cases = [
        ("lsst", [hsc, psf], (), "lsst: pixels of 0.168 arcsec, expected 0.2"),
        ("hsc-pdr3", [coadd, psf], (), "hsc-pdr3: pixels of 0.2 arcsec, expected 0.168"),
        ("lsst", [coadd], (), "r: its image was given, but no PSF"),
        ("lsst", [psf], (), "r: its PSF was given, but no image"),
        ("lsst", [coadd, coadd, psf], (), "r: two files are its image"),
        ("lsst", [write_catalogue(tmp_path)], (), "a catalogue: expected a coadd"),
        ("lsst", [cut, psf], (), "truncated"),
        ("hsc-pdr3", [flat], (), "no FILTER in the header and none in its name"),
        ("hsc-pdr3", [narrow, psf], (), "filter 'NB0816', expected one of g, r"),
    ]
    assert_told(cases, tmp_path, capsys)


def test_one_line_names_what_is_wrong_with_a_mosaic_of_hst(tmp_path, capsys):
    tile, coadd = write_tile(tmp_path / "tile"), write_coadd(tmp_path / "coadd_r.fits")
    ground = tmp_path / "ground_sci.fits"
    fits.writeto(ground, np.zeros((30, 30)), tan_header(30, 0.168))
    mosaic, other, counts, scaled, turned = (
        write_mosaic(tmp_path / name) for name in ("acs", "other", "counts", "scaled", "turned")
    )
    edit_header(other[0], FILTER1="F606W", FILTER2="CLEAR2L")
    edit_header(counts[0], BUNIT="ELECTRONS")
    edit_header(scaled[2], PIXSCALE="0.03")
    swapped = [turned[0].rename(tmp_path / "a_wht.fits"), turned[1].rename(tmp_path / "a_sci.fits"), turned[2]]
    cases = [
        ("hst-cosmos", [ground, mosaic[2]], (), "F814W: pixels of 0.168 arcsec"),
        ("hst-cosmos", other, (), "F814W: FILTER1 is F606W, and mock VIS is made of F814W alone"),
        ("hst-cosmos", counts, (), "F814W: BUNIT is ELECTRONS, expected electrons a second"),
        ("hst-cosmos", scaled, (), "F814W: PIXSCALE of '0.03', expected arcsec above 0"),
        ("hst-cosmos", swapped, (), "pixels: no drizzle weights"),
        ("hst-cosmos", mosaic[:2], (), "F814W: no PSF"),
        ("hst-cosmos", [*mosaic, coadd], (), "F814W: expected …_sci.fits"),
        ("hst-cosmos", [mosaic[0], tile["psf"], mosaic[1]], (), "F814W"),
        ("hst-hsc", [tmp_path], (), "hst-hsc: no hst.fits and i.fits"),
        ("hst-hsc", [coadd], (), "hst-hsc: expected one folder"),
    ]
    assert_told(cases, tmp_path, capsys)


def test_a_scene_that_is_there_stays(tmp_path, capsys):
    files = write_tile(tmp_path / "tile").values()
    scene = field("euclid-q1", files, tmp_path / "scene")
    before = scene.path.read_text()
    assert ingest("euclid-q1", files, tmp_path / "scene") == 2
    assert "there is a scene already" in capsys.readouterr().err
    assert ingest("euclid-q1", files, tmp_path / "scene", "--add") == 2
    assert "VIS: the scene has it already" in capsys.readouterr().err
    assert scene.path.read_text() == before


def test_words_stand_for_options(capsys):
    named = cli.parse("ingest", ["--survey", "lsst", "--files", "a.fits", "--files=b.fits", "--output", "out"])
    assert cli.parse("ingest", ["lsst", "a.fits", "b.fits", "--output", "out"]) == named
    for arguments, told in (
        (["ingest"], "files is missing"),
        (["ingest", "lsst", "a.fits"], "output is missing"),
        (["ingest", "sdss", "a.fits", "--output", "out"], "survey is sdss, expected one of"),
        (["ingest", "lsst", "a.fits", "--output", "out", "--centre", "[3]"], "centre is [3.0], expected [ra,dec]"),
        (["train", "demo"], "unrecognized arguments: demo"),
        (["data", "verify", "a", "b"], "unrecognized arguments: b"),
    ):
        assert cli.main(arguments) == 2
        assert told in capsys.readouterr().err
