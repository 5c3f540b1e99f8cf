"""Plots as SVG text for a page: its own fonts and colours apply, light or dark (matplotlib).

Every function returns one `<svg>` element. A series has a dash or a marker of its own besides its colour.
"""

import contextlib
import html
import io
import itertools
import re
import types

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

# What matplotlib draws with, and the property of the page's style sheet that takes its place
_PROPERTIES = {
    "#000001": "var(--ink)",
    "#000002": "var(--faint)",
    "#000003": "var(--surface)",
    "#0000a0": "var(--series-1)",
    "#0000a1": "var(--series-2)",
    "#0000a2": "var(--series-3)",
}
INK, FAINT, SURFACE, *SERIES = _PROPERTIES
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxdet",
    "mathtext.default": "regular",
}
_UNIT = {"xlim": (0, 1), "ylim": (0, 1.02)}
_numbers = itertools.count()


@contextlib.contextmanager
def _panel(title, xlabel="", ylabel="", **settings):
    """`with _panel(title, ...) as panel:` draws on `panel.axes`; afterwards `panel.svg` is the text."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.3, 2.75), layout="constrained")
        panel = types.SimpleNamespace(axes=figure.add_subplot())
        panel.axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        panel.axes.set_axisbelow(True)
        yield panel
        panel.axes.set(**settings)
        if len(panel.axes.get_legend_handles_labels()[0]) > 1:
            panel.axes.legend()
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        panel.svg = _for_a_page(text.getvalue(), title)


def _for_a_page(svg, title):
    """The element alone, ids made unique on the page, colours as properties of the page."""
    svg, prefix = svg[svg.index("<svg") :], f"plot{next(_numbers)}-"
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;\"]*; ", "", svg, flags=re.S)
    for colour, value in _PROPERTIES.items():
        svg = svg.replace(colour, value)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def over_steps(title, lines, unit=""):
    """Values over training steps.

    lines: list of (name, steps, values, series number, marker or ""); without a marker the values are
    drawn faintly and their moving average on top, dashed by the series.
    """
    with _panel(title, "step", unit) as panel:
        for name, steps, values, series, marker in lines:
            steps, values = np.asarray(steps, float), np.asarray(values, float)
            style = {"color": SERIES[series], "label": name, "linestyle": DASHES[series]}
            if marker:
                panel.axes.plot(steps, values, marker=marker, markersize=4, **style)
                continue
            width = max(1, len(values) // 25)
            if width > 2:
                panel.axes.plot(steps, values, color=SERIES[series], alpha=0.25, linewidth=0.8)
                steps, values = steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid")
            panel.axes.plot(steps, values, **style)
        panel.axes.set_ylim(bottom=0)
        panel.axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.axes.yaxis.set_major_locator(MaxNLocator(5))
    return panel.svg


def precision_by_iou(title, curves):
    """Precision over recall at rising IoU, the stricter the fainter. curves: of `curves.precision_recall`."""
    chosen = (0.5, 0.6, 0.7, 0.8, 0.9)
    with _panel(title, "recall", "precision", **_UNIT) as panel:
        for i, iou in enumerate(chosen):
            values = curves["by_iou"][iou]
            if values is not None:
                style = {"color": SERIES[0], "alpha": 1 - 0.16 * i, "linewidth": 2.2 - 0.35 * i}
                name = f"IoU {iou:.1f}: AP {_short(values.mean())}"
                panel.axes.plot(curves["recall"], values, label=name, **style)
    return panel.svg


def precision_by_size(title, curves):
    """Precision over recall at IoU .5 of small, medium and large boxes."""
    with _panel(title, "recall", "precision", **_UNIT) as panel:
        for i, size in enumerate(("small", "medium", "large")):
            values = curves["by_size"][size]
            if values is not None:
                name = f"{size}: AP50 {_short(values.mean())}"
                style = {"color": SERIES[i], "linestyle": DASHES[i]}
                panel.axes.plot(curves["recall"], values, label=name, **style)
    return panel.svg


def calibration(title, rows):
    """Share of right detections over their score. rows: list of (name, of `curves.calibration`)."""
    with _panel(title, "score", "share that is right", **_UNIT) as panel:
        panel.axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=DASHES[2])
        for series, (name, values) in enumerate(rows):
            full = values["count"] > 0
            style = {"color": SERIES[series], "linestyle": DASHES[series], "label": name}
            panel.axes.plot(values["score"][full], values["precision"][full], **style)
            sizes = 8 + 60 * np.sqrt(values["count"][full] / max(values["count"].max(), 1))
            panel.axes.scatter(
                values["score"][full], values["precision"][full], sizes, SERIES[series], marker="os"[series]
            )
    return panel.svg


def histogram(title, xlabel, values, edges, marks=(), logarithmic=False):
    """Counts of values between edges, those outside in the first and last bin; marks: (name, x) of vertical lines."""
    values = np.clip(np.asarray(values, float), edges[0], edges[-1])
    with _panel(title, xlabel) as panel:
        panel.axes.hist(values, edges, color=SERIES[0], alpha=0.55, edgecolor=SURFACE, linewidth=0.5)
        if logarithmic:
            panel.axes.set_xscale("log", base=2)
            panel.axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            panel.axes.xaxis.set_minor_formatter(NullFormatter())
        for x in marks:
            panel.axes.axvline(x, color=SERIES[1], linewidth=1.2, linestyle=DASHES[1])
        panel.axes.set_xlim(edges[0], edges[-1])
        panel.axes.grid(axis="x", visible=False)
        panel.axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return panel.svg


def _short(value):
    return f"{value:.3f}".removeprefix("0")
