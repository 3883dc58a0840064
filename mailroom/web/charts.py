"""Draws how it went over time, as SVG: no script, readable as a sentence where it cannot be seen, and in the page's own colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

WIDTH, HEIGHT = 640, 156
#: Room for the numbers at the left, and for the times below.
LEFT, BOTTOM, TOP, RIGHT = 48, 24, 10, 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line: its name, and a value for each stretch of time; None where nobody knows."""

    name: str
    values: Sequence[float | None]
    look: str  #: the class that gives it its colour
    is_area: bool = False


@dataclass(frozen=True, kw_only=True)
class Times:
    """Stretches of time, one after the other; in minutes since 1970."""

    first: int
    stretch: int
    count: int

    @property
    def last(self) -> int:
        return self.first + self.stretch * self.count


def chart(title: str, lines: Sequence[Line], times: Times, *, unit: str = "") -> Markup:
    """A figure with its caption, the drawing and what each line is."""
    known = [value for line in lines for value in line.values if value is not None]
    most = nice(max(known, default=0))
    drawn = Markup("").join(_drawn(line, times, most) for line in lines) if any(known) else Markup("")
    empty = (
        Markup("")
        if any(known)
        else Markup('<text class="empty" x="{}" y="{}">nothing in this time</text>').format(
            (LEFT + WIDTH) // 2, HEIGHT // 2
        )
    )
    legend = Markup("").join(Markup('<li class="{}">{}</li>').format(line.look, line.name) for line in lines)
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption>'
        '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{told}">{grid}{drawn}{empty}</svg><ul class="legend">{legend}</ul></figure>'
    ).format(
        title=title,
        w=WIDTH,
        h=HEIGHT,
        told=told(title, lines, unit),
        grid=_grid(times, most, unit),
        drawn=drawn,
        empty=empty,
        legend=legend,
    )


def told(title: str, lines: Sequence[Line], unit: str) -> str:
    """Say in words what the chart draws."""
    parts = []
    for line in lines:
        known = [value for value in line.values if value is not None]
        parts.append(
            f"{line.name}: {amount(known[-1])}{unit} now, {amount(max(known))}{unit} at most"
            if any(known)
            else f"{line.name}: none"
        )
    return f"{title}. {'; '.join(parts)}."


def nice(value: float) -> float:
    """The next round number, for the top of the drawing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 0.1
    return next(step * power for step in (1, 2, 3, 5, 10, 20) if step * power >= value)


def amount(value: float) -> str:
    """12, 0.4, 1.2k, 3M: in few signs."""
    for size, sign in ((1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:.1f}".removesuffix(".0") + sign
    return f"{value:.2f}".rstrip("0").rstrip(".") if value < 1 else f"{value:.1f}".removesuffix(".0")


def _grid(times: Times, most: float, unit: str) -> Markup:
    rows = Markup("").join(
        Markup('<path d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}{}</text>').format(
            LEFT, y, WIDTH - RIGHT, LEFT - 5, y + 4, amount(value), unit
        )
        for value in (0.0, most / 2, most)
        for y in (_y(value, most),)
    )
    moments = [
        (times.first, "start"),
        (times.first + times.stretch * times.count // 2, "middle"),
        (times.last, "end"),
    ]
    columns = Markup("").join(
        Markup('<text class="clock" data-at="{}" x="{:.1f}" y="{}" text-anchor="{}">{:%H:%M}</text>').format(
            minute * 60,
            LEFT + (WIDTH - LEFT - RIGHT) * n / 2,
            HEIGHT - 4,
            anchor,
            datetime.fromtimestamp(minute * 60, UTC),
        )
        for n, (minute, anchor) in enumerate(moments)
    )
    return Markup('<g class="grid">{}{}</g>').format(rows, columns)


def _drawn(line: Line, times: Times, most: float) -> Markup:
    """The pieces of the line between which nothing is known."""
    pieces: list[list[str]] = [[]]
    for n, value in enumerate(line.values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{_x(n, times):.1f} {_y(value, most):.1f}")
    found = Markup("")
    for points in filter(None, pieces):
        way = f"M{'L'.join(points)}"
        if len(points) == 1:
            found += Markup('<circle class="point {}" cx="{}" cy="{}" r="2.5"/>').format(
                line.look, *points[0].split()
            )
            continue
        if line.is_area:
            ends = [point.split()[0] for point in (points[-1], points[0])]
            found += Markup('<path class="area {}" d="{}V{:.1f}H{}Z"/>').format(
                line.look, way, _y(0, most), ends[1]
            )
        found += Markup('<path class="line {}" d="{}"/>').format(line.look, way)
    return found


def _x(n: int, times: Times) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (n + 0.5) / times.count


def _y(value: float, most: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, most) / most)
