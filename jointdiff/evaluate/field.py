"""One real or simulated field from its scene file to reconstruction.fits, catalog.fits and figure.png."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table

from jointdiff.errors import InputError
from jointdiff.evaluate.accuracy import residual_chi2
from jointdiff.evaluate.exports import Extras, export, write_picture, write_unexplained
from jointdiff.evaluate.figures import View, save_figure, scene_figure, views_of
from jointdiff.forward import ForwardModel
from jointdiff.io.products import read_truth, write_reconstruction
from jointdiff.io.scene_files import Field
from jointdiff.measure.aliases import add_aliases
from jointdiff.measure.catalog import (
    CORRELATED_NOISE,
    GAUSSIAN,
    MODES_DISAGREE,
    NEAR_STAR,
    NOT_CONVERGED,
    UNEXPLAINED,
    MeasureSettings,
    find_sources,
    measure,
    place,
)
from jointdiff.measure.conformal import Calibration
from jointdiff.measure.data_checks import Data
from jointdiff.measure.detection import Segments
from jointdiff.measure.modes import disagreement
from jointdiff.measure.morphology import require_statmorph
from jointdiff.measure.peaks import ALARM, near_unexplained, peak_table, peaks
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.measure.unexplained import Significance, significance
from jointdiff.reconstruct.align import align_field
from jointdiff.reconstruct.base import Draws, NoiseStream, Reconstructor, misfits
from jointdiff.reconstruct.field import PaddedField, check_size, pad_field
from jointdiff.reconstruct.stars import subtract_stars
from jointdiff.scene import Observation

REPLACED = 0.1
"""Share of the samples that the Gaussian posterior stands in for, somewhere in a source, from which it is flagged."""


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How fields are reconstructed and measured.

    align: correct the positions of the observations by their own light, before they are sampled. calibration: of the
    reconstructor's errors. check: the other mode, whose disagreement is flagged as the calibration says; None for no
    check. extras: what the catalog holds on request. stars: subtract those that outshine the field.
    """

    align: bool = True
    calibration: Calibration | None = None
    check: Reconstructor | None = None
    extras: Extras = dataclasses.field(default_factory=Extras)
    stars: bool = True


class FieldJob:
    """A field that is ready to be reconstructed: everything that can be wrong with it was checked.

    count: samples. Raises InputError for a field that does not suit the denoiser, is too large, or has a truth of other
    pixels.
    """

    whole = True
    """Whether it is sampled in one piece, which needs all of its images in memory."""

    def __init__(self, field: Field, reconstructor: Reconstructor, count: int, treatment: Treatment):
        self.field, self._reconstructor, self._count, self._align = field, reconstructor, count, treatment.align
        self._calibration, self._check, self._extras = treatment.calibration, treatment.check, treatment.extras
        if self._extras.morphology:
            require_statmorph(f"morphology is {self._extras.morphology}")
        denoiser = reconstructor.denoiser
        self.names = [band.name for band in denoiser.bands]
        self.padded: PaddedField = pad_field(field.observations, field.grid, denoiser, field.sources, self.whole)
        self.padded, self._stars = subtract_stars(self.padded, field.name) if treatment.stars else (self.padded, ())
        self._check_size(f"{field.name} ({field.path})")
        for method in (reconstructor, self._check):
            if method is not None:
                method.check(self.padded.observations, f"{field.name} ({field.path})")
        self.truth = self._read_truth()

    def _check_size(self, label: str) -> None:
        check_size(self.padded.grid.shape, self._count, len(self.names), label)

    def run(self, folder: Path, seed: int, provenance: Mapping[str, object]) -> Table | None:
        """Sample, measure and write into ``folder``; tells how it went; returns the catalog."""
        print(self._describe(), flush=True)
        cards = self._aligned() if self._align else {}
        start, field, padded = time.perf_counter(), self.field, self.padded
        stream = NoiseStream(seed, field.name)
        draws = self._reconstructor.sample(padded.observations, padded.grid, self._count, stream)
        seconds = time.perf_counter() - start
        model = self._reconstructor.denoiser.forward_model(padded.observations, padded.grid)
        found = significance(draws, model, padded.observations)
        catalog = self._catalog(draws, model, stream, found)
        cards |= self._unexplained(folder, found)
        catalog.meta.update({key: value for key, (value, _) in cards.items()})
        samples, mean = padded.crop(draws.samples).cpu(), padded.crop(draws.mean).cpu()
        std = samples.std(0)
        denoiser = self._reconstructor.denoiser
        layout = (denoiser.bands, field.wcs, denoiser.target_fwhm)
        write_reconstruction(folder / "reconstruction.fits", mean, std, samples, *layout, provenance, cards)
        self._export(folder, catalog, provenance)
        seen = [o.band.name for o in padded.observations]
        write_picture(folder, self.names, seen, mean.numpy(), padded.core.scale)
        images = (mean.numpy(), samples.numpy(), std.numpy(), self.truth)
        self._save_picture(folder, field.name, views_of(padded.observations, model(draws.mean[None])), *images)
        chi2 = chi2_text(padded.observations, misfit(padded.observations, draws, model))
        self._tell(catalog, seconds, chi2, folder)
        return catalog

    def _save_picture(self, folder: Path, title: str, views: Sequence[View], mean, samples, std, truth) -> None:
        """figure.png of a field, or of a part of it: (C, H, W) each, samples (S, C, H, W), truth None where unknown."""
        title, scale = f"{title}, {self._reconstructor.method}", self.padded.core.scale
        save_figure(scene_figure(views, self.names, mean, samples, std, truth, scale, title), folder / "figure.png")

    def _export(self, folder: Path, catalog: Table, provenance: Mapping[str, object]) -> None:
        if self._extras.aliases != "none":
            add_aliases(catalog, self._reconstructor.denoiser.bands, self._extras.aliases)
        export(folder, catalog, provenance, self._extras.ecsv)

    def _tell(self, catalog: Table, seconds: float, chi2: str, folder: Path) -> None:
        if touched := int((catalog["flags"] & GAUSSIAN > 0).sum()):
            told = "are the Gaussian posterior's, for the network contradicted the data there"
            print(f"{self.field.name}: {touched} of {len(catalog)} sources {told} (flag {GAUSSIAN})", flush=True)
        print(
            f"{self.field.name}: {self._count} samples in {seconds:.1f} s; {len(catalog)} sources; residual χ²/N of "
            f"the samples {chi2}; wrote {folder}/",
            flush=True,
        )

    def _aligned(self) -> dict[str, tuple[float, str]]:
        """Moves the observations where they are off, and says so; the header's keywords."""
        self.padded, found = align_field(self.padded, self._reconstructor.denoiser)
        if found is not None and found.line:
            print(f"{self.field.name}: {found.line}", flush=True)
        return found.cards(self.names) if found is not None else {}

    def _unexplained(self, folder: Path, found: Significance) -> dict[str, tuple[float, str]]:
        """Writes and tells of what no sample explains; the header's keywords."""
        padded, field = self.padded, self.field
        where = (field.wcs, field.reference, field.sources[field.reference])
        table = peak_table(peaks(found, padded.core.scale, padded.weight), padded.corner, *where)
        write_unexplained(folder, table)
        if len(table):
            first, count = table[0], f"{len(table)} place{'s' * (len(table) > 1)}"
            most = f"{first['sigma']:.1f}σ at {first['ra']:.5f} {first['dec']:+.5f}"
            kind = f"{first['shape']} of {first['size']:.2g}″, {first['band']}"
            told = f"no sample explains {count} above {ALARM:g}σ, at most {most} ({kind}; flag {UNEXPLAINED})"
            print(f"{field.name}: {told}", flush=True)
        return {
            "UNEXPLN": (len(table), "places that no sample explains"),
            "UNEXPTHR": (ALARM, "sigma above which they count"),
        }

    def _catalog(self, draws: Draws, model: ForwardModel, stream: NoiseStream, found: Significance) -> Table:
        """The catalog, in pixels of the core: measured on the padded grid, where the data have their full model."""
        padded, fwhm = self.padded, self._reconstructor.denoiser.target_fwhm
        segments = find_sources(
            draws.samples, draws.mean, self.names, padded.weight, target_fwhm=fwhm, scale=padded.core.scale
        )
        catalog = self._measure(padded, draws, model, segments)
        if self._check is not None:
            self._compare(catalog, draws, segments, stream)
        catalog["flags"] |= UNEXPLAINED * near_unexplained(segments, found, padded.core.scale)
        catalog["y"] -= padded.corner[0]
        catalog["x"] -= padded.corner[1]
        self._place(catalog)
        return catalog

    def _measure(self, padded: PaddedField, draws: Draws, model: ForwardModel, segments: Segments) -> Table:
        """What is measured of sources on a padded grid, in its pixels."""
        denoiser, names = self._reconstructor.denoiser, self.names
        scale, fwhm, weight = padded.core.scale, denoiser.target_fwhm, padded.weight
        # An empty field has no templates to project, and a transform of nothing fails.
        data = Data.of(model, padded.observations, denoiser.bands) if len(segments) else None
        catalog = measure(
            draws.samples,
            names,
            self.field.name,
            scale,
            draws.mean,
            weight=weight,
            data=data,
            segments=segments,
            settings=MeasureSettings(morphology=self._extras.morphology),
            target_fwhm=fwhm,
            calibration=self._calibration,
        )
        if draws.replaced is not None:
            touched = segments.labels[draws.replaced.cpu().numpy() > REPLACED]
            catalog["flags"] |= GAUSSIAN * np.isin(np.arange(1, len(segments) + 1), touched)
        correlated = {o.band.name for o in padded.observations} & {*padded.correlated, *self.field.noise_measured}
        catalog["flags"] |= CORRELATED_NOISE * bool(correlated) | NOT_CONVERGED * (not draws.converged)
        return catalog

    def _place(self, catalog: Table) -> None:
        """Positions on the sky of sources in pixels of the core, and who is near a star."""
        for star in self._stars:
            near = star.near(catalog["y"], catalog["x"], self.padded.core.scale)
            catalog["flags"] |= NEAR_STAR * near
        reference = self.field.reference
        place(catalog, self.field.wcs, reference, self.field.sources[reference])

    def _compare(self, catalog: Table, draws: Draws, segments: Segments, stream: NoiseStream) -> None:
        """Flag the sources on which the other mode disagrees in an observed band, and say so in the header."""
        assert self._check and self._calibration and self._calibration.modes, "a check without a threshold"
        padded, known = self.padded, self._calibration.modes
        other = self._check.sample(padded.observations, padded.grid, known.samples[1], stream)
        radius, shape = MeasureSettings().aperture / padded.core.scale, segments.labels.shape
        circles = aperture_map(segments.x, segments.y, radius, shape)
        ours, theirs = (fluxes(samples.cpu(), circles).numpy() for samples in (draws.samples, other.samples))
        seen = [self.names.index(name) for name in {o.band.name for o in padded.observations}]
        flagged = disagreement(ours, theirs, seen) > known.threshold
        catalog["flags"] |= MODES_DISAGREE * flagged
        catalog.meta.update(known.cards)
        print(
            f"{self.field.name}: modes disagree on {flagged.sum()} of {len(flagged)} sources; {known.text}", flush=True
        )

    def _describe(self) -> str:
        seen = [o.band.name for o in self.padded.observations]
        missing = [name for name in self.names if name not in seen]
        (height, width), padded = self.padded.core.shape, self.padded.grid.shape
        text = (
            f"{self.field.name}: {', '.join(seen)} on {height} × {width} pixels, {padded[0]} × {padded[1]} with margin"
        )
        return text + (f"; {', '.join(missing)} not observed, inferred from the others" if missing else "")

    def _read_truth(self) -> np.ndarray | None:
        """The true scene of a simulated field, in the denoiser's bands."""
        path = self.field.path.parent / "truth.fits"
        if not path.is_file():
            return None
        truth = read_truth(path.parent)
        bands = [band.name for band in truth.bands]
        missing = [name for name in self.names if name not in bands]
        if missing:
            raise InputError(f"truth: no band {', '.join(missing)}, found {', '.join(bands)} ({path})")
        if truth.flux.shape[1:] != self.field.grid.shape:
            found, expected = (" × ".join(map(str, s)) for s in (truth.flux.shape[1:], self.field.grid.shape))
            raise InputError(f"truth: {found} pixels, but the reference has {expected} ({path})")
        return truth.flux[[bands.index(name) for name in self.names]]


@torch.no_grad()
def misfit(observations: Sequence[Observation], draws: Draws, model: ForwardModel) -> np.ndarray:
    """χ² and the number of pixels, (O, 2), of each observation, summed over samples."""
    totals, images = np.zeros((len(observations), 2)), [o.image for o in observations]
    for number, sample in enumerate(draws.samples):
        left = misfits(images, model(sample[None]), [offset[number : number + 1] for offset in draws.offsets])
        for total, o, residual in zip(totals, observations, left, strict=True):
            total += residual_chi2(residual.cpu().numpy(), o.ivar.cpu().numpy())
    return totals


def chi2_text(observations: Sequence[Observation], totals: np.ndarray) -> str:
    """χ²/N of each observed band, of the sums of ``misfit``."""
    ratios = totals[:, 0] / np.maximum(totals[:, 1], 1)
    return ", ".join(f"{o.band.name} {r:.2f}" for o, r in zip(observations, ratios, strict=True))
