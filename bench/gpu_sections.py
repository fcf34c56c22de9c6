# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The sections of bench/gpu.py: each a function of the rig that gives a dictionary of figures.

A section may hold ``bars``: rows of `bar`, which say whether a figure is what it should be.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import history_section
import ingest_while_answering
from fleet import Fleet
from gpu_rig import Rig, floors, milliseconds, summary, timed, watched, without_model
from reference_style import ReferenceStyle

from stream_vlm_ros.config import NOVELTY
from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.engine.attention.cudnn import CUDNN_PREFILL
from stream_vlm_ros.engine.chunk_path import ChunkPath
from stream_vlm_ros.engine.decode_path import CapturedDecode
from stream_vlm_ros.errors import InvalidParameterError

CHOICES = ["a red circle", "a blue square", "nothing", "a sign", "two shapes"]
ANSWER = 32  # tokens after the first

# What is asked of one H200 with the 3B shape in bfloat16 and frames of 1920x1080, and what is gone
# for. By cap.
BARS = {
    150_000: {
        "chunk": (700, 550),
        "first_token": (12, 6),
        "token": (5.5, 4),
        "snapshot": (0.1, None),
        "peak_reserved_gib": (16.5, 14.5),
    },
    16_384: {"first_token": (6, 4), "token": (4, 2.5), "snapshot": (0.1, None)},
}


def bar(
    what: str, measured: float, unit: str, at_most: float, go_for: float | None = None
) -> dict[str, Any]:
    """A row that says whether a figure is at most what it should be."""
    return {
        "what": what,
        "measured": round(measured, 4),
        "unit": unit,
        "at_most": at_most,
        "go_for": go_for,
        "holds": measured <= at_most,
    }


def _answering(rig: Rig, engine: VideoStreamingInference, repeats: int) -> dict[str, list[float]]:
    question = rig.question(engine)
    engine.ask(question, 4)
    asked = [engine.ask(question, ANSWER + 1)[1] for _ in rig.count("answers", repeats)]
    return {
        "first_token": [1e3 * metrics["ttft"] for metrics in asked],
        "token": [1e3 * (m["latency"] - m["ttft"]) / ANSWER for m in asked],
    }


def _ours(rig: Rig, cap: int, **options: Any) -> tuple[dict[str, Any], Any, list[int], int]:
    """Figures in milliseconds; a chunk's patches, the question's ids and the sink's length."""
    frames = rig.frames()
    engine = rig.filled(cap, frames, **options)
    assert engine.get_cache_info()["cache_seq_length"] == cap
    append = functools.partial(engine.append_video_chunk, frames, fps=2)
    rows = {"chunk": [timed(append)[0] for _ in rig.count("chunks", rig.repeats)]}
    patches = engine._frames(frames)
    rows["patches"] = milliseconds(lambda: engine._frames(frames), rig.repeats)
    rows["vision"] = milliseconds(
        lambda: engine.model.encode_frames(patches, engine.functions), rig.repeats
    )
    rows["warm_up"] = [timed(engine.warm_up)[0]]
    rows |= _answering(rig, engine, 2 * rig.repeats)
    question = rig.question(engine)
    engine.ask_choice(question, CHOICES)
    choose = functools.partial(engine.ask_choice, question, CHOICES)
    rows["five_choices"] = milliseconds(choose, rig.repeats)
    manager, before = engine.cache_manager, rig.allocated()
    rows["snapshot"] = milliseconds(lambda: manager.restore(manager.snapshot()), rig.repeats)
    saved = manager.snapshot()
    figures = {name: summary(taken) for name, taken in rows.items()}
    figures["snapshot_bytes"] = rig.allocated() - before
    del saved
    sink = engine.get_cache_info()["sink_size"]
    return figures | rig.peak_gib(), patches, engine._question_ids(question, None), sink


def _reference(rig: Rig, patches: Any, ids: list[int], cap: int, sink: int) -> dict[str, Any]:
    stream = ReferenceStyle(rig.model, cap, sink)
    stream.append(patches)
    few = max(2, rig.repeats // 2)
    rows: dict[str, list[float]] = {
        "chunk": milliseconds(lambda: stream.append(patches), few),
        "vision": milliseconds(lambda: stream.vision(patches), few),
        "snapshot": [],
        "first_token": [],
        "token": [],
    }

    def write(token: Any) -> None:
        for _ in range(ANSWER):
            token = stream.next_token(token)

    saved = stream.snapshot()  # ours answers once unmeasured, too
    write(stream.first_token(ids))
    stream.restore(saved)
    del saved
    for _ in rig.count("the reference's answers", few):
        taken, saved = timed(stream.snapshot)
        rows["snapshot"].append(taken)
        first, token = timed(functools.partial(stream.first_token, ids))
        rows["first_token"].append(taken + first)
        rows["token"].append(timed(functools.partial(write, token))[0] / ANSWER)
        stream.restore(saved)
    return {name: summary(taken) for name, taken in rows.items()} | rig.peak_gib()


def warm_up(rig: Rig) -> dict[str, Any]:
    """What an engine makes ready before the first question: the process's first, and a second."""
    found: dict[str, Any] = {"unit": "s"}
    for which in ("first", "second"):
        engine = rig.engine(min(rig.caps))
        found[which] = {k: _rounded(v) for k, v in engine.warm_up().items()}
        del engine
        rig.start_counting_memory()
    return found


def _rounded(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value


def against_reference(rig: Rig) -> dict[str, Any]:
    """Ours and the reference's style on the same work, with floors and bars."""
    caps: dict[int, Any] = {}
    rows = []
    for cap in rig.within("cap", rig.caps):
        rig.start_counting_memory()
        ours, patches, ids, sink = _ours(rig, cap)
        rig.start_counting_memory()
        theirs = _reference(rig, patches, ids, cap, sink)
        rig.start_counting_memory()
        shared = ("chunk", "vision", "first_token", "token", "snapshot")
        caps[cap] = {
            "tokens_a_chunk": patches.tokens,
            "question_tokens": len(ids),
            "ours": ours,
            "reference_style": theirs,
            "times_faster": {
                name: round(theirs[name]["median"] / max(1e-6, ours[name]["median"]), 2)
                for name in shared
            },
            "floor": floors(rig, cap, patches.tokens, len(patches.pixel_values)),
        }
        for name, (most, go_for) in BARS.get(cap, {}).items():
            if (found := ours.get(name)) is not None:
                value, unit = (found["median"], "ms") if isinstance(found, dict) else (found, "GiB")
                rows.append(bar(f"{name}, cap {cap:,}", value, unit, most, go_for))
        ratio = ours["five_choices"]["median"] / ours["first_token"]["median"]
        rows.append(bar(f"five choices / first token, cap {cap:,}", ratio, "x", 1.5))
        rows.append(bar(f"snapshot's memory, cap {cap:,}", ours["snapshot_bytes"], "bytes", 0))
    return {
        "unit": "ms",
        "caps": caps,
        "bars": rows,
        "cudnn_refused": list(CUDNN_PREFILL.verified.refused.values()),
    }


def eviction(rig: Rig) -> dict[str, Any]:
    """What forgetting takes of a chunk: all levels at the largest cap, level 1 at several."""
    frames = rig.frames()
    repeats = max(3, rig.repeats)

    def forgetting(cap: int, **options: Any) -> dict[str, Any]:
        engine = rig.filled(cap, frames, **options)
        append = functools.partial(engine.append_video_chunk, frames, fps=2)
        chunk = [timed(append)[0] for _ in range(2 if options == {} else repeats)]
        manager = engine.cache_manager
        # What a chunk forgets is worked out in `plan`, while the device is busy in earnest, and
        # written in `commit`; kept keys are turned when the memory is made ready to be read.
        with (
            watched(manager, "plan") as plan,
            watched(manager, "commit") as write,
            watched(manager, "prepare_reading") as turn,
            watched(manager.evictor, "describe") as note,
        ):
            for _ in rig.count("chunks", repeats):
                append()
        forget = [planned + written for planned, written in zip(plan, write, strict=True)]
        work = (sum(forget) + sum(turn) + sum(note)) / len(note)
        return {
            "cap": cap,
            "chunk": summary(chunk),
            "forget": summary(forget),
            "turn": summary(turn),
            "describe": summary(note),
            "share": round(work / statistics.median(chunk), 4),
        }

    cap = max(rig.caps)
    found: dict[str, Any] = {"unit": "ms", "bars": [], "level 1": []}
    ways = {
        "novelty": {"shares": NOVELTY},
        "sampled and important": {"shares": {"sampled_share": 0.25, "important_share": 0.25}},
    }
    for name in rig.within("memory", ways):
        found[name] = forgetting(cap, **ways[name])
        rig.start_counting_memory()
        share = 100 * found[name]["share"]
        shown = "preset novelty" if name == "novelty" else name
        found["bars"].append(bar(f"eviction's share of a chunk, {shown}", share, "%", 5))
    for size in rig.within("level 1 at cap", sorted({*rig.caps, max(rig.caps) // 2})):
        found["level 1"].append(forgetting(size))
        rig.start_counting_memory()
    return found


def steady(rig: Rig) -> dict[str, Any]:
    """How even the times of a chunk are: many of them, their frames from the host's memory."""
    cap, several = min(rig.caps), [rig.frames(seed=seed) for seed in range(3)]
    engine = rig.filled(cap, several[0])
    taken = [
        timed(functools.partial(engine.append_video_chunk, several[number % 3], fps=2))[0]
        for number in rig.count("chunks", 10 if rig.small else 120)
    ]
    found = summary(taken)
    return {"unit": "ms", "cap": cap, "chunk": found, "p99_over_median": _over_median(found)}


def _over_median(found: dict[str, float]) -> float:
    return round(found["p99"] / found["median"], 3)


def small_frames(rig: Rig) -> dict[str, Any]:
    """Frames of 448x336: how many cameras of 2 frames a second one device takes."""
    cap = min(rig.caps)
    size = (112, 84) if rig.small else (448, 336)
    frames = [rig.frames(size=size, seed=seed) for seed in range(3)]
    engine = rig.filled(cap, frames[0], shares=NOVELTY)
    taken = []
    for number in rig.count("chunks", 6 if rig.small else 60):
        append = functools.partial(engine.append_video_chunk, frames[number % 3], fps=2)
        taken.append(timed(append)[0])
    found = summary(taken)
    rate = 4e3 / found["median"]
    engine.chunk_path = ChunkPath(rig.model, engine.functions)
    plain = milliseconds(
        lambda: engine.append_video_chunk(frames[0], fps=2), 3 if rig.small else 20
    )
    return {
        "unit": "ms",
        "bars": [bar("chunk of 4 frames of 448x336", found["median"], "ms", 20, 14)],
        "cap": cap,
        "size": size,
        "chunk": found,
        "chunk_call_by_call": summary(plain),
        "frames_a_second": round(rate, 1),
        "cameras_of_2_fps": int(rate // 2),
    }


def cameras(rig: Rig) -> dict[str, Any]:
    """Several cameras on one device: their chunks as they come, then at a rate, with questions."""
    cap = min(rig.caps)
    sizes = [(112, 84)] if rig.small else [(448, 336), (640, 480)]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for count in rig.within(
            f"{size[0]}x{size[1]}, cameras", (1, 2) if rig.small else (1, 4, 8)
        ):
            fleet = Fleet(rig, count, size, cap)
            row = {"cameras": count, "size": f"{size[0]}x{size[1]}", **fleet.as_fast_as_it_goes()}
            if count == (2 if rig.small else 8):
                row |= fleet.at_a_rate(2.0, seconds=2 if rig.small else 25)
            rows.append(row)
            del fleet
    bars = []
    for row in rows:
        if row["cameras"] == 8 and row["size"] == "448x336":
            frame = 1e3 / row["frames_a_second"]
            bars.append(bar("a frame of eight cameras of 448x336", frame, "ms", 3.333, 2.632))
        elif row["cameras"] == 8:
            for name, most, go_for in (("median", 15, 8), ("p99", 40, 25)):
                what = f"first token, eight cameras of 640x480, {name}"
                bars.append(bar(what, row["first_token"][name], "ms", most, go_for))
    return {"unit": "ms", "cap": cap, "rows": rows, "bars": bars}


def answers_at_once(rig: Rig) -> dict[str, Any]:
    """Questions to several cameras at the same moment: written together, and by turns."""
    cap, counts = min(rig.caps), (1, 2) if rig.small else (1, 2, 4, 8)
    fleet = Fleet(rig, counts[-1], (112, 84) if rig.small else (448, 336), cap)
    rows = [
        fleet.answers_at_once(count, 8 if rig.small else 64, by_turns)
        for count in rig.within("answers", counts)
        for by_turns in ((False,) if count == 1 else (False, True))
    ]
    path = fleet.engines[0].group.decode_path
    refused = [*path.refused.values()] if isinstance(path, CapturedDecode) else ["not captured"]
    return {"unit": "ms", "cap": cap, "rows": rows, "refused": refused}


def answering(rig: Rig) -> dict[str, Any]:
    """What chunks and an answer cost each other in the node's worker: ingest_while_answering.py."""
    cap, tokens = min(rig.caps), 16 if rig.small else 64
    size = (112, 84) if rig.small else (640, 480)
    chunks = [rig.frames(size=size, seed=seed) for seed in range(2)]
    a_chunk = rig.filled(cap, chunks[0]).append_video_chunk(chunks[0], fps=2)["tokens"]
    rig.start_counting_memory()
    slack = ingest_while_answering.SLACK_CHUNKS * a_chunk
    engine = rig.filled(cap, chunks[0], shares=NOVELTY, fork_slack_tokens=slack)
    worker = ingest_while_answering.Rig(engine, chunks, tokens)
    try:
        table = ingest_while_answering.measure(
            worker, loads=(0.5, 1.0), shares=(0.0, 0.5, 1.0), repeats=1 if rig.small else 2
        )
    finally:
        worker.close()
    return {"unit": "ms", "cap": cap, "size": size, **table}


def variants(rig: Rig) -> dict[str, Any]:
    """Options of the engine beside each other, to choose the defaults by."""
    ways: dict[str, dict[str, Any]] = {
        "as it is": {},
        "question_path eager": {"question_path": "eager"},
        "without cuDNN": {},
        "without torch.compile": {"compile": False},
    }
    found: dict[str, Any] = {"unit": "ms", "rows": []}
    for cap in rig.caps:
        for name in rig.within(f"cap {cap:,}", ways):
            rig.start_counting_memory()
            frames = rig.frames()
            rows = CUDNN_PREFILL.min_rows
            CUDNN_PREFILL.min_rows = 2**62 if name == "without cuDNN" else rows
            try:
                begin = time.perf_counter()
                engine = rig.filled(cap, frames, **ways[name])
                started = time.perf_counter() - begin
                append = functools.partial(engine.append_video_chunk, frames, fps=2)
                append()
                row = {"chunk": [timed(append)[0] for _ in range(3)], **_answering(rig, engine, 3)}
                figures = {key: summary(taken)["median"] for key, taken in row.items()}
                found["rows"].append(
                    {"cap": cap, "variant": name, "start_s": round(started, 1), **figures}
                )
            except (TypeError, InvalidParameterError) as fault:  # not that option, or not here
                found["rows"].append({"cap": cap, "variant": name, "not_there": str(fault)})
            finally:
                CUDNN_PREFILL.min_rows = rows
                engine = append = None
    return found


def _point(rig: Rig, cap: int, frames: list[Any], **options: Any) -> dict[str, Any]:
    engine = rig.filled(cap, frames, **options)
    append = functools.partial(engine.append_video_chunk, frames, fps=2)
    repeats = 3
    rows = {"chunk": milliseconds(append, repeats), **_answering(rig, engine, repeats)}
    tokens = engine.append_video_chunk(frames, fps=2)["tokens"]
    reserved = engine.cache_manager.reserved_bytes
    return {
        "cap": cap,
        "tokens_a_chunk": tokens,
        "memory_bytes": reserved,
        **{name: summary(taken)["median"] for name, taken in rows.items()},
    }


def curves(rig: Rig) -> dict[str, Any]:
    """A chunk, a first token and a further one over cap, chunk size, resolution, stream length."""
    caps = [4096, 8192, 16_384, 32_768, 65_536, 100_000, 150_000, 200_000]
    sizes = [(320, 240), (640, 480), (1280, 720), (1920, 1080)]
    lengths = [20, 100, 500, 2000]
    vga = (640, 480)
    if rig.small:
        caps, lengths, sizes, vga = [512, 1024], [4, 20], [(112, 84), (224, 168)], (112, 84)
    cap = min(rig.caps)
    found: dict[str, Any] = {"unit": "ms"}
    found["cap"] = {
        "frames": vga,
        "points": [_point(rig, each, rig.frames(size=vga)) for each in rig.within("cap", caps)],
    }
    found["chunk"] = {
        "frames": rig.size,
        "points": [
            {"chunk_frames": count, **_point(rig, max(rig.caps), rig.frames(count))}
            for count in rig.within("chunk of", [2, 4, 6])
        ],
    }
    found["resolution"] = {
        "points": [
            {"frames": size, **_point(rig, cap, rig.frames(size=size))}
            for size in rig.within("resolution", sizes)
        ]
    }
    found["stream_length"] = {"frames": vga, "points": []}
    frames = rig.frames(size=vga)
    engine = rig.engine(cap, shares=NOVELTY)
    append = functools.partial(engine.append_video_chunk, frames, fps=2)
    for chunks in rig.within("chunks", lengths):
        with without_model(engine):
            while engine.get_cache_info()["chunks"] < chunks:
                append()
        append()
        found["stream_length"]["points"].append(
            {
                "chunks": chunks,
                "cache_length": engine.get_cache_info()["cache_seq_length"],
                "chunk": summary(milliseconds(append, 5))["median"],
            }
        )
    return found


def history(rig: Rig) -> dict[str, Any]:
    """What looking back at what the memory has let go costs: history_section.py."""
    return history_section.measure(rig, bar)


# Name, function, and seconds that it may take, in order of what matters most.
SECTIONS = {
    "warm_up": (warm_up, 60),
    "against_reference": (against_reference, 130),
    "eviction": (eviction, 50),
    "steady": (steady, 45),
    "small_frames": (small_frames, 15),
    "cameras": (cameras, 90),
    "answers_at_once": (answers_at_once, 30),
    "history": (history, 60),
    "answering": (answering, 30),
    "variants": (variants, 60),
    "curves": (curves, 80),
}
