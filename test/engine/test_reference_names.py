# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a stranger's script asks of the prototype, by its names, is answered here."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_qwen import toy_frames

from stream_vlm_ros.engine import (
    AutoProcessor,
    EvictionConfig,
    KVCacheEvictor,
    KVCacheManager,
    StreamQwenModel,
    VideoStreamingInference,
)
from stream_vlm_ros.errors import InvalidParameterError, SnapshotEvictedError
from stream_vlm_ros.factory import default_model

CAP = 300


@pytest.fixture(scope="module")
def loaded():
    """As its users load any model of transformers."""
    path = str(default_model())
    model = StreamQwenModel.from_pretrained(path, torch_dtype=torch.float32).to("cpu").eval()
    return model, AutoProcessor.from_pretrained(path, use_fast=True)


def engine_of(loaded, cap=CAP):
    return VideoStreamingInference(*loaded, "cpu", EvictionConfig(max_cache_tokens=cap))


def chunk(seed=0):
    return toy_frames(4, 112, 112, seed=seed)  # two grids of 16 tokens


def test_the_config_without_arguments_is_level_1_at_the_cap_its_tuning_ended_with():
    config = EvictionConfig()
    assert (config.max_cache_tokens, config.sink_size, config.window_size) == (150_000, 0, 0)
    assert config.eviction_interval == 1
    evictor = KVCacheEvictor(config)
    evictor.set_first_chunk_info(5_435)  # of the prototype's long video
    assert evictor.effective_sink_size == 5_435
    assert evictor.effective_window_size == 144_565


def test_the_evictor_s_names_keep_its_books():
    evictor = KVCacheEvictor(EvictionConfig(max_cache_tokens=1000))
    assert evictor._first_chunk_recorded is False and evictor._avg_chunk_tokens == 0
    evictor.set_first_chunk_info(100)
    assert evictor._first_chunk_recorded is True and evictor._avg_chunk_tokens == 0
    evictor.update_chunk_stats(40)
    evictor.update_chunk_stats(60)
    assert evictor._avg_chunk_tokens == 50
    assert not evictor.should_evict(1000) and evictor.should_evict(1001)
    assert evictor.evict(1000) == 0 and evictor.total_evictions == 0
    assert evictor.evict(1038) == 38
    assert (evictor.total_evictions, evictor.total_tokens_evicted) == (1, 38)
    with pytest.raises(InvalidParameterError, match="recorded already"):
        evictor.set_first_chunk_info(100)
    assert KVCacheEvictor(None).should_evict(10**9) is False


def test_a_stream_ends_at_the_cap_with_the_first_chunk_as_its_sink(loaded):
    engine = engine_of(loaded)
    appended = [engine.append_video_chunk(chunk(seed), fps=2)["tokens"] for seed in range(12)]
    evictor = engine.cache_manager.evictor
    assert evictor.effective_sink_size == appended[0]
    assert evictor.effective_window_size == CAP - appended[0]
    assert evictor._avg_chunk_tokens == 32  # continuous: no text around later chunks
    info = engine.get_cache_info()
    assert info["cache_seq_length"] == engine.cache_manager.get_seq_length() == CAP
    assert info["eviction_stats"]["total_tokens_evicted"] == sum(appended) - CAP
    # Every chunk that came when the stream was full, or filled it, evicted.
    assert info["eviction_stats"]["total_evictions"] == (sum(appended) - CAP + 31) // 32
    shape = engine.model.kv_shape
    a_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * 4
    assert info["cache_memory_gb"] == pytest.approx(CAP * a_token / 1024**3)


def test_a_question_leaves_the_stream_state_as_it_was(loaded):
    engine = engine_of(loaded)
    assert loaded[0].stream_state.last_cache_position == -1
    first = engine.append_video_chunk(chunk(), fps=2)["tokens"]
    before = engine.model.stream_state
    assert before.last_cache_position == first - 1
    # The text before the frames, then both grids from where they begin: 4 places on every axis,
    # and one more second. So the text after them is so much behind the number of tokens.
    head = first - 32
    assert before.rope_deltas == head + 4 - first
    answer, metrics = engine.ask("What?", 3, False, 1.0, update_state=False)
    assert isinstance(answer, str) and metrics["ttft"] > 0
    assert engine.ask_choice("What?", ["yes", "no"])[0] in ("yes", "no")
    assert engine.model.stream_state == before
    engine.ask("What?", 3, update_state=True)
    assert engine.model.stream_state.last_cache_position > before.last_cache_position
    engine.reset()
    assert engine.model.stream_state.last_cache_position == -1


def test_the_state_is_that_of_the_latest_engine_and_ends_with_it(loaded):
    one = engine_of(loaded)
    one.append_video_chunk(chunk(), fps=2)
    two = engine_of(loaded)
    assert loaded[0].stream_state.last_cache_position == -1
    two.append_frame(chunk()[0])
    assert loaded[0].stream_state.last_cache_position >= 16


def test_the_last_snapshot_needs_no_name(loaded):
    engine = engine_of(loaded, cap=10_000)
    manager = engine.cache_manager
    with pytest.raises(InvalidParameterError, match="a snapshot or a clone is restored, not 5"):
        manager.restore(5)
    with pytest.raises(InvalidParameterError, match="no snapshot"):
        manager.restore()
    engine.append_video_chunk(chunk(), fps=2)
    length = manager.get_seq_length()
    for take, restore in ((manager.snapshot, manager.restore),
                          (manager.take_snapshot, manager.restore_snapshot)):  # fmt: skip
        take()
        engine.append_video_chunk(chunk(1), fps=2)
        assert manager.get_seq_length() > length
        restore()
        assert manager.get_seq_length() == length
    older = manager.snapshot()
    manager.snapshot()
    manager.discard_snapshot(older)  # not the last one
    manager.restore()
    manager.discard_snapshot()
    with pytest.raises(InvalidParameterError, match="no snapshot"):
        manager.restore()
    copy = manager.clone()
    manager.clear()
    assert manager.get_seq_length() == 0
    with pytest.raises(SnapshotEvictedError):
        manager.restore(older)
    manager.restore(copy)
    assert manager.get_seq_length() == length
    assert manager.build_full_attention_mask(3).shape == (1, 1, 3, length + 3)


def test_a_manager_is_made_without_a_model_and_counts():
    manager = KVCacheManager(config=EvictionConfig(max_cache_tokens=100))
    assert manager.get_seq_length() == 0
    assert manager.track_tokens(30, is_new_chunk=True) == 0
    assert manager.evictor.effective_sink_size == 30
    manager.take_snapshot()
    assert manager.track_tokens(20, is_new_chunk=True) == 0
    assert manager.track_tokens(10, False) == 0
    assert (manager.get_seq_length(), manager.evictor._avg_chunk_tokens) == (60, 20)
    manager.restore_snapshot()
    assert (manager.get_seq_length(), manager.evictor._avg_chunk_tokens) == (30, 0)
    survivor = manager.clone()
    assert sum(manager.track_tokens(25, is_new_chunk=True) for _ in range(4)) == 30
    assert manager.get_seq_length() == 100
    manager.restore(survivor)
    assert manager.get_seq_length() == 30
    mask = KVCacheManager().build_full_attention_mask(2)
    assert mask[0, 0].eq(0).tolist() == [[True, False], [True, True]]


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=30))
def test_what_is_counted_without_a_model_is_never_more_than_the_cap(appends):
    manager = KVCacheManager(config=EvictionConfig(max_cache_tokens=100, sink_size=10))
    evicted = sum(manager.track_tokens(*append) for append in appends)
    total = sum(tokens for tokens, _ in appends)
    assert manager.get_seq_length() == min(total, 100)
    assert evicted == max(0, total - 100)


def test_the_manager_of_an_engine_counts_by_itself(loaded):
    with pytest.raises(InvalidParameterError, match="counts by itself"):
        engine_of(loaded).cache_manager.track_tokens(5, True)


def test_a_prompt_is_trimmed_to_its_vision_segment(loaded):
    engine = engine_of(loaded)
    config = engine.model.config
    start, end, pad = (
        config.vision_start_token_id, config.vision_end_token_id, config.video_token_id,
    )  # fmt: skip
    one = [1, 2, start, pad, pad, end, 3]
    trim = engine._extract_vision_segment
    assert trim(one) == [start, pad, pad, end]
    assert trim([1, start, pad, end, 2, start, pad, end, 3]) == [
        start, pad, end, 2, start, pad, end,
    ]  # fmt: skip
    assert trim([1, 2, 3]) == [1, 2, 3]
    assert trim([]) == []
    assert trim([1, end, 2, start, 3]) == [1, end, 2, start, 3]  # no segment that is complete
    assert trim(torch.tensor([one])).tolist() == [[start, pad, pad, end]]
    assert trim(torch.tensor(one)).tolist() == [start, pad, pad, end]


def test_the_processor_is_the_one_that_was_given_and_has_what_scripts_call(loaded):
    engine = engine_of(loaded)
    assert engine.processor is loaded[1]
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    text = engine.processor.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert "Hello" in text
    assert engine.processor.tokenizer(text)["input_ids"]
    with pytest.raises(InvalidParameterError, match=r"processor\.tokenizer"):
        engine.processor.apply_chat_template(messages, tokenize=True)
    bounded = AutoProcessor.from_pretrained(default_model(), max_pixels=56 * 56)
    assert bounded.image_settings.max_pixels == 56 * 56
    assert bounded.image_settings.min_pixels == loaded[1].image_settings.min_pixels


def test_it_says_that_it_evicts_where_the_sink_is_and_each_eviction(loaded, caplog):
    with caplog.at_level(logging.INFO, "stream_vlm_ros.engine"):
        engine = engine_of(loaded)
        assert f"eviction on: at most {CAP} tokens, sink auto, window auto" in caplog.text
        first = engine.append_video_chunk(chunk(), fps=2)["tokens"]
        assert f"sink found: the first {first} tokens stay; window {CAP - first}" in caplog.text
        caplog.clear()
        while not (gone := engine.append_video_chunk(chunk(), fps=2)["evicted_tokens"]):
            assert "eviction" not in caplog.text
        assert f"eviction 1: {gone} tokens forgotten" in caplog.text
        engine.append_video_chunk(chunk(), fps=2)
    assert [r.getMessage() for r in caplog.records if "forgotten" in r.getMessage()] == [
        f"eviction 1: {gone} tokens forgotten",
        "eviction 2: 32 tokens forgotten",
    ]


def test_results_have_the_prototype_s_keys(loaded):
    pytest.importorskip("stream_vlm_ros.engine.results", reason="results are not typed yet")
    engine = engine_of(loaded)
    engine.append_video_chunk(chunk(), fps=2)
    _, metrics = engine.ask("What?", 3)
    assert metrics["total_latency"] >= metrics["ttft"] > 0
    info = engine.get_cache_info()
    assert info["cache_memory_mb"] == pytest.approx(1024 * info["cache_memory_gb"])
