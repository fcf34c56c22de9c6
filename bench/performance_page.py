# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Write the tables of docs/performance.md from the JSON files under bench/results: ``make docs``.

    python bench/performance_page.py          # of this checkout
    python bench/performance_page.py ROOT

What has not been measured is left out of a table, and of gpu.json's sections those that it lacks
are named. Bars of a CPU stand here, those of a GPU in gpu_sections.py and in its JSON. Needs
nothing but Python.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

Report = dict[str, Any]
CAMERA_SHARE = {"load": 0.5, "ingest_share": 0.5}  # of the model's time; as the node is set

# -- on a CPU --------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the table: figures of one benchmark, beside what each should be.

    ``bars``: one for all figures, or one each; none: nothing is asked. ``at_least``: whether a
    figure should reach its bar; otherwise it should not exceed it.
    """

    benchmark: str
    what: str
    figures: Callable[[Report], list[float]]
    bars: tuple[float, ...] = ()
    unit: str = ""
    at_least: bool = False
    note: Callable[[Report], str] = lambda report: ""


def _of_caps(name: str) -> Callable[[Report], list[float]]:
    return lambda report: [row[name]["median"] for row in report["caps"]]


def _beside_camera(report: Report) -> Report:
    rows = report["memories"]["novelty, room for all that comes"]["rows"]
    return next(row for row in rows if CAMERA_SHARE.items() <= row.items())


ROWS = (
    Row(
        "small_model",
        "Small model, a chunk of four 640x480 frames",
        lambda r: [r["chunk_of_4_ms"]["wall_median"]],
        (100,),
        "ms",
    ),
    Row(
        "small_model",
        "its first token after 60 s of video, a whole answer",
        lambda r: [r["first_token_ms"]["wall_median"], r["whole_answer_ms"]["wall_median"]],
        (150, 500),
        "ms",
    ),
    Row("small_model", "loading it", lambda r: [r["load_ms"]["wall_median"]], (1000,), "ms"),
    Row(
        "against_stock",
        "A chunk, engine / the stock library's forward, at {caps} tokens",
        _of_caps("chunk"),
        (1,),
    ),
    Row("against_stock", "a question's first token", _of_caps("first_token"), (1,)),
    Row("against_stock", "a further token", _of_caps("token"), (1,)),
    Row(
        "against_stock",
        "a chunk of an old stream / of a young one",
        lambda r: [r["flatness"]["late_over_early"]["median"]],
        (1.1,),
    ),
    Row(
        "against_stock",
        "a chunk, preset `novelty` / sink and window alone: `keep_gaps`, `contiguous`",
        lambda r: [
            r["levels"][f"novelty_{policy}"]["median"] for policy in ("keep_gaps", "contiguous")
        ],
    ),
    Row(
        "node_overhead",
        "The node at 1080p30 / a subscriber that does nothing",
        lambda r: [r["ratios_to_nothing_quartiles"]["node"][1]],
        (1.1,),
        note=lambda r: " (quartiles {} to {})".format(
            *(figure(r["ratios_to_nothing_quartiles"]["node"][place]) for place in (0, 2))
        ),
    ),
    Row(
        "web",
        "The console: processor time of the engine's process, one viewer / none, ten / one",
        lambda r: [
            r["engine_cpu"][name]["median"] for name in ("one_against_none", "ten_against_one")
        ],
        (1.05, 1.05),
    ),
    Row(
        "web",
        "a viewer's pictures later for another that reads none, 99 of 100",
        lambda r: [max(0.0, r["age_of_pictures_s"]["later_ms"]["p99"])],
        (100,),
        "ms",
    ),
    Row(
        "ingest_while_answering",
        "An answer while a camera takes half of the model's time / an answer alone",
        lambda r: [_beside_camera(r)["answer_ratio"]],
        note=lambda r: f", {percent(_beside_camera(r)['encoded'])} of the chunks encoded meanwhile",
    ),
    Row(
        "reader",
        "Reading 720p30 H.264, one core, times real time: as a camera encodes it, x264's defaults",
        lambda r: [
            r["encodings"][name]["times_real_time_on_one_core"]
            for name in ("camera", "x264 defaults")
        ],
        (10,),
        at_least=True,
    ),
    Row(
        "frame_memory",
        "Delayed batch: keeping a 1280x720 frame, choosing 48 of a day's",
        lambda r: [r["adding_drawn"]["add"]["median"], r["day"]["select_ms"]["median"]],
        (15, 50),
        "ms",
    ),
)


def cpu_table(results: Path) -> str:
    """Every row whose benchmark has been run; bold is what misses its bar."""
    rows, before = [], ""
    for row in ROWS:
        report = _read(results / f"{row.benchmark}.json")
        if report is None:
            continue
        source = "" if row.benchmark == before else _source(row.benchmark, report)
        before = row.benchmark
        caps = ", ".join(figure(each["cap"]) for each in report.get("caps", ()))
        rows.append([row.what.format(caps=caps), _bars(row), _measured(row, report), source])
    return table(["What", "Bar", "Measured", "By"], rows)


def _bars(row: Row) -> str:
    if not row.bars:
        return "–"
    sign = "≥ " if row.at_least else "≤ "
    return f"{sign}{', '.join(map(as_given, row.bars))} {row.unit}".rstrip()


def _measured(row: Row, report: Report) -> str:
    figures = row.figures(report)
    bars = row.bars * len(figures) if len(row.bars) == 1 else row.bars or (None,) * len(figures)
    texts = []
    for value, bar in zip(figures, bars, strict=True):
        missed = bar is not None and (value < bar if row.at_least else value > bar)
        texts.append(f"**{figure(value)}**" if missed else figure(value))
    return f"{', '.join(texts)} {row.unit}".rstrip() + row.note(report)


def _source(name: str, report: Report) -> str:
    load = _load(report)
    busy = "" if load is None else f", load {load:.1f}"
    return f"[`{name}`](../bench/results/{name}.json): {report['machine']}{busy}"


def _load(report: Any) -> float | None:
    """The load average of the last minute, wherever the benchmark wrote it."""
    if not isinstance(report, dict):
        return None
    load = report.get("load_average", report.get("load"))
    if load is None:
        return next((found for v in report.values() if (found := _load(v)) is not None), None)
    return load[0] if isinstance(load, list) else load


def length_table(results: Path) -> str:
    """What a memory's length costs the small model on one core."""
    report = _read(results / "against_stock.json")
    if report is None:
        return "Not measured."
    rows = [
        [words, *(f"{figure(each[name]['ours_ms'])} ms" for each in report["caps"])]
        for name, words in (
            ("chunk", "a chunk"),
            ("first_token", "first token"),
            ("token", "a further token"),
        )
    ]
    caps = [f"{figure(each['cap'])} tokens" for each in report["caps"]]
    return table(["Small model, one core", *caps], rows)


# -- on a GPU --------------------------------------------------------------------------------------

WORDS = {
    "chunk": "a whole chunk",
    "patches": "of that, pictures to patches",
    "vision": "of that, vision tower",
    "first_token": "first token",
    "token": "a further token",
    "five_choices": "choosing among five",
    "snapshot": "snapshot and restore",
    "peak_allocated_gib": "peak allocated, GiB",
    "peak_reserved_gib": "peak reserved, GiB",
}


LONG_VIDEO = "experiments_3b/long-video/long-video.json"
MOST_LONG_VIDEO_SECONDS = 75  # experiment B of the reference, on one H200


def gpu_tables(results: Path) -> str:
    """All that gpu.json holds, and which sections it lacks."""
    report = _read(results / "gpu.json")
    if report is None:
        return "Not measured yet."
    sections = {k: v for k, v in report["sections"].items() if "failed" not in v}
    parts = [_about(report), _bars_of(sections)]
    parts += [f"**{title}**\n\n{draw(sections[n])}" for n, title, draw in GPU if n in sections]
    if (long_video := _read(results / LONG_VIDEO)) is not None:
        parts.append(_long_video(long_video))
    parts += [
        f"Left out of `{name}` for lack of time: {'; '.join(section['skipped'])}."
        for name, section in sections.items()
        if section.get("skipped")
    ]
    if missing := [f"`{name}`" for name, *_ in GPU if name not in sections]:
        parts.append(f"Not in this file: {', '.join(missing)}.")
    if plots := sorted(results.glob("gpu-*.png")):
        parts.append("\n".join(f"![{p.stem}](../bench/results/{p.name})" for p in plots))
    return "\n\n".join(filter(None, parts))


def _about(report: Report) -> str:
    return (
        f"{report['machine']}, shape {report['shape']} with random weights, "
        f"{report['dtype'].removeprefix('torch.')}, frames of {report['size']}, torch "
        f"{report['torch']}, transformers {report['transformers']}, {report['date']} "
        "([`gpu.json`](../bench/results/gpu.json)). Medians in ms, unless it says otherwise. The "
        "floors are what the arithmetic takes at "
        f"{figure(report['teraflops'])} TFLOP/s, and the reading at "
        f"{figure(report['terabytes_a_second'])} TB/s, which this device reached in the same run."
    )


def _bars_of(sections: dict[str, Report]) -> str:
    rows = []
    for bar in (bar for section in sections.values() for bar in section.get("bars", ())):
        name, comma, rest = bar["what"].partition(", ")
        unit = bar["unit"]
        go_for = bar["go_for"]
        rows.append(
            [
                WORDS.get(name, name).removesuffix(f", {unit}") + comma + rest,
                f"{as_given(bar['at_most'])} {unit}",
                "" if go_for is None else f"{as_given(go_for)} {unit}",
                f"{figure(bar['measured'])} {unit}",
                "ok" if bar["holds"] else "**miss**",
            ]
        )
    return table(["Asked of it", "Limit", "Target", "Measured", ""], rows) if rows else ""


def _warm_up(section: Report) -> str:
    rows = []
    for which, each in section.items():
        if isinstance(each, dict):
            why = f" ({each['reason']})" if each["reason"] else ""
            taken = figure(each["seconds"]), figure(round(each["bytes"] / 2**20))
            rows.append([which, each["path"] + why, *taken])
    return table(["Engine of a process", "Questions run as", "s", "MiB taken"], rows)


def _against_reference(section: Report) -> str:
    rows = []
    for cap, each in section["caps"].items():
        theirs, floor, times = each["reference_style"], each["floor"], each["times_faster"]
        for name, words in WORDS.items():
            if name in each["ours"]:
                cells = [_median(found.get(name)) for found in (theirs, each["ours"])]
                cells += [figure(times[name]) if name in times else ""]
                rows.append([figure(int(cap)), words, *cells, _median(floor.get(name))])
    return table(["Cap", "", "Reference's style", "Ours", "Times faster", "Floor"], rows)


def _median(value: Any) -> str:
    if value is None:
        return ""
    return figure(value["median"] if isinstance(value, dict) else value)


def _long_video(report: Report) -> str:
    """The experiment's own table, and the bar for the whole run."""
    (beside,) = report["tables"]
    seconds = report["summary"]["seconds"]
    verdict = "ok" if seconds <= MOST_LONG_VIDEO_SECONDS else "**miss**"
    rows = [[cell if cell != "–" else "" for cell in row] for row in beside["rows"]]
    return (
        "**The reference's long video** ([`long-video.md`]"
        f"(../bench/results/{LONG_VIDEO.removesuffix('json')}md)): "
        f"{report['summary']['frames']} frames, {figure(seconds)} s, at most "
        f"{MOST_LONG_VIDEO_SECONDS} s: {verdict}\n\n{table(beside['columns'], rows)}"
    )


def _eviction(section: Report) -> str:
    named = [(name, each) for name, each in section.items() if isinstance(each, dict)]
    named += [("sink and window", each) for each in section["level 1"]]
    rows = []
    for name, each in named:
        times = (_median(each[key]) for key in ("chunk", "forget", "turn", "describe"))
        rows.append([name, figure(each["cap"]), *times, percent(each["share"])])
    titles = ["Memory", "Cap", "Chunk", "Moving", "Turning keys", "Describing frames", "Share"]
    return "Shares are of the means, the others medians:\n\n" + table(titles, rows)


def _steady(section: Report) -> str:
    chunk = section["chunk"]
    cells = [figure(section["cap"]), figure(chunk["runs"]), _median(chunk), figure(chunk["p99"])]
    return table(
        ["Cap", "Chunks", "Median", "p99", "p99 / median"],
        [[*cells, figure(section["p99_over_median"])]],
    )


def _small_frames(section: Report) -> str:
    cells = [_size(section["size"]), figure(section["cap"]), _median(section["chunk"])]
    cells += [figure(section[key]) for key in ("frames_a_second", "cameras_of_2_fps")]
    return table(["Frames", "Cap", "Chunk", "Frames a second", "Cameras of 2 fps"], [cells])


def _cameras(section: Report) -> str:
    """Frames a second of chunks as fast as they go; of the most cameras also what questions waited
    while frames came at a rate."""
    rows = []
    for row in section["rows"]:
        cells = [as_given(row["cameras"]), row["size"], figure(row["frames_a_second"])]
        if first := row.get("first_token"):
            lost = row["frames"] - row["frames_remembered"]
            cells += [as_given(lost), _median(first), figure(first["p99"]), as_given(first["runs"])]
            cells += [figure(row["prepare_longest_ms"]), figure(1e3 * row["prepare_s"])]
        rows.append(cells + [""] * (9 - len(cells)))
    titles = ["Cameras", "Frames", "Frames a second", "Lost", "First token", "p99", "Questions"]
    return table([*titles, "A piece of preparing", "All"], rows)


def _answers_at_once(section: Report) -> str:
    """Written together, and beside it by turns."""
    by_turns = {row["answers"]: row for row in section["rows"] if row["by_turns"]}
    rows = []
    for row in section["rows"]:
        if row["by_turns"]:
            continue
        count = row["answers"]
        turns = by_turns.get(count, row if count == 1 else {})
        cells = [figure(one["tokens_a_second"]) if one else "" for one in (row, turns)]
        for name in ("first_token", "token"):
            cells += [_median(row[name]), figure(row[name]["p99"])]
        rows.append([figure(count), *cells])
    titles = ["Answers at once", "Tokens a second", "By turns", "First token", "p99"]
    return table([*titles, "Further token", "p99"], rows)


def _answering(section: Report) -> str:
    about = (
        f"An answer of {section['tokens']} tokens alone: {figure(section['answer_ms'])} ms; a "
        f"chunk of four {_size(section['size'])} frames: {figure(section['chunk_ms'])} ms; cap "
        f"{figure(section['cap'])}."
    )
    rows = []
    for row in section["rows"]:
        given = percent(row["load"]), as_given(row["ingest_share"])
        found = figure(row["answer_ratio"]), percent(row["encoded"]), as_given(row["lost"])
        rows.append([*given, *found])
    titles = ["Model's time the camera takes", "`ingest_share`", "Answer / alone"]
    return f"{about}\n\n{table([*titles, 'Chunks encoded meanwhile', 'Chunks lost'], rows)}"


def _variants(section: Report) -> str:
    rows = []
    for row in section["rows"]:
        names = ("start_s", "chunk", "first_token", "token")
        figures = [row.get("not_there", ""), "", "", ""]
        if "not_there" not in row:
            figures = [figure(row[name]) for name in names]
        rows.append([figure(row["cap"]), row["variant"], *figures])
    return table(["Cap", "Variant", "Start, s", "Chunk", "First token", "Further token"], rows)


def _curves(section: Report) -> str:
    """Along each of its ways: what is varied, and the figures over it."""
    titles = {"chunk": "Chunk", "first_token": "First token", "token": "Further token"}
    names = {"cap": "Cap", "chunk_frames": "Frames a chunk", "frames": "Frames", "chunks": "Chunks"}
    tables = []
    cap = 0
    for name, along, others in (
        ("cap", "cap", "Frames of 640x480, chunks of four"),
        ("chunk", "chunk_frames", "Frames of 1920x1080, cap {cap}"),
        ("resolution", "frames", "Chunks of four, cap {cap}"),
        ("stream_length", "chunks", "Frames of 640x480, cap {cap}, the preset `novelty`"),
    ):
        if not (points := section.get(name, {}).get("points")):
            continue
        cap = points[0].get("cap", cap)  # the last has that of the one before
        others = others.format(cap=figure(cap))
        shown = [key for key in titles if key in points[0]]
        rows = [[_varied(p[along]), *(figure(p[key]) for key in shown)] for p in points]
        tables.append(
            f"{others}:\n\n" + table([names[along], *(titles[key] for key in shown)], rows)
        )
    return "\n\n".join(tables)


def _varied(value: Any) -> str:
    return _size(value) if isinstance(value, list) else figure(value)


def _size(size: list[int]) -> str:
    return "x".join(map(str, size))


GPU = (
    ("warm_up", "Start", _warm_up),
    ("against_reference", "Ours and the reference's style", _against_reference),
    ("eviction", "Eviction, share of a chunk's time", _eviction),
    ("steady", "How even chunks are", _steady),
    ("small_frames", "Small frames", _small_frames),
    ("cameras", "Several cameras", _cameras),
    ("answers_at_once", "Answers of several cameras at once", _answers_at_once),
    ("answering", "Chunks while an answer is being written", _answering),
    ("variants", "Options compared", _variants),
    ("curves", "Over cap, chunk, picture and stream", _curves),
)

# -- into the page ---------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Three digits of what was measured, all of a count."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:.3g}"


def as_given(value: float) -> str:
    """What was not measured: a bar, a setting."""
    return f"{value:,g}"


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def table(titles: list[str], rows: Iterable[list[str]]) -> str:
    """Of Markdown; an empty cell is one space."""
    head, *lines = (
        "|".join(f" {cell} " if cell else " " for cell in row) for row in (titles, *rows)
    )
    return "\n".join(f"|{line}|" for line in (head, "|".join(["---"] * len(titles)), *lines))


TABLES = {"cpu": cpu_table, "length": length_table, "gpu": gpu_tables}


def with_tables(page: str, results: Path) -> str:
    """``page`` (docs/performance.md) with its tables replaced by those of the results now."""
    made = {name: make(results) for name, make in TABLES.items()}
    return with_parts(page, made, "performance_page")


def with_parts(page: str, made: dict[str, str], script: str) -> str:
    """``page`` with what stands between the markers of each part, of that script of bench/,
    replaced."""
    for name, text in made.items():
        begin, end = f"<!-- {name}: made by bench/{script}.py -->", f"<!-- end of {name} -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        assert found and closed, f"the page lacks its markers of {name}"
        page = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
    return page


def _read(path: Path) -> Report | None:
    return json.loads(path.read_text()) if path.is_file() else None


def main(root: str) -> None:
    page = Path(root, "docs", "performance.md")
    page.write_text(with_tables(page.read_text(), Path(root, "bench", "results")))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
