"""Draws line charts as SVG, without a script, with a description in words for screen readers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

WIDTH, HEIGHT = 640, 156
#: Margins: on the left for the values, at the bottom for the times.
LEFT, BOTTOM, TOP, RIGHT = 48, 24, 10, 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart."""

    name: str
    values: Sequence[float | None]  #: one for each interval of the time axis; None if unknown
    look: str  #: the CSS class that colours it
    is_area: bool = False


@dataclass(frozen=True, kw_only=True)
class Times:
    """The time axis: intervals of equal length, in minutes since 1970."""

    first: int
    stretch: int  #: minutes in an interval
    count: int

    @property
    def last(self) -> int:
        return self.first + self.stretch * self.count


def chart(title: str, lines: Sequence[Line], times: Times, *, unit: str = "") -> Markup:
    """Return a figure with the caption, the chart and the legend."""
    known = [value for line in lines for value in line.values if value is not None]
    most = nice(max(known, default=0))
    if any(known):
        plot = Markup("").join(_line(line, times, most) for line in lines)
    else:
        plot = Markup('<text class="empty" x="{}" y="{}">nothing in this time</text>').format(
            (LEFT + WIDTH) // 2, HEIGHT // 2
        )
    legend = Markup("").join(
        Markup('<li class="{}">{}</li>').format(line.look, line.name) for line in lines
    )
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{description}">{grid}{plot}</svg>'
        '<ul class="legend">{legend}</ul></figure>'
    ).format(
        title=title,
        width=WIDTH,
        height=HEIGHT,
        description=description(title, lines, unit),
        grid=_grid(times, most, unit),
        plot=plot,
        legend=legend,
    )


def description(title: str, lines: Sequence[Line], unit: str) -> str:
    """Say in words what the chart shows."""
    parts = []
    for line in lines:
        known = [value for value in line.values if value is not None]
        if any(known):
            now, most = amount(known[-1]), amount(max(known))
            parts.append(f"{line.name}: {now}{unit} now, {most}{unit} at most")
        else:
            parts.append(f"{line.name}: none")
    return f"{title}. {'; '.join(parts)}."


def nice(value: float) -> float:
    """Return the next round number, for the top of the value axis."""
    if value <= 0:
        return 1.0
    power = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 0.1
    return next(step * power for step in (1, 2, 3, 5, 10, 20) if step * power >= value)


def amount(value: float) -> str:
    """Write a number in few characters: 12, 0.4, 1.2k, 3M."""
    for size, sign in ((1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:.1f}".removesuffix(".0") + sign
    return (
        f"{value:.2f}".rstrip("0").rstrip(".") if value < 1 else f"{value:.1f}".removesuffix(".0")
    )


def _grid(times: Times, most: float, unit: str) -> Markup:
    rows = Markup("").join(_grid_row(value, most, unit) for value in (0.0, most / 2, most))
    middle = times.first + times.stretch * times.count // 2
    columns = (
        _clock(times.first, LEFT, "start")
        + _clock(middle, (LEFT + WIDTH - RIGHT) / 2, "middle")
        + _clock(times.last, WIDTH - RIGHT, "end")
    )
    return Markup('<g class="grid">{}{}</g>').format(rows, columns)


def _grid_row(value: float, most: float, unit: str) -> Markup:
    y = _y(value, most)
    return Markup(
        '<path d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}{}</text>'
    ).format(LEFT, y, WIDTH - RIGHT, LEFT - 5, y + 4, amount(value), unit)


def _clock(minute: int, x: float, anchor: str) -> Markup:
    """Write a time under the chart, in UTC; a script turns it into the reader's time zone."""
    at = datetime.fromtimestamp(minute * 60, UTC)
    return Markup(
        '<text class="clock" data-at="{}" x="{:.1f}" y="{}" text-anchor="{}">{:%H:%M}</text>'
    ).format(minute * 60, x, HEIGHT - 4, anchor, at)


def _line(line: Line, times: Times, most: float) -> Markup:
    """Draw a line, interrupted where its values are unknown."""
    pieces: list[list[str]] = [[]]
    for n, value in enumerate(line.values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{_x(n, times):.1f} {_y(value, most):.1f}")
    return Markup("").join(_piece(line, points, most) for points in pieces if points)


def _piece(line: Line, points: list[str], most: float) -> Markup:
    """Draw one piece of a line; `points` are "x y"."""
    if len(points) == 1:
        x, y = points[0].split()
        return Markup('<circle class="point {}" cx="{}" cy="{}" r="2.5"/>').format(line.look, x, y)
    path = f"M{'L'.join(points)}"
    area = Markup("")
    if line.is_area:
        left = points[0].split()[0]
        area = Markup('<path class="area {}" d="{}V{:.1f}H{}Z"/>').format(
            line.look, path, _y(0, most), left
        )
    return area + Markup('<path class="line {}" d="{}"/>').format(line.look, path)


def _x(n: int, times: Times) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (n + 0.5) / times.count


def _y(value: float, most: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, most) / most)
