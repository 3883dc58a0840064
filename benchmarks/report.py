"""Reports what was measured, against what was aimed at: benchmarks/results.md and the drawings of docs/img."""

import json
import os
import platform
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from benchmarks.draw import bars, curves
from benchmarks.rig import HERE, Bench, node_project

DRAWINGS = HERE.parent / "docs" / "img"
OURS = ("flask", "granian", "celery", "kombu", "yagmail", "sqlalchemy", "psycopg")
OTHERS = ("gunicorn", "fastapi", "uvicorn")
#: By measure, contender and figure.
Results = Mapping[str, Mapping[str, Mapping[str, float]]]

SQLITE, POSTGRESQL, COMMIT = "mailasync, SQLite", "mailasync, PostgreSQL", "commit alone, SQLite"
TUTORIAL, GUNICORN, NODE = "tutorial", "tutorial on gunicorn", "Node.js"


@dataclass(frozen=True)
class Row:
    """A target: what, how much, how it is read from the results, and whether that is enough."""

    what: str
    target: str
    value: Callable[[Results], float]
    bound: Callable[[Results], float]
    shown: str  #: the value, formatted
    most: bool = False  #: whether the bound is the most that it may be

    def told(self, results: Results) -> str:
        try:
            value, bound = self.value(results), self.bound(results)
        except KeyError:
            return f"| {self.what} | {self.target} | not measured | |"
        reached = value <= bound if self.most else value >= bound
        return f"| {self.what} | {self.target} | {self.shown.format(value)} | {'yes' if reached else 'no'} |"


def ratio(
    measure: str, one: str, other: str, figure: str = "per_second"
) -> Callable[[Results], float]:
    return lambda results: results[measure][one][figure] / results[measure][other][figure]


def of(measure: str, name: str, figure: str) -> Callable[[Results], float]:
    return lambda results: results[measure][name][figure]


def least(value: float) -> Callable[[Results], float]:
    return lambda results: value


ROWS = (
    Row(
        "single POST/s, 32 clients",
        "≥ 3 × the tutorial as documented",
        ratio("posts", SQLITE, TUTORIAL),
        least(3),
        "{:.2f} ×",
    ),
    Row(
        "single POST/s, 32 clients",
        "≥ 0.9 × the same on gunicorn",
        ratio("posts", SQLITE, GUNICORN),
        least(0.9),
        "{:.2f} ×",
    ),
    Row(
        "POST latency, 1 client, p50",
        "≤ 3 ms",
        of("latency", SQLITE, "p50_ms"),
        least(3),
        "{:.2f} ms",
        most=True,
    ),
    Row(
        "POST latency, 1 client, p50",
        "≤ commit alone + 1 ms",
        of("latency", SQLITE, "p50_ms"),
        lambda results: results["latency"][COMMIT]["p50_ms"] + 1,
        "{:.2f} ms",
        most=True,
    ),
    Row(
        "POST latency, 1 client, p99",
        "≤ 15 ms",
        of("latency", SQLITE, "p99_ms"),
        least(15),
        "{:.2f} ms",
        most=True,
    ),
    Row(
        "batch POST, mails accepted/s, SQLite",
        "≥ 10,000",
        of("batches", SQLITE, "per_second"),
        least(10_000),
        "{:,.0f}",
    ),
    Row(
        "batch POST, mails accepted/s, SQLite",
        "≥ 2.5 × Node.js's single POSTs",
        lambda results: (
            results["batches"][SQLITE]["per_second"] / results["posts"][NODE]["per_second"]
        ),
        least(2.5),
        "{:.2f} ×",
    ),
    Row(
        "delivered/s, 25 ms a reply, 50 connections",
        "≥ 60 × the tutorial's worker",
        ratio("gmail25", SQLITE, TUTORIAL),
        least(60),
        "{:.0f} ×",
    ),
    Row(
        "delivered/s, 25 ms a reply, 50 connections",
        "≥ 1.8 × nodemailer's pool",
        ratio("gmail25", SQLITE, NODE),
        least(1.8),
        "{:.2f} ×",
    ),
    Row(
        "delivered/s, 25 ms a reply, 50 connections",
        "≥ 85 % of connections / (2 × delay)",
        lambda results: results["gmail25"][SQLITE]["per_second"] / 1000,
        least(0.85),
        "{:.0%}",
    ),
    Row(
        "delivered/s, server that answers at once",
        "≥ 2 × the tutorial's worker",
        ratio("immediate", SQLITE, TUTORIAL),
        least(2),
        "{:.2f} ×",
    ),
    Row(
        "delivered/s, server that answers at once",
        "≥ 0.6 × nodemailer",
        ratio("immediate", SQLITE, NODE),
        least(0.6),
        "{:.2f} ×",
    ),
    Row(
        "processor for a mail, server that answers at once",
        "≤ 700 µs",
        of("immediate", SQLITE, "cpu_us"),
        least(700),
        "{:.0f} µs",
        most=True,
    ),
    Row(
        "`flask up`: start to first plain mail",
        "≤ 3 s",
        of("start", SQLITE, "seconds"),
        least(3),
        "{:.2f} s",
        most=True,
    ),
    Row(
        "`flask up`: memory (PSS of the tree)",
        "≤ 150 MB",
        of("start", SQLITE, "pss_mb"),
        least(150),
        "{:.0f} MB",
        most=True,
    ),
)
SCALE_ROWS = tuple(
    row
    for name in (SQLITE, POSTGRESQL)
    for row in (
        Row(
            f"processor for a mail, with 1,000,000 queued as with 1,000 ({name})",
            "≤ 1.2 ×",
            lambda results, name=name: (
                results["1000000"][name]["cpu_us"] / results["1000"][name]["cpu_us"]
            ),  # type: ignore[misc]
            least(1.2),
            "{:.2f} ×",
            most=True,
        ),
        Row(
            f"a single mail beside 1,000,000 in `mail.bulk`, from its POST until it is sent, the longest ({name})",
            "≤ 2 s",
            of("1000000", name, "single_seconds"),
            least(2),
            "{:.2f} s",
            most=True,
        ),
    )
)
_TABLE = "| what | target | reached | enough |\n|---|---|---|---|\n"
TITLES = {
    "posts": "Single POSTs a second, 32 clients",
    "latency": "One client: POSTs a second and latency",
    "batches": "Batch POST: mails accepted a second",
    "gmail25": "Delivered a second: TLS, login, 25 ms before each reply, 50 connections",
    "gmail100": "The same with 100 ms",
    "immediate": "Delivered a second: a server that answers at once",
    "start": "`flask up`, from its start to the first mail",
}
_SHOWN = {
    "per_second": ("a second", "{:,.0f}"),
    "p50_ms": ("p50, ms", "{:.2f}"),
    "p99_ms": ("p99, ms", "{:.2f}"),
    "cpu_us": ("processor for a mail, µs", "{:,.0f}"),
    "pss_mb": ("memory, PSS, MB", "{:.0f}"),
    "seconds": ("seconds", "{:.2f}"),
    "single_seconds": ("longest wait of a single mail, s", "{:.2f}"),
}


def written(results: Results, versions: str, *, rounds: int) -> str:
    """The page."""
    parts = [
        "# Results",
        f"Medians of {rounds} interleaved rounds of `make bench`, all on one machine: the ratios hold elsewhere, the "
        "numbers do not. Everything of mailasync is on disk, confirmed and fenced; of the others only what their documentation has.",
        _TABLE + "\n".join(row.told(results) for row in ROWS),
    ]
    for key, names in results.items():
        figures = list(
            dict.fromkeys(
                figure for found in names.values() for figure in found if figure in _SHOWN
            )
        )
        lines = [
            "| | " + " | ".join(_SHOWN[figure][0] for figure in figures) + " |",
            "|---|" + "---|" * len(figures),
        ]
        for name, found in names.items():
            told = (
                _SHOWN[figure][1].format(found[figure]) if figure in found else ""
                for figure in figures
            )
            lines.append(f"| {name} | {' | '.join(told)} |")
        parts.append(f"## {TITLES[key]}\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, f"## With what\n\n{versions}"]) + "\n"


def keep(told: str, results: Results) -> None:
    """Write the page and its drawings."""
    (HERE / "results.md").write_text(told)
    for key in ("posts", "gmail25", "immediate"):
        drawn = bars(
            TITLES[key],
            {name: found["per_second"] for name, found in results[key].items()},
            ours="mailasync",
        )
        (DRAWINGS / f"bench-{key}.svg").write_text(drawn)


@dataclass(frozen=True)
class Point:
    """The figures that were measured at one size."""

    at: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """The look of a measure's points: the figure that is drawn, and what is along both sides."""

    title: str
    figure: str
    across: str
    log: bool = True


CURVES = {
    "costs": Curve("What a mail costs a worker, by how many are queued", "cpu_us", "mails queued"),
    "workers": Curve(
        "Delivered a second by several workers: TLS, login, 25 ms before each reply, 50 connections each",
        "per_second",
        "workers",
        log=False,
    ),
    "connections": Curve("Single POSTs a second, by open connections", "per_second", "connections"),
    "run": Curve("A worker's memory over a long run", "pss_mb", "mails sent", log=False),
}


def keep_curve(key: str, lines: Mapping[str, Sequence[Point]], versions: str) -> None:
    """Draw it, and put its figures in place of the former ones in benchmarks/scale.md."""
    curve, file = CURVES[key], HERE / "scale.md"
    drawn = curves(
        curve.title,
        {
            name: [(point.at, point.figures[curve.figure]) for point in points]
            for name, points in lines.items()
        },
        across=curve.across,
        up=_SHOWN[curve.figure][0],
        log=curve.log,
    )
    (DRAWINGS / f"bench-{key}.svg").write_text(drawn)
    figures = list(next(iter(lines.values()))[0].figures)
    table = [
        f"| | {curve.across} | " + " | ".join(_SHOWN[figure][0] for figure in figures) + " |",
        "|---|---|" + "---|" * len(figures),
    ]
    for name, points in lines.items():
        for point in [
            *points[:: max(1, len(points) // 8)],
            *([points[-1]] if len(points) > 8 else []),
        ]:
            told = " | ".join(_SHOWN[figure][1].format(point.figures[figure]) for figure in figures)
            table.append(f"| {name} | {point.at:,.0f} | {told} |")
    if key == "costs":
        results: dict[str, dict[str, Mapping[str, float]]] = defaultdict(dict)
        for name, points in lines.items():
            for point in points:
                results[f"{point.at:.0f}"][name] = point.figures
        table = [_TABLE + "\n".join(row.told(results) for row in SCALE_ROWS), "", *table]
    before = file.read_text().split("\n## ")[1:] if file.exists() else []
    sections = {part.partition("\n")[0]: part for part in before}
    sections[curve.title] = (
        f"{curve.title}\n\n![{curve.title}](../docs/img/bench-{key}.svg)\n\n"
        + "\n".join(table)
        + f"\n\n{versions}"
    )
    parts = [sections[known.title].strip() for known in CURVES.values() if known.title in sections]
    file.write_text(
        "# What changes with size\n\nBy `make bench-scale`.\n\n## " + "\n\n## ".join(parts) + "\n"
    )


def versions(bench: Bench, *, others: bool = True) -> str:
    """Of everything that took part; `others`: the contenders, too."""
    names = [*OURS, *(OTHERS if others else ())]
    told = [
        f"{os.cpu_count()} cores, {platform.system()}",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        f"RabbitMQ {bench.broker.version}",
        f"PostgreSQL {bench.postgres.version}",
        *(f"{name} {version(name)}" for name in names),
    ]
    if others:
        packages = json.loads((node_project() / "package.json").read_text())["dependencies"]
        told += [
            f"Node.js {subprocess.run(['node', '--version'], capture_output=True, text=True, check=True).stdout.strip()}",
            *(f"{name} {found}" for name, found in packages.items()),
        ]
    return ", ".join(told) + "."
