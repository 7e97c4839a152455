"""search.svg: plots of the scores by trial number and by each searched option."""

import math
import random

from tools.report import svg

COLUMNS = 2
KINDS = {"finished": "done", "pruned": "pruned"}
STYLE = """<style>
svg { font-family: system-ui, sans-serif; background: #fff; }
.grid { stroke: #e6e3de; } .axis, .zero { stroke: #8a847c; } text { font-size: 11.5px; fill: #5b564f; }
.label { font-weight: 600; fill: #2b2822; } .line { fill: none; stroke: #2f6bd6; stroke-width: 1.9; }
.dot.done { fill: #2f6bd6; fill-opacity: .65; } .dot.pruned { fill: none; stroke: #d1662a; stroke-width: 1.4; }
.dot.default { fill: #2b8f63; } .dot.best { fill: none; stroke: #2b2822; stroke-width: 1.6; }
</style>"""


def draw(trials, space, monitor, lower):
    """The SVG as text. trials: [{"number", "state", "score", "params", "default"}] with the score of the best epoch;
    space: {name: Dimension}"""
    shown = [trial for trial in trials if trial["state"] in KINDS and trial["score"] is not None]
    y_range = svg.span([trial["score"] for trial in shown])
    finished = [trial for trial in shown if trial["state"] == "finished"]
    best = (min if lower else max)(finished, key=lambda trial: trial["score"], default=None)
    plots = [course(shown, monitor, lower, y_range, best)]
    for name, dimension in space.items():
        plots.append(against(name, dimension, shown, monitor, y_range, best))
    rows = -(-len(plots) // COLUMNS)
    width, height, legend = COLUMNS * svg.WIDTH, rows * svg.HEIGHT + 30, []
    for i, (kind, word) in enumerate(
        (("done", "finished"), ("pruned", "pruned, best so far"), ("default", "default"), ("best", "best trial"))
    ):
        legend.append(f'<circle class="dot {kind}" cx="{60 + 150 * i}" cy="14" r="4"/>')
        legend.append(f'<text x="{70 + 150 * i}" y="18">{word}</text>')
    cells = []
    for i, plot in enumerate(plots):
        x, y = i % COLUMNS * svg.WIDTH, 30 + i // COLUMNS * svg.HEIGHT
        cells.append(f'<g transform="translate({x} {y})">{"".join(plot.parts)}</g>')
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f"<svg {box}>{STYLE}{''.join(legend)}{''.join(cells)}</svg>\n"


def dot(plot, x, trial, best):
    kinds = ["default" if trial["default"] else KINDS[trial["state"]], *(["best"] if trial is best else [])]
    for kind, radius in zip(kinds, (3.4, 6)):
        tip = f"<title>trial {trial['number']}: {trial['score']:.4f}</title>"
        place = f'cx="{plot.x(x):.1f}" cy="{plot.y(trial["score"]):.1f}"'
        plot.add(f'<circle class="dot {kind}" {place} r="{radius}">{tip}</circle>')


def course(shown, monitor, lower, y_range, best):
    """Plots scores by trial number, and the best so far as a line."""
    last = max([trial["number"] for trial in shown], default=1)
    numbers = [(value, svg.number(value)) for value in svg.ticks(0, last) if value == int(value)]
    plot = svg.Plot((-0.5, last + 0.5), y_range, "trial", f"dev {monitor}", "course", numbers)
    xs, ys = [], []
    for trial in shown:
        if trial["state"] == "finished":
            xs += [trial["number"]] * (2 if ys else 1)  # a step function
            ys += [*ys[-1:], (min if lower else max)([trial["score"], *ys[-1:]])]
    plot.line([*xs, last], [*ys, *ys[-1:]], "s0", dots=False)
    for trial in shown:
        dot(plot, trial["number"], trial, best)
    return plot


def against(name, dimension, shown, monitor, y_range, best):
    """Plots scores against an option; listed values are categories, and their dots are jittered."""
    if dimension.choices:
        places = {value: i for i, value in enumerate(dimension.choices)}
        x_range, x_ticks = (-0.5, len(places) - 0.5), [(i, str(value)) for value, i in places.items()]
    else:
        places = None
        low, high = (math.log10(end) if dimension.log else end for end in (dimension.low, dimension.high))
        room = (high - low) * 0.04
        x_range, x_ticks = (low - room, high + room), log_ticks(low, high) if dimension.log else None
    plot = svg.Plot(x_range, y_range, name, f"dev {monitor}", name, x_ticks)
    jitter = random.Random(0)
    for trial in shown:
        if name in trial["params"]:
            value = trial["params"][name]
            if places:
                value = places[value] + jitter.uniform(-0.15, 0.15)
            dot(plot, math.log10(value) if dimension.log else value, trial, best)
    return plot


def log_ticks(low, high):
    """[(logarithm, label)] at powers of ten, with some multiples if there would be fewer than three."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [step * 10**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
        found = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(found) > 2:
            break
    return [(math.log10(value), svg.number(value)) for value in found]
