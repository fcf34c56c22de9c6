# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Draw what bench/gpu.py measured: python bench/gpu_plots.py bench/results/gpu.json

PNGs beside the file, named after it. Sections that the file lacks are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

Drawing = Callable[[Any, dict[str, Any]], None]
SHOWN = {"chunk": "a chunk", "first_token": "first token", "token": "a further token"}


def against_reference(axes: Any, section: dict[str, Any]) -> None:
    """Bars: the reference's style, ours, the floor; all caps and kinds of work."""
    names, values = [], []
    for cap, row in sorted(section["caps"].items(), key=lambda entry: int(entry[0])):
        for name, words in SHOWN.items():
            names.append(f"{words}\n{int(cap):,}")
            styles = row["reference_style"][name], row["ours"][name]
            values.append([*(style["median"] for style in styles), row["floor"][name]])
    for number, (label, colour) in enumerate(
        (("reference's style", "0.6"), ("ours", "tab:blue"), ("floor", "tab:green"))
    ):
        places = [place + 0.27 * (number - 1) for place in range(len(names))]
        drawn = axes.bar(places, [each[number] for each in values], 0.27, label=label, color=colour)
        axes.bar_label(drawn, fmt=_three_digits, fontsize=6)
    axes.set_xticks(range(len(names)), names, fontsize=7)
    _log_milliseconds(axes)
    _key(axes, "By the memory's cap, in tokens")


def _key(axes: Any, title: str) -> None:
    """The legend under the title, where no line runs through it."""
    axes.set_title(title, pad=24)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)


def _log_milliseconds(axes: Any) -> None:
    """A logarithmic axis with its ticks in plain figures: 1, 2, 5, 10, ..."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("ms")


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _curve(points: list[dict[str, Any]], along: str, scale: str) -> Drawing:
    def draw(axes: Any, section: dict[str, Any]) -> None:
        xs = [_number(point[along]) for point in points]
        for name, words in SHOWN.items():
            if name in points[0]:
                axes.plot(xs, [point[name] for point in points], marker="o", label=words)
        axes.set_xscale(scale)
        tilted = {"rotation": 30, "ha": "right"} if len(points) > 5 else {}
        axes.set_xticks(xs, [_label(point[along]) for point in points], fontsize=7, **tilted)
        axes.xaxis.set_minor_locator(NullLocator())
        if "token" in points[0]:
            _log_milliseconds(axes)
        else:
            axes.set_ylim(0, 1.15 * max(point["chunk"] for point in points))
            axes.set_ylabel("ms")
        _key(axes, TITLES[along])

    return draw


TITLES = {
    "cap": "Over the cap, in tokens",
    "chunk_frames": "Over the frames of a chunk",
    "frames": "Over the size of the pictures",
    "chunks": "Over the chunks that have passed",
}


def _number(value: Any) -> float:
    return value[0] * value[1] if isinstance(value, list) else value


def _label(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else f"{value:,}"


def drawings(sections: dict[str, Any]) -> dict[str, tuple[Drawing, dict[str, Any]]]:
    """By the name of the plot: how it is drawn, and its section."""
    found: dict[str, tuple[Drawing, dict[str, Any]]] = {}
    section = sections.get("against_reference")
    if section is not None and "failed" not in section:
        found["against-reference"] = against_reference, section
    curves = sections.get("curves", {})
    for name, along, scale in (
        ("cap", "cap", "log"),
        ("chunk", "chunk_frames", "linear"),
        ("resolution", "frames", "log"),
        ("stream_length", "chunks", "log"),
    ):
        if points := curves.get(name, {}).get("points"):
            drawn = curves | {"frames": curves[name].get("frames", "")}
            found[f"over-{name.replace('_', '-')}"] = _curve(points, along, scale), drawn
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    file: Path = parser.parse_args().results
    report = json.loads(file.read_text())
    for name, (draw, section) in drawings(report["sections"]).items():
        frames = section.get("frames", report["size"])  # of a curve, unless it is along them
        sizes = "x".join(map(str, frames)) if isinstance(frames, list) else frames
        about = filter(
            None, (report["machine"], report["shape"], sizes, f"torch {report['torch']}")
        )
        figure, axes = pyplot.subplots(figsize=(7, 4))
        draw(axes, section)
        figure.text(
            0.99,
            0.01,
            f"{', '.join(about)}, {section['date']}",
            ha="right",
            fontsize=6,
            color="0.4",
        )
        figure.tight_layout()
        target = file.with_name(f"{file.stem}-{name}.png")
        figure.savefig(target, dpi=130)
        pyplot.close(figure)
        print(target)


if __name__ == "__main__":
    main()
