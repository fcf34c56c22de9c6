# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Sweeps, the delayed batch log, time order and endurance: what they find, and how each fails."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from stream_vlm_ros.experiments import caps, delayed_batch, endurance, time_order
from stream_vlm_ros.experiments.command import main
from stream_vlm_ros.experiments.context import Context
from stream_vlm_ros.experiments.pictures import WorldPictures, later_world, open_pictures
from stream_vlm_ros.sources import open_source

GRID = 12  # tokens: 4 x 3


@pytest.fixture
def run(tmp_path):
    def call(name, *arguments):
        small = ["--shape", "toy", "--device", "cpu", "--source", "synthetic:112x84"]
        status = main([name, *small, "--out", str(tmp_path), *map(str, arguments)])
        return status, json.loads((tmp_path / f"{name}.json").read_text())

    return call


@pytest.fixture
def sink_and_window(monkeypatch):
    """A memory token-exact, as in the reference."""
    engine = Context.engine
    alone = {"sampled_share": 0.0, "important_share": 0.0}
    monkeypatch.setattr(Context, "engine", lambda *given, **more: engine(*given, **alone, **more))


def failed(found):
    return [entry["name"] for entry in found["criteria"] if entry["passed"] is False]


def test_three_frames_cost_what_four_cost(run):
    status, found = run("chunk-size", "--seconds", 6, "--layout", "segmented")
    assert (status, failed(found)) == (0, [])
    assert "3 frames are padded to 4" in [entry["name"] for entry in found["criteria"]]
    growth = {name: one["later_tokens"] for name, one in found["summary"].items()}
    assert growth == {
        "chunk_2": GRID + 7, "chunk_4": 2 * GRID + 7, "chunk_6": 3 * GRID + 7,
        "chunk_3": 2 * GRID + 7,
    }  # fmt: skip


def test_a_chunk_that_takes_other_tokens_than_its_pictures_fails(run, monkeypatch):
    whole = Context.append

    def shorter(self, engine, pictures, frames, what):
        for row in whole(self, engine, pictures, frames, what):
            yield {**row, "tokens": row["tokens"] - (frames == 3)}

    monkeypatch.setattr(Context, "append", shorter)
    status, found = run("chunk-size", "--seconds", 6, "--chunk-frames", 4, 3)
    assert status == 1
    assert failed(found) == ["3 frames a chunk: tokens as expected", "3 frames are padded to 4"]


def test_curves_go_over_rate_chunk_and_length_with_every_sample(run):
    status, found = run(
        "curves", "--rates", 1, 4, "--chunk-frames", 2, 4, "--lengths", 4, 8, "--seconds", 4,
        "--repeats", 3,
    )  # fmt: skip
    assert (status, failed(found)) == (0, [])
    assert [*found["summary"]] == [
        "rate_1", "rate_4", "chunk_2", "chunk_4", "length_4", "length_8",
    ]  # fmt: skip
    samples = [row for row in found["rows"] if "sample" in row["run"]]
    assert [row["frames"] for row in samples] == 3 * [4] + 3 * [16] + 9 * [8] + 3 * [16]
    for point in found["summary"].values():
        ttft = point["ttft"]
        assert ttft["samples"] == 3 and 0 < ttft["low"] <= ttft["median"] <= ttft["high"]
        assert point["right"] is None  # random weights
    assert found["notes"][-1].startswith("Answers were not judged")


def test_each_repeat_of_a_drawn_world_is_another_one_and_is_judged(tmp_path):
    small = ["--device", "cpu", "--source", "world:1000003", "--out", str(tmp_path)]
    assert main(["chunk-size", *small, "--chunk-frames", "4", "--repeats", "2"]) == 0
    found = json.loads((tmp_path / "chunk-size.json").read_text())
    right = found["summary"]["chunk_4"]["right"]
    assert right["samples"] == 2 and right["low"] > 0.8  # 12 s are within what it was trained for
    worlds = [open_pictures(later_world("world:1000003", seeds), 2, 2, None, None).world.seed
              for seeds in range(2)]  # fmt: skip
    assert worlds == [1_000_003, 1_000_004]
    assert later_world("synthetic", 3) == "synthetic"


@pytest.mark.parametrize(("spec", "seed"), [("world:7", 7), ("world:", 0), ("world:-1", -1)])
def test_a_drawn_world_is_known_by_every_name_that_a_source_has(spec, seed):
    pictures = open_pictures(spec, 2, 3, None, None)
    theirs = open_source(spec, fps=2, end=1.4)
    assert pictures.world.seed == theirs.seed == seed  # whose truth is known
    for (ours, _), frame in zip(pictures, theirs, strict=True):
        np.testing.assert_array_equal(ours, frame.image)


FEW_CAPS = ["--frames", 24, "--layout", "continuous", "--max-new-tokens", 2]


@pytest.mark.parametrize("frames", [24, 26])  # the last chunk whole, or half of one
def test_a_sweep_of_caps_tells_what_each_window_holds(run, sink_and_window, frames):
    few = [*FEW_CAPS, "--frames", frames]
    status, found = run("caps", "--caps", 100, 150, 100, *few)  # one stands there twice
    assert (status, failed(found)) == (0, [])
    # The sink has 15 + 2 grids; a chunk of 4 frames 2 grids.
    assert found["summary"]["cap_100"]["window_chunks"] == (100 - 15 - 2 * GRID) // (2 * GRID)
    assert found["summary"]["cap_150"]["window_chunks"] == (150 - 15 - 2 * GRID) // (2 * GRID)
    assert found["summary"]["cap_150"]["ttft"]["samples"] == 5


def test_caps_that_a_stream_would_not_reach_are_made_smaller_and_that_is_said(run):
    status, found = run("caps", *FEW_CAPS[2:], "--frames", 80)
    assert (status, failed(found)) == (0, [])
    stream = 15 + 40 * GRID  # 70 % of it is the largest cap
    caps = [round(0.7 * stream * cap / 150_000) for cap in (50_000, 100_000, 130_000, 150_000)]
    assert [one["cap"] for one in found["summary"].values()] == caps
    assert all(one["reached"] for one in found["summary"].values())
    assert any(f"The stream has {stream} tokens" in note for note in found["notes"])
    assert found["memory"]["keeps"] == "the preset novelty"  # what the capped engines do


def test_caps_that_the_stream_does_not_reach_compare_nothing(run):
    status, found = run("caps", "--caps", 100, 5000, 6000, *FEW_CAPS)
    assert status == 1
    assert failed(found) == ["caps are compared that the stream reaches"]
    assert [one["reached"] for one in found["summary"].values()] == [True, False, False]


def test_a_cap_of_0_is_judged_against_the_cap_that_was_chosen(run):
    status, found = run("caps", "--caps", 100, 150, 0, *FEW_CAPS)
    assert (status, failed(found)) == (0, [])
    chosen = [one["cap"] for one in found["summary"].values() if one["as_large_as_fits"]]
    assert len(chosen) == 1 and chosen[0] > 150
    assert f"{chosen[0]:,}: never longer than the cap" in [one["name"] for one in found["criteria"]]
    # Alone it is compared with nothing, and is not to be reached.
    status, found = run("caps", "--caps", 0, *FEW_CAPS)
    assert status == 0
    (reached,) = (one for one in found["criteria"] if one["name"].endswith("the stream reaches"))
    assert reached["passed"] is None


def test_a_memory_that_is_longer_not_full_or_no_larger_fails(run, sink_and_window, monkeypatch):
    whole = Context.append

    def off(self, engine, pictures, frames, what):
        by = {"cap 100": 1, "cap 150": -30}[what]
        for row in whole(self, engine, pictures, frames, what):
            yield {**row, "length": row["length"] + by}

    monkeypatch.setattr(Context, "append", off)
    monkeypatch.setattr(caps, "one_run", same_room(caps.one_run))
    status, found = run("caps", "--caps", 100, 150, *FEW_CAPS)
    assert status == 1
    assert failed(found) == [
        "100: never longer than the cap",
        "100: the memory is full, or holds all",
        "150: the memory is full, or holds all",
        "a larger cap takes more memory",
    ]


def same_room(one_run):
    return lambda *given: {**one_run(*given), "reserved_gib": 1.0}


def test_the_delayed_batch_log_comes_out_in_four_stages(run):
    status, found = run("delayed-batch", "--asks", 2, "--max-new-tokens", 3)
    assert (status, failed(found)) == (0, [])
    first, later = found["summary"]["first"], found["summary"]["later"]
    # The reference's log of 50 s at 1 frame/s, and of ten more.
    assert (first["frames_added"], first["sampled_frames"]) == (50, 48)
    assert (round(first["second_per_grid_t"], 4), first["real_span"]) == (2.0417, 49.0)
    assert (round(later["second_per_grid_t"], 4), later["real_span"]) == (2.4583, 59.0)
    assert (first["encode_count"], later["encode_count"]) == (1, 2)
    assert first["visual_tokens"] == 24 * GRID
    assert found["memory"]["as"] == "the product"
    # A toy's figures do not stand beside the reference's without a remark.
    (remark,) = (note for note in found["notes"] if "not to be compared" in note)
    assert remark.endswith(
        "source 112x84 (the reference: 1920x1080), visual tokens 288 (the reference: 64584)."
    )


def test_answers_of_the_delayed_engine_are_judged_on_the_small_models_world(tmp_path, monkeypatch):
    def run(source):
        few = ["--device", "cpu", "--source", source, "--max-new-tokens", "24"]
        status = main(["delayed-batch", *few, "--out", str(tmp_path)])
        return status, json.loads((tmp_path / "delayed-batch.json").read_text())

    status, found = run("world:8")
    assert (status, found["summary"]["right"]) == (0, "5 of 5")
    status, found = run("world:5")  # where at both moments a thing has just come or gone
    assert (status, found["summary"]["right"]) == (0, None)
    (note,) = (note for note in found["notes"] if note.startswith("Answers were not judged"))
    assert "something had just come or gone" in note
    whole = WorldPictures.__iter__
    monkeypatch.setattr(
        WorldPictures, "__iter__", lambda self: ((np.zeros_like(p), t) for p, t in whole(self))
    )
    status, found = run("world:8")
    right = "right answers: the small model of the package about world:8"
    assert (status, failed(found)) == (1, [right])


def test_what_the_delayed_engine_must_hold_fails_where_it_does_not(run, monkeypatch):
    metadata = delayed_batch.DelayedBatchInferenceEngine.sampling_metadata

    def off(engine):
        found = metadata.fget(engine)
        wrong = {"frames_added": found["original_frames"] - 1, "temporal_grids": 1}
        return {**found, **wrong, "real_span": 1.0, "second_per_grid_t": 1.0}

    engine = delayed_batch.DelayedBatchInferenceEngine
    monkeypatch.setattr(engine, "sampling_metadata", property(off))
    monkeypatch.setattr(engine, "ask", forgetful(engine.ask))
    ask = delayed_batch.Stages.ask
    alike = lambda *given: {**ask(*given), "latency": [1.0]}  # noqa: E731
    monkeypatch.setattr(delayed_batch.Stages, "ask", alike)
    status, found = run("delayed-batch", "--frames", 6, "--more", 2, "--max-new-tokens", 2)
    assert status == 1
    assert failed(found) == [one["name"] for one in found["criteria"]]


def forgetful(ask):
    """Every question finds all encoded at another bound on pixels, so nothing of use."""
    bounds = itertools.cycle([100_352, 100_351])

    def again(self, *given):
        self.limit_pixels(next(bounds))
        return ask(self, *given)

    return again


def test_what_came_last_is_judged_with_the_trained_model(tmp_path, monkeypatch):
    def some(new_engine, size, step):
        return {"right": 55, "asked": 56, "wrong": [["red", "blue", "ring", "a red ring"]]}

    monkeypatch.setattr(time_order, "colour_pairs", some)
    small = ["time-order", "--device", "cpu", "--out", str(tmp_path)]
    assert main(small) == 1
    found = json.loads((tmp_path / "time-order.json").read_text())
    assert failed(found) == ["red, then blue: the blue one came last"]
    assert main([*small, "--min-right", "99"]) == 1
    found = json.loads((tmp_path / "time-order.json").read_text())
    assert "of all pairs the second came last" in failed(found)
    assert main([*small, "--shape", "toy"]) == 0  # random weights: not judged


@pytest.mark.parametrize("run_as", ["reference", "product"])
def test_what_came_last_is_asked_of_the_memory_that_the_report_names(tmp_path, monkeypatch, run_as):
    layouts = []

    def one(new_engine, size, step):
        layouts.append(new_engine().layout)
        return {"right": 56, "asked": 56, "wrong": []}

    monkeypatch.setattr(time_order, "colour_pairs", one)
    small = ["time-order", "--shape", "toy", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*small, "--as", run_as]) == 0
    found = json.loads((tmp_path / "time-order.json").read_text())
    assert found["memory"]["as"] == f"the {run_as}"
    layout = {"reference": "segmented", "product": "continuous"}[run_as]
    assert [found["memory"]["layout"], *layouts] == 2 * [layout]


SHORT = ["--chunks", 60, "--young", 30, "--stretch", 2, "--turns", 3]
SHORT += ["--max-ratio", 1e9, "--max-mib", 1e9]  # times and memory are not the point here


def test_memory_that_grows_and_time_that_rises_fail(run):
    status, found = run(
        "endurance", "--chunks", 20, "--young", 4, "--stretch", 2, "--turns", 2, "--cap", 500,
        "--levels", "level 1", "--positions", "contiguous", "--max-mib", -1e9, "--max-ratio", 0,
    )  # fmt: skip
    assert status == 1
    assert failed(found) == [
        "level 1, contiguous: the young stream's memory is full",
        "level 1, contiguous: memory flat from chunk 4 to 16",
        "level 1, contiguous: time a chunk flat",
    ]


def test_a_stream_that_is_longer_than_its_cap_fails(run, monkeypatch):
    append = endurance.append
    longer = lambda *given: replace(append(*given), cache_length=301)  # noqa: E731
    monkeypatch.setattr(endurance, "append", longer)
    few = ["--levels", "level 1", "--positions", "contiguous"]
    status, found = run("endurance", *SHORT, *few)
    assert (status, failed(found)) == (1, ["level 1, contiguous: never longer than the cap"])


def test_a_policy_of_ones_own_is_compared_by_its_name(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_policies.py").write_text(
        "import numpy as np\n"
        "class Oldest:\n"
        "    def describe(self, features): return features.float().mean((0, 1)).numpy()\n"
        "    def rank(self, descriptors): return -np.arange(len(descriptors))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    few = ["--max-pixels", 16_800, "--videos", 1, "--seconds", 160, "--caps", 0.5, "--moments", 1,
           "--each", 1, "--layouts", "continuous", "--positions", "keep_gaps"]  # fmt: skip
    few.append("--policies")
    status, found = run("policies", *few, "sink + window", "own_policies:Oldest")
    assert (status, len(found["rows"])) == (0, 2)
    assert {row["policy"]: "important" in row["grids_by_level"] for row in found["rows"]} == {
        "sink + window": False, "own_policies:Oldest": True,
    }  # fmt: skip
    for wrong, says in (
        ("best", "There is no policy 'best': there are 'last 4 frames'"),
        ("own_policies:Newest", "the module has no 'Newest'"),
    ):
        status, found = run("policies", *few, wrong)
        assert status == 2 and says in capsys.readouterr().err
        assert len(found["rows"]) == 2  # what was measured stays
