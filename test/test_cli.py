# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The command line, with the small model that the package ships; through typer's runner."""

import importlib.util
import json
import resource
import shlex
import shutil
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from rosbags.rosbag2 import Writer as BagWriter
from rosbags.typesys import Stores, get_typestore
from safetensors.torch import save_file
from typer.testing import CliRunner

from stream_vlm_ros import __version__, cli_node
from stream_vlm_ros.cli import app
from stream_vlm_ros.experiments import EXPERIMENTS
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.session.counters import Drop


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Three seconds at ten frames a second, 56x56."""
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for index in range(30):
            image = np.full((56, 56, 3), 8 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_version_is_the_packages():
    assert run("--version").stdout.strip() == f"stream-vlm {__version__}"


VERBS = ["", "ask", "replay", "rate", "info", "calibrate", "report", "report diff", "demo", "web"]
VERBS += ["serve"]
VERBS += [
    "hardware",
    "history",
    "forget",
    "demo-model",
    "demo-model evaluate",
    "demo-model questions",
]

VERBS += ["experiment", "watch", "node"]
VERBS += [f"node {verb}" for verb in "list get set reset pause resume save load answers".split()]
VERBS += [f"experiment {name}" for name in EXPERIMENTS]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_within_80_columns_and_cuts_no_word_off(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0 and result.stdout.startswith("Usage: ")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in result.stdout
    # What the list of verbs says of each is whole.
    listed = result.stdout.partition("Commands:")[2]
    assert "..." not in listed
    assert run(*verb.split(), "-h").stdout == result.stdout


def test_defaults_are_shown_and_completion_is_offered():
    for verb, default in [
        ("ask", "128"),
        ("demo", "4096"),  # not the node's
        ("demo-model evaluate", "15,30,64"),
        ("experiment sink", "100000"),
    ]:
        assert f"[default: {default}]" in " ".join(run(*verb.split(), "-h").stdout.split())
    assert "--install-completion" in run("-h").stdout


def test_a_video_is_streamed_and_questions_are_answered(video):
    result = run("ask", video, "What do you see?", "And now?", "--max-new-tokens", 5)
    assert result.exit_code == 0, result.output
    assert "What do you see?" in result.stdout and "And now?" in result.stdout
    assert result.stdout.count("first token after") == 2
    assert "6 frames in 2 chunks" in result.stdout


def test_an_answer_about_a_time_before_the_video_is_marked_as_a_guess(video):
    now, ago = "What do you see now?", "What was there two minutes ago?"
    told = run("ask", video, now, ago, "--max-new-tokens", 2).stdout.partition(ago)
    assert ["a guess, nothing of that time is held" in text for text in (told[0], told[2])] == [
        False,
        True,
    ]


def test_the_answer_is_that_of_the_engine_fed_by_hand(video):
    from stream_vlm_ros.engine import (
        EvictionConfig,
        StreamProcessor,
        StreamQwenModel,
        VideoStreamingInference,
    )
    from stream_vlm_ros.factory import default_model
    from stream_vlm_ros.sources import VideoSource

    bound = EvictionConfig.novelty(max_cache_tokens=16384)
    model = StreamQwenModel.from_pretrained(default_model(), torch_dtype=torch.float32)
    processor = StreamProcessor.from_pretrained(default_model())
    engine = VideoStreamingInference(model, processor, "cpu", bound)
    frames = list(VideoSource(video, fps=2))
    engine.append_video_chunk([f.image for f in frames[:4]], timestamps=[0.0, 0.5, 1.0, 1.5])
    engine.append_video_chunk([f.image for f in frames[4:]], timestamps=[2.0, 2.5])
    answer, _ = engine.ask("What do you see?", 5)

    result = run("ask", video, "What do you see?", "--max-new-tokens", 5, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["answers"][0]["answer"] == answer
    assert told["memory"]["frames"] == 6


def test_a_rate_of_zero_takes_every_frame(video):
    options = ["--fps", 0, "--chunk-frames", 10, "--max-new-tokens", 2, "--json"]
    told = json.loads(run("ask", video, "What?", *options).stdout)
    assert told["memory"]["frames"] == 30  # three seconds at ten
    late = run("ask", video, "What?", "--at", 100, *options)
    assert "ends before 100 s" in late.stderr


def test_a_folder_that_ask_has_filled_is_searched_and_erased(video, tmp_path):
    keeping = ["--history", "auto", "--frame-store", tmp_path / "frames"]
    asked = run("ask", video, "What?", "--end", 2, *keeping, "--max-new-tokens", 2, "--json")
    assert json.loads(asked.stdout)["memory"]["frames"] == 4  # two seconds at two
    found = run("history", tmp_path / "frames", "a red square", "--json")
    assert found.exit_code == 0 and isinstance(json.loads(found.stdout), list)
    erased = run("forget", tmp_path / "frames", 0, 1)
    assert erased.stdout == "Erased 3 frames.\nThe folder still holds 1 frame, 1.5 s to 1.5 s.\n"
    refused = run("ask", video, "What?", "--frame-store", tmp_path / "frames")
    assert refused.exit_code == 2 and "set history to auto or always" in refused.stderr


def test_a_question_can_be_asked_before_the_end_and_with_choices(video):
    result = run(
        "ask", video, "Is it day?", "--at", 1, "--choice", "yes", "--choice", "no", "--json"
    )
    told = json.loads(result.stdout)
    assert told["memory"]["frames"] == 2
    assert told["answers"][0]["answer"] in ("yes", "no")
    assert len(told["answers"][0]["scores"]) == 2
    # The frame of that very time is one of three, and the model sees pairs.
    whole = run("ask", video, "Is it day?", "--at", 1, "--engine", "at_question=all", "--json")
    memory = json.loads(whole.stdout)["memory"]
    assert (memory["frames"], memory["time_spans"][-1][1]) == (3, 1.0)


def test_a_question_for_after_the_end_is_answered_at_the_end_and_that_is_noted(video):
    late = run("ask", video, "Is it day?", "--at", 100, "--max-new-tokens", 2)
    assert late.exit_code == 0 and "ends before 100 s: asked at its end" in late.stderr
    there = run("ask", video, "Is it day?", "--at", 3, "--max-new-tokens", 2)
    assert there.exit_code == 0 and "asked at its end" not in there.stderr


def test_who_brings_no_model_is_told_what_the_small_one_knows(video, tmp_path):
    told = "The model is the small model of the package, which knows only its drawn world"
    (tmp_path / "q.yaml").write_text("questions: [{text: Is it day, at: 1}]")
    report = ["--questions", tmp_path / "q.yaml", "--out", tmp_path / "report"]
    assert told in run("replay", video, *report).stderr
    copied = tmp_path / "copied"  # it says so wherever it lies
    shutil.copytree(default_model(), copied)
    for model in ([], ["--model", copied]):
        asked = run("ask", video, "Is it day?", "--max-new-tokens", 2, "--json", *model)
        assert told in asked.stderr
        assert json.loads(asked.stdout)["model"] in told
    drawn = run("ask", "world:1", "Is it day?", "--at", 2, "--max-new-tokens", 2)
    assert drawn.exit_code == 0 and told not in drawn.stderr


def test_either_engine_answers_and_can_be_told_where_to_look(video):
    settings = "delayed_batch,keep_fps=2,max_sampled_frames=4"
    told = run("ask", video, "Is it day?", "--engine", settings, "--about", 1, 1.5, "--json")
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)["answers"][0]
    assert answer["frames_used"] == 4
    # Pairs of neighbours: that of 1.0 and 1.5 s by its name, that of 2.0 and 2.5 s as the latest.
    assert answer["time_spans"] == [[1.0, 2.5]]
    shown = run("ask", video, "Is it day?", "--engine", settings)
    assert "6 frames kept" in shown.stdout and "padded" not in shown.stdout
    # Three of them are a pair and one without a partner, which the model sees twice.
    lone = run("ask", video, "Is it day?", "--engine", "delayed_batch,keep_fps=1")
    assert "3 frames kept" in lone.stdout
    words = " ".join(lone.stdout.split())
    assert "4 encoded for the last question (padded to pairs, " in words
    streaming = run("ask", video, "Is it day?", "--about", 1, 1.5)
    assert streaming.exit_code == 0, streaming.output
    beyond = run("ask", video, "Is it day?", "--about", 60, 70)
    assert beyond.exit_code == 2 and "remembered" in beyond.stderr


@pytest.mark.parametrize("engine", ["streaming", "delayed_batch"])
def test_one_odd_picture_of_a_folder_ends_no_question(tmp_path, engine):
    for index in range(4):
        shape = (5, 3000) if index == 2 else (56, 56)
        Image.new("RGB", shape).save(tmp_path / f"{index}.png")
    result = run("ask", tmp_path, "What?", "--frame-rate", "4", "--engine", engine)
    assert result.exit_code == 0
    assert "1 frame left out (the first: the image is 5x3000" in result.stderr
    assert "assumed" not in result.stderr


def test_a_bag_is_asked_about_the_topic_and_the_clock_that_are_named(tmp_path):
    types = get_typestore(Stores.ROS2_HUMBLE)
    kind = "sensor_msgs/msg/Image"
    with BagWriter(tmp_path / "drive", version=9) as writer:
        lines = {
            topic: writer.add_connection(topic, kind, typestore=types)
            for topic in ("/front", "/rear")
        }
        for index in range(12):
            topic = "/rear" if index % 3 == 0 else "/front"
            time = types.types["builtin_interfaces/msg/Time"](sec=100 + index, nanosec=0)
            header = types.types["std_msgs/msg/Header"](stamp=time, frame_id="")
            message = types.types[kind](
                header=header, height=56, width=56, encoding="mono8", is_bigendian=0, step=56,
                data=np.full(56 * 56, 20 * index, np.uint8),
            )  # fmt: skip
            writer.write(lines[topic], index * 500_000_000, types.serialize_cdr(message, kind))
    for options, frames, seconds in (
        ((), 8, 10),
        (("--topic", "/rear"), 4, 9),
        (("--topic", "/rear", "--stamps", "recorded"), 4, 4.5),
    ):
        result = run("ask", tmp_path / "drive", "What?", "--fps", "0", *options)
        assert result.exit_code == 0, result.stderr
        assert f"{frames} frames in" in result.stdout and f"0.0-{seconds:.1f} s" in result.stdout
        assert ("Read: /front. Other image topics: /rear" in result.stderr) is (not options)


def test_a_source_without_a_usable_picture_says_why(tmp_path):
    Image.new("RGB", (5, 3000)).save(tmp_path / "1.png")
    result = run("ask", tmp_path, "What?")
    assert result.exit_code == 2 and "the image is 5x3000" in result.stderr


def test_a_memory_is_asked_again_without_its_video_and_goes_on_with_another(video, tmp_path):
    file = tmp_path / "memory.safetensors"
    first = json.loads(run("ask", video, "What?", "--json", "--save-memory", file).stdout)
    result = run("ask", "-", "What?", "--json", "--load-memory", file)
    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout)
    assert again["answers"][0]["answer"] == first["answers"][0]["answer"]
    assert again["memory"]["time_spans"] == first["memory"]["time_spans"]
    result = run("ask", video, "What?", "--load-memory", file)
    assert result.exit_code == 0
    assert "its time was moved by" in result.stderr
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a full disk costs no answer
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        full = run("ask", "-", "What?", "--json", "--load-memory", file, "--save-memory", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.exit_code == 2
    assert json.loads(full.stdout)["answers"][0]["answer"] == again["answers"][0]["answer"]
    assert "cannot be saved as" in full.stderr
    other = tmp_path / "other.safetensors"
    forgotten = ("--about", "-900", "-800", "--save-memory", other)
    late = run("ask", "-", "What?", "--load-memory", file, *forgotten)
    assert (late.exit_code, other.is_file()) == (2, True)  # the memory is not lost for that
    refused = run("ask", "-", "What?", "--load-memory", file, "--layout", "segmented")
    assert refused.exit_code == 2
    assert "layout continuous, and here layout is segmented" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert run("ask", "-", "What?").exit_code == 2


def test_the_small_models_evaluation_is_a_verb():
    options = ["--worlds", 1, "--each", 1, "--spans", "5", "--no-pairs", "--json"]
    result = run("demo-model", "evaluate", *options)
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["runs"]
    assert found["end"]["questions"] > 5
    assert found["end"]["core_mean"] > 50  # it is the trained one


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "nowhere.mp4", "Hello?"], "There is no file nowhere.mp4"),
        (["ask", "VIDEO", ""], "question"),
        (["ask"], 'ask VIDEO "What is there?"'),
        (["ask", "VIDEO"], "Say what to ask"),
        (["ask", "--node"], 'ask --node "What is there?"'),
        (["ask", "--node", "stream_vlm"], "Say what to ask"),
        (["ask", "--node", "Hi?", "--at", "3", "--fps", "4"], "--at, --fps are of no use with"),
        (["ask", "VIDEO", "Hi?", "--cancel-after", "1"], "--cancel-after is of use only with"),
        (["ask", "VIDEO", "Hello?", "--fps", "-1"], "sample_fps must lie in"),
        (["ask", "VIDEO", "Hello?", "--at", "0"], "--at"),
        (["ask", "VIDEO", "Hello?", "--at", "inf"], "--at"),
        (["ask", "VIDEO", "Hello?", "--at", "1e300"], "--at"),
        (["ask", "VIDEO", "Hello?", "--about", "nan", "1"], "--about"),
        (["ask", "VIDEO", "Hello?", "--fps", "1e-300"], "1e-300 frames/s"),
        (["ask", "VIDEO", "Hello?", "--fps", "nan"], "fps"),
        (["ask", "VIDEO", "Hello?", "--about", "10", "5", "--model", "/no"], "before it begins"),
        (["ask", "VIDEO", "Hello?", "--size", "big"], "640x480"),
        (["ask", "VIDEO", "Hello?", "--layout", "round"], "round"),
        (["ask", "VIDEO", "Hello?", "--engine", "steaming"], "streaming, delayed_batch"),
        (["ask", "VIDEO", "Hello?", "--max-cache-tokens", "3"], "3"),
        (["ask", "world:1", "Hello?"], "--at"),
        (["ask", "VIDEO", "Hello?", "--model", __file__], "is a file, not a model folder"),
        (["demo-model", "evaluate", "--spans", "long"], "seconds separated by commas"),
        (["hardware", "--fps", "0"], "it must be above 0"),
        (["hardware", "--max-cache-tokens", "3"], "at least 64"),
        (["info", __file__], "is a file, not a model folder"),
    ],
)
def test_errors_are_one_line_and_exit_status_2(video, arguments, words):
    result = run(*[video if argument == "VIDEO" else argument for argument in arguments])
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert "Traceback" not in result.output


def test_a_topic_as_source_is_answered_with_the_commands_that_ask_it(monkeypatch):
    monkeypatch.delenv("STREAM_VLM_RUN", raising=False)
    told = run("ask", "/camera/image", "What's up?")
    assert told.exit_code == 2
    start, ask = told.stderr.splitlines()[-2:]
    assert shlex.split(start)[-1].partition(":=")[::2] == ("image", "/camera/image")
    assert shlex.split(ask) == ["stream-vlm", "ask", "--node", "What's up?"]


def test_a_camera_that_is_not_there_is_taken_for_no_topic():
    told = run("ask", "/dev/video77", "What's up?")
    assert told.exit_code == 2
    [line] = told.stderr.splitlines()
    assert "There is no camera /dev/video77" in line


@pytest.mark.parametrize(
    "arguments",
    [
        "demo",
        "rate world:1",
        "replay world:1 --end 3 --realtime --questions q.yaml",
        "ask --node Who?",
        "watch",
        "node list",
        "node pause",
    ],
)
@pytest.mark.parametrize("missing", ["rclpy", "stream_vlm"])
def test_what_needs_ros_says_what_to_source_where_that_is_missing(
    tmp_path, monkeypatch, arguments, missing
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.yaml").write_text("questions: [{text: Is it day, at: 1}]")
    there = {"rclpy", "stream_vlm"} - {missing}
    found = importlib.util.find_spec

    def spec_of(name):
        if name == missing:
            return None
        return found("stream_vlm_ros") if name in there else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", spec_of)
    told = run(*arguments.split())
    assert told.exit_code == 2, told.output
    words = f"stream-vlm: The Python module {missing} is missing. Source ROS 2 and the workspace"
    assert told.stderr.splitlines()[-1].startswith(words)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("node get sample_f", ["sample_fps"]),
        ("node set sample_f", ["sample_fps"]),
        ("node p", ["pause"]),
        ("watch --node /s", ["/shelf/stream_vlm", "/stream_vlm"]),
        ("ask --node /st", ["/stream_vlm"]),
        ("node pause --node ", ["/hall/eyes", "/shelf/stream_vlm", "/stream_vlm"]),
    ],
)
def test_a_shell_completes_verbs_settings_and_nodes(monkeypatch, words, completed):
    names = ["/stream_vlm", "/shelf/stream_vlm", "/hall/eyes"]
    monkeypatch.setattr("stream_vlm_ros.cli_node.find", lambda: names)
    typed = f"stream-vlm {words}"
    environment = {
        "_STREAM_VLM_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    told = CliRunner().invoke(app, [], env=environment, prog_name="stream-vlm")
    assert told.stdout.split() == completed


class CacheStatus(SimpleNamespace):
    """Looks like the message."""

    def get_fields_and_field_types(self):
        return vars(self)


def test_who_watches_is_not_told_of_drops_that_somebody_asked_for():
    drops = dict.fromkeys((drop.value for drop in Drop), 1)
    counts = {"length": 5, "cap": 10, "frames": 4, "frames_received": 20}
    status = CacheStatus(source="", state="active", paused=False, **counts, **drops)
    assert len(Drop) == 9  # four of them on purpose: sampled, inactive, paused, reset
    assert cli_node.Watching(0.0).line(status).endswith("20 images, 5 dropped")


def test_a_folder_that_is_no_checkpoint_is_called_what_it_is(tmp_path):
    empty = "is an empty folder.\nGive the folder of a Qwen2.5-VL checkpoint"
    asked = ["ask", "world:1", "Hello?", "--at", 1, "--model", tmp_path]
    for arguments in (asked, ["info", tmp_path]):
        told = run(*arguments)
        assert told.exit_code == 2 and f"{tmp_path} {empty}" in told.stderr
    (tmp_path / "notes.txt").write_text("Nothing to load")
    assert f"{tmp_path} has no config.json: not a checkpoint folder" in run(*asked).stderr


@pytest.fixture
def checkpoint(tmp_path):
    """A complete folder with the shape of the 3B model; its one weight stands for all of them."""
    config = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    save_file({"a": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    return tmp_path


def test_info_reckons_what_a_bound_costs(checkpoint):
    result = run("info", checkpoint, "--size", "640x480", "--max-cache-tokens", 1000)
    assert result.exit_code == 0, result.output
    assert "Missing   nothing" in result.stdout and "Broken" not in result.stdout
    assert "36,864 bytes" in result.stdout
    assert "644x476: 391 tokens" in result.stdout
    assert "36.9 MB" in result.stdout and "2.6 s" in result.stdout  # 1000 / 391 tokens a second
    assert "On this machine" in result.stdout
    assert "a third more" in result.stdout  # keys are half a token, held twice for 70 % of the cap


def test_info_names_weights_that_are_cut_short_and_fails(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = run("info", checkpoint)
    assert result.exit_code == 1, result.output
    assert "Broken    model.safetensors" in result.stdout
    assert "On this machine" not in result.stdout  # what the weights take is not known


def test_info_of_a_folder_that_does_not_say_its_picture_sizes_invents_none_and_fails(checkpoint):
    (checkpoint / "preprocessor_config.json").unlink()
    result = run("info", checkpoint, "--size", "640x480")
    assert result.exit_code == 1, result.output
    assert "Missing   preprocessor_config.json" in result.stdout
    assert "A frame" not in result.stdout and "644x476" not in result.stdout
    assert "holds" not in result.stdout
    assert "36,864 bytes" in result.stdout  # what config.json says is still told


def test_a_drawn_world_is_replayed_with_questions_made_for_it(tmp_path):
    made = run("demo-model", "questions", "world:7", "--end", 40, "--every", 4)
    assert made.exit_code == 0, made.output
    (tmp_path / "q.yaml").write_text(made.stdout)
    result = run(
        "replay", "world:7", "--end", 40, "--questions", tmp_path / "q.yaml", "--out",
        tmp_path / "report", "--fail-under", 0.7,
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_pictures_too_large_are_left_out_and_said_and_the_limit_can_be_set(tmp_path):
    for number in range(4):
        side = (56, 14_000)[number == 1]
        Image.new("1", (side, side)).save(tmp_path / f"{number}.png")
    asked = run("ask", tmp_path, "Is it day?", "--max-new-tokens", 2)
    assert asked.exit_code == 0 and "3 frames" in asked.stdout, asked.output
    assert "Note: 1.png: the picture announces 14000x14000" in asked.stderr
    (tmp_path / "q.yaml").write_text("questions: [{text: Is it day, at: 1}]")
    told = ["--questions", tmp_path / "q.yaml", "--out", tmp_path / "report"]
    replayed = run("replay", tmp_path, *told)
    assert replayed.exit_code == 0, replayed.output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["runs"][0]["frames"]["drops"]["unusable"] == 1
    assert "14000x14000" in report["runs"][0]["source"]["damage"]
    none = run("ask", tmp_path, "Is it day?", "--max-decoded-megapixels", 0.01, "--fps", 5)
    assert none.exit_code == 0 and "announces 14000x14000" in none.stderr
    wrong = run("ask", tmp_path, "Is it day?", "--max-decoded-megapixels", 0)
    assert wrong.exit_code == 2 and "must lie in [0.01, 1000.0]" in wrong.stderr


def test_a_folder_of_nothing_but_pictures_too_large_is_refused_with_the_cause(tmp_path):
    Image.new("1", (200, 100)).save(tmp_path / "1.png")
    for limit in (
        ["--max-decoded-megapixels", 0.015],
        ["--engine", "max_decoded_megapixels=0.015"],
    ):
        refused = run("ask", tmp_path, "Is it day?", *limit)
        assert refused.exit_code == 2
        assert "announces 200x100" in refused.stderr and "is 0.015" in refused.stderr


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", LONG],
        ["report", "diff", LONG, LONG],
        ["replay", "world:1", "--end", "1", "--questions", "Q", "--out", LONG],
        ["replay", "world:1", "--end", "1", "--questions", "Q", "--model", LONG],
        ["replay", LONG, "--questions", "Q"],
        ["replay", "world:1", "--questions", LONG],
    ],
    ids=lambda arguments: " ".join(a for a in arguments if len(a) < 20),
)
def test_a_name_that_no_file_can_have_is_refused_in_words(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Q").write_text("questions: [{text: x, at: 0.5}]")
    result = run(*arguments)
    assert result.exit_code == 2
    before, _, refusal = result.stderr.partition("stream-vlm: ")
    assert all(line.startswith("The model is ") for line in before.splitlines())
    # Below a missing model's stands the command that fetches one.
    of_a_model = "--model" in arguments or "info" in arguments
    assert len(refusal.splitlines()) == (5 if of_a_model else 1)
