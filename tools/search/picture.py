"""Draws search.svg: scores by trial number and by each searched option."""

import math
import random
from collections.abc import Sequence
from typing import Any

from tools.report import svg
from tools.search.space import Dimension, Space

COLUMNS = 2
LEGEND = 30  # height of the legend
KINDS = {"finished": "done", "pruned": "pruned"}
STYLE = """<style>
svg { font-family: system-ui, sans-serif; background: #fff; }
.grid { stroke: #e6e3de; } .axis, .zero { stroke: #8a847c; } text { font-size: 11.5px; fill: #5b564f; }
.label { font-weight: 600; fill: #2b2822; } .line { fill: none; stroke: #2f6bd6; stroke-width: 1.9; }
.dot.done { fill: #2f6bd6; fill-opacity: .65; } .dot.pruned { fill: none; stroke: #d1662a; stroke-width: 1.4; }
.dot.default { fill: #2b8f63; } .dot.best { fill: none; stroke: #2b2822; stroke-width: 1.6; }
</style>"""


Trial = dict[str, Any]  # {"number", "state", "score", "params", "default"}; score: at the best epoch


def draw(trials: Sequence[Trial], space: Space, monitor: str, lower: bool) -> str:
    picture = Picture(trials, monitor, lower)
    plots = [picture.history(), *(picture.against(name, dimension) for name, dimension in space.items())]
    parts = []
    words = {"done": "finished", "pruned": "pruned, best so far", "default": "default", "best": "best trial"}
    for i, (kind, word) in enumerate(words.items()):
        parts.append(f'<circle class="dot {kind}" cx="{60 + 150 * i}" cy="14" r="4"/>')
        parts.append(f'<text x="{70 + 150 * i}" y="18">{word}</text>')
    for i, plot in enumerate(plots):
        x, y = i % COLUMNS * svg.WIDTH, LEGEND + i // COLUMNS * svg.HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{"".join(plot.parts)}</g>')
    width, height = COLUMNS * svg.WIDTH, -(-len(plots) // COLUMNS) * svg.HEIGHT + LEGEND
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f"<svg {box}>{STYLE}{''.join(parts)}</svg>\n"


class Picture:
    def __init__(self, trials: Sequence[Trial], monitor: str, lower: bool) -> None:
        self.trials = [trial for trial in trials if trial["state"] in KINDS and trial["score"] is not None]
        self.better, self.y_label = min if lower else max, f"dev {monitor}"
        self.y_range = svg.span([trial["score"] for trial in self.trials])
        self.finished = [trial for trial in self.trials if trial["state"] == "finished"]
        self.best = self.better(self.finished, key=lambda trial: trial["score"], default=None)

    def dot(self, plot: svg.Plot, x: float, trial: Trial) -> None:
        kinds = ["default" if trial["default"] else KINDS[trial["state"]], *(["best"] if trial is self.best else [])]
        for kind, radius in zip(kinds, (3.4, 6)):
            tip = f"<title>trial {trial['number']}: {trial['score']:.4f}</title>"
            position = f'cx="{plot.x(x):.1f}" cy="{plot.y(trial["score"]):.1f}"'
            plot.add(f'<circle class="dot {kind}" {position} r="{radius}">{tip}</circle>')

    def history(self) -> svg.Plot:
        """Plots scores by trial number, and the best score so far as a line."""
        last = max([trial["number"] for trial in self.trials], default=1)
        numbers = [(value, svg.number(value)) for value in svg.ticks(0, last) if value == int(value)]
        plot = svg.Plot((-0.5, last + 0.5), self.y_range, "trial", self.y_label, "history", numbers)
        xs: list[float] = []
        ys: list[float] = []
        for trial in self.finished:
            xs += [trial["number"]] * (2 if ys else 1)  # a step function
            ys += [*ys[-1:], self.better([trial["score"], *ys[-1:]])]
        plot.line([*xs, last], [*ys, *ys[-1:]], "s0", dots=False)
        for trial in self.trials:
            self.dot(plot, trial["number"], trial)
        return plot

    def against(self, name: str, dimension: Dimension) -> svg.Plot:
        """Plots scores against an option. Values from a list are shown as categories with jittered dots."""
        points = [(trial["params"][name], trial) for trial in self.trials if name in trial["params"]]
        x_ticks: list[tuple[float, str]] = []
        if dimension.choices:
            jitter, categories = random.Random(0), {value: i for i, value in enumerate(dimension.choices)}
            points = [(categories[value] + jitter.uniform(-0.15, 0.15), trial) for value, trial in points]
            x_range, x_ticks = (-0.5, len(categories) - 0.5), [(i, str(value)) for value, i in categories.items()]
        else:
            low, high = dimension.low, dimension.high
            if dimension.log:
                low, high = math.log10(low), math.log10(high)
                points = [(math.log10(value), trial) for value, trial in points]
                x_ticks = log_ticks(low, high)
            margin = (high - low) * 0.04
            x_range = (low - margin, high + margin)
        plot = svg.Plot(x_range, self.y_range, name, self.y_label, name, x_ticks)
        for x, trial in points:
            self.dot(plot, x, trial)
        return plot


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Returns [(logarithm, label)] at powers of ten and, if there are fewer than three, at multiples of them."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [step * 10**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
        ticks = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(ticks) > 2:
            break
    return [(math.log10(value), svg.number(value)) for value in ticks]
