"""What every drawn source obeys, and that the population is the published one."""

from dataclasses import replace

import galsim
import numpy as np
import pytest

from jointdiff import units
from jointdiff.errors import InputError
from jointdiff.sed import TEMPLATES, blackbody_fluxes, template_fluxes
from jointdiff.simulate import galaxies
from jointdiff.simulate.galaxies import SourceSettings, draw_source

FILTERS = ("VIS", "hsc-g", "hsc-r", "hsc-i", "hsc-z", "hsc-y")
SETTINGS = SourceSettings()


def draw(number, settings=SETTINGS, filters=FILTERS):
    return draw_source(np.random.default_rng((3, number)), filters, settings)


@pytest.fixture(scope="module")
def sources():
    return [draw(number) for number in range(200)]


def test_stamps_are_finite_and_of_an_allowed_size(sources):
    for source in sources:
        assert np.isfinite(source.stamp).all()
        assert source.stamp.shape[1] == source.stamp.shape[2]
        assert source.stamp.shape[1] in SETTINGS.stamp_sizes
        assert source.stamp.dtype == np.float32


def test_vis_flux_is_the_magnitude_times_the_share_kept(sources):
    for source in sources:
        total = units.flux(source.properties["mag_VIS"])
        assert source.flux[0] == pytest.approx(total * source.properties["kept"], rel=1e-5)


def test_smallest_sufficient_stamp(sources):
    """A source has the smallest stamp that holds 99.5 % of it, and otherwise the largest."""
    sizes = {source.stamp.shape[1] for source in sources}
    assert sizes == set(SETTINGS.stamp_sizes)
    for number, source in enumerate(sources):
        if source.stamp.shape[1] < 128:
            assert source.properties["kept"] >= 0.995
        elif number < 40:
            assert draw(number, replace(SETTINGS, stamp_sizes=(64,))).properties["kept"] < 0.995


def test_stamps_fade_to_zero_at_the_edge(sources):
    for source in sources:
        n = source.stamp.shape[1]
        edge = (
            np.abs(source.stamp[:, 0]).max(),
            np.abs(source.stamp[:, :, -1]).max(),
            np.abs(source.stamp[:, n - 1]).max(),
        )
        assert max(edge) <= 1e-3 * source.stamp.max()


def test_a_star_is_the_library_psf_with_black_body_colours():
    source = draw(1, replace(SETTINGS, star_fraction=1.0))
    n = source.stamp.shape[1]
    centre = (n - 1) / 2 + np.array(source.properties["offset"])
    y, x = np.arange(n)[:, None] - centre[0], np.arange(n) - centre[1]
    sigma = SETTINGS.psf_fwhm * units.SIGMA_PER_FWHM / SETTINGS.pixel_scale
    psf = np.exp(-(x**2 + y**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    fluxes = units.flux(source.properties["mag_VIS"]) * blackbody_fluxes(source.properties["temperature"], FILTERS)
    expected = fluxes[:, None, None] * psf
    assert np.abs(source.stamp - expected).max() <= 1e-6 * expected.max()


def test_each_component_keeps_its_flux_and_its_spectrum():
    """Drawn alone on a wide grid, every component has its analytic flux; their colours are those of the table."""
    kinds = set()
    for number in range(12):
        rng = np.random.default_rng(number)
        components, properties = galaxies._galaxy(rng, 23.0, ("VIS", *FILTERS), SETTINGS)
        assert sum(c.fluxes[0] for c in components) == pytest.approx(units.flux(23.0), rel=1e-9)
        for component in components:
            image = galaxies._draw(component.profile, 512, np.array([0.2, -0.3]), SETTINGS)
            assert image.sum() == pytest.approx(1, abs=5e-3)
            assert component.fluxes[0] == component.fluxes[1]  # VIS, as the reference and as a band
            kinds.add(type(component.profile).__name__)
        clumps = properties["clump_fraction"]
        if clumps:
            colours = galaxies.galaxy_colours(3.0, properties["redshift"], FILTERS)
            assert components[-1].fluxes[1:] == pytest.approx(units.flux(23.0) * clumps * colours)
    assert len(kinds) >= 2


@pytest.mark.parametrize("spectral_type", range(4))
def test_colours_are_the_template_at_its_own_type_and_redshift(spectral_type):
    redshifts, table = template_fluxes(TEMPLATES[spectral_type], FILTERS)
    for step in (0, 37, 200):
        colours = galaxies.galaxy_colours(float(spectral_type), redshifts[step], FILTERS)
        np.testing.assert_allclose(colours, table[step], rtol=1e-12)


def test_colours_are_continuous_in_type_and_redshift():
    for spectral_type in (1.0, 2.0):
        below, above = (galaxies.galaxy_colours(spectral_type + d, 0.5, FILTERS) for d in (-1e-9, 1e-9))
        np.testing.assert_allclose(below, above, rtol=1e-7)
    below, above = (galaxies.galaxy_colours(1.3, 0.5 + d, FILTERS) for d in (-1e-9, 1e-9))
    np.testing.assert_allclose(below, above, rtol=1e-6)


def test_same_random_numbers_same_source():
    first, second = draw(5), draw(5)
    assert first.properties == second.properties
    assert np.array_equal(first.stamp, second.stamp)
    assert draw(6).properties != first.properties


def test_bands_do_not_change_the_source():
    """The morphology and VIS magnitude do not depend on which bands are seen."""
    both, alone = draw(8), draw(8, filters=("hsc-i",))
    assert both.properties == alone.properties
    np.testing.assert_allclose(alone.stamp[0], both.stamp[3], rtol=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.31])
def test_counts_rise_as_asked(slope):
    rng = np.random.default_rng(1)
    settings = replace(SETTINGS, counts_slope=slope)
    magnitudes = np.array([galaxies.draw_magnitude(rng, settings) for _ in range(20000)])
    assert 19 <= magnitudes.min() < magnitudes.max() <= 26.5
    counts, edges = np.histogram(magnitudes, bins=15, range=settings.magnitudes)
    centres = (edges[1:] + edges[:-1]) / 2
    fitted = np.polyfit(centres, np.log10(counts), 1, w=np.sqrt(counts))[0]
    assert fitted == pytest.approx(slope, abs=0.012)


def test_types_and_redshifts_follow_benitez():
    """Mean redshift z_m Γ(1 + 2/α)… of each class, and the class fractions, at m = 24 against the closed form."""
    from scipy.special import gamma

    rng = np.random.default_rng(2)
    drawn = np.array([galaxies.draw_type_and_redshift(rng, 24.0, 1e9) for _ in range(20000)])
    kind = np.rint(drawn[:, 0])
    for k, (alpha, z0, km) in enumerate(
        [(2.46, 0.431, 0.091), (1.81, 0.39, 0.0636), (1.81, 0.39, 0.0636), (0.91, 0.063, 0.123)]
    ):
        mean = (z0 + 4 * km) * gamma(2 / alpha + 1) / gamma(1 / alpha + 1)
        assert drawn[kind == k, 1].mean() == pytest.approx(mean, rel=0.04)
    assert (kind == 0).mean() == pytest.approx(0.35 * np.exp(-0.45 * 4), abs=0.006)
    assert (kind == 3).mean() == pytest.approx(1 - 0.35 * np.exp(-0.45 * 4) - 0.5 * np.exp(-0.147 * 4), abs=0.012)


def test_sizes_follow_miller():
    rng = np.random.default_rng(3)
    for magnitude, median in ((20.0, np.exp(-1.145 + 0.807)), (25.0, np.exp(-1.145 - 0.538))):
        lengths = [galaxies.draw_scale_length(rng, magnitude) for _ in range(8000)]
        assert np.median(lengths) == pytest.approx(median, rel=0.03)


def test_a_face_on_exponential_disk_has_its_half_light_radius():
    """r50 = 1.678 scale lengths, blurred: checks the drawing, its size and the measurement at once."""
    shape = {"scale_length": 0.3, "cos_inclination": 1.0, "angle": 0.4}
    image = galaxies._draw(galaxies._disk(shape, SETTINGS), 256, np.array([0.3, -0.2]), SETTINGS)
    r50 = galaxies._half_light_radius(image, np.array([0.3, -0.2])) * SETTINGS.pixel_scale
    sharp = galsim.Exponential(scale_radius=0.3)
    blurred = galsim.Convolve(sharp, galsim.Gaussian(fwhm=0.1)).calculateHLR(size=256, scale=0.02)
    assert r50 == pytest.approx(1.678 * 0.3, rel=0.03)
    assert r50 == pytest.approx(blurred, abs=0.01)


@pytest.mark.parametrize(
    ("setting", "value", "number"),
    [
        ("magnitudes", (26.0, 20.0), "26.0"),
        ("star_fraction", 1.5, "1.5"),
        ("psf_fwhm", 0.06, "0.06"),
        ("stamp_sizes", (8,), "8"),
        ("stamp_sizes", (), "[]"),
        ("max_redshift", 9.0, "9.0"),
    ],
)
def test_impossible_settings_are_refused(setting, value, number):
    with pytest.raises(InputError, match=setting) as error:
        SourceSettings(**{setting: value})
    assert number in str(error.value)


def test_an_unknown_filter_is_refused():
    with pytest.raises(InputError, match="hsc-q"):
        draw(0, filters=("VIS", "hsc-q"))


def test_a_small_stamp_is_the_middle_of_a_wide_one():
    """No light that belongs outside is folded in by the Fourier transform that draws it."""
    for number in range(15):
        rng = np.random.default_rng(number)
        components, _ = galaxies._galaxy(rng, rng.uniform(20, 26), FILTERS, SETTINGS)
        for component in components:
            small, wide = (galaxies._draw(component.profile, n, np.array([0.2, -0.3]), SETTINGS) for n in (64, 256))
            assert np.abs(small - wide[96:160, 96:160]).max() <= 1e-4 * wide.max()
