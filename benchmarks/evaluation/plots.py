"""The curves of docs/evaluation.md, drawn from evaluation.json. The same figures give the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.evaluation import figures as f
from benchmarks.evaluation.page import MAIN, MAIN_KIND, TIMES_HEADROOM
from benchmarks.evaluation.recorded import Recorded, Sweep, recorded
from benchmarks.evaluation.schemes import (
    FULL_COLD,
    FULL_WARM,
    FULL_WARM_CRITICAL,
    ONE_STEP,
    SCHEMES,
    SMALLEST,
    UNDERSTUDY,
)
from benchmarks.evaluation.times import TIMINGS

COLORS = {
    UNDERSTUDY: "#c2410c",
    ONE_STEP: "#f59e0b",
    FULL_WARM: "#1d4ed8",
    FULL_COLD: "#0f766e",
    FULL_WARM_CRITICAL: "#7c3aed",
    SMALLEST: "#64748b",
}
MARKERS = dict(zip(SCHEMES, "o^svDx", strict=True))
PART_COLORS = dict(zip(f.PARTS, ("#0f172a", "#64748b", "#cbd5e1"), strict=True))
LEGEND_COLUMNS_MAX = 5
SMALL: Sweep = (5, 27, "slices")


def draw(result: dict[str, Any], folder: Path) -> None:
    """Writes evaluation-*.svg into `folder`."""
    import matplotlib as mpl

    mpl.rcParams |= {"svg.hashsalt": "understudy", "font.size": 8}
    found = recorded(result["rows"])
    _recovery(found).savefig(folder / "evaluation-recovery.svg", metadata={"Date": None})
    _accuracy(found).savefig(folder / "evaluation-accuracy.svg", metadata={"Date": None})
    _times(found).savefig(folder / "evaluation-times.svg", metadata={"Date": None})


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _recovery(found: Recorded) -> Any:
    """Apps that every failure of a kind leaves with an answer, by headroom."""
    figure = _figure(10, 6)
    panels = figure.subplots(2, 3, sharey=True)
    for row, sweep in zip(panels, (MAIN, SMALL), strict=True):
        for axes, kind in zip(row, ("node", "site", "two nodes"), strict=True):
            for scheme in SCHEMES:
                if scheme != ONE_STEP:
                    _curve(axes, found, sweep, kind, scheme, f.PROTECTED)
            axes.set_title(f"{_size(sweep)}: any {kind} lost", loc="left", fontsize=9)
            _by_headroom(axes)
        row[0].set_ylabel("apps that always keep an answer, %")
    _legend(figure, panels[0][0])
    return figure


def _accuracy(found: Recorded) -> Any:
    """What answers lose to the full-size variant's, of those that are given; and the memory spent on them."""
    figure = _figure(10, 3.4)
    panels = figure.subplots(1, 3)
    for axes, sweep in zip(panels, (MAIN, SMALL), strict=False):
        style = {"linestyle": ":", "label": "Understudy, first reply"}
        _curve(axes, found, sweep, MAIN_KIND, UNDERSTUDY, f.FIRST_LOST, **style)
        _curve(axes, found, sweep, MAIN_KIND, UNDERSTUDY, f.AFTER_LOST, label=UNDERSTUDY)
        _curve(axes, found, sweep, MAIN_KIND, SMALLEST, f.AFTER_LOST)
        axes.axhline(
            f.LOST_PCT_MAX, color="#94a3b8", linewidth=0.8, linestyle="--", label=f"{f.LOST_PCT_MAX} %"
        )
        axes.set_title(f"{_size(sweep)}: accuracy lost, %", loc="left", fontsize=9)
        _by_headroom(axes)
        axes.set_ylim(bottom=0)
    for scheme in SCHEMES:
        _curve(panels[2], found, MAIN, MAIN_KIND, scheme, f.OVERHEAD)
    panels[2].set_title("memory spent, % of the primaries'", loc="left", fontsize=9)
    _by_headroom(panels[2])
    _legend(figure, *panels)
    return figure


def _times(found: Recorded) -> Any:
    """Mean times of what is brought back cold: with parts by the main timing, in all by the others."""
    figure = _figure(10, 2.4)
    case = next(c for c in found.cases(MAIN, MAIN_KIND) if c.headroom == TIMES_HEADROOM)
    schemes = [s for s in SCHEMES if s != FULL_WARM]
    panels = figure.subplots(1, len(TIMINGS), sharey=True)
    for axes, timing in zip(panels, TIMINGS, strict=True):
        totals = [found.value(case, s, f"{f.MTTR_COLD_MEAN}, {timing}") or 0.0 for s in schemes]
        axes.barh(schemes, totals, color=[COLORS[s] for s in schemes])
        axes.set_title(f"cold recoveries, {timing}", loc="left", fontsize=9)
        left = [0.0] * len(schemes)
        for part in f.PARTS if axes is panels[0] else ():
            widths = [found.value(case, s, part) or 0.0 for s in schemes]
            axes.barh(schemes, widths, left=left, color=PART_COLORS[part], label=part.partition(", ")[2])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for number, total in enumerate(totals):
            axes.annotate(
                f"{total:,.0f} ms", (total, number), (3, 0), textcoords="offset points", va="center"
            )
        axes.set_xlim(0, 1.35 * max(totals))
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False)
    panels[0].invert_yaxis()
    _legend(figure, panels[0])
    return figure


def _size(sweep: Sweep) -> str:
    return f"{sweep[0]:,} nodes, {sweep[1]:,} apps"


def _curve(
    axes: Any, found: Recorded, sweep: Sweep, kind: str, scheme: str, figure: str, **style: Any
) -> None:
    points = [(100 * c.headroom, found.value(c, scheme, figure)) for c in found.cases(sweep, kind)]
    points = [(x, y) for x, y in points if y is not None]
    style = {"label": scheme, "color": COLORS[scheme], "marker": MARKERS[scheme]} | style
    order = 3 if scheme == UNDERSTUDY else 2
    axes.plot(*zip(*points, strict=True), markersize=4, linewidth=1.4, zorder=order, **style)


def _by_headroom(axes: Any) -> None:
    axes.set_xscale("log")
    ticks = (5, 10, 20, 50, 100)
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("headroom")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e2e8f0", linewidth=0.6)


def _legend(figure: Any, *panels: Any) -> None:
    """One for all panels, below them."""
    labelled: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    columns = min(len(labelled), LEGEND_COLUMNS_MAX)
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=columns, frameon=False
    )
