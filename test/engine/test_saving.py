# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory that was saved and loaded goes on as if it had never ended; every other file is refused.

What a loaded memory must answer is told by the engine that was never saved.
"""

import contextlib
import errno
import itertools
import json
import os
import resource
import stat
import struct
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from amounts import examples
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from toy_qwen import SINK_AND_WINDOW, chatter_model, question_logits, toy_frames, toy_model

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.saving import memory_file
from stream_vlm_ros.engine.saving.memory_copy import about_memory
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    InvalidParameterError,
    MemoryFileError,
    StreamBusyError,
    StreamVlmError,
)
from stream_vlm_ros.history import DelayedBatchInferenceEngine
from stream_vlm_ros.owned import NotOursError

QUICK = settings(
    max_examples=examples(10),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
LEVELS = {
    "no cap": None,
    "window": EvictionConfig(100, **SINK_AND_WINDOW),
    "sink cuts a grid": EvictionConfig(130, sink_size=60, **SINK_AND_WINDOW),
    "sampled": EvictionConfig(160, sampled_share=0.4),
    "important": EvictionConfig(200, important_share=0.5),
    "all": EvictionConfig(200, sampled_share=0.2, important_share=0.3),
    "novelty": EvictionConfig.novelty(200),
}


@pytest.fixture(scope="module")
def words():
    """A model that writes to the end of its budget, so that answers are many tokens long."""
    return chatter_model()


@pytest.fixture
def make(words, processor):
    """An engine that has seen so many chunks."""

    def make(level="window", chunks=0, **options):
        options = {"eviction_config": LEVELS[level], **options}
        engine = VideoStreamingInference(options.pop("model", words), processor, **options)
        for number in range(chunks):
            see(engine, number)
        return engine

    return make


def see(engine, number, frames=4):
    """A chunk; every seventh comes after a pause of an hour."""
    start = 2.0 * number + 3600.0 * (number // 7)
    stamps = [start + 0.5 * k for k in range(frames)]
    engine.append_video_chunk(toy_frames(frames, seed=number), timestamps=stamps)


def figures(engine):
    own = ("reserved_memory_bytes", "fork_slack_tokens")  # of the engine, not of its memory
    return {k: v for k, v in engine.get_cache_info().items() if k not in own}


def state_of(engine):
    manager = engine.cache_manager
    return manager.gather(), manager.ledger.positions(), manager.state, figures(engine)


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def same_from_here(one, other, after=6, first=20):
    """Both answer alike now and after each further chunk, whatever is asked in between."""
    for number in range(first, first + after):
        assert one.ask("What is it?", 12)[0] == other.ask("What is it?", 12)[0]
        assert (
            one.ask_choice("Is it?", ["yes", "no"])[0]
            == other.ask_choice("Is it?", ["yes", "no"])[0]
        )
        # 1e-5: kept keys may be turned from their originals by another way round.
        assert (question_logits(one) - question_logits(other)).abs().max() < 1e-5
        assert figures(one) == figures(other)
        for engine in (one, other):
            see(engine, number)
            if number % 3 == 0:
                engine.ask("And now?", 2, update_state=True)


# -- as if it had never ended ------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_loaded_memory_answers_and_goes_on_as_the_one_that_was_saved(
    make, tmp_path, level, layout
):
    engine = make(level, 9, layout=layout)
    engine.ask("And?", 3, update_state=True)
    see(engine, 9)
    saved = engine.save_memory(tmp_path / "m")
    loaded = make(level, layout=layout)
    assert loaded.load_memory(tmp_path / "m").as_dict() == saved.as_dict()
    assert same(state_of(loaded), state_of(engine))
    same_from_here(engine, loaded)


@pytest.mark.parametrize("level", LEVELS)
def test_what_another_thread_has_read_is_loaded_as_its_file_is(make, tmp_path, level):
    make(level, 9).save_memory(tmp_path / "m")
    of_file, of_another_thread = make(level), make(level, 3)
    reader = of_another_thread.memory_reader()
    with ThreadPoolExecutor(1) as another:
        read = another.submit(reader.read, tmp_path / "m").result()
    (tmp_path / "m").rename(tmp_path / "moved")
    see(of_another_thread, 3)  # nothing was touched yet
    given = dict(origin_ns=7_000_000_000, check=lambda saved: None)
    assert of_another_thread.load_memory(read, **given) == of_file.load_memory(
        tmp_path / "moved", **given
    )
    assert same(state_of(of_another_thread), state_of(of_file))
    same_from_here(of_another_thread, of_file, after=3)


def test_an_event_that_ends_reading_is_that_of_who_gave_it(make, tmp_path):
    engine, over = make("window", 3), threading.Event()
    engine.save_memory(tmp_path / "m")
    reader = engine.memory_reader()
    for _ in range(2):
        assert reader.read(tmp_path / "m", over).saved.tokens > 0
    assert not over.is_set()
    over.set()
    with pytest.raises(CancelledError):
        reader.read(tmp_path / "m", over)


def test_what_was_read_for_another_engine_is_refused(make, tmp_path):
    engine, another = make("all", 8), make("window", 3)
    engine.save_memory(tmp_path / "m")
    read = engine.memory_reader().read(tmp_path / "m")
    before = state_of(another)
    with pytest.raises(MemoryFileError, match="max_cache_tokens 200, and here"):
        another.load_memory(read)
    assert same(state_of(another), before)


def test_what_nobody_wants_any_more_is_read_no_further(whole, tmp_path, monkeypatch):
    (tmp_path / "m").write_bytes(whole[0])
    over, read = threading.Event(), memory_file.MemoryFile.read

    def reading(self, name, into, until=None):
        if name.startswith("layers"):
            over.set()
        return read(self, name, into, until)

    monkeypatch.setattr(memory_file.MemoryFile, "read", reading)
    with pytest.raises(CancelledError):
        whole[1].memory_reader().read(tmp_path / "m", over)


@pytest.mark.parametrize("chunks", [1, 2, 12])
def test_it_takes_the_place_of_whatever_was_there(make, tmp_path, chunks):
    engine = make("all", 8)
    engine.save_memory(tmp_path / "m")
    loaded = make("all", chunks)
    snapshot = loaded.cache_manager.snapshot()
    loaded.load_memory(tmp_path / "m")
    assert same(state_of(loaded), state_of(engine))
    with pytest.raises(StreamVlmError, match="cleared or taken back"):
        loaded.cache_manager.restore(snapshot)
    same_from_here(engine, loaded, after=3)


def test_a_memory_that_was_emptied_takes_another_in(make, tmp_path):
    """In the same room, where kept keys had been turned for what was there."""
    # A sink of a given size: then the room for kept keys is taken once. A small one: most votes for
    # how they are turned are not its own.
    options = dict(eviction_config=EvictionConfig(200, 20, 0, 1, 0.3, 0.4))
    engine = make(chunks=12, **options)
    engine.save_memory(tmp_path / "m")
    loaded = make(chunks=15, **options)
    loaded.ask("What is it?", 2)
    loaded.reset()
    loaded.load_memory(tmp_path / "m")
    same_from_here(engine, loaded, after=3)


@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
def test_both_ways_of_closing_up_go_on(make, tmp_path, policy):
    engine = make("sampled", 12, position_policy=policy)
    engine.save_memory(tmp_path / "m")
    loaded = make("sampled", position_policy=policy)
    loaded.load_memory(tmp_path / "m")
    same_from_here(engine, loaded, after=4)


def test_a_memory_without_a_cap_outgrows_the_buffer_that_it_is_loaded_into(
    make, tmp_path, monkeypatch
):
    from stream_vlm_ros.engine.cache.manager import KVCacheManager

    engine = make("no cap", 20)
    engine.save_memory(tmp_path / "m")
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)
    loaded = make("no cap")
    loaded.load_memory(tmp_path / "m")
    same_from_here(engine, loaded, after=3, first=30)


def test_room_beyond_the_cap_may_be_another(make, tmp_path):
    engine = make("window", 9, fork_slack_tokens=40)
    engine.save_memory(tmp_path / "m")
    loaded = make("window", fork_slack_tokens=7)
    loaded.load_memory(tmp_path / "m")
    same_from_here(engine, loaded, after=5)


def test_what_static_tokens_are_compared_with_goes_along(make, tmp_path):
    engine, loaded = (make("no cap", skip_similarity=0.9) for _ in range(2))
    for second in range(3):
        stamps = [2.0 * second + 0.5 * k for k in range(4)]
        engine.append_video_chunk(4 * toy_frames(1, seed=0), timestamps=stamps)
    engine.save_memory(tmp_path / "m")
    loaded.load_memory(tmp_path / "m")
    for seed, second in ((0, 6.0), (0, 8.0), (1, 10.0)):  # it stands still, and then changes
        stamps = [second + 0.5 * k for k in range(4)]
        frames = 4 * toy_frames(1, seed=seed)
        tokens = [
            one.append_video_chunk(frames, timestamps=stamps).tokens for one in (engine, loaded)
        ]
        assert tokens[0] == tokens[1]
        assert tokens[0] == (7 if seed else 2)  # of 2 x 3 in each of 2 grids; one marks its time


@settings(QUICK, max_examples=8)
@given(
    before=st.lists(st.integers(0, 3), min_size=1, max_size=14),
    level=st.sampled_from(sorted(LEVELS)),
    layout=st.sampled_from(["continuous", "segmented"]),
)
def test_any_stream_goes_on_after_any_number_of_loads(
    make, tmp_path_factory, before, level, layout
):
    """0 to 2: so many frames more than one; 3: an exchange that is kept."""
    path = tmp_path_factory.mktemp("any") / "m"
    engine, straight = make(level, layout=layout), make(level, layout=layout)
    for number, step in enumerate(before):
        for one in (engine, straight):
            if step == 3 and number:
                one.ask("And?", 2, update_state=True)
            else:
                see(one, number, frames=1 + step)
        engine.save_memory(path)
        engine = make(level, layout=layout)
        engine.load_memory(path)
        assert figures(engine) == figures(straight)
    same_from_here(straight, engine, after=2)


def test_stamps_can_be_moved_to_another_time(make, tmp_path):
    engine = make("all", 9)
    # The stamp of the engine's second 0: 100 s after the epoch.
    engine.save_memory(tmp_path / "m", origin_ns=100 * 10**9, frame_id="cam")
    loaded = make("all")
    saved = loaded.load_memory(tmp_path / "m", origin_ns=0)
    assert (saved.origin_ns, saved.frame_id) == (0, "cam")
    assert saved.newest_timestamp == engine.get_cache_info().newest_timestamp
    moved = [(a + 100.0, b + 100.0) for a, b in engine.get_cache_info().time_spans]
    assert list(loaded.get_cache_info().time_spans) == moved
    assert loaded.ask("What is it?", 12)[0] == engine.ask("What is it?", 12)[0]
    with pytest.raises(StreamVlmError, match="backwards"):
        see(loaded, 8)  # at 3,616 s, and the newest is at 3,717.5 s now


def test_keys_and_values_are_plain_safetensors(make, tmp_path):
    """The format's own library reads them: in order of time where no grid was kept."""
    engine = make("window", 9)
    engine.save_memory(tmp_path / "m")
    with safe_open(tmp_path / "m", "pt") as file:
        layers = [file.get_tensor(f"layers.{number}") for number in range(2)]
        assert file.metadata()["format"] == "stream_vlm memory"
    assert torch.equal(torch.stack(layers), engine.cache_manager.gather())


def test_what_a_file_holds_is_told_without_loading_it(make, tmp_path):
    saved = make("window", 3).save_memory(tmp_path / "m", frame_id="cam")
    told = about_memory(tmp_path / "m")
    assert told.as_dict() == saved.as_dict()
    assert (told.frames, told.tokens, told.newest_timestamp) == (12, 57 + 2 * 12, 5.5)
    assert told.bytes == os.path.getsize(tmp_path / "m")


# -- saving ------------------------------------------------------------------------------------


def test_a_copy_is_of_its_moment_and_written_by_another_thread_while_the_stream_goes_on(
    make, tmp_path, monkeypatch
):
    engine, straight = make("all", 9), make("all", 9)
    copied = engine.copy_memory()
    assert copied.nbytes == engine.get_cache_info().cache_memory_bytes
    go_on, real = threading.Event(), os.write
    monkeypatch.setattr(os, "write", lambda *given: go_on.wait(60) and real(*given))
    writer = threading.Thread(target=copied.write, args=(tmp_path / "m",))
    writer.start()
    for number in range(9, 15):  # none of these is in it
        see(engine, number)
    assert writer.is_alive()
    go_on.set()
    writer.join(60)
    loaded = make("all")
    loaded.load_memory(tmp_path / "m")
    assert same(state_of(loaded), state_of(straight))


def test_an_empty_memory_is_not_saved(make, tmp_path):
    with pytest.raises(EmptyMemoryError, match="no memory to save"):
        make().save_memory(tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_memory_whose_last_frame_was_forgotten_leaves_the_saved_one_as_it_is(make, tmp_path):
    config = EvictionConfig(150, sink_size=4, **SINK_AND_WINDOW)
    engine = make(eviction_config=config, chunks=2)
    engine.save_memory(tmp_path / "m")
    good = (tmp_path / "m").read_bytes()
    while engine.get_cache_info().grids_in_memory:
        engine.ask("What is it?", 3, update_state=True)
    with pytest.raises(EmptyMemoryError, match="no frame is left"):
        engine.save_memory(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == good


@pytest.mark.parametrize("origin", [2**63, -(10**40), 0.5, "now", None, True])
def test_a_time_that_no_file_holds_is_refused_before_anything_is_written(make, tmp_path, origin):
    engine = make("window", 3)
    engine.save_memory(tmp_path / "m", origin_ns=np.int64(7))
    good = (tmp_path / "m").read_bytes()
    with pytest.raises(InvalidParameterError, match="origin_ns"):
        engine.save_memory(tmp_path / "m", origin_ns=origin)
    assert (tmp_path / "m").read_bytes() == good
    if origin is not None:
        with pytest.raises(InvalidParameterError, match="origin_ns"):
            engine.load_memory(tmp_path / "m", origin_ns=origin)
    with pytest.raises(InvalidParameterError, match="frame_id"):
        engine.save_memory(tmp_path / "m", frame_id=7)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", None, 7, b"m"])
def test_what_names_no_file_is_refused_in_words(make, name):
    engine = make("window", 1)
    for call in (engine.save_memory, engine.load_memory, about_memory):
        with pytest.raises(MemoryFileError, match="named"):
            call(name)


def test_a_name_may_be_as_long_as_the_file_system_lets_it(make, tmp_path):
    engine = make("window", 1)
    for name in ("a" * 255, "\u8a18" * 85):  # 255 bytes each
        engine.save_memory(tmp_path / name)
        make().load_memory(tmp_path / name)


def test_a_memory_is_saved_while_an_answer_is_written_unless_room_is_still_owed(make, tmp_path):
    engine = make("all", 12, fork_slack_tokens=60)
    with contextlib.closing(engine.ask_stream("What is it?", 30)) as answer:
        next(answer)
        engine.save_memory(tmp_path / "m")
        see(engine, 12)
        with pytest.raises(StreamBusyError):
            engine.save_memory(tmp_path / "m")
        with pytest.raises(StreamBusyError):
            engine.load_memory(tmp_path / "m")
    engine.load_memory(tmp_path / "m")
    same_from_here(make("all", 12), engine, after=2)


def test_only_its_owner_can_read_it(make, tmp_path):
    make("window", 1).save_memory(tmp_path / "m")
    assert stat.S_IMODE(os.stat(tmp_path / "m").st_mode) == 0o600


@pytest.mark.parametrize("what", ["text", "empty", "folder", "link", "pipe", "weights"])
def test_nothing_is_overwritten_that_is_no_memory(make, tmp_path, what):
    path, engine = tmp_path / "m", make("window", 2)
    other = tmp_path / "other"
    engine.save_memory(other)
    if what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(other)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "weights":
        save_file({"w": torch.zeros(3)}, path, metadata={"format": "pt"})
    else:
        path.write_text("notes" if what == "text" else "")
    before, there = os.lstat(path), other.read_bytes()
    with pytest.raises(NotOursError, match="is left as it is"):
        engine.save_memory(path)
    assert os.lstat(path) == before and other.read_bytes() == there
    assert sorted(os.listdir(tmp_path)) == ["m", "other"]


def test_a_disk_that_fills_up_costs_the_new_file_alone(make, tmp_path):
    engine = make("window", 3)
    engine.save_memory(tmp_path / "m")
    old = (tmp_path / "m").read_bytes()
    see(engine, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (1, 100, len(old) // 2, len(old)):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            with pytest.raises(MemoryFileError, match="cannot be saved as"):
                engine.save_memory(tmp_path / "m")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / "m").read_bytes() == old
        assert os.listdir(tmp_path) == ["m"]
    make("window").load_memory(tmp_path / "m")


def test_a_disk_that_is_full_ends_the_thread_that_sums(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    parts, before = (
        [("part", torch.zeros(2**24, dtype=torch.uint8))] * 30,
        set(threading.enumerate()),
    )
    with pytest.raises(MemoryFileError, match="No space left on device") as refusal:
        memory_file.write(tmp_path / "m", {}, parts)
    assert refusal.traceback and set(threading.enumerate()) == before


def test_a_folder_that_is_not_there_is_said(make, tmp_path):
    with pytest.raises(MemoryFileError, match="No such file or directory"):
        make("window", 1).save_memory(tmp_path / "none" / "m")


def test_what_a_killed_process_left_is_taken_away_by_the_next_save(make, tmp_path):
    left = tmp_path / ".m.0123abcd.part"
    left.write_bytes(b"x" * 100)
    others = [tmp_path / name for name in (".m.part", ".other.0123abcd.part")]
    for other in others:
        other.write_text("not of this file")
    make("window", 1).save_memory(tmp_path / "m")
    assert not left.exists() and all(other.exists() for other in others)


def test_the_other_engine_says_where_its_frames_are(words, processor, tmp_path):
    engine = DelayedBatchInferenceEngine(words, processor)
    for call in (engine.save_memory, engine.load_memory):
        with pytest.raises(InvalidParameterError, match="frame_store"):
            call(tmp_path / "m")


# -- refused -----------------------------------------------------------------------------------


def refuses(engine, path, words, error=MemoryFileError):
    """Loading is refused with these words, and the memory is as before."""
    before = state_of(engine)
    with pytest.raises(error, match=words) as told:
        engine.load_memory(path)
    assert same(state_of(engine), before)
    return told.value


OTHER = {
    "layout": (dict(layout="segmented"), "layout continuous, and here layout is segmented"),
    "policy": (dict(position_policy="keep_gaps"), "position_policy contiguous, and here"),
    "cap": (
        dict(eviction_config=EvictionConfig(101, **SINK_AND_WINDOW)),
        "max_cache_tokens 100, and here max_cache_tokens is 101",
    ),
    "no cap": (dict(eviction_config=None), "max_cache_tokens 100, and here max_cache_tokens is 0"),
    "sink": (
        dict(eviction_config=EvictionConfig(100, sink_size=57, **SINK_AND_WINDOW)),
        "sink_size 0, and here sink_size is 57",
    ),
    "window": (
        dict(eviction_config=EvictionConfig(100, window_size=30, **SINK_AND_WINDOW)),
        "window_size 0, and here window_size is 30",
    ),
    "share": (
        dict(eviction_config=EvictionConfig(100, sampled_share=0.1)),
        "sampled_share 0.0, and here sampled_share is 0.1",
    ),
    "system prompt": (dict(system_prompt="Be brief."), "another chat template or the system"),
}


@pytest.mark.parametrize("other", OTHER)
def test_a_memory_of_other_settings_is_refused_by_name(make, tmp_path, other):
    make("window", 5).save_memory(tmp_path / "m")
    options, words = OTHER[other]
    refuses(make("window", 2, **options), tmp_path / "m", words)


class Loudness:
    """A score of the user's own."""

    def describe(self, features):
        return features.float().abs().mean(dim=(0, 1))[:4].cpu().numpy()

    def rank(self, descriptors):
        return descriptors.sum(axis=1)


def test_a_memory_chosen_by_another_score_is_refused_where_it_chooses(make, tmp_path):
    make("all", 9).save_memory(tmp_path / "all")
    make("window", 9).save_memory(tmp_path / "window")
    refuses(make("all", importance=Loudness()), tmp_path / "all", "importance .*FeatureNovelty")
    make("window", importance=Loudness()).load_memory(tmp_path / "window")
    engine = make("all", 9, importance=Loudness())
    engine.save_memory(tmp_path / "loud")
    loaded = make("all", importance=Loudness())
    loaded.load_memory(tmp_path / "loud")
    same_from_here(engine, loaded, after=3)


def test_a_score_whose_descriptions_no_file_holds_is_named(make, tmp_path):
    class Odd(Loudness):
        def describe(self, features):
            return np.array(["loud"])

    engine = make("all", 9, importance=Odd())
    with pytest.raises(InvalidParameterError, match="importance score describes frames by"):
        engine.save_memory(tmp_path / "m")


class Refusing(tuple):
    """Plain data, until somebody looks at it."""

    def __iter__(self):
        raise RuntimeError("nobody looks at this")


def test_a_score_whose_descriptions_raise_when_they_are_saved_is_told_so(make, tmp_path):
    make("all", 3).save_memory(tmp_path / "m")
    good = (tmp_path / "m").read_bytes()

    class Odd(Loudness):
        def describe(self, features):
            return Refusing((1.0,))

    engine = make("all", 3, importance=Odd())  # none is ranked yet
    held, info = engine.cache_manager.gather(), engine.get_cache_info()
    with pytest.raises(InvalidParameterError, match=r"importance score.*nobody looks at this"):
        engine.save_memory(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == good
    assert torch.equal(engine.cache_manager.gather(), held) and engine.get_cache_info() == info


class Describes(Loudness):
    """Frames by whatever it is told to."""

    def __init__(self, describes):
        self._describes, self._count = describes, 0

    def describe(self, features):
        self._count += 1
        return self._describes(super().describe(features), self._count)


@pytest.mark.filterwarnings("ignore:the importance score failed")
@pytest.mark.parametrize(
    "describes",
    [
        lambda loud, count: np.resize(loud, 1 + count % 3),
        lambda loud, count: float(loud[0]),
        lambda loud, count: loud.tolist(),
        lambda loud, count: torch.tensor(loud).bfloat16(),
        lambda loud, count: "loud",
    ],
    ids=["lengths", "number", "list", "bfloat16", "text"],
)
def test_descriptions_that_could_not_be_loaded_leave_the_saved_memory_as_it_is(
    make, tmp_path, describes
):
    make("all", 3).save_memory(tmp_path / "m")
    good = (tmp_path / "m").read_bytes()
    engine = make("all", 9, importance=Describes(describes))
    with pytest.raises(InvalidParameterError, match="cannot be saved"):
        engine.save_memory(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == good


@pytest.mark.parametrize(
    "describes",
    [
        lambda loud, count: np.resize(loud, 4)[::-1],
        lambda loud, count: loud.astype(">f4"),
        lambda loud, count: torch.tensor(loud),
    ],
    ids=["reversed", "byte order", "torch"],
)
def test_descriptions_are_saved_however_they_lie_in_memory(make, tmp_path, describes):
    engine = make("all", 9, importance=Describes(describes))
    engine.save_memory(tmp_path / "m")
    loaded = make("all", importance=Describes(describes))
    loaded.load_memory(tmp_path / "m")
    same_from_here(engine, loaded, after=3)


@pytest.mark.parametrize("rows", [(0, 1), (101, 203)])
def test_a_memory_of_a_model_whose_words_changed_places_is_refused(make, tmp_path, rows):
    make("window", 3, model=toy_model()).save_memory(tmp_path / "m")
    other = toy_model()
    (words,) = [w for name, w in other.state_dict().items() if "embed_tokens" in name]
    with torch.no_grad():
        words[list(rows)] = words[list(rows[::-1])]
    refuses(make("window", model=other), tmp_path / "m", "another model: its weights")


@pytest.mark.parametrize("tensor", ["visual", "layers.1.", "lm_head", "embed_tokens", "norm"])
def test_a_memory_of_a_model_with_another_weight_is_refused(make, toys, tmp_path, tensor):
    make("window", 3, model=toy_model()).save_memory(tmp_path / "m")
    model = toy_model()
    name, weight = next((n, w) for n, w in sorted(model.state_dict().items()) if tensor in n)
    with torch.no_grad():
        weight.flatten()[-1] += 1e-3  # one number, the smallest change of such a model
    assert name
    refuses(make("window", 2, model=model), tmp_path / "m", "another model: its weights")
    make("window", model=toy_model()).load_memory(tmp_path / "m")


def test_a_memory_of_another_number_format_or_size_is_refused(make, toys, tmp_path):
    make("window", 3, model=toy_model()).save_memory(tmp_path / "m")
    half = toy_model().to(torch.bfloat16)
    refuses(make("window", 1, model=half), tmp_path / "m", "dtype float32, and here .* bfloat16")
    deep = toy_model(layers=3)
    refuses(make("window", 1, model=deep), tmp_path / "m", "2 layers of 2 heads of 16, and here")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_memories_of_16_bits_are_saved_as_they_are(make, tmp_path, dtype):
    model = toy_model().to(dtype)
    engine = make("all", 9, model=model)
    engine.save_memory(tmp_path / "m")
    loaded = make("all", model=model)
    loaded.load_memory(tmp_path / "m")
    assert same(state_of(loaded), state_of(engine))
    assert loaded.ask("What?", 8)[0] == engine.ask("What?", 8)[0]


@pytest.mark.parametrize("what", ["nothing", "text", "folder", "link", "pipe", "weights", "long"])
def test_what_is_no_memory_is_refused(make, tmp_path, what):
    path, engine = tmp_path / "m", make("window", 2)
    if what == "text":
        path.write_text("a note that is longer than a header's length")
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        engine.save_memory(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "weights":
        save_file({"w": torch.zeros(3)}, path, metadata={"format": "pt"})
    elif what == "long":
        path.write_bytes(struct.pack("<Q", 2**63) + b"{}" * 100)
    refuses(engine, path, "No such file|not a plain file|no saved memory|symbolic links")


@pytest.fixture(scope="module")
def whole(words, processor, tmp_path_factory):
    """The bytes of a saved memory, and an engine that would load it."""
    path = tmp_path_factory.mktemp("whole") / "m"
    config = LEVELS["all"]
    engine = VideoStreamingInference(words, processor, eviction_config=config, skip_similarity=0.99)
    for number in range(12):
        see(engine, number)
    engine.save_memory(path)
    return path.read_bytes(), engine


@settings(QUICK, max_examples=examples(20))
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_cut_file_is_refused(whole, tmp_path_factory, share):
    data, engine = whole
    path = tmp_path_factory.mktemp("cut") / "m"
    path.write_bytes(data[: int(share * len(data))])
    refuses(engine, path, "refused: it is (cut|no saved memory)")


@settings(QUICK, max_examples=examples(40))
@given(share=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7), early=st.booleans())
def test_a_file_with_one_flipped_bit_is_refused(whole, tmp_path_factory, share, bit, early):
    data, engine = whole
    at = int(share * (3000 if early else len(data)))
    path = tmp_path_factory.mktemp("flip") / "m"
    path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    refuses(engine, path, "is refused: ")


@settings(QUICK, max_examples=examples(40))
@given(
    share=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    size=st.sampled_from([1, 2, 4, 8, 64]),
)
def test_a_file_with_two_pieces_that_changed_places_is_refused(
    whole, tmp_path_factory, share, size
):
    data, engine = whole
    one, other = sorted(int(at * (len(data) // size - 1)) * size for at in share)
    first, second = data[one : one + size], data[other : other + size]
    assume(first != second)
    swapped = data[:one] + second + data[one + size : other] + first + data[other + size :]
    path = tmp_path_factory.mktemp("swap") / "m"
    path.write_bytes(swapped)
    refuses(engine, path, "is refused: ")


@pytest.fixture(scope="module")
def long_part(tmp_path_factory):
    """The file of a part of several blocks and some bytes, and where its bytes begin."""
    path = tmp_path_factory.mktemp("long") / "m"
    part = np.random.default_rng(1).integers(0, 256, 3 * 2**20 + 5, np.uint8)
    memory_file.write(path, {}, [("part", torch.from_numpy(part))])
    data = path.read_bytes()
    return path, data, data.index(part[:64].tobytes()), len(part)


def read_part(path, data):
    path.write_bytes(data)
    with memory_file.MemoryFile(path) as file:
        file.read("part", torch.empty(file.shape("part")[1], dtype=torch.uint8))


@settings(QUICK, max_examples=examples(20))
@given(share=st.floats(0.0, 1.0), bit=st.integers(0, 7))
def test_a_bit_that_changed_in_a_long_part_is_seen(long_part, share, bit):
    path, data, start, size = long_part
    read_part(path, data)
    at = start + int(share * (size - 1))
    with pytest.raises(MemoryFileError, match="the sum of its part part is another"):
        read_part(path, data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


@settings(QUICK, max_examples=examples(20))
@given(
    words=st.lists(st.integers(0, 3 * 2**17 - 1), min_size=2, max_size=6, unique=True),
    bit=st.sampled_from([7, 6, 5, 0]),
    byte=st.sampled_from([7, 3, 0]),
)
def test_the_same_bit_that_changed_in_several_words_is_seen(long_part, words, bit, byte):
    """The sign of a number, for one: a plain product with a weight loses a word's highest bit."""
    path, data, start, _ = long_part
    changed = bytearray(data)
    for word in words:
        changed[start + 8 * word + byte] ^= 1 << bit
    with pytest.raises(MemoryFileError, match="the sum of its part part is another"):
        read_part(path, bytes(changed))


@settings(QUICK, max_examples=examples(20))
@given(
    words=st.tuples(*2 * [st.integers(0, 3 * 2**17 - 1)]) | st.just((0, 2**17)),
    size=st.sampled_from([8, 2**20]),
)
def test_words_or_blocks_that_changed_places_in_a_long_part_are_seen(long_part, words, size):
    path, data, start, _ = long_part
    one, other = sorted(start + 8 * word // size * size for word in words)
    assume(one != other)
    first, second = data[one : one + size], data[other : other + size]
    swapped = data[:one] + second + data[one + size : other] + first + data[other + size :]
    with pytest.raises(MemoryFileError, match="the sum of its part part is another"):
        read_part(path, swapped)


def test_who_stops_reading_waits_for_one_block_and_not_for_a_whole_part(long_part, monkeypatch):
    """Else an impatient second Ctrl-C leaves threads that read a file which is closed."""
    path, data, _, size = long_part
    path.write_bytes(data)
    reads, real, begun = [], os.preadv, threading.Event()

    def slow(file, into, at):
        begun.set()
        time.sleep(0.05)
        reads.append(sum(map(len, into)))
        return real(file, into, at)

    with memory_file.MemoryFile(path) as file:
        monkeypatch.setattr(os, "preadv", slow)
        with pytest.raises(KeyboardInterrupt), memory_file.threads(1) as (pool, over):
            held = torch.empty(size, dtype=torch.uint8)
            reading = [pool.submit(file.read, "part", held, over) for _ in range(3)]
            begun.wait()
            raise KeyboardInterrupt
    assert [one.cancelled() or type(one.exception()) for one in reading] == [
        CancelledError, True, True,
    ]  # fmt: skip
    assert sum(reads) < size


def test_an_interrupted_load_ends_what_reads_the_next_layers(whole, make, tmp_path, monkeypatch):
    (tmp_path / "m").write_bytes(whole[0])
    asked, read = [], memory_file.MemoryFile.read

    def reading(self, name, into, over=None):
        asked.append(over)
        if name == "layers.0":
            raise KeyboardInterrupt
        return read(self, name, into, over)

    monkeypatch.setattr(memory_file.MemoryFile, "read", reading)
    with pytest.raises(KeyboardInterrupt):
        make("all").load_memory(tmp_path / "m")
    layers = [over for over in asked if over is not None]
    assert layers and all(over.is_set() for over in layers)


def test_a_digit_that_was_changed_in_the_header_is_refused(whole, tmp_path):
    data, engine = whole
    about = range(data.index(b'"about"'), data.index(b'"format"'))
    places = [at for at in about if data[at : at + 1].isdigit()]
    assert len(places) > 20
    for at in places:
        (tmp_path / "m").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refuses(engine, tmp_path / "m", "the sum of its header is another")


def test_bytes_behind_the_end_are_refused(whole, tmp_path):
    data, engine = whole
    (tmp_path / "m").write_bytes(data + b"more")
    refuses(engine, tmp_path / "m", "longer than it says")


class Parts:
    """A saved memory taken apart, to be written again with other parts and right sums."""

    def __init__(self, data, folder):
        self.path = folder / "m"
        self.path.write_bytes(data)
        with safe_open(self.path, "pt") as file:
            self.metadata = file.metadata()
            names = [name for name in file.keys() if name != "sums"]  # noqa: SIM118
            self.tensors = {name: file.get_tensor(name) for name in names}
        self.path.unlink()

    @property
    def bookkeeping(self):
        return json.loads(self.tensors["bookkeeping"].numpy().tobytes())

    @bookkeeping.setter
    def bookkeeping(self, value):
        self.text = json.dumps(value)

    @property
    def text(self):
        return self.tensors["bookkeeping"].numpy().tobytes().decode()

    @text.setter
    def text(self, text):
        held = np.frombuffer(text.encode(), np.uint8).copy()
        self.tensors["bookkeeping"] = torch.from_numpy(held)

    def write(self):
        memory_file.write(self.path, self.metadata, list(self.tensors.items()))
        return self.path


@pytest.fixture
def parts(whole, tmp_path):
    return Parts(whole[0], tmp_path)


def test_another_version_is_refused_and_yet_known_as_a_memory(whole, parts, make, monkeypatch):
    monkeypatch.setattr(memory_file, "VERSION", 7)
    path = parts.write()
    parts.metadata.pop("version")
    monkeypatch.undo()
    refuses(whole[1], path, "of version 7, and this program reads version 3")
    make("window", 1).save_memory(path)  # it may be overwritten: it is ours


def test_parts_that_do_not_fit_one_another_are_refused(whole, parts, tmp_path):
    engine, layer = whole[1], parts.tensors["layers.1"]
    for other, words in (
        (layer[:, :, :-1].contiguous(), "the shape of its keys and values"),
        (layer.to(torch.float16), "the shape of its keys and values"),
        (torch.full_like(layer, float("nan")), "not a finite number"),
        (torch.full_like(layer, float("-inf")), "not a finite number"),
    ):
        parts.tensors["layers.1"] = other
        refuses(engine, parts.write(), words)
    del parts.tensors["layers.1"]
    refuses(engine, parts.write(), "its parts")
    parts.tensors["layers.1"] = layer
    parts.tensors["layers.2"] = layer.clone()
    refuses(engine, parts.write(), "its parts")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000 + "]" * 100_000,
        '{"positions":' * 50_000 + "1" + "}" * 50_000,
        "9" * 10_000,
        "NaN",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=["empty", "null", "list", "record", "deep", "deep records", "long", "nan", "latin"],
)
def test_bookkeeping_that_is_none_is_refused(whole, parts, text):
    parts.text = text
    refuses(whole[1], parts.write(), "its bookkeeping contradicts itself")


@pytest.mark.parametrize("name", ["binding", "about"])
@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "{", "[" * 50_000, '{"tokens": "many"}'])
def test_a_header_that_says_nothing_is_refused(whole, parts, name, text):
    parts.metadata[name] = text
    refuses(whole[1], parts.write(), "is refused")


def at(*place):
    """What changes one value of the bookkeeping."""
    *way, last = place

    def change(book, value):
        for key in way:
            book = book[key]
        book[last] = value(book[last]) if callable(value) else value

    return change


MORE = {"another": lambda was: was + 1, "less": lambda was: was - 1}
CONTRADICTIONS = [
    (at("positions", "sink_length"), MORE["another"], "the length of its sink"),
    (at("positions", "sink_length"), None, "the length of its sink"),
    (at("positions", "kept"), lambda kept: kept[::-1], "the order of grids"),
    (at("positions", "kept"), lambda kept: kept[1:], "the grids kept for long"),
    (at("positions", "kept", 0, "cut"), 1, "the grids kept for long"),
    (at("positions", "window", 0, "cut"), 10**6, "a run's cut"),
    (at("positions", "window", 0, "cut"), -1, "a run's cut"),
    (at("positions", "window", 0, "grids"), [], "the order of grids"),
    (at("positions", "window", 0, "origin", "t"), 2**50, "a position"),
    (at("positions", "window", 0, "grids", 0, "height"), 10**9, "a grid's size"),
    (at("positions", "window", 0, "grids", 0, "places"), [3, 2], "a grid's places"),
    (at("positions", "window", 0, "grids", 0, "places"), [10**6], "a grid's places"),
    (at("positions", "window", 0, "grids", 0, "stamps"), [9.0, 1.0], "a grid's stamps"),
    (at("positions", "window", 0, "grids", 0, "stamps"), [9.0], "1 items, not 2"),
    (at("positions", "grids_seen"), 1, "the number of its grids"),
    (at("positions", "evicted"), -1, "what it forgot"),
    (at("positions", "end", "w"), -(2**50), "what it forgot"),
    (at("window_start"), -1, "the number of its first token"),
    (at("window_start"), 2**50, "the number of its first token"),
    (at("owner", "shape"), [1], "its kept grids"),
    (at("owner", "at"), 2**40, "beyond the file"),
    (at("owner", "numbers"), "float32", "its kept grids"),
    (at("owner", "numbers"), "bfloat16", "an array of bfloat16"),
    (at("place", "at"), lambda was: was + 8, "the places of kept grids"),
    (at("evictor", "chunks"), 0, "the counts of its chunks"),
    (at("evictor", "evictions"), -1, "the counts of its chunks"),
    (at("evictor", "first_vision"), 2**50, "the counts of its chunks"),
    (at("evictor", "sink_size"), MORE["another"], "its sink"),
    (at("evictor", "important", 0, "tokens"), MORE["another"], "the sizes of kept grids"),
    (at("evictor", "important"), [], "the grids kept for long"),
    (at("evictor", "important", 0, "descriptor", "shape"), [7], "the descriptions of its frames"),
    (at("evictor", "sink_end"), "soon", "where a float should be"),
    (at("stream", "frames"), 0, "its counts"),
    (at("stream", "first_stamp"), None, "its stamps"),
    (at("stream", "last_stamp"), -5.0, "its stamps"),
    (at("stream", "known", "grids", "numbers"), "float64", "what it compares with"),
    (at("stream", "known", "features", "shape"), [6, 1], "what it compares with"),
    (at("stream", "known", "features", "shape"), [0, 2**62, 2**62], "an array of float32"),
    (at("positions", "grids_seen"), 2**63 - 1, "the number of its grids"),
    (at("positions", "evicted"), 2**63 - 1, "what it forgot"),
    (at("stream", "chunks"), 2**63 - 1, "its counts"),
    (at("stream", "timeline", "newest"), None, "its pauses"),
    (at("stream", "timeline", "newest"), 0, "its pauses"),
    (at("stream", "timeline", "newest"), 2**62, "its pauses"),
    (at("stream", "timeline", "step"), -5, "its pauses"),
    (at("stream", "timeline", "closed"), -(2**62), "its pauses"),
    (at("stream", "timeline", "pauses"), -1, "its pauses"),
    (at("stream", "news"), 1, "has no news"),
]


@pytest.mark.parametrize("number", range(len(CONTRADICTIONS)))
def test_bookkeeping_that_contradicts_itself_is_refused_with_what_does(whole, parts, number):
    change, value, words = CONTRADICTIONS[number]
    book = parts.bookkeeping
    if words == "has no news":
        book["stream"]["news"] = 1
    else:
        change(book, value)
    parts.bookkeeping = book
    refuses(whole[1], parts.write(), words)


LIES = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    -(2**62),
    2**70,
    0.5,
    -1e300,
    "7",
    [],
    [1],
    {},
    [[], []],
]


def leaves(value, path=()):
    """Every place in a text of JSON."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in items:
        yield from leaves(one, (*path, key))


@settings(QUICK, max_examples=examples(25))
@given(data=st.data())
def test_a_lie_anywhere_in_the_bookkeeping_is_refused_or_harmless(
    whole, make, tmp_path_factory, data
):
    """One value is another, with right sums: where that is not refused, the engine works on."""
    parts = Parts(whole[0], tmp_path_factory.mktemp("lie"))
    book = parts.bookkeeping
    places = sorted(leaves(book), key=str)[1:]
    place = data.draw(st.sampled_from(places))
    *way, last = place
    holder = book
    for key in way:
        holder = holder[key]
    lie = data.draw(st.sampled_from([*LIES, "gone"]))
    if lie == "gone":
        del holder[last]
    else:
        holder[last] = lie
    parts.bookkeeping = book
    engine = make("all", 2, skip_similarity=0.99)
    before = state_of(engine)
    try:
        engine.load_memory(parts.write())
    except MemoryFileError:
        assert same(state_of(engine), before)
        return
    engine.ask("What is it?", 3)
    newest = engine.get_cache_info().newest_timestamp
    for number in range(3):
        start = max(newest, engine.cache_manager.state.last_stamp) + 2.0 * number + 1.0
        try:
            engine.append_video_chunk(
                toy_frames(4, seed=number), timestamps=[start + 0.5 * k for k in range(4)]
            )
        except StreamVlmError:
            return  # in words, as a stamp beyond all time
    assert engine.get_cache_info().cache_seq_length <= 200
    engine.ask("What is it?", 3)


def test_what_a_caller_checks_is_raised_as_it_is(whole, tmp_path):
    (tmp_path / "m").write_bytes(whole[0])

    def check(saved):
        raise ValueError("not mine")

    with pytest.raises(ValueError, match=r"^not mine$"):
        whole[1].load_memory(tmp_path / "m", check=check)


# -- all or nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, 5])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, OSError])
def test_whatever_is_raised_while_it_is_read_leaves_the_memory_as_it_was(
    whole, make, tmp_path, monkeypatch, fault, chunks
):
    (tmp_path / "m").write_bytes(whole[0])
    real, counted = os.preadv, itertools.count()
    engine, straight = (make("all", chunks, skip_similarity=0.99) for _ in range(2))

    def fails(at):
        calls = itertools.count()

        def read(*given):
            next(counted)
            if next(calls) == at:
                raise fault
            return real(*given)

        return read

    for at in range(40):
        monkeypatch.setattr(os, "preadv", fails(at))
        before = next(counted)
        try:
            engine.load_memory(tmp_path / "m")
        except (fault, MemoryFileError):
            pass
        else:
            break
        finally:
            monkeypatch.undo()
        assert next(counted) > before
        if chunks:
            assert same(state_of(engine), state_of(straight))
        else:
            assert figures(engine) == figures(straight)
            with pytest.raises(EmptyMemoryError):
                engine.ask("What is it?")
    assert 5 < at < 39  # each read was broken off once, and then it went through
    assert engine.get_cache_info().chunks == 12
