"""The benchmark as one HTML file: plain text, tables, and figures inside it; no script, nothing fetched."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jointdiff.evaluate.benchmark.standing import (
    BEHIND_OTHERS,
    TIED,
    Standing,
    equal_time,
    reasons,
    snr_label,
    standings,
)
from jointdiff.evaluate.benchmark.table import COMMON, LIMITS, R50
from jointdiff.evaluate.scores import SCALED
from jointdiff.evaluate.suite import ALL, Row
from jointdiff.evaluate.validation import METHOD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1.2em }
h1 { font-size: 1.7em } h2 { margin-top: 2em; border-bottom: 1px solid #ddd } img { max-width: 100% }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0 } td, th { padding: .25em .6em; text-align: right }
th { border-bottom: 1px solid #888; font-weight: 600 } td:first-child, th:first-child { text-align: left }
tr:nth-child(even) td { background: #f7f7f7 } td.behind { background: #f6c9c2 } td.tied { background: #fbeebf }
td.first { background: #dcefdc } td.ahead { background: #a9dcae } .ours td { font-weight: 700 }
pre { background: #f4f4f4; padding: .8em; overflow-x: auto }
"""

_WORDS = {
    "image_error_typical": "image error",
    "crps_relative": "CRPS of fluxes",
    "flux_scatter": "flux scatter",
    "colour_scatter": "colour scatter",
    "r50_scatter": "half-light radius",
    "coverage_error": "coverage, raw",
    "coverage_error" + SCALED: "coverage, as catalogs state it",
}

COLUMNS = (
    ("image error", "image_error_typical", ALL, "{:.3f}"),
    ("flux scatter", "flux_scatter", ALL, "{:.1%}"),
    ("CRPS", "crps_relative", ALL, "{:.3f}"),
    ("colour, mag", "colour_scatter", ALL, "{:.3f}"),
    ("r50", "r50_scatter", R50, "{:.1%}"),
    ("coverage", "coverage", ALL, "{:.0%}"),
    ("η", "efficiency", ALL, "{:.2f}"),
)
"""Of the short tables: heading, score, band and format; means over the bands, and colours."""

_COSTS = (
    ("s/scene", "seconds_per_scene", "{:.2f}"),
    ("s/sample", "seconds_per_sample", "{:.3f}"),
    ("clock s/scene", "wall_per_scene", "{:.2f}"),
    ("evaluations/sample", "evaluations", "{:.0f}"),
    ("memory, MiB", "memory_mib", "{:.0f}"),
    ("samples", "samples", "{:.0f}"),
)


def summary(table: Sequence[Row], subset: str) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the short table: a line a method, COLUMNS and the time of a sample."""
    values = {
        (r["method"], r["subset"], r["band"], r["score"]): r["value"]
        for r in table
        if math.isinf(r["snr_low"]) and math.isinf(r["snr_high"])
    }
    heads = ["method", *(head for head, *_ in COLUMNS), "core s/sample"]
    lines = []
    for method in dict.fromkeys(row["method"] for row in table if row["subset"] == subset and row["band"]):
        cells = [_cell(form, values.get((method, subset, band, score))) for _, score, band, form in COLUMNS]
        lines.append([method, *cells, _cell("{:.3g}", values.get((method, ALL, "", "seconds_per_sample")))])
    return heads, lines


def text(table: Sequence[Row]) -> str:
    """Both short tables for the terminal, and how many places ours is first at."""
    parts = []
    for subset in (ALL, COMMON):
        heads, lines = summary(table, subset)
        if lines:
            widths = [max(map(len, column)) + 2 for column in zip(heads, *lines, strict=True)]
            rows = ["".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (heads, *lines)]
            scenes = _scenes(table, subset)
            parts.append("\n".join([f"{subset} scenes ({scenes}); means over the bands", *rows]))
    return "\n\n".join([*parts, *verdicts(table)])


def markdown(table: Sequence[Row], command: str) -> str:
    """The README's table: all scenes, and below it the common ones, for the methods that saw these alone.

    command: what makes it, which is told below.
    """
    heads, lines = summary(table, ALL)
    slow = [line for line in summary(table, COMMON)[1] if line[0] not in {own[0] for own in lines}]
    ours = [line for line in summary(table, COMMON)[1] if line[0] == METHOD and slow]
    marked = [[f"{name}, {_scenes(table, COMMON)} scenes", *rest] for name, *rest in (*ours, *slow)]
    rows = [heads, ["---"] * len(heads), *lines, *marked]
    short = [[cell for head, cell in zip(heads, row, strict=True) if head != "η"] for row in rows]
    told = (
        "Means over the bands, median scene for images; CRPS over the Wiener filter's deviation; coverage of 69 %, raw."
    )
    told = f"{told} {_scenes(table, ALL)} scenes{', where not said otherwise' if slow else ''}: `{command}`"
    return "\n".join(["| " + " | ".join(row) + " |" for row in short] + ["", told, ""])


def _scenes(table: Sequence[Row], subset: str) -> int:
    counts = [int(row["n"]) for row in table if row["subset"] == subset and row["score"] == "scenes"]
    return max(counts, default=0)


def verdicts(table: Sequence[Row]) -> list[str]:
    """What the bars say, in sentences: where ours is first, at what cost, and where it is not."""
    judged = standings(table)
    if not judged:
        return ["No place has enough sources to rank methods at."]
    counts = {word: sum(s.verdict == word for s in judged) for word in ("ahead", "first", TIED, BEHIND_OTHERS)}
    rivals = [rival for standing in judged for rival in standing.rivals]
    chance = sum(max(0.025, 0.5**rival.scenes) for rival in rivals)  # of few scenes all may point one way by chance
    told = [
        f"{METHOD} is first at {counts['ahead'] + counts['first']} of {len(judged)} places (score, band, bin of S/N), "
        f"at {counts['ahead']} of them beyond the 95 % intervals of all differences; at {counts[TIED]} another method "
        f"has the smaller error within the intervals; at {counts[BEHIND_OTHERS]} beyond them. Of the {len(rivals)} "
        f"differences {sum(rival.high < 0 for rival in rivals)} are against it beyond the intervals; at least "
        f"{chance:.0f} would be by chance, were all methods alike."
    ]
    told += reasons(judged)
    times = {method: (ratio, crps) for method, ratio, crps in equal_time(table)}
    if "dps" in times:
        ratio, crps = times["dps"]
        verb = "better" if crps > 0 else "NOT better"
        told.append(f"A sample costs {ratio:.0f} times less than one of DPS with 1000 steps, at a {verb} CRPS.")
    smaller = [(method, ratio) for method, (ratio, crps) in times.items() if crps < 0]
    for heading, chosen in (
        ("At our time a sample or less", [m for m, ratio in smaller if ratio <= 1]),
        ("At more", [f"{m} ({ratio:.2g} times ours)" for m, ratio in smaller if ratio > 1]),
    ):
        told.append(f"{heading}, of smaller CRPS, mean of the bands: {', '.join(chosen) or 'no method'}.")
    return told


def page(
    table: Sequence[Row],
    figures: Mapping[str, tuple[str, Figure]],
    growth: Sequence[Row],
    about: Mapping[str, object],
) -> str:
    """The HTML. figures: name → (what it shows, the figure). growth: of costs. about: what it all was made with."""
    judged = standings(table)
    parts = [f"<h1>{METHOD} beside other methods</h1>", *(f"<p>{html.escape(t)}</p>" for t in verdicts(table))]
    parts += ["<h2>In short</h2>", _LEGEND]
    for subset in (ALL, COMMON):
        heads, lines = summary(table, subset)
        if lines:
            parts += [f"<h3>{subset} scenes: {_scenes(table, subset)}</h3>", _table(heads, lines)]
    parts += ["<h2>Is it first?</h2>", _STANDING, *_matrices(judged), *_sentences(judged)]
    parts += ["<h2>What it costs</h2>", _COST, _table(*_cost_table(table))]
    if growth:
        parts += ["<h3>How it grows</h3>", _GROWTH, _table(*_growth_table(growth))]
    for name, (told, figure) in figures.items():
        parts.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(told)}</p>{_image(figure, name)}")
    told = "\n".join(f"{key}: {value}" for key, value in about.items())
    parts.append(f"<h2>How it was made</h2><pre>{html.escape(told)}</pre>")
    head = f'<meta charset="utf-8"><title>{METHOD} benchmark</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


_LEGEND = """<p>Means over the bands. Image error: ‖mean − truth‖/‖truth‖, median scene. Fluxes in apertures of 0.5″
radius; scatter and colours: sources above 5σ. CRPS over the Wiener filter's deviation of each source. Coverage of the
central 69 %. η: variance of the oracle, photometry with the true shapes, over that of the method. All methods are
measured in the same apertures, of sources found on the Wiener filter's mean.</p>"""

_STANDING = """<p>Each cell: the verdict against every method that does not know the truth, each on all scenes that it
saw. <b>ahead</b>: smaller error than every other beyond the 95 % interval of the difference; <b>first</b>: smaller than
every other; <b>tied</b>: another's is smaller, within the interval; <b>behind</b>: beyond it. The method named has the
smallest error beside ours: its error / ours. Intervals are bootstraps over scenes; with few scenes they are wide.
Photometry alone has no image error.</p>"""

_COST = """<p>Each method in processes of its own, one thread each; medians over scenes. Seconds are of all cores
together. Memory is what the process held at its peak beyond what it held before the first scene: libraries and weights
are not counted.</p>"""


_GROWTH = """<p>Core seconds of one scene: of so many pixels a side, observed bands, and samples; two samples where
their number is not varied. Of methods whose steps cost alike few were timed, and again twice as many, from which the
time of all is extrapolated: the second column says of how many.</p>"""


def _matrices(judged: Sequence[Standing]) -> list[str]:
    parts = []
    for label in dict.fromkeys(snr_label(s.place) for s in judged):
        here = [s for s in judged if snr_label(s.place) == label]
        scores = list(dict.fromkeys(s.score for s in here))
        lines = []
        for score in scores:
            cells = "".join(
                f'<td class="{s.verdict}">{s.place.band}: {s.verdict}<br>{html.escape(s.rivals[0].method)} '
                f"{s.rivals[0].value:.3g} / {s.rivals[0].ours:.3g}</td>"
                for s in here
                if s.score == score
            )
            lines.append(f"<tr><td>{_WORDS[score]}</td>{cells}</tr>")
        parts.append(f"<h3>{html.escape(label)}</h3><table>{''.join(lines)}</table>")
    return parts


_BEHIND = """<p>Each with the other's error and ours; the 95 % interval of the difference; how many scenes and sources
it rests on; the difference without the one scene that speaks most against ours; and, where the place has them, what may
cause it, the other's and ours: the error of the mean flux over the Wiener filter's deviation (bias and scatter
together; of a mean of S samples over √(1 + 1/S), by which fewer samples alone are farther off), the width of the pulls
(1 if stated errors are true; ours scaled, where the coverage is), the median relative bias, and the residuals'
χ²/N.</p>
"""


def _sentences(judged: Sequence[Standing]) -> list[str]:
    behind = [s.sentence() for s in judged if s.verdict == BEHIND_OTHERS]
    if not behind:
        return [f"<p>{METHOD} is behind no method beyond the intervals.</p>"]
    items = "".join(f"<li>{html.escape(told)}</li>" for told in behind)
    return [f"<h3>Where {METHOD} is not first, beyond the intervals</h3>{_BEHIND}<ul>{items}</ul>"]


def _cost_table(table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    values = {(r["method"], r["score"]): r["value"] for r in table if not r["band"]}
    methods = dict.fromkeys(method for method, score in values if score == "seconds_per_scene")
    heads = ["method", *(head for head, *_ in _COSTS)]
    return heads, [[m, *(_cell(form, values.get((m, score))) for _, score, form in _COSTS)] for m in methods]


def _growth_table(growth: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    places = list(dict.fromkeys((row["kind"], row["at"]) for row in growth))
    values = {(row["method"], row["kind"], row["at"]): row["seconds"] for row in growth}
    timed = {row["method"]: f"{row['timed']:.0f} of {row['steps']:.0f}" if row["timed"] else "all" for row in growth}
    heads = ["method", "steps timed", *(f"{kind} {at:g}" for kind, at in places)]
    return heads, [[m, told, *(_cell("{:.3g}", values.get((m, *at))) for at in places)] for m, told in timed.items()]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    rows = [
        f"<tr{' class=ours' if line[0] == METHOD else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in [_named(line[0]), *line[1:]])
        + "</tr>"
        for line in lines
    ]
    return f"<table><tr>{top}</tr>{''.join(rows)}</table>"


def _named(method: str) -> str:
    return f"{method} (knows the truth)" if method in LIMITS else method


def _cell(form: str, value: float | None) -> str:
    return form.format(value) if value is not None and math.isfinite(value) else ""


def _image(figure: Figure, name: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{code}">'
