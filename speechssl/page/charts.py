"""Line charts as HTML and inline SVG, without a library.

The lines are drawn in the data's own numbers and stretched to the box by a transform, so that the script which reads
values off a chart (`page.js`) needs no second copy of them; all text is HTML, which keeps its size on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

Point = tuple[float, float]
BUCKETS = 400  # of a thinned line; two points each
COLOURS = 10  # in page.css
SPIKE = 3.0  # a chart whose highest value is so many times its 98th percentile is cut there


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: of the run.
        colour: place of the run on the page; runs share their colour over all charts.
        points: by rising x, finite.
        kind: "line", or "dots" for few measurements (validation).
        bars: (low, high) of each point, or empty.
    """

    name: str
    colour: int
    points: Sequence[Point]
    kind: Literal["line", "dots"] = "line"
    bars: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """A box of lines.

    Attributes:
        id: of the element, unique on the page.
        title: what the values are.
        x_label: what the horizontal axis counts.
        note: a few words under the title.
        levels: horizontal lines with a name: chance.
        log: logarithmic values; what is not above 0 is left out.
        x_names: names of the whole numbers 0, 1, ... on the horizontal axis, in place of numbers.
    """

    id: str
    title: str
    series: Sequence[Series]
    x_label: str = "updates"
    note: str = ""
    levels: Sequence[tuple[str, float]] = ()
    log: bool = False
    x_names: Sequence[str] = ()


def thin(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """At most two points of each bucket, the lowest and the highest: spikes stay, and so do both ends."""
    if len(points) <= 2 * buckets:
        return list(points)
    kept: list[Point] = [points[0]]
    for bucket in range(buckets):
        part = points[bucket * len(points) // buckets : (bucket + 1) * len(points) // buckets]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += [low] if low == high else sorted((low, high))
    return sorted({*kept, points[-1]})


def number(value: float) -> str:
    """A value as people write it: three or four digits, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.{max(0, 3 - math.floor(math.log10(size)) - 1)}f}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, one to `most` + 1 of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """The same for exponents: powers of ten, with round numbers between where there is room."""
    inside: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), range(1, 10)):
        found = (math.log10(f) + p for p in range(math.floor(low), math.ceil(high) + 1) for f in factors)
        inside = [value for value in found if low <= value <= high]
        if len(inside) > 2:
            break
    return inside[:: max(1, -(-len(inside) // most))] or [low]


def draw(chart: Chart) -> str:
    """The chart as a <figure>. Without a point to draw it says so."""
    series = [_prepared(s, chart.log) for s in chart.series]
    series = [s for s in series if s.points]
    head = f"<figcaption><b>{escape(chart.title)}</b> <small>{escape(chart.note)}</small></figcaption>"
    if not series:
        return f'<figure class="chart" id="{chart.id}">{head}<p class="absent">Nothing was logged.</p></figure>'
    xs = [x for s in series for x, _ in s.points]
    left, right = min(xs), max(xs)
    if chart.x_names:
        left, right = -0.3, len(chart.x_names) - 0.7
    elif left == right:
        left, right = left - 1, right + 1
    low, high, cut = _range(series, [value for _, value in chart.levels], chart.log)
    box = _Box(left, right, low, high, chart.log)
    note = f" Cut at {number(10**high if chart.log else high)}." if cut else ""
    names = f' data-names="{escape("|".join(chart.x_names))}"' if chart.x_names else ""
    return (
        f'<figure class="chart" id="{chart.id}">{head.replace("</small>", escape(note) + "</small>")}'
        f'<div class="plot" tabindex="0" role="img" aria-label="{escape(_spoken(chart, series))}" '
        f'data-x="{escape(chart.x_label)}" data-log="{int(chart.log)}" data-left="{left:.9g}" data-right="{right:.9g}"'
        f"{names}{' data-cut' if cut else ''}>{_svg(chart, series, box)}{_labels(chart, box)}"
        '<div class="cursor" hidden></div><output class="readout" aria-live="polite" hidden></output></div>'
        f'<div class="x-label">{escape(chart.x_label)}</div></figure>'
    )


@dataclass(frozen=True)
class _Box:
    """What a chart spans, in its own numbers (exponents where it is logarithmic)."""

    left: float
    right: float
    low: float
    high: float
    log: bool

    def across(self, x: float) -> str:
        return f"{100 * (x - self.left) / (self.right - self.left):.2f}%"

    def up(self, y: float) -> str:
        return f"{100 * (y - self.low) / (self.high - self.low):.2f}%"

    @property
    def y_ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def _svg(chart: Chart, series: Sequence[Series], box: _Box) -> str:
    x, y = 1000 / (box.right - box.left), -1000 / (box.high - box.low)
    matrix = f"matrix({x:.9g} 0 0 {y:.9g} {-box.left * x:.9g} {-box.high * y:.9g})"
    grid = "".join(f'<path class="grid" d="M{box.left:.9g} {tick:.9g}H{box.right:.9g}"/>' for tick in box.y_ticks)
    levels = "".join(
        f'<path class="level" d="M{box.left:.9g} {_y(value, box.log):.9g}H{box.right:.9g}"/>'
        for _, value in chart.levels
    )
    return (
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">'
        f'<g transform="{matrix}">{grid}{levels}{"".join(map(_line, series))}</g></svg>'
    )


def _labels(chart: Chart, box: _Box) -> str:
    """Numbers at both axes, and the names of the levels."""
    html = ""
    for tick in box.y_ticks:
        text = f"{10**tick:.3g}" if box.log else _tick(tick, box.y_ticks)
        html += f'<i class="y" style="bottom:{box.up(tick)}">{text}</i>'
    x_ticks: list[float] = list(range(len(chart.x_names))) if chart.x_names else ticks(box.left, box.right, 4)
    for tick in x_ticks:
        text = escape(chart.x_names[int(tick)]) if chart.x_names else _tick(tick, x_ticks)
        html += f'<i class="x" style="left:{box.across(tick)}">{text}</i>'
    for name, value in chart.levels:
        html += f'<i class="name" style="bottom:{box.up(_y(value, box.log))}">{escape(name)} {number(value)}</i>'
    return html


def _y(value: float, log: bool) -> float:
    return math.log10(max(value, 1e-300)) if log else value


def _prepared(series: Series, log: bool) -> Series:
    points = [(x, y) for x, y in series.points if math.isfinite(y) and (y > 0 or not log)]
    if not series.bars:
        points = thin(points)
    return replace(series, points=[(x, _y(y, log)) for x, y in points])


def _range(series: Sequence[Series], levels: Sequence[float], log: bool) -> tuple[float, float, bool]:
    """Lowest and highest value of the box, and whether a line leaves it."""
    ys = sorted(y for s in series for _, y in s.points)
    ys += [edge for s in series for bar in s.bars for edge in bar]
    low, high, cut = min(ys), max(ys), False
    typical = sorted(ys)[int(0.98 * (len(ys) - 1))]
    if not log and typical > 0 and high > SPIKE * typical:
        high, cut = 1.2 * typical, True
    for level in levels:
        value = _y(level, log)
        low, high = min(low, value), max(high, value)
    if low == high:
        low, high = low - max(abs(low), 1e-9) * 0.1, high + max(abs(high), 1e-9) * 0.1
    margin = 0.05 * (high - low)
    from_zero = not log and low >= 0 and low < 0.4 * high
    return (0.0 if from_zero else low - margin), high + margin, cut


def _line(series: Series) -> str:
    classes = f"c{series.colour % COLOURS} {series.kind}" + (" again" if series.colour >= COLOURS else "")
    run = f'data-run="{series.colour}"'
    points = " ".join(f"{x:.9g},{y:.5g}" for x, y in series.points)
    bars = "".join(
        f'<path class="bar {classes}" {run} d="M{x:.9g} {low:.5g}V{high:.5g}"/>'
        for (x, _), (low, high) in zip(series.points, series.bars, strict=False)
    )
    dots = ""
    if series.kind == "dots" or len(series.points) == 1:  # lines of no length with round ends
        places = "".join(f"M{x:.9g} {y:.5g}h0" for x, y in series.points)
        dots = f'<path class="dot {classes}" {run} d="{places}"/>'
    return f'{bars}<polyline class="{classes}" {run} data-name="{escape(series.name)}" points="{points}"/>{dots}'


def _tick(value: float, all_ticks: Sequence[float]) -> str:
    """Enough digits to tell the ticks apart."""
    if not value:
        return "0"
    if abs(all_ticks[-1]) >= 10_000:
        return f"{value / 1000:,g}k"
    step = all_ticks[1] - all_ticks[0] if len(all_ticks) > 1 else value
    digits = max(0, -math.floor(math.log10(abs(step)) + 1e-9))
    return f"{value:.0e}".replace("e-0", "e-") if digits > 4 else f"{value:,.{digits}f}"


def _spoken(chart: Chart, series: Sequence[Series]) -> str:
    """What the chart shows, in words."""
    last = [s.points[-1][1] for s in series]
    ends = [
        f"{s.name} ends at {number(10**y if chart.log else y)}" for s, y in list(zip(series, last, strict=True))[:8]
    ]
    levels = [f"{name} is {number(v)}" for name, v in chart.levels]
    return f"{chart.title} over {chart.x_label}: {'; '.join([*ends, *levels])}. Arrow keys read the values."
