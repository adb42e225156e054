"""Laws of leaving one observation out: exact posteriors predict it, and data of another colour do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.errors import InputError
from jointdiff.evaluate import leave_one_out
from jointdiff.evaluate.calibration import pull_width
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import apply, field, spectrum
from jointdiff.io.scene_files import read_field
from jointdiff.nuisances import Levels, deepest, modes_of
from jointdiff.reconstruct.align import PRIOR, Alignment, Shifts, align_field, shifted
from jointdiff.reconstruct.field import PaddedField
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid
from tests.denoisers import untrained
from tests.observing import BANDS, geometries, observe
from tests.scene_folders import write_good_scene

TORUS = Grid.centred((48, 48), 0.1)


@pytest.mark.parametrize("samples", [8, 31])
@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
def test_a_perfect_prediction_has_a_chi2_of_one(samples, noise):
    generator = torch.Generator().manual_seed(0)
    count = 40_000
    mean = torch.randn(count, generator=generator)
    sky = mean + torch.randn(count, generator=generator)
    models = mean + torch.randn(samples, count, generator=generator)
    image = sky + noise * torch.randn(count, generator=generator)
    found = leave_one_out.predictive_chi2(image, torch.full((count,), noise**-2), models)
    # Satterthwaite's ν is of the variances as estimated: some 2 % off for 8 samples; 40,000 pixels err by a percent.
    assert found == pytest.approx(1, abs=0.04)
    narrow = mean + 0.5 * (models - mean)
    assert leave_one_out.predictive_chi2(image, torch.full((count,), noise**-2), narrow) > found


SKIES = 8
LEVELS = Levels(jitter=0.03, zero_point=0.1, sky=3.0)
"""So large that without them the pulls of a left-out image are 1.7 wide (rms), not 1."""


def sky_fields(levels: Levels, off: float = 0.0) -> tuple[Wiener, list[PaddedField], list[torch.Tensor]]:
    """Fields drawn from the prior of a denoiser, seen through three bands: the Wiener filter knows their posterior.

    levels: of the errors of each image, which are as nuisances.py has them, to first order about the true sky. off:
    arcsec along each axis (rms) by which, beside them, ground images are not where their frames say: by (3, 2) each.
    """
    denoiser = untrained([(band.name, band.filter) for band in BANDS])
    denoiser.levels = levels
    root = torch.linalg.cholesky(denoiser.prior.on(TORUS))
    fields, moves = [], []
    for seed in range(SKIES):
        generator = torch.Generator().manual_seed(seed)
        white = torch.randn(1, 3, *TORUS.shape, generator=generator)
        scene = 3 * field(apply(root, spectrum(white)), TORUS)
        grids = geometries(TORUS)
        frames = [
            observe(b, grids[n], generator, 1, rough=0.0) for b, n in zip(BANDS, ("same", "lsst", "lsst"), strict=True)
        ]
        frames = [o.to(torch.float32) for o in frames]
        moves.append(off * torch.tensor([[0.0], [1.0], [1.0]]) * torch.randn(3, 2, generator=generator))
        moved = [shifted(o, move) for o, move in zip(frames, moves[-1], strict=True)]
        model = ForwardModel(TORUS, BANDS, denoiser.target_fwhm, moved)
        modes, _ = modes_of(model, frames, scene, levels, deepest(frames))
        errors = torch.randn(len(modes[0]), generator=generator)
        noisy = [
            replace(o, image=image + torch.tensordot(errors, m, 1) + torch.randn(image.shape, generator=generator))
            for o, m, image in zip(frames, modes, model(scene), strict=True)
        ]
        fields.append(PaddedField(tuple(noisy), TORUS, TORUS, (0, 0)))
    return Wiener(denoiser), fields, moves


@pytest.fixture(scope="module")
def skies():
    return sky_fields(Levels())


SAMPLES = 16


def _scores(skies, factor: float, align: bool = False) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """For each band left out its χ², and the pulls of all sources, with the last band's data multiplied."""
    method, fields, _ = skies
    chi2: dict[str, list[float]] = {}
    pulls: dict[str, list[float]] = {}
    for number, padded in enumerate(fields):
        *same, last = padded.observations
        changed = replace(padded, observations=(*same, replace(last, image=factor * last.image)))
        changed, found = align_field(changed, method.denoiser) if align else (changed, None)
        for row in leave_one_out.leave_each_out(method, changed, f"sky{number}", SAMPLES, 0, found):
            scores, key = (pulls, "pull") if "pull" in row else (chi2, "chi2")
            scores.setdefault(row["band"], []).append(row[key])
    return {band: float(np.mean(v)) for band, v in chi2.items()}, {band: np.array(v) for band, v in pulls.items()}


@pytest.fixture(scope="module")
def right(skies):
    return _scores(skies, 1.0)


def test_an_exact_posterior_predicts_what_it_did_not_see(right):
    """Of the prior's own skies: χ² of neighbouring pixels is correlated, some 40 modes a band and sky are not."""
    chi2, pulls = right[0], np.concatenate([*right[1].values()])
    assert all(value == pytest.approx(1, abs=4 * np.sqrt(2 / (40 * SKIES))) for value in chi2.values()), chi2
    assert len(pulls) > 150
    # The NMAD of n normal pulls errs by 1.17/√n, their median by 1.25/√n.
    assert pull_width(pulls, SAMPLES) == pytest.approx(1, abs=3 * 1.17 / np.sqrt(len(pulls)))
    assert np.median(pulls) == pytest.approx(0, abs=3 * 1.25 / np.sqrt(len(pulls)))


def test_what_the_left_out_image_is_off_by_as_a_whole_is_in_its_error():
    """Its zero point, position and sky level, which no other image tells of: one draw for all sources of an image."""
    pulls = np.concatenate([*_scores(sky_fields(LEVELS), 1.0)[1].values()])
    variance = (pulls**2).mean() * (SAMPLES - 3) / (SAMPLES - 1)  # Student's t
    assert np.sqrt(variance) == pytest.approx(1, abs=3 / np.sqrt(2 * 3 * SKIES))


def test_an_image_that_its_own_data_placed_is_as_uncertain_as_that_leaves_it():
    """Of ground images 0.06 arcsec off along each axis, aligned: not 0.1 arcsec, the prior of a shift."""
    method, fields, moves = skies = sky_fields(Levels(), off=0.06)
    method.denoiser.levels = Levels(jitter=0.02)
    missed = []
    for number, padded in enumerate(fields):
        aligned, found = align_field(padded, method.denoiser)
        stated = found.left.tolist()
        for left, expected in enumerate(([*stated[1:], 0], [0, PRIOR, stated[1]], [0, PRIOR, stated[2]])):
            known = leave_one_out._without(left, aligned.observations, found)
            assert known[-1].band == padded.observations[left].band
            assert [o.position_error for o in known] == expected
        missed.append(((moves[number] - found.applied)[1:] / found.left[1:, None]).numpy())
    # 8 skies, two images, two axes.
    assert np.sqrt(np.square(missed).mean()) == pytest.approx(1, abs=3 / np.sqrt(2 * 32))
    chi2, _ = _scores(skies, 1.0, align=True)
    assert (chi2["g"] + chi2["i"]) / 2 == pytest.approx(1, abs=3 * np.sqrt(2 / (2 * 40 * SKIES)))


def test_where_shifts_do_not_agree_positions_are_as_served():
    _, (padded, *_), _ = sky_fields(Levels())
    value = torch.tensor([[[0.0, 0.0], [0.3, 0.0], [-0.3, 0.0]]])
    found = Alignment("VIS", ("VIS", "g", "i"), Shifts(value, 0.01 * (value != 0).float()), (0, 1, 2))
    known = leave_one_out._without(1, found.apply(padded).observations, found)
    assert [(o.position_error, o.position_told) for o in known] == [(None, False)] * 3


def test_data_of_another_colour_do_not_fit(skies, right):
    (fit, fits), (wrong, pulls) = right, _scores(skies, 1.6)
    assert wrong["i"] > 1.3 * fit["i"]
    assert np.median(np.abs(pulls["i"])) > 1.5 * np.median(np.abs(fits["i"]))


def test_the_study_of_a_field_from_its_file(tmp_path):
    denoiser = untrained([(band.name, band.filter) for band in BANDS])
    scene = read_field(write_good_scene(tmp_path))
    outcome = leave_one_out.study([Wiener(denoiser)], [scene], 5, 0)
    assert set(outcome.table["band"]) == {o.band.name for o in scene.observations}
    assert set(outcome.figures) == {"leave_one_out"}
    with pytest.raises(InputError, match=r"sampling\.samples is 3, expected at least 4"):
        leave_one_out.study([Wiener(denoiser)], [scene], 3, 0)
    alone = replace(scene, observations=scene.observations[:1])
    with pytest.raises(InputError, match=f"one observation, expected at least two.*{scene.path}"):
        leave_one_out.study([Wiener(denoiser)], [alone], 5, 0)
