"""Draws what was measured, as SVG that follows the reader's light or dark."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

WIDTH = 720
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .soft { fill: #59636e; font-size: 12px }
.bar { fill: #8c959f } .ours { fill: #0969da } .line { fill: none; stroke-width: 2 } .grid { stroke: #d1d9e0 }
.c0 { stroke: #0969da; fill: #0969da } .c1 { stroke: #bc4c00; fill: #bc4c00 } .c2 { stroke: #1a7f37; fill: #1a7f37 }
@media (prefers-color-scheme: dark) { text { fill: #f0f6fc } .soft { fill: #9198a1 } .bar { fill: #656c76 } .ours { fill: #4493f8 }
.grid { stroke: #3d444d } .c0 { stroke: #4493f8; fill: #4493f8 }
.c1 { stroke: #db6d28; fill: #db6d28 } .c2 { stroke: #3fb950; fill: #3fb950 } }
.line { fill: none }
</style>"""


def bars(title: str, values: Mapping[str, float], *, ours: str) -> str:
    """A bar for each; those whose name begins with `ours` stand out."""
    left, row, top = 230, 26, 40
    most = max(values.values())
    drawn = [f'<text class="title" x="8" y="20">{escape(title)}</text>']
    for number, (name, value) in enumerate(values.items()):
        y = top + row * number
        length = max(2, (WIDTH - left - 90) * value / most)
        look = "bar ours" if name.startswith(ours) else "bar"
        drawn.append(
            f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{look}" x="{left}" y="{y}" width="{length:.1f}" height="18" rx="2"/>'
            f'<text class="soft" x="{left + length + 8:.1f}" y="{y + 13}">{value:,.0f}</text>'
        )
    return _page(title, drawn, top + row * len(values) + 6)


def curves(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    log: bool = False,
) -> str:
    """A line for each, through its points; `log`: the numbers across grow by factors."""
    left, right, top, bottom = 70, 20, 60, 300
    points = [point for line in lines.values() for point in line]

    def place(x: float) -> float:
        return log10(x) if log else x

    first, last = min(place(x) for x, _ in points), max(place(x) for x, _ in points)
    most = _round_up(max(y for _, y in points))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (WIDTH - left - right) * (
            (place(x) - first) / ((last - first) or 1)
        ), bottom - (bottom - top) * y / most

    drawn = [
        f'<text class="title" x="8" y="20">{escape(title)}</text>',
        f'<text class="soft" x="8" y="40">{escape(up)}</text>',
        f'<text class="soft" x="{WIDTH - right}" y="{bottom + 36}" text-anchor="end">{escape(across)}</text>',
    ]
    for part in (0, 0.5, 1):
        y = bottom - (bottom - top) * part
        drawn.append(
            f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>'
            f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{most * part:,.0f}</text>'
        )
    places = sorted({x for x, _ in points})
    for x in places if len(places) <= 8 else (places[0], places[-1]):
        anchor = "end" if x == places[-1] else "middle"
        drawn.append(
            f'<text class="soft" x="{at(x, 0)[0]:.1f}" y="{bottom + 18}" text-anchor="{anchor}">{x:,.0f}</text>'
        )
    for number, (name, line) in enumerate(lines.items()):
        spots = [at(x, y) for x, y in line]
        drawn.append(
            f'<path class="line c{number % 3}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in spots)}"/>'
        )
        drawn += (
            [f'<circle class="c{number % 3}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in spots]
            if len(spots) <= 12
            else []
        )
        drawn.append(
            f'<rect class="c{number % 3}" x="{left + 230 * number}" y="{bottom + 46}" width="12" height="12"/>'
            f'<text x="{left + 18 + 230 * number}" y="{bottom + 57}">{escape(name)}</text>'
        )
    return _page(title, drawn, bottom + 70)


def _round_up(most: float) -> float:
    """To two figures, the second of them even, so that half of it is round, too."""
    step = 2 * 10.0 ** (floor(log10(most)) - 1)
    return ceil(most / step) * step


def _page(title: str, drawn: Sequence[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">\n{_STYLE}\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )
