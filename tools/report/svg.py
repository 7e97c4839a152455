"""Draws plots as SVG for the page, without matplotlib.

Two curves of twenty points take 5 kB instead of the 19 kB of matplotlib. The CSS of the page sets colours for the light
and dark themes and for print. The browser provides the fonts, also for Chinese. All text is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
Range = tuple[float, float]
Labels = Sequence[tuple[float, str]]  # [(value, label)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers between `low` and `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    base = 10 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Formats a number as an axis label."""
    if 0 < abs(value) < 1e-3 or abs(value) >= 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.6g}"


def finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def span(values: Iterable[float | None], room: float = 0.06) -> Range:
    """Returns the range (low, high) of the values plus a margin. The range is never empty."""
    known = finite(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    margin = (high - low) * room or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


class Plot:
    """A plot with axes, and the SVG elements drawn in it."""

    def __init__(
        self, x_range: Range, y_range: Range, x_label: str, y_label: str, describes: str, x_ticks: Labels | None = None
    ):
        """Draws the axes. x_ticks: ticks of the x axis (default: round numbers)."""
        self.x_range, self.y_range, self.describes = x_range, y_range, describes
        self.parts: list[str] = []
        for value in ticks(*y_range):
            y = self.y(value)
            self.add(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            self.text(LEFT - 6, y + 4, number(value), "end")
        for value, word in x_ticks or [(value, number(value)) for value in ticks(*x_range)]:
            self.text(self.x(value), HEIGHT - BOTTOM + 16, word, "middle")
        self.add(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label, "middle", "label")
        if y_label:
            self.text(LEFT, TOP - 1, y_label, "start", "label")

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM - 6)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, text: str, anchor: str, kind: str = "tick") -> None:
        self.add(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, xs: Iterable[float], ys: Iterable[float | None], kind: str, dots: bool | None = None) -> None:
        """Draws a line through the finite points. dots: whether to mark every point (default: up to 24 points)."""
        points = [(x, y) for x, y in zip(xs, ys) if y is not None and math.isfinite(y)]
        if not points:
            return
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        self.add(f'<path class="line {kind}" d="M{path}"/>')
        if len(points) <= 24 if dots is None else dots:
            for x, y in points:
                tip = f"<title>{number(x)}: {y:.4g}</title>"
                self.add(f'<circle class="dot {kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.6">{tip}</circle>')

    def bar(self, x0: float, x1: float, y0: float, y1: float, kind: str, tip: str = "") -> None:
        left, right, top, bottom = self.x(x0) + 0.8, self.x(x1) - 0.8, self.y(y1), self.y(y0)
        shape = f'x="{left:.1f}" y="{top:.1f}" width="{max(0.5, right - left):.1f}" height="{max(0, bottom - top):.1f}"'
        self.add(f'<rect class="bar {kind}" {shape}><title>{escape(tip)}</title></rect>')

    def mark(self, x: float, text: str, kind: str = "mark", row: int = 0) -> None:
        """Draws a vertical line with a label at the top. row: number of lines to move the label down."""
        at = self.x(x)
        self.add(f'<path class="{kind}" d="M{at:.1f} {TOP + 4}V{HEIGHT - BOTTOM}"/>')
        right = at > WIDTH * 0.7
        self.text(at + (-5 if right else 5), TOP + 14 * (1 + row), text, "end" if right else "start", f"{kind}-text")

    def __html__(self) -> Markup:
        """Returns the complete SVG element. Called by jinja2."""
        box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
        return Markup(f'<svg {box} role="img" aria-label="{escape(self.describes)}">{"".join(self.parts)}</svg>')


def lines(
    series: Sequence[tuple[Sequence[float], Sequence[float | None]]],
    x_label: str,
    y_label: str,
    describes: str,
    y_range: Range | None = None,
    x_range: Range | None = None,
    marks: Labels = (),
) -> Plot:
    """Draws a line plot. series: [(xs, ys)], in the order of the colours."""
    xs = finite([x for points, _ in series for x in points]) or [0, 1]
    y_range = y_range or span([y for _, points in series for y in points])
    x_range = x_range or ((min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1))
    plot = Plot(x_range, y_range, x_label, y_label, describes)
    for row, (x, word) in enumerate(marks):
        plot.mark(x, word, row=row)
    for i, (points, values) in enumerate(series):
        plot.line(points, values, f"s{i % 8}")
    return plot


def reliability(bins: Sequence[dict[str, Any]], x_label: str, y_label: str, describes: str) -> Plot:
    """Draws a reliability diagram: accuracy per bin as bars, mean confidence as dots, and the diagonal."""
    plot = Plot((0, 1), (0, 1), x_label, y_label, describes)
    filled = [cell for cell in bins if cell["count"]]
    for cell in filled:
        tip = f"{cell['count']}: {cell['confidence']:.3f} / {cell['accuracy']:.3f}"
        plot.bar(cell["low"], cell["high"], 0, cell["accuracy"], "s0", tip)
    plot.add(f'<path class="diagonal" d="M{plot.x(0):.1f} {plot.y(0):.1f}L{plot.x(1):.1f} {plot.y(1):.1f}"/>')
    for cell in filled:
        x, y = plot.x(cell["confidence"]), plot.y(cell["accuracy"])
        plot.add(f'<circle class="dot s1" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>')
    return plot


def stacked(
    counts: Sequence[Sequence[int]], edges: Sequence[float], x_label: str, y_label: str, describes: str
) -> Plot:
    """Draws a stacked histogram. counts: [[count per kind] per bar]. edges: the edges of the bars."""
    top = max(map(sum, counts), default=0) or 1
    plot = Plot((edges[0], edges[-1]), (0, top * 1.06), x_label, y_label, describes)
    for low, high, cell in zip(edges, edges[1:], counts):
        base = 0
        for i, count in enumerate(cell):
            if count:
                plot.bar(low, high, base, base + count, f"k{i}", f"{low:.3g} – {high:.3g}: {count}")
            base += count
    return plot


def scatter(points: Sequence[Sequence[float]], x_label: str, y_label: str, describes: str) -> Plot:
    """Draws a scatter plot of [(x, y)] with equal axis ranges and the diagonal."""
    ends = span([value for point in points for value in point])
    plot = Plot(ends, ends, x_label, y_label, describes)
    plot.add(f'<path class="diagonal" d="M{plot.x(ends[0])} {plot.y(ends[0])}L{plot.x(ends[1])} {plot.y(ends[1])}"/>')
    for x, y in points:
        plot.add(f'<circle class="point s0" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="2.4"/>')
    return plot
