"""The only place that turns settings into objects.

Only the standard library is imported at the top: ``--help`` must not wait for torch.
"""

import hashlib
import json
import math
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path

from jointdiff.errors import InputError
from jointdiff.package import code_digest
from jointdiff.run_folder import flat
from jointdiff.seeds import seed_of
from jointdiff.settings import Config, require

PRIOR_SCENES = 512
"""Simulated scenes that Γ is measured on."""

MARGIN = 1.6
"""Margin (arcsec) around a ready scene or one that its edge cuts: two FWHM of a wide ground PSF."""


def bands(config: Config):
    """The scene's bands, in the order of its channels."""
    from jointdiff.scene import Band

    return tuple(Band(name, config.filters[name]) for name in config.bands)


def library_bands(config: Config, geometries=None):
    """What stamps are drawn in: the scene's bands, and after them what else the geometries (all, if None) see."""
    from jointdiff.simulate.observe import GEOMETRIES

    scene = bands(config)
    seen = [GEOMETRIES[name].seen(band) for name in geometries or config.scene.geometries for band in scene]
    return tuple(dict.fromkeys([*scene, *seen]))


def sources(config: Config):
    """What the library holds: stamps of half a scene pixel, so that scenes are composed finer than they are seen."""
    from jointdiff.simulate.galaxies import SourceSettings

    library, scale = config.library, config.scene.pixel_scale / 2
    return SourceSettings(
        scale, 2 * scale, library.stamp_sizes, library.magnitudes, star_fraction=library.star_fraction
    )


def images(config: Config):
    """What galaxies are drawn from, where that is not GalSim's models; None where it is.

    Raises InputError for a folder without such images, or with too few galaxies to keep splits apart.
    """
    from jointdiff.simulate.images import find_images

    library = config.library
    if library.source == "galsim":
        return None
    return find_images(library.source, Path(library.images), library.image_fraction, library.redshifts)


def simulator(config: Config, split: str, margin: int | None = None, geometries=None, device="cpu"):
    """Mocks of one split of the run's library: as training sees them or, with a margin, complete ones.

    margin: scene pixels around the core that are composed but not observed. Complete mocks have the errors that nobody
    knows of; training needs none, for a denoiser is asked about images without the errors that a sample draws.
    """
    from jointdiff.scene import Grid
    from jointdiff.simulate.compose import Crowding
    from jointdiff.simulate.library import load_library
    from jointdiff.simulate.mock import Simulator, complete
    from jointdiff.simulate.observe import Conditions

    scene = config.scene
    conditions = Conditions(
        margin=scene.margin,
        drop_band=scene.drop_band,
        drop_ground=scene.drop_ground,
        drop_vis=scene.drop_vis,
        drop_all=scene.drop_all,
    )
    if margin is not None:
        width = margin * scene.pixel_scale
        conditions = replace(
            complete(conditions),
            margin=float(margin > 0),
            margin_width=(width, width),
            jitter=scene.jitter,
            zero_point_error=scene.zero_point_error,
            psf_error=scene.psf_error,
            sky_error=scene.sky_error,
        )
    size = scene.size + 2 * (margin or 0)
    check_bands(config)
    _check_library(config)
    geometries = geometries or scene.geometries
    library = load_library(Path(config.run) / "library", split, library_bands(config, geometries)).to(device)
    # As many sources per area with a margin as without; a field with a margin is made to be looked at, so never empty.
    crowding = Crowding(scene.mean_sources * (size / scene.size) ** 2, 0.0 if margin else scene.empty_fraction)
    grid = Grid.centred((size, size), scene.pixel_scale)
    return Simulator(library, bands(config), grid, scene.target_fwhm, crowding, conditions, geometries)


def check_bands(config: Config) -> None:
    """Raises InputError for an unknown filter, or a band that the survey of one of the geometries does not have."""
    from jointdiff.simulate.observe import GEOMETRIES
    from jointdiff.survey import FILTERS, load_survey

    for band in config.bands:
        curve = config.filters[band]
        require(curve in FILTERS, f"filters.{band}", curve, f"one of {', '.join(FILTERS)}")
    for geometry in config.scene.geometries:
        held = [band for band in load_survey(GEOMETRIES[geometry].survey).depths if band != "VIS"]
        expected = f"VIS and some of {', '.join(held)}, which scene.geometries {geometry} observes"
        require({*config.bands} <= {"VIS", *held}, "bands", list(config.bands), expected)


def _check_library(config: Config) -> None:
    """Raises InputError if the run's library was drawn with other settings; its bands are load_library's to check."""
    from jointdiff.io.shards import read_index

    folder = Path(config.run) / "library"
    index = read_index(folder)
    library, settings = config.library, index["settings"]
    pictured = index.get("images", {"kind": "galsim", "fraction": library.image_fraction})
    held = {
        "library.source": (library.source, pictured["kind"]),
        "library.image_fraction": (library.image_fraction, pictured["fraction"]),
        "seed": (config.seed, index["seed"]),
        "library.count": (library.count, sum(len(record["entries"]) for record in index["shards"])),
        "library.magnitudes": (list(library.magnitudes), settings["magnitudes"]),
        "library.star_fraction": (library.star_fraction, settings["star_fraction"]),
        "library.stamp_sizes": (sorted(library.stamp_sizes), settings["stamp_sizes"]),
        "scene.pixel_scale": (config.scene.pixel_scale, 2 * settings["pixel_scale"]),
    }
    for name, (value, expected) in held.items():
        require(value == expected, name, value, f"{expected} as in {folder}, or another run")


def digest(config: Config) -> str:
    """A short hash of all that simulated scenes and their scores are made from; what others made is made again."""
    library = asdict(config.library)
    del library["workers"], library["shard_size"]
    if config.library.source == "galsim":  # what is not used changes nothing
        for key in ("source", "images", "image_fraction", "redshifts"):
            del library[key]
    stamps = [asdict(band) for band in library_bands(config)]
    parts = [code_digest(), config.seed, config.bands, stamps, library, asdict(config.scene)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def measure_prior(config: Config, source):
    """Γ of the training scenes, on the CPU: the same on every process."""
    import torch

    from jointdiff.gaussian import fit_prior

    generator = torch.Generator().manual_seed(number_of(config, "prior", 0))
    scenes = [source.scenes(source.skies(64, generator)).cpu() for _ in range(PRIOR_SCENES // 64)]
    return fit_prior(torch.cat(scenes), source.grid)


def margin_pixels(config: Config) -> int:
    """Scene pixels of MARGIN, or a few more, so that the network can halve the scene with both its margins."""
    half = config.network.stride // 2
    return half * math.ceil(MARGIN / config.scene.pixel_scale / half - 1e-9)


WHOLE, CUT = "whole", "cut"
"""The suites that a denoiser is scored on: scenes seen whole, and scenes whose edge cuts sources, as in real fields."""

FOLDERS = {WHOLE: "", CUT: "cut"}
"""Where a suite's catalog and figures lie in the folder of a validation or evaluation."""

PREFIXES = {WHOLE: "", CUT: "validation_cut/"}
"""What a suite's tags in TensorBoard begin with."""


def validations(config: Config, split: str, whole: int, cut: int, samples: int, device="cpu", baselines=()) -> dict:
    """Suite → Validation on so many complete scenes of galaxies outside training; none for a suite without scenes.

    baselines: what to compare with, beside the joint Wiener filter.
    """
    suites = {WHOLE: (whole, 0, split), CUT: (cut, margin_pixels(config), f"{split}, cut")}
    return {
        suite: _validation(config, split, scenes, width, purpose, samples, device, baselines)
        for suite, (scenes, width, purpose) in suites.items()
        if scenes
    }


def _validation(config: Config, split: str, scenes: int, width: int, purpose: str, samples: int, device, baselines=()):
    """Scenes with margins of ``width`` pixels, alternating over the ground geometries."""
    from jointdiff.evaluate.validation import Validation

    lots = simulators(config, split, scenes, width, purpose, device)
    mocks = [source.draw(count, seed) for source, count, seed in lots]
    return Validation(mocks, lots[0][0].grid, width, samples, config.sampling.evaluations, config.seed, baselines)


def simulators(config: Config, split: str, scenes: int, width: int, purpose: str, device="cpu") -> list:
    """(Simulator, number of scenes, seed) of each ground geometry that has any: the scenes of a suite, in its order."""
    lots = []
    for number, geometry in enumerate(config.scene.geometries):
        count = (scenes + len(config.scene.geometries) - 1 - number) // len(config.scene.geometries)
        if count:
            source = simulator(config, split, width, (geometry,), device)
            lots.append((source, count, number_of(config, purpose, number)))
    return lots


def validator(config: Config, accelerator):
    """What the trainer calls now and then: score the averaged weights, as model/ holds them, log and write it all."""
    from jointdiff.evaluate import dashboard
    from jointdiff.evaluate import validation as scoring
    from jointdiff.reconstruct.checkpoint import fingerprint
    from jointdiff.reconstruct.diffusion import Diffusion

    run, settings = Path(config.run), config.training
    counts = (settings.validation_scenes, settings.validation_cut_scenes, settings.validation_samples)
    suites = validations(config, "validation", *counts, accelerator.device)
    writer = accelerator.get_tracker("tensorboard", unwrap=True)
    titles = {f"{suite} scenes": PREFIXES[suite] for suite in suites}
    dashboard.lay_out(writer, titles, config.bands, scoring.METHODS)
    dashboard.log_settings(writer, flat(asdict(config)), config.bands, scoring.METHOD)

    def validate(denoiser, step: int) -> None:
        folder = run / "validation" / f"step_{step:08d}"
        made = Diffusion(denoiser, config.sampling.evaluations).provenance(config.seed, fingerprint(run / "model"))
        for suite, trials in suites.items():
            report = trials.run(denoiser)
            figures = trials.figures(report)
            scoring.log(report, figures, writer, step, PREFIXES[suite])
            scoring.write(report, figures, folder / FOLDERS[suite], made)

    return validate


def calibration(config: Config, denoiser, weights: str, old=None, progress: bool = False):
    """The Calibration of trained weights (their sha256), on validation scenes; what ``old`` holds and the settings
    still ask for, or do not, is kept. The denoiser's own network_errors do not matter, but what is not of them is
    measured again.

    Raises InputError for too few sources to compare the modes on.
    """
    from jointdiff.evaluate import conformal, network_errors
    from jointdiff.measure.conformal import Calibration, quantities

    settings, device = config.calibration, denoiser.wavenumbers.device
    found = Calibration(weights, "amortized", config.sampling.evaluations, config.seed)
    same = old and old == replace(found, errors=old.errors, modes=old.modes, network_errors=old.network_errors)
    kept = old if same else found
    errors, modes, known = kept.errors, kept.modes, kept.network_errors
    asked = settings.scenes or settings.mode_scenes
    if asked and (known is None or known != denoiser.network_errors):
        lot = (network_errors.SCENES, 0, "network errors", network_errors.SAMPLES, device)
        known = network_errors.fit_network_errors(_validation(config, "validation", *lot), denoiser, progress)
        if known != kept.network_errors:
            errors = modes = None  # they were of other samples
    told = copy(denoiser)
    told.network_errors = known or ()
    wanted = (
        settings.scenes,
        settings.samples,
        {quantity.column for quantity in quantities([band.name for band in denoiser.bands])},
    )
    if settings.scenes and not (errors and (errors.scenes, errors.samples, set(errors.scales)) == wanted):
        trials = _validation(config, "validation", settings.scenes, 0, "calibration", settings.samples, device)
        errors = conformal.measure_errors(trials, told, progress)
    if settings.mode_scenes and not (modes and modes.scenes == settings.mode_scenes):
        trials = _validation(config, "validation", settings.mode_scenes, 0, "modes", 2, device)
        try:
            modes = conformal.fit_check(conformal.compare_modes(trials, told, progress))
        except ValueError as error:
            raise InputError(f"calibration.mode_scenes is {settings.mode_scenes}: {error}") from error
    return replace(found, errors=errors, modes=modes, network_errors=known)


def number_of(config: Config, purpose: str, index: int) -> int:
    """The seed of everything that is drawn once per run."""
    return seed_of(purpose, config.seed, index)
