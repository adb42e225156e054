"""Catalog columns again under the names, and in the units, that other surveys publish.

Only what means the same has an alias; the description says what it is a copy of. Euclid: the MER photometry and
morphology cookbooks of the Q1 Data Product Description Document (euclid.esac.esa.int/dr/q1/dpdd). Rubin: the table
Object of Data Preview 1 (sdm-schemas.lsst.io/dp1.html).

What has none: MER's Kron and Sersic fluxes and those in apertures at the worst band's resolution, and Rubin's PSF,
CModel, Kron and aperture fluxes, which keep the seeing; both surveys' object identifiers, which are numbers.
"""

from collections.abc import Iterator, Sequence

from astropy.table import Column, Table

from jointdiff.io.products import UCD
from jointdiff.scene import Band

_MORPHOLOGY = {"concentration": "CONCENTRATION", "asymmetry": "ASYMMETRY", "gini": "GINI", "m20": "MOMENT_20"}

_EXTERNAL = {
    "cfht-u": "U_EXT_MEGACAM",
    "cfht-r": "R_EXT_MEGACAM",
    "hsc-g": "G_EXT_HSC",
    "hsc-z": "Z_EXT_HSC",
    "ps1-i": "I_EXT_PANSTARRS",
    **{f"decam-{band}": f"{band.upper()}_EXT_DECAM" for band in "griz"},
    **{f"lsst-{band}": f"{band.upper()}_EXT_LSST" for band in "ugriz"},
}
"""MER's names of its ground bands, by filter."""


def _mer(bands: Sequence[Band]) -> Iterator[tuple[str, str, str | None]]:
    yield from (("RIGHT_ASCENSION", "ra", "deg"), ("DECLINATION", "dec", "deg"))
    for band in bands:
        if band.filter == "VIS":  # the flux of the segment, in the band of detection
            yield "FLUX_SEGMENTATION", f"flux_{band.name}", "uJy"
            yield "FLUXERR_SEGMENTATION", f"flux_err_{band.name}", "uJy"
        elif band.filter in _EXTERNAL:  # T-PHOT's: the VIS shape of all sources, fitted together to the band's own data
            yield f"FLUX_{_EXTERNAL[band.filter]}_TEMPLFIT", f"flux_ml_{band.name}", "uJy"
            yield f"FLUXERR_{_EXTERNAL[band.filter]}_TEMPLFIT", f"flux_ml_err_{band.name}", "uJy"
    for ours, name in _MORPHOLOGY.items():
        yield name, f"{ours}_VIS", None
        yield f"{name}_ERR", f"{ours}_err_VIS", None
    yield "SERSIC_SERSIC_VIS_INDEX", "sersic_n_VIS", None


def _lsst(bands: Sequence[Band]) -> Iterator[tuple[str, str, str | None]]:
    yield from (("coord_ra", "ra", "deg"), ("coord_dec", "dec", "deg"))
    for band in bands:
        if band.name in tuple("ugrizy"):
            yield f"{band.name}_gaap1p0Flux", f"gauss_flux_{band.name}", "nJy"
            yield f"{band.name}_gaap1p0FluxErr", f"gauss_flux_err_{band.name}", "nJy"


CONVENTIONS = {"mer": _mer, "lsst": _lsst}
"""By name: bands → (alias, column, unit); what the catalog does not hold is left out."""


def add_aliases(table: Table, bands: Sequence[Band], convention: str) -> None:
    """Append the columns of one of CONVENTIONS to a catalog in these bands, in place."""
    filters = {band.name: band.filter for band in bands}
    for alias, name, unit in CONVENTIONS[convention](bands):
        if name not in table.colnames:
            continue
        column = table[name]
        curve = filters.get(name.rsplit("_", 1)[-1])
        text = f"{name}: {column.description}" + (f"; filter {curve}" if curve else "")
        # A table has one main position, and that is our own.
        meta = column.meta | {UCD: str(column.meta.get(UCD, "")).replace(";meta.main", "")}
        values = column.quantity.to_value(unit) if unit else column.data.copy()
        table.add_column(Column(values, name=alias, unit=unit, description=text, meta=meta))
