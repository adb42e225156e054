"""HST F814W: COSMOS mosaics, and the small fields with HSC of github.com/herjy/Multi_resolution_comparison.

F814W is no band of a scene: simulate/mock_vis.py makes of it what VIS would have seen.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import convolve1d

from jointdiff.errors import InputError
from jointdiff.io.fits import FitsImage, open_fits, read_image
from jointdiff.io.observations import MAX_PSF, psf_pixel
from jointdiff.io.surveys.product import Product, Wanted, check_pixels, make_product, only_one, read_beside
from jointdiff.io.surveys.sky import Sky, measure_sky, variance_of
from jointdiff.scene import Band
from jointdiff.survey import Depth, load_survey
from jointdiff.units import AB_ZEROPOINT_NJY, njy_per_count

F814W = Band("F814W", "")

PIXEL = 0.03
"""arcsec."""

SKY = Depth(fwhm=0.1, sky_sigma=0.42, electrons_per_njy=13.3)
"""COSMOS F814W, one orbit: noise of a 0.03 arcsec pixel as in GalSim's COSMOS sample (NOISE_VARIANCE 7.5e-6 at zero
point 25.94), and 2028 s of exposure (Koekemoer et al. 2007, ApJS 172, 196), in which 1 nJy is 13.3 electrons."""

ZEROPOINT = 25.94
"""AB zero point of the COSMOS mosaics, of 1 electron a second (Leauthaud et al. 2007, ApJS 172, 219)."""

_RATE = r"cps|(electrons?|e-?|counts?|cts?)( ?/ ?s(ec(ond)?)?|[ .*]s(\^|\*\*)?\(?-1\)?)"
"""BUNIT of electrons a second, as pipelines and FITS standards write it."""

ULTRADEEP = {"g": (0.271, 0.333), "r": (0.395, 0.494), "i": (0.438, 0.530), "z": (0.685, 0.84), "y": (1.25, 1.54)}
"""Noise of HSC's UltraDeep COSMOS pixels of 0.168 arcsec, nJy: of second differences (as _roughness gives them), and of
pixels. g, r and i are measured on PDR3 cutouts; z and y are such that the four fields have the median colours i - z =
0.30 and i - y = 0.40 of COSMOS galaxies of i < 24 (the HSC magnitudes of LSSTDESC/BlendingToolKit's catalogue)."""


def read_cosmos(files: Sequence[Path], wanted: Wanted | None) -> tuple[Product, ...]:
    """F814W of a COSMOS mosaic tile: …_sci.fits, perhaps its …_wht.fits, and a PSF stamp (psf in its name).

    Drizzle weights are relative: they are scaled to the noise measured on the sky. Raises InputError for a missing or
    unknown file, and for whatever is wrong in them.
    """
    kinds: dict[str, list[Path]] = {"sci": [], "wht": [], "psf": []}
    for path in files:
        name = path.name.lower()
        kind = (
            "psf" if "psf" in name else "wht" if "_wht" in name else "sci" if "_sci" in name or "_drz" in name else ""
        )
        if not kind:
            raise InputError(f"F814W: expected …_sci.fits, …_wht.fits or a PSF with psf in its name ({path})")
        kinds[kind].append(path)
    path = only_one(kinds["sci"], "F814W", "mosaic (…_sci.fits)")
    image = read_image(str(path), Path(), "F814W", view=wanted)
    check_pixels(image.header, PIXEL, "F814W", image.address)
    psf_path = only_one(kinds["psf"], "F814W", "PSF (a stamp of 0.03 arcsec pixels, such as Tiny Tim's)")
    psf = read_image(str(psf_path), Path(), "F814W", MAX_PSF**2)
    zeropoint, notes = _zeropoint(image)
    variance: np.ndarray | Depth = SKY
    if kinds["wht"]:
        weight = read_beside(str(only_one(kinds["wht"], "F814W", "weights")), "F814W", image)
        variance = _scaled_variance(image, weight, njy_per_count(zeropoint))
        notes += ("drizzle weights scaled to the noise measured on the sky",)
    return (make_product(F814W, image, zeropoint, variance, image.data == 0, psf, psf_pixel(psf, "F814W"), notes),)


def read_hst_hsc(files: Sequence[Path], wanted: Wanted | None) -> tuple[Product, ...]:
    """F814W and HSC g to y of one field: a folder of hst.fits, g.fits …, and <name>_psf.fits for each.

    Every image was rescaled to mean 1 when the set was made. HSC's units are brought back by taking its finest noise
    for that of the UltraDeep survey, HST's by giving the field the flux that HSC's i has (galaxies have F814W - i =
    0.05): fluxes are good to perhaps a tenth, colours of z and y are those of a typical galaxy.
    """
    if len(files) != 1 or not files[0].is_dir():
        raise InputError(f"hst-hsc: expected one folder with hst.fits, g.fits …, got {', '.join(map(str, files))}")
    folder, told = files[0], "rescaled to mean 1 when the set was made: "
    bands = [name for name in "grizy" if (folder / f"{name}.fits").is_file()]
    if "i" not in bands or not (folder / "hst.fits").is_file():
        raise InputError(f"hst-hsc: no hst.fits and i.fits, the least that is needed ({folder})")
    products, total = [], 0.0
    for name in bands:
        image, psf = _pair(folder, name, wanted)
        roughness, sigma = ULTRADEEP[name]
        scale = roughness / _roughness(image, name)
        image = replace(image, data=image.data * scale)
        variance = variance_of(image.data, Sky(0.0, sigma, 1.0), load_survey("hsc").depths[name])
        notes = (f"{told}× {scale:.3g} gives nJy, by the noise of HSC's UltraDeep survey, whose variance it gets",)
        band = Band(name, f"hsc-{name}")
        products.append(make_product(band, image, AB_ZEROPOINT_NJY, variance, None, psf, psf_pixel(psf, name), notes))
        total = float(np.nansum(image.data)) if name == "i" else total
    image, psf = _pair(folder, "hst", wanted)
    flux = float(np.nansum(image.data))
    if not flux > 0 or not total > 0:
        raise InputError(f"F814W: fluxes of {flux:.3g} and, in i, {total:.3g} give no scale ({image.address})")
    image = replace(image, data=image.data * total / flux)
    notes = (f"{told}× {total / flux:.3g} gives nJy, by the flux of HSC's i in the field",)
    return (make_product(F814W, image, AB_ZEROPOINT_NJY, SKY, None, psf, psf_pixel(psf, "F814W"), notes), *products)


def _roughness(image: FitsImage, label: str) -> float:
    """Scatter (1.48 MAD) of second differences along both axes, over that of white noise, in the fainter half.

    Unlike the scatter of pixels it is blind to the smooth light of a galaxy that fills the field.
    """
    kernel, data = np.array([-0.5, 1.0, -0.5]), np.nan_to_num(image.data)
    rough = convolve1d(convolve1d(data, kernel, 0), kernel, 1)[1:-1, 1:-1] / (kernel @ kernel)
    faint = rough[data[1:-1, 1:-1] <= np.median(data)]
    value = 1.4826 * float(np.median(np.abs(faint - np.median(faint)))) if faint.size else 0.0
    if not value > 0:
        raise InputError(f"{label}: no noise by which to scale it ({image.address})")
    return value


def _pair(folder: Path, name: str, wanted: Wanted | None) -> tuple[FitsImage, FitsImage]:
    label = "F814W" if name == "hst" else name
    image = read_image(f"{name}.fits", folder, label, view=wanted)
    return image, read_image(f"{name}_psf.fits", folder, label, MAX_PSF**2)


def _zeropoint(image: FitsImage) -> tuple[float, tuple[str, ...]]:
    """From PHOTFLAM and PHOTPLAM (ACS Data Handbook, section 5.1), in HDU 0 or the image's; else that of COSMOS.

    Raises InputError for another filter, and for pixels that are not electrons a second.
    """
    with open_fits(Path(image.address.split("[")[0]), "F814W") as hdus:
        header = hdus[0].header.copy()
    header.update(image.header)
    for key in ("FILTER", "FILTER1", "FILTER2"):
        name = str(header.get(key, "")).strip().upper()
        words = [word for word in re.split(r"[^A-Z0-9]+", name) if word not in ("", "HST", "ACS", "WFC")]
        if not all(word.startswith(("CLEAR", "F814W")) for word in words):
            raise InputError(f"F814W: {key} is {name}, and mock VIS is made of F814W alone ({image.address})")
    unit = str(header.get("BUNIT", "")).strip()
    if unit and not re.fullmatch(_RATE, unit, re.IGNORECASE):
        raise InputError(f"F814W: BUNIT is {unit}, expected electrons a second ({image.address})")
    flam, plam = header.get("PHOTFLAM"), header.get("PHOTPLAM")
    if isinstance(flam, float) and isinstance(plam, int | float) and flam > 0 and plam > 0:
        return -2.5 * math.log10(flam) - 5 * math.log10(plam) - 2.408, ()
    return ZEROPOINT, (f"no PHOTFLAM in the header: zero point {ZEROPOINT} of the COSMOS mosaics",)


def _scaled_variance(image: FitsImage, weight: FitsImage, njy: float) -> np.ndarray:
    """(h, w), counts², as 1/weight, such that the sky has the scatter that it has. njy: of one count."""
    if (negative := int((weight.data < 0).sum())) > 0:
        raise InputError(f"F814W: weights are negative in {negative} pixels: no drizzle weights ({weight.address})")
    seen = np.isfinite(image.data) & (weight.data > 0)
    if not seen.any():
        raise InputError(f"F814W: no pixel has a weight ({weight.address})")
    typical = float(np.median(weight.data[seen]))
    even = np.where(seen, image.data * np.sqrt(np.where(seen, weight.data, 1.0) / typical), 0.0)
    sky = measure_sky(even, seen, "F814W", image.address)
    flat = variance_of(image.data * njy, replace(sky, level=0.0, sigma=sky.sigma * njy), SKY) / njy**2
    return np.where(seen, flat * typical / np.where(seen, weight.data, 1.0), np.inf)
