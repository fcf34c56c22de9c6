# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The reference's experiments at toy size: what they find, and that each criterion can fail."""

from functools import partial

import numpy as np
import pytest
import torch
from experiment_runs import GRID, SMALL, failed, run_experiment
from PIL import Image

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.engine.cache.buffer import KVShape
from stream_vlm_ros.engine.cache.eviction import KVCacheEvictor
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.experiments import EXPERIMENTS, native
from stream_vlm_ros.experiments.answers import merge
from stream_vlm_ros.experiments.command import main
from stream_vlm_ros.experiments.context import Context
from stream_vlm_ros.experiments.expected_counts import Prediction, lengthened_system_prompt
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest
from stream_vlm_ros.experiments.options import parser_of, settle
from stream_vlm_ros.experiments.peak_memory import PeakMemory
from stream_vlm_ros.experiments.periodic import READ
from stream_vlm_ros.experiments.pictures import Halved, SyntheticPictures, WorldPictures
from stream_vlm_ros.experiments.reference import FIRST_TEXT
from stream_vlm_ros.experiments.shapes import words_processor
from stream_vlm_ros.world.questions import NOT_SEEN, NOT_UNDERSTOOD, NOTHING

ON_ITS_WORLD = ["--device", "cpu", "--source", "world:7", "--fps", 1]
REMARK = "not to be compared with these: parameters 420064 (the reference: 3754622976)"


@pytest.fixture
def run(tmp_path):
    return partial(run_experiment, tmp_path)


def criterion(found, name):
    return next(entry for entry in found["criteria"] if name in entry["name"])


# -- as the reference or as the product ------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_references_runs_are_as_the_reference_and_all_others_as_the_product(name):
    product = Settings()
    names = ("layout", "position_policy", "sampled_share", "important_share")
    runs = [([], name in ("sink", "long-video", "periodic"))]
    if name not in ("policies", "history", "endurance"):  # which compare several memories
        runs += [(["--as", "reference"], True), (["--as", "product"], False)]
    for given, as_reference in runs:
        options = parser_of(name).parse_args(given)
        settle(options)
        found = [getattr(options, one) for one in names]
        if as_reference:
            assert found == ["segmented", "keep_gaps", 0.0, 0.0]
        else:
            assert found == [getattr(product, one) for one in names]


def test_an_option_goes_before_what_it_is_run_as_and_the_report_says_both(run):
    _, found = run("sink", "--layout", "continuous", "--first-text", 0, "--min-sink", 1)
    assert found["memory"] == {
        "as": "the reference", "layout": "continuous", "positions": "keep_gaps",
        "keeps": "sink and window alone",
    }  # fmt: skip
    assert found["summary"]["sink_of_2_frames"] == 15 + GRID
    status, found = run("sink", "--as", "product", "--min-sink", 1)
    assert (status, found["memory"]["keeps"]) == (0, "the preset novelty")
    _, found = run("native", "--frames", 4, "--max-new-tokens", 1)
    assert found["memory"]["keeps"] == "all"


def test_24_frames_at_1280x720_are_the_references_14419_tokens():
    words = words_processor()
    system = lengthened_system_prompt(words, FIRST_TEXT["native"])
    found = Prediction.of(words, (1280, 720), 24, 4, 10**9, "segmented", system)
    assert sum(found.chunks) == 14_419


@pytest.fixture
def as_many_as_200_fit(monkeypatch):
    """Of a cap of 0 the engine makes one of 200 tokens."""
    made = ModelUnderTest.engine
    monkeypatch.setattr(
        ModelUnderTest,
        "engine",
        lambda self, cap, **more: made(self, 200 if cap == 0 else cap, **more),
    )


@pytest.mark.usefixtures("as_many_as_200_fit")
def test_a_run_with_a_cap_of_0_is_held_against_the_cap_that_the_engine_chose(run):
    few = ["--cap", 0, "--max-new-tokens", 2]
    status, found = run("long-video", "--frames", 40, *few)
    assert (status, failed(found)) == (0, [])
    assert criterion(found, "never longer than the cap")["wanted"] == "<= 200"
    # 53 + 24 tokens, then 31 a chunk: 10 chunks are 356.
    assert found["summary"]["tokens evicted"] == 356 - 200
    assert "The cap is as large as fits: 200 tokens." in found["notes"]
    status, found = run("sink", "--chunks", 2, "--min-sink", 1, "--cap", 0)
    assert (status, failed(found)) == (0, [])
    assert criterion(found, "4 frames: the window is the rest")["wanted"] == str(200 - 77)
    status, found = run("curves", "--seconds", 16, "--over", "chunk", "--cap", 0)
    assert (status, failed(found)) == (0, [])
    status, found = run("periodic", "--frames", 40, "--every", 5, *few, "--remedies")
    assert (status, failed(found)) == (0, [])
    assert found["summary"]["as asked"]["evicted"] == 356 - 200
    assert "twice the cap" not in found["summary"]  # it would not fit


# -- A: the sink -----------------------------------------------------------------------------------


def test_the_sink_is_found_whatever_the_chunk(run):
    status, found = run("sink", "--min-sink", 20)
    assert (status, failed(found)) == (0, [])
    # The reference's first chunk has 53 text tokens; 2 frames are one grid.
    assert found["summary"] == {"sink_of_2_frames": 53 + GRID, "sink_of_4_frames": 53 + 2 * GRID}
    assert found["model"]["weights"].startswith("random")


@pytest.fixture
def video(tmp_path):
    """13 pictures of 112x84 in a folder, at 2 a second."""
    folder = tmp_path / "video"
    folder.mkdir()
    for index in range(13):
        Image.new("RGB", (112, 84), (20 * index, 0, 0)).save(folder / f"{index / 2}.png")
    return ["--source", folder]


def test_a_sink_is_found_though_the_video_ends_within_a_chunk(run, video):
    status, found = run("sink", "--min-sink", 20, *video)
    assert (status, failed(found)) == (0, [])
    # 4, 4, 4 and 1 frames: the last is padded to 2.
    tokens = [row["tokens"] for row in found["rows"] if row["run"] == "4 frames a chunk"]
    assert tokens == [53 + 2 * GRID, 7 + 2 * GRID, 7 + 2 * GRID, 7 + GRID]
    assert "The source has 13 frames at 2 frames/s, of 20 asked for." in found["notes"]


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("sink", ["--chunks", 1], "2 frames are one chunk of 2, and two are needed"),
        ("caps", [], "too few to compare 4 caps"),
        ("delayed-batch", ["--fps", 2], "it has 13 frames at 2 frames/s, and 60 are needed"),
        ("endurance", ["--chunks", 61, "--young", 30, "--stretch", 2, "--turns", 3],
         "it has 13 frames at 2 frames/s, and 122 are needed"),
    ],
)  # fmt: skip
def test_a_video_too_short_for_a_run_is_refused_before_it_is_streamed(
    tmp_path, monkeypatch, capsys, video, name, arguments, says
):
    monkeypatch.setattr(
        VideoStreamingInference,
        "append_video_chunk",
        lambda *given, **more: pytest.fail("streamed"),
    )
    given = [name, *SMALL, *video, *arguments, "--out", tmp_path / "out"]
    assert main([*map(str, given)]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["long-video", "native", "curves"])
def test_a_source_that_ends_before_the_length_asked_for_is_told_so(run, video, name):
    _, found = run(name, "--max-new-tokens" if name != "curves" else "--repeats", 1, *video)
    assert any(note.startswith("The source has 13 frames at 2 frames/s") for note in found["notes"])


def test_caps_are_made_for_the_frames_that_a_video_has(run, video):
    status, found = run(
        "caps", "--as", "reference", "--max-new-tokens", 1, *video, "--chunk-frames", 1
    )
    assert (status, failed(found)) == (0, [])
    stream = 13 * (7 + GRID) + 18 - 7
    assert any(f"The stream has {stream} tokens" in note for note in found["notes"])
    assert "The source has 13 frames at 2 frames/s, of 160 asked for." in found["notes"]


def shown_smaller(monkeypatch):
    """Pictures of another size than they are said to have: another count of tokens."""
    whole = SyntheticPictures.__iter__
    monkeypatch.setattr(
        SyntheticPictures, "__iter__", lambda self: ((p[:56, :56], t) for p, t in whole(self))
    )


def one_off(name):
    def patch(monkeypatch):
        value = getattr(KVCacheEvictor, name).fget
        monkeypatch.setattr(KVCacheEvictor, name, property(lambda self: value(self) + 11))

    return patch


@pytest.mark.parametrize(
    ("patch", "options", "expected"),
    [
        (one_off("effective_sink_size"), [], "the sink is the first chunk"),
        (one_off("effective_window_size"), [], "the window is the rest"),
        (one_off("avg_chunk_tokens"), [], "mean tokens a chunk"),
        (shown_smaller, [], "tokens as expected from the picture size"),
        (None, ["--chunk-frames", 3, 4], "chunk sizes give different sinks"),
        (None, ["--min-sink", 1000], "sinks are large"),
    ],
)
def test_each_criterion_of_the_sink_can_fail(run, monkeypatch, patch, options, expected):
    if patch:
        patch(monkeypatch)
    status, found = run("sink", "--chunks", 2, "--min-sink", 1, *options)
    assert (status, found["status"]) == (1, "failed")
    assert any(name.endswith(expected) for name in failed(found))


# -- B: a long video -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["segmented", "continuous"])
def test_a_long_video_comes_out_to_the_token(run, layout):
    status, found = run(
        "long-video", "--frames", 62, "--cap", 200, "--layout", layout, "--max-new-tokens", 3,
        "--first-text", 0,
    )  # fmt: skip
    assert (status, failed(found)) == (0, [])
    later = 2 * GRID + (7 if layout == "segmented" else 0)
    first = 2 * GRID + (18 if layout == "segmented" else 15)
    last = GRID + (7 if layout == "segmented" else 0)  # 62 frames are 15 chunks of 4 and one of 2
    total = first + 14 * later + last
    assert any(REMARK in note for note in found["notes"])
    summary = found["summary"]
    assert summary["tokens evicted"] == total - 200
    assert summary["tokens a later chunk"] == later
    assert summary["first eviction at chunk"] == 2 + (200 - first) // later
    assert summary["length at the end"] == 200


def test_as_the_product_a_long_video_keeps_whole_frames_below_the_cap(run):
    status, found = run("long-video", "--frames", 120, "--cap", 640, "--as", "product")
    assert (status, failed(found)) == (0, [])
    assert criterion(found, "tokens of every chunk as expected")["found"] == "30 of 30 chunks"


def evicting_one_more(monkeypatch):
    due = KVCacheEvictor.due
    monkeypatch.setattr(
        KVCacheEvictor, "due", lambda self, *a, **k: (lost := due(self, *a, **k)) + (lost > 0)
    )


def ending_early(monkeypatch):
    whole = SyntheticPictures.chunks
    monkeypatch.setattr(SyntheticPictures, "chunks", lambda self, size: [*whole(self, size)][:-1])


def larger_cap(monkeypatch):
    made = Context.engine
    monkeypatch.setattr(Context, "engine", lambda self, cap, **more: made(self, cap + 50, **more))


def smaller_cap(monkeypatch):
    made = Context.engine
    monkeypatch.setattr(Context, "engine", lambda self, cap, **more: made(self, cap - 50, **more))


def no_cap(monkeypatch):
    made = Context.engine
    monkeypatch.setattr(Context, "engine", lambda self, cap, **more: made(self, None, **more))
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)


def asking_for_good(monkeypatch):
    """A question that stays in the stream."""
    asked = VideoStreamingInference.ask
    monkeypatch.setattr(
        VideoStreamingInference,
        "ask",
        lambda *given, **more: asked(*given, **more, update_state=True),
    )


@pytest.mark.parametrize(
    ("patch", "options", "expected"),
    [
        (evicting_one_more, [], {"tokens, evictions and lengths of every chunk as expected"}),
        (shown_smaller, ["--as", "product"], {"tokens of every chunk as expected"}),
        (ending_early, [], {"all chunks processed"}),
        (smaller_cap, ["--frames", 16], {"no evictions: all fits"}),
        (larger_cap, [], {"never longer than the cap"}),
        (no_cap, [], {"evictions", "the memory was taken up front (but for one chunk's tail)"}),
        (one_off("total_evictions"), [], {"the engine counted the same evictions"}),
        (asking_for_good, ["--cap", 1000], {"the question left no trace"}),
        (None, ["--max-gb", 0.01], {"peak memory"}),
        (None, ["--memory-gib", 0.01], {"memory is enough"}),
        (None, ["--no-eviction", "--memory-gib", 1e6], {"without eviction memory runs out"}),
    ],
)
def test_each_criterion_of_the_long_video_can_fail(run, monkeypatch, patch, options, expected):
    if patch:
        patch(monkeypatch)
    options = ["--frames", 40, "--cap", 200, "--max-new-tokens", 2, *options]
    status, found = run("long-video", *options)
    assert status == 1
    assert expected <= {*failed(found)}


def test_the_control_records_where_memory_ran_out_and_eviction_goes_on(run, monkeypatch):
    append = VideoStreamingInference.append_video_chunk

    def append_within_300_tokens(self, *given, **more):
        if self.get_cache_info()["cache_seq_length"] + 31 > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return append(self, *given, **more)

    monkeypatch.setattr(VideoStreamingInference, "append_video_chunk", append_within_300_tokens)
    options = ["--frames", 60, "--cap", 250, "--max-new-tokens", 2, "--memory-gib", 1e6]
    status, found = run("long-video", *options, "--no-eviction")
    assert (status, failed(found)) == (0, [])
    # 53 + 24 tokens, then 31 a chunk: 8 chunks are 294.
    assert found["summary"]["out_of_memory_at_chunk"] == 9
    table = found["tables"][0]["rows"]
    assert table[0] == ["out of memory at chunk", "40", "9"]
    assert any("neither" in note for note in found["notes"])
    assert run("long-video", *options)[0] == 0


def test_the_control_ends_where_the_memory_cannot_grow(run, monkeypatch):
    allocate = KVShape.allocate

    def allocate_at_most_512(self, tokens, device, batch=None):
        doubled = tokens == 1024  # the stream's, which grows so
        return allocate(self, 2**50 if doubled else tokens, device, batch)  # as no machine has

    monkeypatch.setattr(KVShape, "allocate", allocate_at_most_512)
    monkeypatch.setattr(KVCacheManager, "first_capacity", 128)
    options = ["--frames", 120, "--memory-gib", 1e6, "--no-eviction"]
    status, found = run("long-video", *options)
    assert (status, failed(found)) == (0, [])
    # 53 + 24 tokens, then 31 a chunk: 15 chunks are 511, and then 512 would be doubled.
    assert found["summary"]["out_of_memory_at_chunk"] == 16
    assert any("which cpu cannot give" in note for note in found["notes"])


def test_memory_runs_out_beyond_the_limit_and_not_below():
    memory = PeakMemory(torch.device("cpu"))
    memory.limit(1e6)
    assert memory.read()["peak_gib"] > 0
    memory.limit(0.001)
    with pytest.raises(torch.OutOfMemoryError, match=r"of 0\.001 GiB"):
        memory.read()
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidParameterError, match="--memory-gib"):
            memory.limit(wrong)


# -- C: periodic questions -------------------------------------------------------------------------


def test_periodic_questions_leave_no_trace_and_remedies_ask_at_the_same_moments(run):
    status, found = run(
        "periodic", "--frames", 34, "--every", 2, "--cap", 150, "--max-new-tokens", 3, "--remedies"
    )
    assert (status, failed(found)) == (0, [])
    # 8 chunks of 4 frames and one of 2, which is asked about at the end.
    asked = [variant["after_chunks"] for variant in found["summary"].values()]
    assert asked == 6 * [[2, 4, 6, 8, 9]]
    assert found["summary"]["a memory for each segment"]["evicted"] == 0
    assert criterion(found, "carry text")["found"] == "not judged: random weights"


def test_half_the_frames_come_in_as_many_chunks():
    whole = SyntheticPictures((56, 56), 2.0, 7, torch.device("cpu"))
    stamps = [chunk.stamps for chunk in Halved(whole).chunks(3)]
    assert stamps == [[0.0, 1.0], [2.0], [3.0]]
    # The last has one frame, which would be left out: it is kept, and so is its moment.
    four = SyntheticPictures((56, 56), 2.0, 4, torch.device("cpu"))
    assert [chunk.stamps for chunk in Halved(four).chunks(3)] == [[0.0, 1.0], [1.5]]


def test_a_video_too_short_for_a_question_is_refused_before_it_is_streamed(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Context, "append", lambda *given: pytest.fail("streamed"))
    few = ["--frames", "40", "--every", "11", "--out", str(tmp_path)]
    assert main(["periodic", *SMALL, *few]) == 2
    assert "10 chunks: too few to be asked every 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    ["No text visible.", "There is no text on the screen.", "No readable text is in the image.",
     "I cannot see any text.", "None", "The image does not contain any text.", "No text",
     NOT_SEEN, NOTHING, NOT_UNDERSTOOD],
)  # fmt: skip
def test_a_line_that_says_that_there_is_no_text_is_none(line):
    assert merge([f"EXIT\n{line}", line]) == ["EXIT"]


@pytest.mark.parametrize("line", ["No text messages while driving", "NO ENTRY", "Nothing beats it"])
def test_a_sign_that_says_no_is_text(line):
    assert merge([line]) == [line]


def test_the_question_says_what_to_answer_where_nothing_can_be_read():
    answer = READ.rpartition("answer: ")[2]
    assert answer and merge([answer]) == []


def in_the_dark(monkeypatch):
    """A drawn world of which the model is shown nothing."""
    whole = WorldPictures.__iter__
    monkeypatch.setattr(
        WorldPictures, "__iter__", lambda self: ((np.zeros_like(p), t) for p, t in whole(self))
    )


def out_of_memory(monkeypatch):
    def append(*given, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(VideoStreamingInference, "append_video_chunk", append)


@pytest.mark.parametrize(
    ("patch", "options", "expected"),
    [
        (asking_for_good, ["--cap", 1000], "every question left no trace"),
        (None, ["--max-ttft", 0], "mean TTFT"),
        (out_of_memory, [], "memory is enough"),
    ],
)
def test_criteria_of_periodic_questions_can_fail(run, monkeypatch, patch, options, expected):
    if patch:
        patch(monkeypatch)
    options = ["--frames", 16, "--every", 2, "--max-new-tokens", 2, *options]
    status, found = run("periodic", *options)
    assert (status, failed(found)) == (1, [expected])


# -- the stream and the offline pass ---------------------------------------------------------------


@pytest.mark.parametrize("run_as", ["reference", "product"])
def test_the_offline_pass_has_the_streams_tokens(run, run_as):
    status, found = run("native", "--frames", 12, "--as", run_as, "--max-new-tokens", 4)
    assert "the same tokens but for the layout's own" not in failed(found)
    assert found["summary"]["native"]["prompt_tokens"] > 6 * GRID
    assert status in (0, 1)  # which of two toys is faster is not the point here


def test_stream_and_stock_model_say_the_same_where_the_library_follows_the_trained_rule(run):
    # Whole seconds a grid, and t does not reach past rows and columns: 2 grids, (2 - 1) * 2 < 4.
    _, found = run(
        "native", "--frames", 4, "--fps", 2, "--layout", "continuous", "--max-new-tokens", 8
    )
    summary = found["summary"]
    assert summary["streamed"]["answer"] == summary["native"]["answer"] != ""
    assert "same_answer" not in summary  # of random weights nothing is said


def test_where_the_offline_pass_runs_out_of_memory_the_stream_takes_all_frames(run, monkeypatch):
    offline = native.offline_pass
    tried = []

    def small(context, frames):
        tried.append([seconds for _, seconds in frames])
        if len(frames) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return offline(context, frames)

    monkeypatch.setattr(native, "offline_pass", small)
    _, found = run("native", "--frames", 8, "--max-new-tokens", 2)
    assert [len(stamps) for stamps in tried] == [8, 4, 2]
    assert tried[2] == [0.0, 2.0]  # every 4th frame, at its own time
    assert found["summary"]["streamed"]["frames"] == 8
    assert found["summary"]["streamed_as_offline"]["frames"] == 2  # like with like
    assert sum("out_of_memory" in row for row in found["rows"]) == 2
    assert any(REMARK in note for note in found["notes"])
    table = found["tables"][-1]
    assert table["columns"][1:4] == ["stream, 8 frames", "stream, 2 frames", "offline, 2 frames"]
    memory = next(row for row in table["rows"] if row[0] == "in use when encoded, GiB")
    assert memory[1].endswith(("% less)", "% more)"))

    monkeypatch.setattr(native, "offline_pass", lambda context, frames: 1 / 0)
    status, found = run("native", "--frames", 8)
    assert (status, found["status"]) == (1, "broken off")  # any other error is none of memory


def offline_of_nothing(monkeypatch):
    def no_memory(context, frames):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(native, "offline_pass", no_memory)


def one_token_more(monkeypatch):
    ids = native.offline_ids
    monkeypatch.setattr(native, "offline_ids", lambda *given: [*ids(*given), 0])


def offline_in_no_time(monkeypatch):
    whole = native.offline_pass
    monkeypatch.setattr(
        native, "offline_pass", lambda *given: {**whole(*given), "ttft": 0.0, "latency": 0.0}
    )


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        (offline_of_nothing, {"the offline pass ran, at least with every 4th frame"}),
        (one_token_more, {"the same tokens but for the layout's own"}),
        (offline_in_no_time, {"the first token comes sooner", "the answer comes sooner"}),
    ],
)
def test_each_criterion_of_stream_and_offline_pass_can_fail(run, monkeypatch, patch, expected):
    patch(monkeypatch)
    status, found = run("native", "--frames", 4, "--max-new-tokens", 2)
    assert status == 1 and expected <= {*failed(found)}
    assert found["tables"][-1]["rows"][0][1] != "–"  # the stream's figures are there in any case


# -- answers ---------------------------------------------------------------------------------------


def test_random_weights_are_not_judged_but_the_small_model_in_the_same_command_is(run):
    status, found = run(
        "long-video", "--frames", 8, "--max-new-tokens", 2, "--cap", 200, answers=True
    )
    assert (status, failed(found)) == (0, [])
    assert criterion(found, "an answer")["found"] == "not judged: random weights"
    judged = criterion(found, "right answers: the small model")
    assert judged["passed"] and judged["found"].endswith("of 7")
    assert found["model"]["name"] == "shape toy"  # what the other figures are of


def test_wrong_answers_and_such_as_say_nothing_fail(run, monkeypatch):
    options = ["--frames", 24, "--max-new-tokens", 8, "--cap", 200]
    foreign = "Describe what you see."  # "I do not understand."
    status, found = run("long-video", *options, "--question", foreign, options=ON_ITS_WORLD)
    assert (status, failed(found)) == (1, ["an answer"])
    # No sign has been shown yet: "not seen" is right, and no text.
    status, found = run("periodic", "--frames", 20, "--every", 5, options=ON_ITS_WORLD)
    assert (status, failed(found)) == (1, ["some answers carry text"])
    in_the_dark(monkeypatch)
    right = "right answers: the small model of the package about"
    status, found = run("long-video", *options, options=ON_ITS_WORLD)
    assert (status, failed(found)) == (1, [f"{right} world:7"])
    status, found = run("periodic", *options, "--every", 3, options=ON_ITS_WORLD)
    assert (status, failed(found)) == (1, [f"{right} the last sign"])


def test_a_stream_that_answers_worse_than_the_offline_pass_fails(run, monkeypatch):
    asked = VideoStreamingInference.ask
    monkeypatch.setattr(
        VideoStreamingInference, "ask", lambda *given, **more: ("wrong", asked(*given, **more)[1])
    )
    _, found = run("native", "--frames", 4, "--max-new-tokens", 4, answers=True)
    assert any(name.startswith("right answers") for name in failed(found))
    assert "as many right answers as offline" in failed(found)
