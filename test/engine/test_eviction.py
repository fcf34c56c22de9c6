# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What goes and what stays, to the token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, KVCacheEvictor, VideoStreamingInference
from stream_vlm_ros.errors import CapTooSmallError, InvalidParameterError


def run(config: EvictionConfig, chunks: list[int]) -> tuple[KVCacheEvictor, list[int], list[int]]:
    """Feed chunk lengths; return the evictor, what each chunk evicted, and the lengths after."""
    evictor, length, evicted, lengths = KVCacheEvictor(config), 0, [], []
    for tokens in chunks:
        evictor.check_room(tokens)
        evictor.record_chunk(tokens)
        due = evictor.due(length + tokens, evictor.appended(tokens))
        if due:
            evictor.record_eviction(due)
        length += tokens - due
        evicted.append(due)
        lengths.append(length)
    return evictor, evicted, lengths


def test_the_references_long_video_comes_out_to_the_token():
    # The reference's experiment B: 100 chunks of 4 frames at 1920x1080 under a cap of 150,000.
    evictor, evicted, lengths = run(
        EvictionConfig(150_000, **SINK_AND_WINDOW), [5_435] + [5_389] * 99
    )
    assert evictor.effective_sink_size == 5_435
    assert evictor.effective_window_size == 144_565
    assert next(number for number, due in enumerate(evicted, start=1) if due) == 28
    assert evicted[27] == 938
    assert set(evicted[28:]) == {5_389}
    assert evictor.total_evictions == 73
    assert evictor.total_tokens_evicted == 388_946
    assert max(lengths) == lengths[-1] == 150_000
    assert evictor.avg_chunk_tokens == 5_389


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_the_same_identity_holds_through_the_engine(toys, model, processor, layout):
    engine = VideoStreamingInference(
        model, processor, eviction_config=EvictionConfig(200, **SINK_AND_WINDOW), layout=layout
    )
    steps = [
        engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
        for number in range(30)
    ]
    first, later = steps[0]["tokens"], steps[1]["tokens"]
    # 2 grids of 2 x 3 tokens; segmented: and the turn around them, 7 tokens with Qwen's words,
    # here "user" takes 4 letters where Qwen has one word, so 10.
    assert later == {"continuous": 12, "segmented": 12 + 10}[layout]
    until_full = (200 - first) // later  # later chunks that fit
    remainder = first + (until_full + 1) * later - 200
    assert [step["evicted_tokens"] for step in steps] == (
        [0] * (until_full + 1) + [remainder] + [later] * (30 - until_full - 2)
    )
    info = engine.get_cache_info()
    assert info["cache_seq_length"] == 200
    assert info["sink_size"] == first
    assert info["window_size"] == 200 - first
    assert info["eviction_stats"] == {
        "total_evictions": 30 - until_full - 1,
        "total_tokens_evicted": first + 29 * later - 200,
    }


@given(
    cap=st.integers(20, 400),
    sink=st.integers(0, 60),
    window=st.integers(0, 200),
    interval=st.integers(1, 5),
    chunks=st.lists(st.integers(1, 60), min_size=1, max_size=60),
)
def test_the_stream_never_exceeds_its_cap_and_loses_no_more_than_it_must(
    cap, sink, window, interval, chunks
):
    try:
        config = EvictionConfig(cap, sink, window, interval, **SINK_AND_WINDOW)
        evictor, evicted, lengths = run(config, chunks)
    except (InvalidParameterError, CapTooSmallError):
        return
    limit = evictor.effective_sink_size + evictor.effective_window_size
    assert limit <= cap and max(lengths) <= limit
    assert sum(chunks) - sum(evicted) == lengths[-1]
    for due, length, tokens in zip(evicted, lengths, chunks, strict=True):
        # The sink and the newest chunk are always there.
        assert not due or length >= evictor.effective_sink_size + tokens
        if interval == 1 and due:
            assert length == limit


def test_an_interval_makes_room_for_the_chunks_to_come_at_once():
    _, evicted, lengths = run(
        EvictionConfig(100, 10, 0, eviction_interval=3, **SINK_AND_WINDOW), [10] * 20
    )
    # Full at 100 after 10 chunks; then each third chunk evicts its own and two more.
    assert evicted == [0] * 10 + [30, 0, 0] * 3 + [30]
    assert max(lengths) == 100


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(max_cache_tokens=-1), "max_cache_tokens must be a whole number of at least 0"),
        (dict(max_cache_tokens=10.5), "max_cache_tokens must be a whole number"),
        (
            dict(max_cache_tokens=100, sink_size=-1),
            "sink_size must be a whole number of at least 0",
        ),
        (dict(max_cache_tokens=100, eviction_interval=0), "eviction_interval"),
        (dict(max_cache_tokens=100, sink_size=60, window_size=60), "exceed max_cache_tokens 100"),
        (dict(max_cache_tokens=100, sink_size=100), "leaves no window"),
        (dict(max_cache_tokens=100, sampled_share=-0.5), "sampled_share must be a number from 0"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_reason(values, words):
    with pytest.raises(InvalidParameterError, match=words):
        EvictionConfig(**values)


@pytest.mark.parametrize(
    ("cap", "important", "words"),
    [
        # The first chunk is the sink: 45 text tokens and 2 grids of 6. What it leaves of the cap
        # goes to important frames by 70 %, but a window of 57 tokens, its own length, stays.
        (300, 170, "novelty: 70%"),  # of 243
        (130, 16, "novelty: a window of two chunks"),  # of 73
        (120, 6, "novelty: a window of two chunks"),  # of 63: one grid
        (119, 0, "novelty: sink and window alone"),  # of 62: less than a grid
        (110, 0, "novelty: sink and window alone"),  # of 53
    ],
)
def test_by_the_preset_novelty_important_frames_get_most_of_the_cap(
    toys, model, processor, cap, important, words
):
    engine = VideoStreamingInference(model, processor, eviction_config=EvictionConfig.novelty(cap))
    assert engine.get_cache_info()["shares_reason"].endswith("first chunk")
    for number in range(40):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
        assert engine.get_cache_info()["cache_seq_length"] <= cap
    info = engine.get_cache_info()
    assert (info["sampled_size"], info["important_size"]) == (0, important)
    assert info["window_size"] == cap - 57 - important
    assert info["shares_reason"].startswith(words)
    held = info["levels"].get("important", {"grids": 0})["grids"]
    assert held == important // 6


def test_with_a_window_of_ones_own_the_memory_is_the_references(toys, model, processor):
    config = EvictionConfig.novelty(300, window_size=100)
    engine = VideoStreamingInference(model, processor, eviction_config=config)
    for number in range(30):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    info = engine.get_cache_info()
    assert info["cache_seq_length"] == 57 + 100
    assert set(info["levels"]) == {"sink", "window"}


def test_a_chunk_that_can_never_fit_is_refused_and_the_stream_goes_on(toys, model, processor):
    engine = VideoStreamingInference(
        model, processor, eviction_config=EvictionConfig(100, **SINK_AND_WINDOW)
    )
    with pytest.raises(CapTooSmallError, match="memory of 100 tokens: raise max_cache_tokens"):
        engine.append_video_chunk(toys.frames(4, 280, 280))  # 2 x 100 tokens and text
    engine.append_video_chunk(toys.frames(4, 56, 84))
    before = engine.get_cache_info()
    with pytest.raises(CapTooSmallError, match=r"window of \d+ tokens \(cap 100, sink 57\)"):
        engine.append_video_chunk(toys.frames(4, 140, 140))  # 50 tokens
    assert engine.get_cache_info() == before
    engine.append_video_chunk(toys.frames(4, 56, 84))
    assert engine.get_cache_info()["chunks"] == 2


def test_an_exchange_that_can_never_be_kept_is_refused_with_its_own_remedy(toys, model, processor):
    engine = VideoStreamingInference(model, processor, eviction_config=EvictionConfig.novelty(100))
    engine.append_video_chunk(toys.frames(4, 56, 84))
    with pytest.raises(CapTooSmallError, match="or lower max_new_tokens, shorten the question"):
        engine.ask("What?", 40, update_state=True)
    engine.ask("What?", 40)


def test_two_chunk_sizes_find_two_sinks(toys, model, processor):
    # The reference's experiment A: the sink is the cache length after the first chunk.
    sinks = []
    for count in (2, 4):
        engine = VideoStreamingInference(
            model, processor, eviction_config=EvictionConfig(9000, **SINK_AND_WINDOW)
        )
        for number in range(5):
            step = engine.append_video_chunk(toys.frames(count, 280, 392, seed=number), fps=2)
            if number == 0:
                sinks.append(step["cache_length"])
        evictor = engine.cache_manager.evictor
        assert evictor.first_chunk_recorded
        assert evictor.effective_sink_size == sinks[-1]
        assert evictor.effective_window_size == 9000 - sinks[-1]
        assert evictor.avg_chunk_tokens == step["tokens"]
    assert sinks[0] != sinks[1] and min(sinks) > 128
