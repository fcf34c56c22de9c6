# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The report's plots, as SVG texts: one line or bar a run, the same colours throughout."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from stream_vlm_ros.console import one_line, visible
from stream_vlm_ros.session.counters import ON_PURPOSE

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

COLOURS = ("#3b7dd8", "#e0803a", "#3c9d63", "#b5549c", "#8a7a2f", "#5b6b7b")
_GREY = "#808890"  # reads on white and on black
_STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "text.color": _GREY,
    "text.usetex": False,
    "text.parse_math": False,  # a $ in a name is a $
    "legend.frameon": False,
    "svg.hashsalt": "stream_vlm",  # the same plot gives the same bytes
    "svg.fonttype": "none",  # texts stay texts, in the page's own font
}


def plots_of(runs: list[dict[str, Any]], failed: dict[str, str]) -> list[dict[str, str]]:
    """``title`` and ``svg`` of every plot that there is something to show in.

    One that cannot be drawn has no ``svg``, and ``failed`` says why under its name.
    """
    runs = [run | {"name": _label(run["name"])} for run in runs]
    makers: tuple[tuple[str, Callable[[Any, list[dict[str, Any]]], bool]], ...] = (
        ("Accuracy by type of question", lambda axes, r: draw_shares(axes, r, "by_type")),
        ("Accuracy by age of the evidence", lambda axes, r: draw_shares(axes, r, "by_age")),
        ("Where the evidence was", lambda axes, r: draw_shares(axes, r, "by_memory")),
        ("Time to the first token", lambda axes, r: _distribution(axes, r, "ttft")),
        ("Time to the whole answer", lambda axes, r: _distribution(axes, r, "latency")),
        ("Cache length", _cache),
        ("Memory", _memory),
        ("Frames that did not get into memory", _drops),
    )
    found = []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Of glyphs that its fonts lack: the page shows the texts in its own.
        warnings.simplefilter("ignore", UserWarning)
        for title, draw in makers:
            try:
                figure = Figure(figsize=(5.4, 2.9), layout="constrained")
                figure.patch.set_alpha(0)
                axes = figure.add_subplot()
                axes.patch.set_alpha(0)
                if draw(axes, runs):
                    found.append({"title": title, "svg": _svg(figure)})
            except Exception as error:  # a plot, however it fails, must not cost the page
                failed[f"the plot {title!r}"] = f"{type(error).__name__}: {error}"
                found.append({"title": title, "svg": ""})
    return found


def _label(name: str) -> str:
    """A name as a plot shows it: one line, not too long, and none that matplotlib leaves out."""
    text = one_line(visible(name), 60)
    return f"\u200b{text}" if text.startswith("_") else text


def draw_shares(axes: Any, runs: list[dict[str, Any]], key: str) -> bool:
    """Bars of accuracy with their intervals, group by group."""
    groups = list(dict.fromkeys(name for run in runs for name in run["summary"][key]))
    if not groups:
        return False
    if key == "by_age":
        groups.sort(key=lambda name: float(re.split("[- ]", name)[0]))
    # Many names do not fit side by side: then the bars lie, one below the other.
    lying = len(groups) > 6 or sum(len(_label(name)) for name in groups) > 60
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        figures = [run["summary"][key].get(name) for name in groups]
        places = [i + (number - (len(runs) - 1) / 2) * width for i in range(len(groups))]
        shown = [(place, f) for place, f in zip(places, figures, strict=True) if f]
        at, shares = [place for place, _ in shown], [f["accuracy"] for _, f in shown]
        spread = [
            [max(0.0, f["accuracy"] - f["low"]) for _, f in shown],
            [max(0.0, f["high"] - f["accuracy"]) for _, f in shown],
        ]
        axes.errorbar(
            *((shares, at) if lying else (at, shares)),
            **{"xerr" if lying else "yerr": spread},
            fmt="none",
            ecolor=_GREY,
            elinewidth=1,
            capsize=2,
        )
        (axes.barh if lying else axes.bar)(
            at, shares, width * 0.9, color=COLOURS[number % len(COLOURS)], label=run["name"]
        )
    counts = [max(r["summary"][key].get(g, {}).get("judged", 0) for r in runs) for g in groups]
    beside = " " if lying else "\n"
    labels = [
        f"{_label(name)}{beside}({count})" for name, count in zip(groups, counts, strict=True)
    ]
    names, values = (axes.yaxis, axes.xaxis) if lying else (axes.xaxis, axes.yaxis)
    names.set_ticks(range(len(groups)), labels)
    names.grid(visible=False)
    values.set_major_formatter(PercentFormatter(1.0))
    if lying:
        axes.set_ylim(len(groups) - 0.5, -0.5)  # the first on top
        axes.set_xlim(0, 1.02)
        axes.figure.set_figheight(max(2.9, 0.8 + len(groups) * max(0.22, 0.11 * len(runs))))
    else:
        axes.set_xlim(-0.7, max(len(groups) - 0.3, 1.7))
        axes.set_ylim(0, 1.02)
    if len(runs) > 1:  # above the bars, not on them
        side_by_side = max(1, 60 // max(len(run["name"]) + 6 for run in runs))
        axes.figure.legend(loc="outside upper left", fontsize=8, ncols=side_by_side)
    return True


def _distribution(axes: Any, runs: list[dict[str, Any]], key: str) -> bool:
    """The share of answers that took at most this long."""
    drawn = False
    for number, run in enumerate(runs):
        values = sorted(a["times"][key] for a in run["answers"] if key in a.get("times", {}))
        if not values:
            continue
        shares = [(i + 1) / len(values) for i in range(len(values))]
        axes.step(
            [values[0], *values],
            [0.0, *shares],
            where="post",
            color=COLOURS[number % len(COLOURS)],
            label=run["name"],
        )
        drawn = True
    axes.set_xlabel("seconds")
    axes.set_ylabel("answers")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(axes, runs)
    return drawn


def _cache(axes: Any, runs: list[dict[str, Any]]) -> bool:
    drawn = _over_time(axes, runs, lambda entry: entry["cache_length"])
    for number, run in enumerate(runs):
        cap = run["settings"].get("max_cache_tokens")
        longest = run["summary"]["longest_cache"]
        if cap and longest > cap / 3:
            colour = COLOURS[number % len(COLOURS)]
            axes.axhline(cap, color=colour, linestyle=":", linewidth=1)
    axes.set_ylabel("tokens (dotted: the bound)")
    axes.set_ylim(bottom=0)
    return drawn


def _memory(axes: Any, runs: list[dict[str, Any]]) -> bool:
    drawn = _over_time(axes, runs, lambda entry: entry["memory_bytes"] / 1e6)
    axes.set_ylabel("MB of keys and values")
    axes.set_ylim(bottom=0)
    return drawn


def _over_time(axes: Any, runs: list[dict[str, Any]], value: Callable[[dict], float]) -> bool:
    drawn = False
    for number, run in enumerate(runs):
        for camera in dict.fromkeys(entry["camera"] for entry in run["series"]):
            entries = [entry for entry in run["series"] if entry["camera"] == camera]
            style = "-" if camera == run["series"][0]["camera"] else "--"
            axes.plot(
                [entry["at"] for entry in entries],
                [value(entry) for entry in entries],
                style,
                color=COLOURS[number % len(COLOURS)],
                label=run["name"] if style == "-" else None,
                marker="." if len(entries) < 20 else None,
            )
            drawn = True
    axes.set_xlabel("seconds of the source")
    _legend(axes, runs)
    return drawn


def _drops(axes: Any, runs: list[dict[str, Any]]) -> bool:
    causes = list(dict.fromkeys(c for run in runs for c, n in run["frames"]["drops"].items() if n))
    if not causes:
        return False
    height = 0.8 / len(runs)
    for number, run in enumerate(runs):
        counts = [run["frames"]["drops"].get(cause, 0) for cause in causes]
        places = [i + (number - (len(runs) - 1) / 2) * height for i in range(len(causes))]
        bars = axes.barh(
            places, counts, height * 0.9, color=COLOURS[number % len(COLOURS)], label=run["name"]
        )
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, color=_GREY)
    axes.set_yticks(range(len(causes)), [_label(_cause(cause)) for cause in causes])
    axes.set_ylim(len(causes) - 0.3, -0.7)
    axes.margins(x=0.15)
    axes.set_xlabel("frames")
    axes.grid(axis="y", visible=False)
    return True


def _cause(cause: str) -> str:
    return cause.replace("_", " ") + " (on purpose)" * (cause in ON_PURPOSE)


def _legend(axes: Any, runs: Iterable[Any]) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if len(list(runs)) > 1 and handles:
        axes.legend(fontsize=8)


def _svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element that scales with its place in the page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1).replace(
        'width="388.8pt"', ""
    )
