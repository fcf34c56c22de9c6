# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the engines return: attributes for us, the reference's keys for its scripts."""

import copy
import dataclasses
import json
import pickle

import pytest
from fake_engine import answer_metrics, cache_info

from stream_vlm_ros.engine import EvidenceEpisode, VideoStreamingInference


def test_a_result_is_read_by_attribute_and_by_key():
    metrics = answer_metrics(answer_tokens=3, time_spans=[(1.0, 2.5), (4.0, 9.0)])
    assert metrics.ttft == metrics["ttft"] == 0.25
    assert metrics["total_latency"] == metrics["latency"] == metrics.latency == 0.5
    assert metrics["output_tokens"] == metrics.answer_tokens == 3
    assert (metrics["oldest_timestamp"], metrics.newest_timestamp) == (1.0, 9.0)


def test_a_name_that_is_not_there_is_an_error_and_no_plausible_value():
    metrics = answer_metrics()
    with pytest.raises(KeyError, match="has no 'tfft'; it has cache_length"):
        metrics["tfft"]
    with pytest.raises(AttributeError):
        metrics.tfft  # noqa: B018 (asked for on purpose)


def test_the_references_keys_are_no_second_copy_of_a_value():
    metrics = answer_metrics()
    assert "total_latency" in metrics and "total_latency" not in list(metrics)
    assert {**metrics} == dict(metrics.items())


def test_a_result_cannot_be_changed():
    metrics = answer_metrics()
    before = dict(metrics)
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics.latency = 0.0
    for change in (
        lambda: metrics.__setitem__("latency", 0.0),
        lambda: metrics.__delitem__("latency"),
        lambda: metrics.__ior__({"latency": 0.0}),
        lambda: metrics.update(latency=0.0),
        lambda: metrics.setdefault("more", 0.0),
        lambda: metrics.pop("latency"),
        metrics.popitem,
        metrics.clear,
    ):
        with pytest.raises(TypeError, match="AnswerMetrics cannot be changed"):
            change()
    assert dict(metrics) == before


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_a_copy_of_a_result_is_one_too(copied):
    metrics = answer_metrics(answer_tokens=3, time_spans=[(1.0, 2.5)])
    twin = copied(metrics)
    assert type(twin) is type(metrics) and twin == metrics == dict(metrics)
    assert twin.answer_tokens == twin["output_tokens"] == 3 and twin.newest_timestamp == 2.5
    changed = dataclasses.replace(twin, answer_tokens=4)
    assert changed["answer_tokens"] == changed.get("output_tokens") == 4


def test_a_key_with_a_default_is_found_by_the_references_name_too():
    metrics = answer_metrics()
    assert metrics.get("total_latency") == metrics.latency
    assert metrics.get("tfft", "none") == "none" and metrics.get("tfft") is None


@pytest.mark.parametrize("options", [{}, {"indent": 2}])  # written by C, and by Python
def test_a_script_writes_results_as_json_without_asking_for_a_dictionary(
    toys, model, processor, options
):
    engine = VideoStreamingInference(model, processor)
    chunk = engine.append_video_chunk(toys.frames(4), fps=2)
    _, metrics = engine.ask("What do you see?", 2)
    info = engine.get_cache_info()
    results = (
        chunk,
        metrics,
        info,
        info["eviction_stats"],
        info.levels["window"],
        engine.warm_up(),
    )
    for result in results:
        assert json.dumps(result, **options) == json.dumps(result.as_dict(), **options)
    assert json.loads(json.dumps({"after": [info]}))["after"][0]["oldest_timestamp"] == 0.0


def test_a_result_is_json_all_the_way_down(toys, model, processor):
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(4), fps=2)
    info = engine.get_cache_info()
    told = json.loads(json.dumps(info.as_dict()))
    assert [level["frames"] for level in told["levels"].values()] == [4]
    assert told["time_spans"] == [[0.0, 1.5]]
    assert told["eviction_stats"] == {"total_evictions": 0, "total_tokens_evicted": 0}


def test_the_memory_is_told_in_the_references_units():
    info = cache_info(length=3 * 2**20)  # a hundred bytes a token
    assert info["cache_memory_mb"] == 300 and info["cache_memory_gb"] == 300 / 1024


def test_an_empty_memory_has_neither_oldest_nor_newest_time():
    assert cache_info().oldest_timestamp is None and cache_info()["newest_timestamp"] is None


def test_an_answer_names_the_episodes_it_rests_on_down_to_json():
    cup = EvidenceEpisode(start=3.0, end=5.5, score=2.5, tier="history", stamps=(3.0, 4.0, 5.5))
    metrics = answer_metrics(episodes=(cup,))
    assert metrics.episodes[0].stamps[-1] == metrics["episodes"][0]["end"] == 5.5
    assert json.loads(json.dumps(metrics.as_dict()))["episodes"] == [
        {"start": 3.0, "end": 5.5, "score": 2.5, "tier": "history", "stamps": [3.0, 4.0, 5.5]}
    ]


def test_an_answer_of_the_memory_alone_names_no_episode_and_fetched_nothing():
    metrics = answer_metrics()
    assert metrics.episodes == () and metrics.fetched_tokens == 0
    assert metrics.search_latency == metrics.fetch_latency == 0.0


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, ()), (1, (3,)), (2, (1, 5)), (3, (1, 3, 5)), (5, (1, 2, 3, 4, 5)), (6, (1, 2, 3, 4, 5))],
)
def test_frames_that_stand_for_an_episode_are_spread_over_it(count, chosen):
    seen = EvidenceEpisode(start=1, end=5, score=1.0, tier="memory", stamps=(1, 2, 3, 4, 5))
    assert seen.spread(count) == chosen
