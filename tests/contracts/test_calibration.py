"""calibration.json: read back as written, refused where it does not fit, and what it does to catalogs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jointdiff import build, cli, config
from jointdiff.diffusion import guidance
from jointdiff.errors import InputError
from jointdiff.evaluate import conformal, network_errors
from jointdiff.io.products import merge_catalogs, read_catalog, write_catalog
from jointdiff.measure.catalog import MODES_DISAGREE, measure
from jointdiff.measure.conformal import FILE, Calibration, ErrorScales, quantities, read_calibration
from jointdiff.measure.modes import ModeCheck
from jointdiff.reconstruct.checkpoint import fingerprint, load_denoiser
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.settings import CalibrationConfig, Config
from tests.contracts.test_catalog import NAMES, scene
from tests.contracts.test_reconstruct_cli import BANDS, command, mistake, plant
from tests.denoisers import untrained
from tests.scene_folders import write_good_scene

EDGES = (10.0, 100.0)
CHECK = ModeCheck(1.5, 0.02, (32, 2), 24, 90, 2)


def calibration(weights: str = "", evaluations: int = 8, names=NAMES, modes: ModeCheck | None = None) -> Calibration:
    """A factor of its own for every column and bin."""
    columns = [q.column for q in quantities(names)]
    scales = {column: tuple(1.1 + 0.01 * i + 0.2 * b for b in range(3)) for i, column in enumerate(columns)}
    errors = ErrorScales(EDGES, scales, {column: (5, 6, 7) for column in columns}, 0.6875, 48, 15)
    return Calibration(weights, "amortized", evaluations, 0, errors, modes)


@pytest.mark.parametrize("parts", [{}, {"errors": None}, {"modes": None}])
def test_reads_back_as_written(copy, parts):
    written = replace(calibration(fingerprint(copy), modes=CHECK), **parts)
    path = written.write(copy)
    assert read_calibration(copy) == written
    assert written.sha256 == read_calibration(copy).sha256
    assert json.loads(path.read_text())["format"] == 1


def test_a_checkpoint_without_one(copy):
    assert read_calibration(copy) is None


def edit(content: dict, how: str) -> str:
    errors = content["errors"]
    if how == "format":
        content["format"] = 2
    elif how == "weights":
        content["weights"] = 64 * "0"
    elif how == "missing":
        del content["modes"]
    elif how == "edges":
        errors["edges"] = [10, 10]
    elif how == "bins":
        errors["scales"]["r50"] = [1.0, 1.0]
    elif how == "negative":
        errors["scales"]["flux_g"][1] = -1.0
    elif how == "no number":
        errors["scales"]["flux_g"] = "wide"
    elif how == "threshold":
        content["modes"]["threshold"] = 0.0
    elif how == "unknown":
        content["temperature"] = 1.0
    text = json.dumps(content)
    return text[:-40] if how == "truncated" else text


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("format", "format is 2, this version reads 1"),
        ("weights", "belongs to weights 000000000000…, not to those beside it; remove it, or evaluate again"),
        ("missing", "no 'modes'"),
        ("edges", r"errors.edges are \[10.0, 10.0\], expected to rise"),
        ("bins", r"errors.scales of r50 are \[1.0, 1.0\], expected 3 positive numbers"),
        ("negative", "errors.scales of flux_g are .*, expected 3 positive numbers"),
        ("no number", "errors.scales of flux_g are wide, expected 3 positive numbers"),
        ("threshold", "modes.threshold is 0.0, expected more than 0"),
        ("unknown", "temperature"),
        ("truncated", "delimiter|Expecting|Unterminated"),
    ],
)
def test_a_broken_file_is_one_line(how, told, copy):
    path = calibration(fingerprint(copy), modes=CHECK).write(copy)
    path.write_text(edit(json.loads(path.read_text()), how))
    with pytest.raises(InputError, match=told) as caught:
        read_calibration(copy)
    assert str(caught.value).startswith("calibration: ") and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_catalog_holds_scaled_and_raw_errors_side_by_side():
    samples, _ = scene()
    known = calibration()
    raw, scaled = measure(samples, NAMES, "f", 0.1), measure(samples, NAMES, "f", 0.1, calibration=known)
    assert raw.colnames == scaled.colnames
    assert (raw.meta["ERRSCALE"], scaled.meta["ERRSCALE"]) == ("none", "conformal")
    assert (scaled.meta["CALSHA"], scaled.meta["ERRLEVEL"]) == (known.sha256, 0.6875) and "CALSHA" not in raw.meta
    for column, error, unscaled, light in quantities(NAMES):
        place = scaled.colnames.index(error)
        assert scaled.colnames[place + 1] == unscaled and scaled[unscaled].unit == scaled[error].unit
        np.testing.assert_array_equal(raw[error], raw[unscaled])
        np.testing.assert_array_equal(scaled[unscaled], raw[error])
        np.testing.assert_array_equal(scaled[column], raw[column])
        light_error = light.replace("flux_", "flux_err_")
        factor = known.errors.of(column, raw[light] / raw[light_error])
        np.testing.assert_allclose(scaled[error], factor * raw[error])
    for band, name in enumerate(NAMES):
        np.testing.assert_allclose(np.sqrt(scaled["flux_cov"][:, band, band]), scaled[f"flux_err_{name}"])
        ratio = scaled[f"mag_err_{name}"] / raw[f"mag_err_{name}"]
        np.testing.assert_allclose(ratio, scaled[f"flux_err_{name}"] / raw[f"flux_err_{name}"])
    correlations = [t["flux_cov"][:, 0, 1] / (t["flux_err_VIS"] * t["flux_err_g"]) for t in (raw, scaled)]
    np.testing.assert_allclose(*correlations)


def test_an_empty_catalog_has_the_same_columns_and_headers(tmp_path):
    full, empty = (measure(scene(s)[0], NAMES, "f", 0.1, calibration=calibration()) for s in (((14, 14, 60.0),), ()))
    assert len(empty) == 0 and empty.colnames == full.colnames and empty.meta == full.meta
    write_catalog(tmp_path / "catalog.fits", merge_catalogs([full, empty]), {})
    read = read_catalog(tmp_path / "catalog.fits")
    assert read.meta["CALSHA"] == calibration().sha256
    assert "as sampled" in read["r50_err_raw"].description


def without_gauss(errors: ErrorScales) -> ErrorScales:
    """As earlier versions fitted them."""
    kept = [column for column in errors.scales if not column.startswith("gauss_flux")]
    return replace(errors, scales={c: errors.scales[c] for c in kept}, sources={c: errors.sources[c] for c in kept})


def test_what_an_earlier_version_fitted_no_factors_of_stays_raw_and_says_so():
    earlier = replace(calibration(), errors=without_gauss(calibration().errors))
    old, new = (measure(scene()[0], NAMES, "f", 0.1, calibration=known) for known in (earlier, calibration()))
    np.testing.assert_array_equal(old["gauss_flux_err_g"], old["gauss_flux_err_raw_g"])
    assert "as sampled" in old["gauss_flux_err_g"].description
    assert "as sampled" not in new["gauss_flux_err_g"].description
    np.testing.assert_array_equal(old["flux_err_g"], new["flux_err_g"])


def test_factors_of_other_bands_are_refused():
    with pytest.raises(InputError, match="calibration: no flux_r, which the catalog has"):
        measure(scene()[0], NAMES, "f", 0.1, calibration=calibration(names=NAMES[:2]))


@pytest.mark.parametrize(("options", "scaled"), [("", True), ("--method wiener", False), ("--evaluations 5", False)])
def test_errors_are_scaled_only_as_they_were_fitted(options, scaled, copy, tmp_path, recwarn):
    """Never those of another method; with other evaluations the user is told."""
    calibration(fingerprint(copy), evaluations=4).write(copy)
    field = write_good_scene(tmp_path / "good")
    plant(field, 4000)
    assert cli.main(command(field, copy, tmp_path / "out", "--stars", "false", *options.split())) == 0
    catalog = read_catalog(tmp_path / "out" / "catalog.fits")
    assert catalog.meta["ERRSCALE"] == ("conformal" if scaled else "none")
    assert ("CALSHA" in catalog.meta) == scaled
    ratio = catalog["aper_flux_err_VIS"] / catalog["aper_flux_err_raw_VIS"]
    assert len(catalog) and ((ratio > 1.1) if scaled else (ratio == 1)).all()
    told = [str(w.message) for w in recwarn if "stated raw" in str(w.message)]
    assert len(told) == (not scaled and "wiener" not in options)


def test_errors_of_another_mode_are_raw(copy):
    calibration(fingerprint(copy)).write(copy)
    asked = config.ReconstructConfig(scene=("a",), output="b", mode="factorized")
    told = (
        "errors are stated raw: calibration.json is of mode amortized with 8 evaluations, not of mode factorized with 8"
    )
    with pytest.warns(UserWarning, match=told):
        assert config._calibration_for(asked, copy, Diffusion(load_denoiser(copy), mode="factorized")) is None


def test_a_calibration_of_other_weights_stops_the_command(copy, tmp_path, capsys):
    calibration(64 * "0", evaluations=4).write(copy)
    told = mistake(capsys, command(write_good_scene(tmp_path / "good"), copy, tmp_path / "out"))
    assert told.startswith("calibration: belongs to weights 000000000000…") and FILE in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("modes", "evaluations", "errors", "told"),
    [
        (None, 4, None, "none that says how far"),
        (CHECK, 8, None, "of 8 eval"),
        (CHECK, 4, (0.02, 0.08, 0.08), "that of 4 evaluations and network errors 0.02 0.08 0.08"),
    ],
)
def test_both_modes_want_a_threshold(modes, evaluations, errors, told, copy, tmp_path, capsys):
    replace(calibration(fingerprint(copy), evaluations, modes=modes), network_errors=errors).write(copy)
    line = mistake(capsys, command(write_good_scene(tmp_path / "good"), copy, tmp_path / "out", "--mode", "both"))
    assert line.startswith("mode both with 4 evaluations: ") and told in line and FILE in line


def test_the_false_alarm_rate_is_told_with_what_is_known_of_it():
    """Without an alarm in n sources the rate is below 1 − 0.025^(1/n) at 97.5 % (Clopper & Pearson 1934)."""
    none = replace(CHECK, alarms=0)
    assert none.interval == pytest.approx((0, 1 - 0.025 ** (1 / 90)))
    assert CHECK.cards == {
        "MODETHR": 1.5,
        "MODERATE": 2 / 90,
        "MODELOW": CHECK.interval[0],
        "MODEHIGH": CHECK.interval[1],
        "MODESRC": 90,
        "MODENSMP": 2,
    }
    assert CHECK.text.startswith("2.2% of sources with nothing wrong are flagged (0.3% to 7.8%: 2 of 90")


def test_modes_that_disagree_are_flagged(copy, tmp_path, monkeypatch, capsys):
    """A network that was never trained says of the ground what its likelihood denies."""
    field = write_good_scene(tmp_path / "good")
    plant(field, 400)
    monkeypatch.setattr(guidance.Convergence, "converged", True)
    flags = {}
    for name, threshold in (("strict", 1e-4), ("lax", 1e4)):
        calibration(fingerprint(copy), 4, modes=replace(CHECK, threshold=threshold)).write(copy)
        assert cli.main(command(field, copy, tmp_path / name, "--mode", "both")) == 0
        catalog = read_catalog(tmp_path / name / "catalog.fits")
        flags[name] = catalog["flags"] & MODES_DISAGREE
        assert catalog.meta["MODETHR"] == threshold and catalog.meta["MODENSMP"] == 2
        assert catalog.meta["MODERATE"] == pytest.approx(2 / 90) and catalog.meta["MODE"] == "amortized"
        told = f"modes disagree on {(flags[name] > 0).sum()} of {len(catalog)} sources; {CHECK.text}"
        assert told in capsys.readouterr().out
    assert len(flags["strict"]) and flags["strict"].all() and not flags["lax"].any()
    assert cli.main(command(field, copy, tmp_path / "alone")) == 0
    alone, both = (read_catalog(tmp_path / name / "catalog.fits") for name in ("alone", "lax"))
    assert "MODETHR" not in alone.meta
    np.testing.assert_array_equal(alone["flux_VIS"], both["flux_VIS"])  # the check moves no number


KNOWN = (0.02, 0.08, 0.08)


@pytest.fixture
def fit(monkeypatch):
    """Fits a calibration without drawing a sample: (settings, weights, old) → the new one, and what was measured."""

    def call(settings: CalibrationConfig, weights: str, old=None, sources: int = 60, stated=(), found=KNOWN):
        measured: list[str] = []
        denoiser = untrained(BANDS)
        denoiser.network_errors = stated
        monkeypatch.setattr(build, "_validation", lambda *args: measured.append(args[4]))
        errors = replace(calibration().errors, scenes=settings.scenes, samples=settings.samples)

        def measure_errors(_, told, *__):
            assert told.network_errors == found
            return errors

        scenes = np.array_split(np.linspace(0, 1, sources), max(settings.mode_scenes, 1))
        monkeypatch.setattr(network_errors, "fit_network_errors", lambda *_: found)
        monkeypatch.setattr(conformal, "measure_errors", measure_errors)
        monkeypatch.setattr(conformal, "compare_modes", lambda *_: scenes)
        return build.calibration(Config(calibration=settings), denoiser, weights, old), measured

    return call


OWN = "network errors"


def test_only_what_the_settings_change_is_measured_again(fit):
    one, measured = fit(CalibrationConfig(48, 15, 20), "a")
    assert measured == [OWN, "calibration", "modes"] and one.modes.scenes == 20 and one.modes.sources == 60
    assert one.network_errors == KNOWN
    assert fit(CalibrationConfig(48, 15, 0), "a", one, stated=KNOWN) == (one, []), "what was measured once is kept"
    assert fit(CalibrationConfig(0, 15, 0), "a", one) == (one, [])
    earlier = replace(one, errors=without_gauss(one.errors))
    again = fit(CalibrationConfig(48, 15, 0), "a", earlier, stated=KNOWN)
    assert again == (one, ["calibration"]), "some columns have no factors"
    other, measured = fit(CalibrationConfig(48, 16, 20), "a", one, stated=KNOWN)
    assert measured == ["calibration"] and other.modes == one.modes and other.errors.samples == 16
    fresh, measured = fit(CalibrationConfig(48, 15, 0), "b", one, stated=KNOWN)
    assert measured == [OWN, "calibration"] and fresh.weights == "b" and fresh.modes is None, (
        "of other weights nothing is kept"
    )
    assert fit(CalibrationConfig(0, 15, 0), "b") == (Calibration("b", "amortized", 8, 0), [])


def test_what_is_of_samples_with_other_network_errors_is_measured_again(fit):
    """Where an earlier version had none; where config.json lost them, they are found, and the rest is still theirs."""
    every = CalibrationConfig(48, 15, 20)
    one, _ = fit(every, "a")
    assert fit(every, "a", replace(one, network_errors=None)) == (one, [OWN, "calibration", "modes"])
    assert fit(every, "a", one) == (one, [OWN])
    none, measured = fit(every, "a", found=())
    assert none.network_errors == () and measured == [OWN, "calibration", "modes"]
    assert fit(every, "a", none, found=()) == (none, []), "that there are none is known, too"


def test_too_few_sources_to_compare_the_modes_on(fit):
    told = "calibration.mode_scenes is 2: 9 sources, expected at least 50 for a false-alarm rate of 0.02"
    with pytest.raises(InputError, match=told):
        fit(CalibrationConfig(48, 15, 2), "a", sources=9)
