# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From parameters to an engine, and what is said when that cannot be."""

import numpy as np
import pytest
import torch

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine import load_checkpoint
from stream_vlm_ros.errors import (
    CalibrationError,
    CapTooSmallError,
    DeviceUnavailableError,
    InvalidParameterError,
    ModelLoadError,
    StreamVlmError,
)
from stream_vlm_ros.factory import build_engine, default_model
from stream_vlm_ros.history import FrameStore
from stream_vlm_ros.node.loading import engine_loader


def load_engine(settings):
    return engine_loader([settings])(settings)


def test_without_a_model_path_a_small_model_runs_with_the_node_s_settings():
    engine = load_engine(Settings(max_cache_tokens=500, max_pixels=56 * 56, device="cpu"))
    frames = [np.zeros((240, 320, 3), np.uint8)] * 2
    tokens = engine.append_video_chunk(frames, timestamps=[0.0, 0.5])["tokens"]
    assert tokens < 60  # 320x240 was reduced to at most 56x56 pixels: 4 tokens and the prompt
    answer, _ = engine.ask("What?", max_new_tokens=2)
    assert isinstance(answer, str)
    assert engine.get_cache_info()["max_cache_tokens"] == 500


def test_an_automatic_cap_is_settled_when_the_engine_is_loaded():
    """The small model's positions are 32,768, and a machine that runs tests has room for them."""
    engine = load_engine(Settings(max_cache_tokens=0, device="cpu"))
    assert engine.get_cache_info()["max_cache_tokens"] == 32768 - Settings().max_tail_tokens
    assert "max_cache_tokens 0: the model's context less a question" in engine.memory_plan


def test_the_room_for_chunks_while_an_answer_is_written_is_four_of_the_largest_or_as_given():
    # Two grids of at most 56x56 pixels, 4 tokens, and 16 for a user turn around the chunk.
    for given, cap, expected in ((-1, 500, 4 * (2 * 4 + 16)), (-1, 100, 50), (7, 500, 7)):
        parameters = Settings(
            max_cache_tokens=cap, max_pixels=56 * 56, device="cpu", fork_slack_tokens=given
        )
        assert load_engine(parameters).get_cache_info()["fork_slack_tokens"] == expected


def test_a_cap_smaller_than_one_chunk_is_an_error_in_words():
    engine = load_engine(Settings(max_cache_tokens=64, device="cpu"))
    with pytest.raises(CapTooSmallError, match="64"):
        frames = [np.zeros((480, 640, 3), np.uint8)] * 16  # of the small model 160 tokens
        engine.append_video_chunk(frames, timestamps=list(range(16)))


def test_the_delayed_engine_is_loaded_with_the_node_s_settings(tmp_path):
    parameters = Settings(
        engine="delayed_batch",
        device="cpu",
        keep_fps=2.0,
        max_sampled_frames=6,
        sampled_max_pixels=56 * 56,
        frame_store=str(tmp_path / "frames"),
        frame_store_megabytes=3,
        frame_store_hours=0.5,
    )
    engine = load_engine(parameters)
    stamps = [1_700_000_000.0 + k / 2 for k in range(10)]
    engine.append_video_chunk([np.zeros((240, 320, 3), np.uint8)] * 10, timestamps=stamps)
    _, metrics = engine.ask("What?", max_new_tokens=2)
    assert metrics["frames_used"] == 6  # three grids of at most 4 tokens each
    assert engine.visual_tokens <= 12
    store = engine.memory.store
    assert (len(store), store.max_bytes, store.max_seconds) == (10, 3 * 2**20, 1800.0)
    engine.close()
    again = load_engine(parameters)
    assert again.get_cache_info()["newest_timestamp"] == stamps[-1]
    again.close()


def test_the_engine_with_a_history_is_loaded_with_the_node_s_settings(tmp_path):
    parameters = Settings(
        history="always",
        device="cpu",
        max_cache_tokens=512,
        max_pixels=56 * 56,
        sampled_max_pixels=56 * 56,
        frame_store=str(tmp_path / "frames"),
        frame_store_megabytes=3,
        frame_store_hours=0.5,
        history_index_megabytes=2,
        history_feature_megabytes=1,
        history_max_tokens=200,
    )
    engine = load_engine(parameters)
    stamps = [1_700_000_000.0 + k / 2 for k in range(10)]
    engine.append_video_chunk([np.zeros((240, 320, 3), np.uint8)] * 10, timestamps=stamps)
    info = engine.get_cache_info()
    pictures, features, keys = info.tiers
    assert (info.max_cache_tokens, engine.history) == (512, "always")
    assert (pictures.frames, pictures.max_bytes, pictures.where) == (
        10,
        3 * 2**20,
        str(tmp_path / "frames"),
    )
    assert (keys.grids, keys.max_bytes) == (5, 2 * 2**20)
    assert (features.grids, features.max_bytes) == (5, 2**20)
    assert (pictures.oldest, keys.newest) == (stamps[0], stamps[-1])
    assert engine.keeps_source_time
    engine.close()
    again = load_engine(parameters)
    told = again.get_cache_info()
    assert told.newest_timestamp is None  # the memory is empty
    # Features are the process's own.
    assert [tier.newest for tier in told.tiers] == [stamps[-1], None, stamps[-1]]
    again.close()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"history": "auto", "history_calibration": "/nowhere.json"}, CalibrationError, "nowhere"),
        ({"history": "auto", "sampled_max_pixels": 784}, InvalidParameterError, "min_pixels"),
        ({"history": "auto", "question_path": "graph"}, InvalidParameterError, "CUDA"),
        ({"engine": "delayed_batch", "question_path": "graph"}, InvalidParameterError, "CUDA"),
        ({"engine": "delayed_batch", "sampled_max_pixels": 784}, InvalidParameterError, "min_pix"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_cannot_be_loaded_is_told_and_the_folder_is_given_back(
    tmp_path, settings, error, words
):
    folder = tmp_path / "frames"
    with pytest.raises(error, match=words) as held:  # and with it what was begun
        load_engine(Settings(device="cpu", frame_store=str(folder), **settings))
    with FrameStore(folder) as store:
        assert len(store) == 0
    del held


@pytest.mark.parametrize("engine", ["streaming", "delayed_batch"])
def test_questions_run_as_question_path_says(engine):
    for path, taken in (("auto", "eager"), ("eager", "eager"), ("static", "static")):
        parameters = Settings(engine=engine, device="cpu", question_path=path)
        assert load_engine(parameters).warm_up()["path"] == taken
    with pytest.raises(InvalidParameterError, match="question_path 'graph' needs a CUDA GPU"):
        load_engine(Settings(engine=engine, device="cpu", question_path="graph"))


@pytest.mark.parametrize("engine", ["streaming", "delayed_batch"])
def test_chunks_are_compiled_as_compile_chunks_says(engine):
    """On a CPU: "auto" and "never" are not, "always" is refused."""
    checkpoint = load_checkpoint(default_model(), "cpu")
    with pytest.raises(InvalidParameterError, match="compile is for a GPU"):
        build_engine(Settings(engine=engine, compile_chunks="always"), checkpoint)
    for wanted in ("auto", "never"):
        built = build_engine(Settings(engine=engine, compile_chunks=wanted), checkpoint)
        assert built.model is checkpoint.network
        if engine == "streaming":
            assert built.functions is checkpoint.network.functions


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_missing_or_incomplete_folder_is_an_error_in_words(tmp_path, content):
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=str(folder)):
        load_engine(Settings(model_path=str(folder), device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_that_is_not_there_is_an_error_in_words():
    for name in ("cuda", "cuda:3"):
        with pytest.raises(DeviceUnavailableError, match="set device to 'auto' or 'cpu'"):
            load_engine(Settings(device=name))


def test_the_number_format_is_the_one_asked_for():
    engine = load_engine(Settings(device="cpu", dtype="bfloat16"))
    assert engine.model.dtype is torch.bfloat16


def test_every_refusal_has_a_code():
    with pytest.raises(StreamVlmError) as refusal:
        load_engine(Settings(model_path="/nowhere"))
    assert refusal.value.code == "MODEL_LOAD"
