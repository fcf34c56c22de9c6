# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Write what docs/experiments.md says of results from the files under bench/results: ``make docs``.

    python bench/experiments_page.py          # of this checkout
    python bench/experiments_page.py ROOT

A row whose run is not there says so, and one whose run did not pass says how it ended. Each row
names the settings that its configuration in words stands for; a result of others is refused. Needs
this repository (PYTHONPATH=.), and nothing else but Python.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from performance_page import with_parts

from stream_vlm_ros.experiments import reference

Report = dict[str, Any]
GPU, SMALL = "experiments_3b", "experiments_small"
MACHINE = "NVIDIA H200"
TRAINED = ("time-order/time-order",)  # by the small model
OF_24_GIB = {"memory_gib": 24.0}


class Row(NamedTuple):
    """One line of the table: an experiment, the reference's figures and ours.

    Attributes:
        what, configuration, theirs: its first three cells.
        run: folder and name of the result, under bench/results/experiments_3b.
        settings: what the result must have been run with; ``size``: of its pictures.
        ours: the text of the link to it.
        further: after the link, from all results.
    """

    what: str
    configuration: str
    theirs: str
    run: str
    settings: dict[str, Any]
    ours: Callable[[Report], str]
    further: Callable[[Results], str] = lambda results: ""


class Results:
    """The JSON files under a folder of results, by folder and name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, run: str) -> Report | None:
        """Of ``experiments_3b/sink/sink``; None where it has not been run."""
        path = self._root / f"{run}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def __getitem__(self, run: str) -> Report:
        found = self.get(run)
        assert found is not None, f"{run}.json is missing"
        return found

    def gpu(self, name: str) -> Report | None:
        """Of a run of bench/experiments_gpu.py."""
        return self.get(f"{GPU}/{RUNS[name].run}")


def link(run: str, text: str) -> str:
    return f"[{text}](../bench/results/{run}.md)"


def link_to(name: str, text: str) -> str:
    """To a run of bench/experiments_gpu.py."""
    return link(f"{GPU}/{RUNS[name].run}", text)


def listed(values: Any, figure: str) -> str:
    return ", ".join(format(value, figure) for value in values)


def in_a_row(words: Iterable[Any]) -> str:
    """a, b and c."""
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


def fastest_to_slowest(values: Any, figure: str) -> str:
    values = [format(value, figure) for value in (min(values), max(values))]
    return values[0] if values[0] == values[1] else " to ".join(values)


# -- what a result says ----------------------------------------------------------------------------


def sinks(found: Report) -> str:
    summary = found["summary"]
    means = []
    for frames in (2, 4):
        (told,) = (
            float(one["found"])
            for one in found["criteria"]
            if one["name"] == f"{frames} frames: mean tokens a chunk"
        )
        rows = [row for row in found["rows"] if row["run"] == f"{frames} frames a chunk"]
        real = statistics.mean(row["tokens"] for row in rows[1:])
        assert told == real, f"the mean is told as {told}, and is {real}"
        means.append(real)
    first = [summary[f"sink_of_{frames}_frames"] for frames in (2, 4)]
    return (
        f"sinks of {first[0]:,} and {first[1]:,} tokens, the first chunks; means of "
        f"{means[0]:,.0f} and {means[1]:,.0f}, the real ones"
    )


def long_video(found: Report) -> str:
    summary, counts = found["summary"], reference.LONG_VIDEO_COUNTS
    same = all(summary[name] == value for name, value in counts.items())
    return (
        f"{'the same' if same else 'other'} counts; {summary['peak_gib']:.2f} GiB, "
        f"{summary['reserved_gib']:.2f} reserved; {summary['seconds']:.1f} s; "
        f"{summary['ttft']:.3f} s"
    )


def ran_out_at(found: Report) -> int:
    """The chunk at which the control ran out; of one broken off there, the next one."""
    told = found["summary"].get("out_of_memory_at_chunk")
    return int(told if told is not None else found["rows"][-1]["chunk"] + 1)


def control(found: Report) -> str:
    length = found["rows"][-1]["length"]
    return f"out of memory at chunk {ran_out_at(found)}, with {length:,} tokens"


def left_no_trace(found: Report) -> str:
    (told,) = (
        one["found"] for one in found["criteria"] if one["name"] == "every question left no trace"
    )
    return f"{told} left no trace; {found['summary']['as asked']['mean_ttft']:.3f} s"


def remedies(found: Report) -> str:
    traces = [
        one for one in found["criteria"] if one["name"].endswith("every question left no trace")
    ]
    ttfts = [one["mean_ttft"] for one in found["summary"].values() if "mean_ttft" in one]
    assert len(traces) == len(ttfts) == 6
    clean = sum(one["passed"] for one in traces)
    told = "all" if clean == len(traces) else f"{clean} of {len(traces)}"
    return f"{told} left no trace; {fastest_to_slowest(ttfts, '.3f')} s"


def caps(found: Report) -> str:
    runs = list(found["summary"].values())
    assert [run["cap"] for run in runs] == [50_000, 100_000, 130_000, 150_000]
    return (
        f"{listed((run['window_chunks'] for run in runs), 'd')} chunks in the window; "
        f"{listed((run['reserved_gib'] for run in runs), '.2f')} GiB taken for them; "
        f"{listed((run['seconds_a_chunk']['median'] for run in runs), '.2f')} s a chunk"
    )


def native(found: Report) -> str:
    stream, offline = found["summary"]["streamed"], found["summary"]["native"]
    return "; ".join(
        (
            f"{stream['ttft']:.3f} and {offline['ttft']:.3f} s",
            f"{stream['latency']:.3f} and {offline['latency']:.3f} s",
            f"{stream['peak_gib']:.2f} and {offline['peak_gib']:.2f} GiB",
            f"{stream['cache_length']:,} and {offline['cache_length']:,} tokens",
        )
    )


def native_peaks(found: Report) -> str:
    """Of all frames, or of those that the offline pass could take and of all that were streamed."""
    summary = found["summary"]
    stream, offline = summary["streamed"], summary["native"]
    every = stream["frames"]
    failed = [row["frames"] for row in found["rows"] if row.get("out_of_memory")]
    if offline is None:
        return (
            f"offline out of memory with {in_a_row(failed)} frames; streamed "
            f"{stream['peak_gib']:.2f} GiB"
        )
    if offline["frames"] == every:
        return f"offline {offline['peak_gib']:.2f} GiB, streamed {stream['peak_gib']:.2f}"
    return (
        f"offline out of memory with {in_a_row(failed)}, {offline['peak_gib']:.2f} "
        f"GiB with {offline['frames']}; streamed {stream['peak_gib']:.2f} with {every}, "
        f"{summary['streamed_as_offline']['peak_gib']:.2f} with {offline['frames']}"
    )


def small_chunks(found: Report) -> str:
    runs = [found["summary"][f"chunk_{frames}"] for frames in (2, 4, 6, 3)]
    same = [run["first_tokens"] for run in runs] == [119, 183, 247, 183]
    costs = listed((1000 * run["seconds_a_frame"]["median"] for run in runs), ".1f")
    return f"{'the same' if same else 'others'}; {costs} ms a frame"


def large_chunks(results: Results) -> str:
    found = results.gpu("chunk-size")
    if found is None:
        return ""
    runs = [found["summary"][f"chunk_{frames}"] for frames in (2, 4, 6, 3)]
    costs = listed((1000 * run["seconds_a_frame"]["median"] for run in runs), ".0f")
    return f"; of 1920x1080: {link_to('chunk-size', f'{costs} ms')}"


def time_order(found: Report) -> str:
    return f"{found['summary']['right']} of {found['summary']['asked']} pairs"


def delayed_batch(found: Report) -> str:
    first, again, later = (found["summary"][name] for name in ("first", "again", "later"))
    figures = [
        *(f"{one['second_per_grid_t']:.4f} {one['real_span']:.2f}" for one in (first, later)),
        first["visual_tokens"],
    ]
    same = figures == ["2.0417 49.00", "2.4583 59.00", 64_584]
    return (
        f"{'the same' if same else 'other'} spans and tokens; in "
        f"{first['encoding_latency']:.2f} s, next answers "
        f"{fastest_to_slowest(again['latency'], '.2f')} s; then {later['encoding_latency']:.2f} s"
    )


def on_a_cpu(results: Results) -> str:
    run = f"{SMALL}/time-order"
    told, here = results[run]["summary"], results.gpu("time-order")
    assert here is None or told["right"] == here["summary"]["right"], "say both"
    return f", and {link(run, 'on a CPU')}"


HD, FULL_HD = {"size": "1280x720"}, {"size": "1920x1080"}
_LONG = {**FULL_HD, "frames": 400, "fps": 2.0, "chunk_frames": 4, "as_": "reference"}
_NATIVE = {"fps": 2.0, "chunk_frames": 4, "as_": "reference", **OF_24_GIB}
RUNS = {
    "sink": Row(
        "A, sink",
        "1920x1080, 5 chunks of 2 and of 4 frames, cap 100,000",
        "sink = first chunk; mean of tokens within 10",
        "sink/sink",
        {**FULL_HD, "chunks": 5, "chunk_frames": "[2, 4]", "cap": 100_000, "as_": "reference"},
        sinks,
    ),
    "long-video": Row(
        "B, long video",
        "1920x1080, 400 frames, chunks of 4, cap 150,000, 24 GB (ours GiB)",
        f"sink {reference.LONG_VIDEO_COUNTS['sink']:,}; "
        f"{reference.LONG_VIDEO_COUNTS['evictions']} evictions, "
        f"{reference.LONG_VIDEO_COUNTS['tokens evicted']:,} tokens; 17.74 GiB allocated at most, "
        "20.91 reserved; 549 s; TTFT 0.440 s",
        "long-video/long-video",
        {**_LONG, **OF_24_GIB, "cap": 150_000, "no_eviction": False},
        long_video,
    ),
    "no-eviction": Row(
        "its control",
        "the same without eviction",
        f"out of memory at chunk {reference.OUT_OF_MEMORY_AT_CHUNK}",
        "no-eviction/long-video",
        {**_LONG, **OF_24_GIB, "no_eviction": True},
        control,
    ),
    "periodic": Row(
        "C, periodic",
        "as B without a bound on memory, a question every 25 chunks, 200 tokens",
        "every question left no trace; mean TTFT below 10 s",
        "periodic/periodic",
        {**_LONG, "cap": 150_000, "every": 25, "max_new_tokens": 200, "remedies": False},
        left_no_trace,
    ),
    "remedies": Row(
        "its remedies",
        "ours: half the length under half the cap",
        "–",
        "remedies/periodic",
        {**_LONG, "frames": 200, "cap": 75_000, "every": 25, "remedies": True},
        remedies,
        lambda results: "; right answers: [above](#periodic-questions-answered)",
    ),
    "caps": Row(
        "Caps",
        "1920x1080, 160 frames, caps 50,000, 100,000, 130,000, 150,000",
        "no figures published",
        "caps/caps",
        {**FULL_HD, "frames": 160, "fps": 2.0, "chunk_frames": 4, "as_": "reference"},
        caps,
        lambda results: "; right answers: below",
    ),
    "native-720p": Row(
        "Stream and offline pass",
        "1280x720, 24 frames, chunks of 4; ours within 24 GiB",
        "TTFT 0.050 and 4.164 s; answer 0.912 and 10.041 s; 7.61 and 11.93 GiB; 14,419 and "
        "14,381 tokens",
        "native-720p/native",
        {**HD, **_NATIVE, "frames": 24},
        native,
    ),
    "native-720p-48": Row(
        "with 48 frames",
        "the same",
        "offline: out of memory in generation; streamed 8.3 GB",
        "native-720p-48/native",
        {**HD, **_NATIVE, "frames": 48},
        native_peaks,
    ),
    "native-1080p-48": Row(
        "and at 1920x1080",
        "48 frames; ours within 24 GiB",
        "–",
        "native-1080p-48/native",
        {**FULL_HD, **_NATIVE, "frames": 48},
        native_peaks,
    ),
    "native-1080p-96": Row(
        "the ladder",
        "1920x1080, 96 frames, or every 2nd, or every 4th; ours within 24 GiB",
        "–",
        "native-1080p-96/native",
        {**FULL_HD, **_NATIVE, "frames": 96},
        native_peaks,
    ),
    "chunk-size-small": Row(
        "Chunk size",
        "64 tokens a grid, chunks of 2, 4, 6 and 3 frames",
        "119, 183, 247, 183 tokens",
        "chunk-size-small/chunk-size",
        {"size": "224x224", "chunk_frames": "[2, 4, 6, 3]", "as_": "reference", "first_text": 55},
        small_chunks,
        large_chunks,
    ),
    "time-order": Row(
        "Time order",
        "a red, then a blue shape",
        '"blue"',
        "time-order/time-order",
        {"size": "640x480"},
        lambda found: f"small model: {time_order(found)}",
        on_a_cpu,
    ),
    "delayed-batch": Row(
        "Delayed batch",
        "50 frames at 1/s, full 1920x1080, 48 encoded; ten more",
        "2.0417 s a grid, span 49.00 s, 64,584 tokens in 20.96 s, next answers 2.2 to 2.5 s; then "
        "2.4583 s, 59.00 s",
        "delayed-batch/delayed-batch",
        {**FULL_HD, "frames": 50, "fps": 1.0, "more": 10, "max_sampled": 48},
        delayed_batch,
    ),
    # Not rows of their own: what else is told of them.
    "chunk-size": Row(
        "", "", "", "chunk-size/chunk-size",
        {**FULL_HD, "chunk_frames": "[2, 4, 6, 3]", "as_": "product"}, lambda found: "",
    ),
    "curves": Row(
        "", "", "", "curves/curves",
        {**HD, "seconds": 10.0, "lengths": "[10.0, 20.0, 40.0]", "as_": "product"},
        lambda found: "",
    ),
}  # fmt: skip


def check(row: Row, found: Report) -> None:
    """Raise ValueError where a result is of another configuration than the page says."""
    of_the_page = {"machine": MACHINE, "model": "model" if row.run in TRAINED else "shape 3b"}
    have = {
        **found["settings"],
        "size": found["source"]["size"],
        "machine": found["machine"]["device"],
        "model": found["model"]["name"],
    }
    for name, wanted in {**of_the_page, **row.settings}.items():
        if have.get(name) != wanted:
            told = f"{name} {have.get(name)}, and the page says {wanted}"
            raise ValueError(f"{row.run} was run with {told}")


def reference_table(results: Results) -> str:
    lines = ["| Experiment | Configuration of both | Reference | Ours |", "|---|---|---|---|"]
    for name, row in RUNS.items():
        if not row.what:
            continue
        found = results.gpu(name)
        if found is None:
            ours = f"not measured yet (`{name}`)"
        else:
            check(row, found)
            ours = link_to(name, row.ours(found))
            if found["status"] != "passed":
                ours += f" ({found['status']})"
            ours += row.further(results)
        lines.append(f"| {row.what} | {row.configuration} | {row.theirs} | {ours} |")
    return "\n".join(lines)


# -- what the runs showed besides ------------------------------------------------------------------


def told_of_the_control(results: Results) -> str:
    found = results.gpu("no-eviction")
    if found is None:
        return ""
    later = ran_out_at(found) - reference.OUT_OF_MEMORY_AT_CHUNK
    held = 2 ** (found["rows"][-1]["length"] - 1).bit_length()  # the buffer doubles
    gib = held * found["model"]["kv_bytes_per_token"] / 2**30
    text = (
        f"**The control** has no mask and lasts {later} chunks longer. It ends where its buffer is "
        f"full: one of {2 * gib:.0f} GiB would have to stand next to its {gib:.0f} GiB while they "
        "are copied."
    )
    if found["status"] == "broken off":
        text += (
            ' Its record says "broken off", since the experiment took that refusal for an unusable '
            "input. It is known now for the end of the memory, and has not been measured again."
        )
    return text


def told_of_the_ladder(results: Results) -> str:
    found = results.gpu("native-1080p-48")
    text = ""
    if found and (offline := found["summary"]["native"])["frames"] == 48:
        version = ".".join(found["machine"]["transformers"].split(".")[:2])
        text = (
            f"**The offline pass did not run out** with 48 frames: with transformers {version} and "
            f"SDPA it takes {offline['peak_gib']:.2f} GiB at 1920x1080."
        )
    longest = results.gpu("native-1080p-96")
    if longest is None:
        return text + (
            " So every 2nd and every 4th frame were not tried on a GPU; tests do that. "
            "`native-1080p-96` is the run for it, not measured yet."
        )
    offline, frames = longest["summary"]["native"], longest["summary"]["streamed"]["frames"]
    if offline is None:
        return f"{text} With {frames} it did, and with every 2nd and every 4th, too."
    every = frames // offline["frames"]
    if every == 1:
        return f"{text} Nor with {frames}: so every 2nd was tried by tests alone."
    return (
        f"{text} With {frames} it did, and ended with every {every}{'nd' if every == 2 else 'th'}; "
        "the stream took them all."
    )


def told_of_what_is_saved(results: Results) -> str:
    names = ("native-720p", "native-720p-48", "native-1080p-48")
    found = [results.gpu(name) for name in names]
    summaries = [one["summary"] for one in found if one]
    if len(summaries) < len(names):
        return ""
    percents = [summary["peak_saved_percent"] for summary in summaries]
    stream, offline = (summaries[0][name]["peak_gib"] for name in ("streamed", "native"))
    more = [one["streamed"]["allocated_gib"] - one["native"]["allocated_gib"] for one in summaries]
    weights = 2 * reference.MODEL["parameters"] / 2**30
    return (
        f"**The stream saves {'less' if percents[0] < 36 else 'more'} than the reference's**: "
        f"{percents[0]} % of the offline pass's peak at 24 frames of 1280x720, {percents[1]} % at "
        f"48, {percents[2]} % at 48 of 1920x1080. Weights are {weights:.1f} GiB of all. The "
        f"offline pass here takes {offline:.2f} GiB where the reference's took 11.93, and our "
        f"stream {stream:.2f} where it took 7.61. Once the answer is there, the offline pass has "
        f"freed its cache, and the stream holds its own: {fastest_to_slowest(more, '.1f')} GiB "
        "more."
    )


# In the order in which they were measured first, in two processes.
PROCESSES = (
    ("sink", "chunk-size", "chunk-size-small", "time-order", "delayed-batch", "caps", "periodic",
     "remedies", "curves"),
    ("native-720p", "native-720p-48", "native-1080p-48", "no-eviction", "long-video"),
)  # fmt: skip
PADDED = 3_759_048_960  # parameters, as those runs counted them


def told_of_peaks(results: Results) -> str:
    def was_first(name: str) -> bool:
        if name == "time-order":  # whose record did not say then what its memory was
            return "memory" not in (results.gpu(name) or {})
        return _parameters(results, name) == PADDED

    in_order = [[f"`{name}`" for name in names if was_first(name)] for names in PROCESSES]
    in_order = [names for names in in_order if names]
    if not in_order:
        return ""
    again = [f"`{name}`" for name in RUNS if results.gpu(name) and not was_first(name)]
    text = (
        "**Peaks** are of runs one after the other in one process. Each engine left about 0.2 GiB "
        "allocated in it, at most 1.2 GiB together; by so much the later runs' are too high. The "
        f"order was: {'; in a second process '.join(map(in_a_row, in_order))}"
    )
    if again:
        text += f". Measured later, in a process of their own: {in_a_row(again)}"
    return text + "."


def _parameters(results: Results, name: str) -> int | None:
    found = results.gpu(name)
    return None if found is None else int(found["model"]["parameters"])


def told_of_parameters(results: Results) -> str:
    if not any(_parameters(results, name) == PADDED for name in RUNS):
        return ""
    return (
        "Some files remark that their number of parameters is not the reference's. They counted "
        "zeros that pad the vision tower; it is the same model."
    )


def told_of_caps(results: Results) -> str:
    found = results.gpu("caps")
    if found is None or found["memory"]["keeps"] != "all":
        return ""
    return (
        "The record of `caps` says of its memory that it keeps all. That is of an engine which "
        "served to count the stream's tokens; those that were measured keep sink and window alone."
    )


def reference_findings(results: Results) -> str:
    told = (
        told_of_the_control,
        told_of_the_ladder,
        told_of_what_is_saved,
        told_of_peaks,
        told_of_parameters,
        told_of_caps,
    )
    return "\n".join(_wrapped(text) for tell in told if (text := tell(results).strip()))


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(
        f"- {text}", 117, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def curves_line(results: Results) -> str:
    found = results.gpu("curves")
    if found is None:
        return ""
    check(RUNS["curves"], found)
    summary = found["summary"]
    rates = [summary[f"rate_{rate}"]["busy"]["median"] for rate in ("0.5", "1", "2", "4", "8")]
    lengths = [summary[f"length_{s}"]["seconds_a_frame"]["median"] for s in (10, 20, 40)]
    costs = listed((1000 * cost for cost in lengths), ".0f").rsplit(", ", 1)
    return (
        "At the 3B shape, 1280x720, as the product, a second of video costs "
        f"{rates[0]:.3f} to {rates[-1]:.3f} s at 0.5 to 8 frames/s of 10 s, and a\nframe "
        f"{' and '.join(costs)} ms at 10, 20 and 40 s "
        f"({link_to('curves', 'curves')})."
    )


# -- the small model -------------------------------------------------------------------------------


def periodic_table(results: Results) -> str:
    """Right answers under each remedy, of the signs that were still in memory."""
    found = results["periodic_small/periodic"]
    assert found["settings"]["every"] == 5 and found["settings"]["cap"] == 1300
    told = {"as asked": "as asked (gaps in the positions)"}
    order = (
        "as asked", "positions contiguous", "a quarter of the pixels", "twice the cap",
        "half the frames", "a memory for each segment",
    )  # fmt: skip
    lines = ["| | Right, of those whose sign was still in memory |", "|---|---|"]
    for name in order:
        one = found["summary"][name]
        right = one["right"]
        if name == "a quarter of the pixels":
            right += ": too small to read"
        if name == "a memory for each segment":
            gone = one["asks"] - int(right.split(" of ")[1])
            right += f"; of {gone} the sign had been in another segment"
        lines.append(f"| {told.get(name, name)} | {right} |")
    return "\n".join(lines)


def share(right: Report) -> str:
    """A median in per cent, with the lowest and the highest where they differ."""
    low, middle, high = (f"{100 * right[name]:.0f}" for name in ("low", "median", "high"))
    return middle if low == high else f"{middle} ({low}–{high})"


def small_tables(results: Results) -> str:
    found = results[f"{SMALL}/caps"]
    runs = list(found["summary"].values())
    asked, seconds = found["settings"]["questions"], found["settings"]["frames"] / 2
    stream = found["notes"][0].split(" tokens")[0].split()[-1]
    rows = [
        [f"Cap, tokens (of {stream})", *(f"{run['cap']:,}" for run in runs)],
        ["---"] * (1 + len(runs)),
        [
            "chunks in the window, KV memory taken, GiB",
            *(f"{run['window_chunks']}, {run['reserved_gib']:.3f}" for run in runs),
        ],
        [
            f"right of {asked} questions about {seconds:.0f} s, in per cent "
            f"({link(f'{SMALL}/caps', 'caps')})",
            *(share(run["right"]) for run in runs),
        ],
    ]
    summary = results[f"{SMALL}/curves"]["summary"]
    told = (
        ("frames per second, 60 s in chunks of 4", "rate", ("0.5", "1", "2", "4", "8")),
        ("frames per chunk, 60 s at 2/s", "chunk", ("2", "3", "4", "6")),
        ("seconds, at 2/s in chunks of 4", "length", ("15", "30", "60", "120")),
    )
    head = f"Right of 40 questions, in per cent ({link(f'{SMALL}/curves', 'curves')})"
    lines = [
        [what, *(f"{at}: {share(summary[f'{over}_{at}']['right'])}" for at in points)]
        for what, over, points in told
    ]
    width = max(map(len, lines))
    curves = [[head, *[""] * (width - 1)], ["---"] * width]
    curves += [[*line, *[""] * (width - len(line))] for line in lines]
    return f"{_table(rows)}\n\n{_table(curves)}"


def _table(rows: list[list[str]]) -> str:
    head, rule, *lines = rows
    told = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in (head, *lines)]
    return "\n".join([told[0], f"|{'|'.join(rule)}|", *told[1:]])


PARTS: dict[str, Callable[[Results], str]] = {
    "periodic": periodic_table,
    "reference": reference_table,
    "findings": reference_findings,
    "curves": curves_line,
    "small": small_tables,
}


def with_results(page: str, root: Path) -> str:
    """``page`` (docs/experiments.md) with what it says of results replaced by those under ``root``.

    Raises ValueError where a result is of another configuration than the page says.
    """
    results = Results(root)
    made = {name: make(results) for name, make in PARTS.items()}
    return with_parts(page, made, "experiments_page")


def main(root: str) -> None:
    page = Path(root, "docs", "experiments.md")
    page.write_text(with_results(page.read_text("utf-8"), Path(root, "bench", "results")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
