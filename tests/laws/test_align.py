"""Laws of the alignment: exact derivatives of the evidence, known shifts found to their errors, none invented."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits

from jointdiff import cli
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum
from jointdiff.io.products import read_catalog
from jointdiff.reconstruct import align
from jointdiff.reconstruct.align import (
    LEAST,
    PRIOR,
    Alignment,
    Shifts,
    _derivatives,
    _posterior,
    align_field,
    fit_shifts,
    shifted,
)
from jointdiff.reconstruct.checkpoint import save_denoiser
from jointdiff.reconstruct.field import pad_field
from jointdiff.scene import Grid, Observation
from tests.denoisers import untrained
from tests.observing import BANDS
from tests.oracles import TORUS, blank, blank_survey
from tests.scene_folders import write_good_scene

PAIRS = [(band.name, band.filter) for band in BANDS]


def surveyed(count: int, amplitude: float, seed: int, hole: int = 0) -> list[Observation]:
    """Skies of the denoiser's own prior seen in VIS and two ground bands; ``hole`` × ``hole`` pixels are masked."""
    denoiser, empty = untrained(PAIRS), blank_survey(count)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, 3, *TORUS.shape, dtype=torch.float64, generator=generator)
    skies = amplitude * field(apply(torch.linalg.cholesky(denoiser.prior.on(TORUS).double()), spectrum(white)), TORUS)
    seen = []
    for o, image in zip(empty, ForwardModel(TORUS, BANDS, 0.2, empty)(skies), strict=True):
        noise = o.ivar.rsqrt() * torch.randn(image.shape, dtype=torch.float64, generator=generator)
        o.ivar[:, 3 : 3 + hole, 5 : 5 + hole] = 0
        seen.append(replace(o, image=(image + noise) * (o.ivar > 0)))
    return seen


def moved(observations, shifts):
    """The same pixels with a WCS that is off by −shifts (B, o, 2), so that these are what is to be found."""
    return [replace(o, frame=replace(o.frame, shift=-shifts[:, i])) for i, o in enumerate(observations)]


def test_derivatives_are_those_of_the_evidence(monkeypatch):
    """Against central differences of the fit term (yᵀ N⁻¹ y − bᵀ P⁻¹ b)/2 at a fixed amplitude, holes included."""
    monkeypatch.setattr(align, "_ACCURACY", 1e-5)
    monkeypatch.setattr(align, "_TOLERANCE", 1e-5)
    denoiser, observations = untrained(PAIRS).double(), surveyed(1, 3.0, 0, hole=4)
    free = torch.tensor([False, True, True])
    first = _posterior(observations, TORUS, denoiser)

    def at(shifts: torch.Tensor) -> list[Observation]:
        return [observations[0], *(shifted(o, s) for o, s in zip(observations[1:], shifts.view(2, 2), strict=True))]

    def fit(shifts: torch.Tensor) -> float:
        seen = at(shifts)
        model = denoiser.forward_model(seen, TORUS)
        gamma = denoiser.prior.on(TORUS)
        exact = GaussianPosterior(model, seen, gamma, first.amplitude, tolerance=1e-9, max_steps=500)
        return float((exact.weighted_data * exact.mean).sum()) / 2

    def derivatives(shifts: torch.Tensor):
        seen = at(shifts)
        return _derivatives(_posterior(seen, TORUS, denoiser, first), seen, TORUS, denoiser, free)

    start, step = torch.tensor([0.02, -0.05, 0.03, 0.01], dtype=torch.float64), 1e-3
    gradient, information = derivatives(start)
    unit = step * torch.eye(4, dtype=torch.float64)
    slopes = torch.tensor([(fit(start + e) - fit(start - e)) / (2 * step) for e in unit])
    error = information.diagonal().rsqrt()  # derivatives are compared in units of the shift's standard error
    torch.testing.assert_close(gradient * error, slopes * error, rtol=1e-3, atol=1e-3)
    ahead, behind = (derivatives(start + s * unit[1])[0] for s in (1, -1))
    bend = (behind - ahead) / (2 * step)
    torch.testing.assert_close(information[1] * error * error[1], bend * error * error[1], rtol=1e-3, atol=1e-3)


def test_known_shifts_are_found_within_their_errors():
    """20 to 140 mas in any direction, on skies of the prior, with a hole: 48 pulls of unit width, to three errors."""
    generator = torch.Generator().manual_seed(1)
    length = 0.02 + 0.12 * torch.rand(12, 3, 1, dtype=torch.float64, generator=generator)
    angle = 2 * torch.pi * torch.rand(12, 3, 1, dtype=torch.float64, generator=generator)
    truth = length * torch.cat([angle.sin(), angle.cos()], -1)
    truth[:, 0] = 0
    found = fit_shifts(moved(surveyed(12, 6.0, 2, hole=5), truth), TORUS, untrained(PAIRS), 0)
    assert not found.value[:, 0].any() and not found.error[:, 0].any()
    pulls = ((found.value - truth) / found.error)[:, 1:]
    assert float(pulls.square().mean().sqrt()) == pytest.approx(1, abs=3 / (2 * pulls.numel()) ** 0.5)
    assert float(found.error[:, 1:].median()) < 0.5 * PRIOR


def test_empty_fields_say_nothing():
    found = fit_shifts(surveyed(4, 0.0, 3), TORUS, untrained(PAIRS), 0)
    assert found.error[:, 1:].min() > 0.8 * PRIOR
    assert found.value.abs().max() < 2 * PRIOR
    assert not found.significant.any()


def test_an_observation_of_nothing_is_left_to_the_prior():
    observations = surveyed(1, 6.0, 4)
    observations[2].ivar.zero_()
    found = fit_shifts(observations, TORUS, untrained(PAIRS), 0)
    torch.testing.assert_close(found.error[0, 2], torch.full((2,), PRIOR, dtype=torch.float64))
    assert found.value[0, 2].abs().max() < 1e-6
    assert found.error[0, 1].max() < 0.5 * PRIOR


def test_small_shifts_are_not_corrected_however_sure():
    value = torch.tensor([[[0.0, 0.0], [0.9 * LEAST, 0.0], [1.1 * LEAST, 0.0]]])
    shifts = Shifts(value, torch.full_like(value, 1e-4))
    assert shifts.significant.tolist() == [[False, False, True]]


def test_images_that_differ_among_themselves_are_not_moved():
    """One shift of all is astrometry, of whatever length; shifts to and fro are not; what is not known agrees."""
    common = torch.tensor([0.08, -0.13])
    error = torch.tensor([0.0, 0.01, 0.02, 0.1]).view(1, 4, 1).expand(1, 4, 2)
    value = common * torch.tensor([0.0, 1.0, 1.0, 0.0]).view(1, 4, 1)
    one = Alignment("VIS", ("VIS", "g", "r", "z"), Shifts(value, error))
    assert one.shifts.agree.all() and torch.equal(one.applied[1], common) and one.line.startswith("moved against VIS")
    value = value * torch.tensor([0.0, 1.0, -1.0, 0.0]).view(1, 4, 1)
    two = Alignment("VIS", ("VIS", "g", "r", "z"), Shifts(value, error))
    assert two.shifts.significant.any() and not two.shifts.agree.any() and not two.applied.any()
    assert two.line.startswith(
        "not moved, as shifts differ by more than astrometry can, against VIS (y, x; mas): g +80"
    )


def test_a_field_is_moved_and_turned_images_are_left():
    """A core cut from a larger sky. A turn of 1e-4 is no obstacle, one of 0.3 is."""
    denoiser, core, sky = untrained(PAIRS), Grid.centred((40, 40), 0.1), Grid.centred((96, 96), 0.1)
    generator = torch.Generator().manual_seed(5)
    white = torch.randn(1, 3, 96, 96, generator=generator)
    truth = 6 * field(apply(torch.linalg.cholesky(denoiser.prior.on(sky)), spectrum(white)), sky)
    off = torch.tensor([[0.06, -0.08]])
    frames = [(core, 0.2, 0.0), (Grid.centred((20, 20), 0.2), 0.6, 1.0), (Grid.centred((20, 20), 0.2, 0.3), 0.6, 0.0)]
    empty = [blank(b, g, 1, fwhm, 1.0).to(torch.float32) for b, (g, fwhm, _) in zip(BANDS, frames, strict=True)]
    seen = []
    for o, image, (_, _, by) in zip(empty, ForwardModel(sky, BANDS, 0.2, empty)(truth), frames, strict=True):
        turned = replace(o.frame.grid, matrix=((0.2, 2e-5), (-2e-5, 0.2))) if by else o.frame.grid
        noisy = image + torch.randn(image.shape, generator=generator)
        seen.append(replace(o, image=noisy, frame=replace(o.frame, grid=turned, shift=-by * off)))
    padded = pad_field(seen, core, denoiser)
    aligned, found = align_field(padded, denoiser)
    assert found is not None and (found.reference, found.bands) == ("VIS", ("VIS", "g"))
    assert ((found.applied[1] - off[0]) / found.shifts.error[0, 1]).abs().max() < 3.5
    before, after = padded.observations, aligned.observations
    assert after[0].frame is before[0].frame and after[2] is before[2]
    assert [o.position_error for o in after] == [0, PRIOR, None]  # the fit's own error says what the data already do
    torch.testing.assert_close(after[1].frame.shift - before[1].frame.shift, found.applied[1:].float())
    assert found.line.startswith("moved against VIS (y, x; mas): g +")
    again = align_field(aligned, denoiser)[1]
    assert again is not None and not again.applied.any() and again.line == ""
    alone = replace(padded, observations=padded.observations[:1])
    assert align_field(alone, denoiser) == (alone, None)


def test_the_command_says_what_it_moved(tmp_path, capsys, monkeypatch):
    """Whatever was found; the position of an image is what was found, not of its reference."""
    found = Shifts(torch.tensor([[[0.0, 0.0], [0.05, -0.12]]]), torch.tensor([[[0.0, 0.0], [0.01, 0.02]]]))
    monkeypatch.setattr(align, "fit_shifts", lambda *_: found)
    scene = write_good_scene(tmp_path / "good")
    save_denoiser(untrained(PAIRS), tmp_path / "model")
    options = ["reconstruct", "--scene", str(scene), "--checkpoint", str(tmp_path / "model"), "--method", "wiener"]
    options += ["--num_samples", "2", "--output"]
    assert cli.main([*options, str(tmp_path / "out")]) == 0
    assert "good: moved against VIS (y, x; mas): g +50 -120 ± 20" in capsys.readouterr().out
    header = fits.getheader(tmp_path / "out" / "good" / "reconstruction.fits")
    meta = read_catalog(tmp_path / "out" / "catalog.fits").meta
    for key, value in {"SHIFTY1": 0.0, "SHIFTX1": 0.0, "SHIFTY2": 0.05, "SHIFTX2": -0.12, "SHIFTE2": 0.02}.items():
        assert header[key] == meta[key] == pytest.approx(value, abs=1e-6)
    assert cli.main([*options, str(tmp_path / "left"), "--align", "false"]) == 0
    assert "moved" not in capsys.readouterr().out
    assert not [key for key in fits.getheader(tmp_path / "left" / "good" / "reconstruction.fits") if "SHIFT" in key]
    means = [fits.getdata(tmp_path / name / "good" / "reconstruction.fits", "MEAN") for name in ("out", "left")]
    assert np.abs(means[0] - means[1]).max() > 0.01 * means[1].std()
