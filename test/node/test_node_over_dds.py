# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node in a process of its own, driven over DDS as a user's program would drive it."""

import array
import importlib
import itertools
import subprocess
import sys
import time
from datetime import datetime

import foxglove_layout
import pytest
from patience import PATIENCE

from stream_vlm_ros.client.messages import nanoseconds
from stream_vlm_ros.session.counters import Drop

pytestmark = pytest.mark.ros

DAY_NS = 86_400 * 10**9
LONG = 15_000  # tokens of an answer that lasts until it is cancelled, on any machine
FAST = dict(sample_fps=0.0, chunk_frames=2, max_chunk_delay=0.5, status_period=0.2, device="cpu")


# What holds whether the memory is the node's own, or at a server.
here_and_there = pytest.mark.parametrize("shared_node", ["streaming", "remote"], indirect=True)


@pytest.fixture(scope="module", params=["streaming"])
def shared_node(node_process, request):
    """One node for all tests that leave it as they found it."""
    memory = dict(max_cache_tokens=200, max_tail_tokens=16_384)
    if request.param == "remote":
        server = request.getfixturevalue("serve")(**memory)
        url = server.url.replace("http", "ws")
        memory = dict(engine="remote", engine_url=url, model_path="''")
    node = node_process(namespace="shared", **memory, **FAST)
    try:
        node.wait_for("the node is active")
        yield node
    finally:
        status = node.stop()
    assert status == 0


@pytest.fixture
def whole_chunks(client):
    """The client, of a node that encodes no chunk before it is full, however slow the machine."""
    assert client.set_parameter("max_chunk_delay", 0.0).successful
    yield client
    assert client.set_parameter("max_chunk_delay", FAST["max_chunk_delay"]).successful


@pytest.fixture
def client(shared_node, connect):
    """A client of the shared node, whose memory is empty."""
    client = connect("shared")
    client.stamp_ns = time.time_ns()
    client.wait_status(lambda s: s.connection_error == "")  # where the memory is at a server
    assert client.reset().success
    yield client
    client.drop_publishers()


def balanced(status):
    drops = sum(getattr(status, cause.value) for cause in Drop)
    return status.frames_received == status.frames_ingested + status.frames_pending + drops


def fill(client, count, reliable=True, **changes):
    """Send ``count`` frames and wait until they are in the memory; the stamps of all."""
    stamps = []
    already = client.status.frames_ingested
    for index in range(count):
        message = client.image(**changes)
        client.send(message, reliable)
        stamps.append(message.header.stamp)
        if index % 2:
            client.wait_status(lambda s, n=already + index + 1: s.frames_ingested >= n)
    client.wait_status(lambda s: s.frames_ingested >= already + count, what="all frames")
    return stamps


@here_and_there
@pytest.mark.parametrize("reliable", [True, False])
def test_images_of_reliable_and_best_effort_publishers_reach_the_memory(client, reliable):
    stamps = fill(client, 4, reliable)
    status = client.wait_status(lambda s: s.frames == 4)
    assert (status.oldest_stamp, status.newest_stamp) == (stamps[0], stamps[-1])
    assert status.header.frame_id == "camera_optical_frame"
    assert balanced(status) and status.frames_pending == 0


@here_and_there
def test_an_answer_rests_on_the_frames_of_the_source_and_says_so(client):
    stamps = fill(client, 4)
    reply = client.ask()
    assert (reply.error_code, reply.error_message) == (reply.NONE, "")
    assert reply.header.stamp == stamps[-1]
    assert reply.header.frame_id == "camera_optical_frame"
    assert (reply.oldest_stamp, reply.newest_stamp) == (stamps[0], stamps[-1])
    assert [(s.start, s.end) for s in reply.seen] == [(stamps[0], stamps[-1])]
    assert reply.answer_tokens == 4 and reply.finish_reason in ("length", "stop")
    assert reply.latency.nanosec + reply.latency.sec * 1e9 >= reply.ttft.nanosec > 0
    assert reply.cache_status.length == client.status.length > 0


def test_asking_twice_gives_the_same_and_leaves_no_trace(client):
    fill(client, 4)
    first, second = client.ask(), client.ask()
    assert first.text == second.text
    assert first.cache_status.length == second.cache_status.length


def test_the_last_answer_is_latched(client, connect):
    fill(client, 2)
    reply = client.ask("Is there a cat?")
    late = connect("shared")
    client.graph.wait(lambda: late.answers)
    assert (late.answers[-1].question, late.answers[-1].text) == ("Is there a cat?", reply.text)


@here_and_there
def test_choices_are_scored_and_the_best_is_the_answer(client):
    fill(client, 2)
    choices = ["red", "green", "blue"]
    reply = client.ask(choices=choices)
    assert reply.text == choices[reply.choice_index]
    assert max(reply.choice_scores) == reply.choice_scores[reply.choice_index]
    assert len(reply.choice_scores) == 3 and reply.answer_tokens == 0


@here_and_there
def test_the_memory_stays_below_its_cap_and_forgets_the_middle(client, whole_chunks):
    fill(client, 16, height=112, width=168)  # 24 tokens a chunk
    status = client.wait_status(lambda s: s.evictions > 0)
    assert status.length <= status.cap == 200
    reply = client.ask()
    # The sink, the window, and between them maybe one of two grids that were kept.
    assert 2 <= len(reply.seen) <= 4
    status = reply.cache_status
    assert status.spans == reply.seen
    frames = {level.name: level.frames for level in status.levels}
    assert list(frames) == ["sink", "sampled", "important", "window"]
    assert frames["sink"] == 2 and frames["window"] > 2 and sum(frames.values()) < 16
    tokens = sum(level.tokens for level in status.levels)
    assert 0 < status.length - tokens < 60  # text before the first frame
    assert reply.error_code == reply.NONE


@here_and_there
def test_a_question_about_a_forgotten_time_is_refused(client):
    from builtin_interfaces.msg import Time

    stamps = fill(client, 4)
    assert client.ask(about_from=stamps[0], about_to=stamps[1]).error_code == 0
    reply = client.ask(about_from=Time(sec=10), about_to=Time(sec=20))
    assert reply.error_code == reply.OUT_OF_HORIZON and reply.text == ""
    clock = datetime.fromtimestamp(stamps[0].sec).strftime("%H:%M:%S")
    assert clock in reply.error_message
    assert client.set_parameter("refuse_forgotten", False).successful
    reply = client.ask(about_from=Time(sec=10), about_to=Time(sec=20))
    assert client.set_parameter("refuse_forgotten", True).successful
    assert reply.error_code == 0 and reply.answer_tokens == 4
    reply = client.ask(about_from=stamps[1], about_to=stamps[0])
    assert reply.error_code == reply.INVALID_PARAMETER


def test_an_exchange_is_kept_when_asked_for(client):
    fill(client, 2)
    before = client.status.length
    reply = client.ask(keep_exchange=True)
    assert reply.error_code == reply.NONE and reply.cache_status.length > before


@here_and_there
def test_reset_forgets_and_the_stream_goes_on(client):
    fill(client, 4)
    resets = client.status.resets
    assert client.reset().success
    status = client.wait_status(lambda s: s.resets > resets and s.length == 0)
    assert (status.oldest_stamp.sec, status.frames) == (0, 0)
    assert client.ask().error_code == client.ask().EMPTY_MEMORY
    fill(client, 2)
    assert client.ask().error_code == 0


# Bad input: an error in words, and the stream goes on ---------------------------------------------

BAD_IMAGES = {
    "zero size": (dict(height=0, width=0), "no size"),
    "short data": (dict(data=array.array("B", bytes(100))), "holds 100 bytes"),
    "unknown encoding": (dict(encoding="rgb7"), "unknown encoding 'rgb7'"),
    "step too small": (dict(step=10), "step is 10 bytes"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_counted_and_told_and_the_stream_goes_on(client, shared_node, case):
    changes, words = BAD_IMAGES[case]
    fill(client, 2)
    before = client.status.dropped_invalid_image
    client.send(client.image(**changes))
    status = client.wait_status(lambda s: s.dropped_invalid_image == before + 1)
    assert balanced(status)
    diagnostic = client.diagnostic("image input", lambda d: words in client.last_refusal(d))
    assert words in client.last_refusal(diagnostic)
    fill(client, 2)
    assert client.ask().error_code == 0


def test_a_corrupt_jpeg_is_counted_and_a_whole_one_is_seen(connect, start_node):
    import cv2
    import numpy as np
    from sensor_msgs.msg import CompressedImage

    node = start_node(namespace="jpeg", **FAST)
    node.wait_for("the node is active")
    client = connect("jpeg", topic="image/compressed")
    data = cv2.imencode(".jpg", np.full((56, 84, 3), 90, np.uint8))[1].tobytes()

    def jpeg(content):
        header = client.image().header
        return CompressedImage(header=header, format="jpeg", data=array.array("B", content))

    # The publisher makes the node change over to the compressed topic.
    client.send(jpeg(data))
    refused = client.status.dropped_invalid_image
    client.send(jpeg(data[:200]))
    client.send(jpeg(data))
    status = client.wait_status(lambda s: s.frames_ingested == 2)
    assert status.dropped_invalid_image == refused + 1 and balanced(status)
    assert client.ask().error_code == 0
    assert "image/compressed [sensor_msgs/msg/CompressedImage]" in node.output


def test_padded_rows_are_read_by_their_step(client):
    plain = client.image()
    row = 3 * plain.width
    rows = [bytes(plain.data[r * row : (r + 1) * row]) + b"\x07" * 5 for r in range(plain.height)]
    client.publisher()
    refused = client.status.dropped_invalid_image
    client.send(client.image(step=row + 5, data=array.array("B", b"".join(rows))))
    status = client.wait_status(lambda s: s.frames == 1)
    assert status.dropped_invalid_image == refused


@here_and_there
def test_a_late_frame_is_dropped_and_a_looped_bag_starts_anew(client, shared_node):
    fill(client, 2)
    before = client.status
    client.send(client.image(step_ns=-700_000_000))
    status = client.wait_status(
        lambda s: s.dropped_invalid_stamp == before.dropped_invalid_stamp + 1
    )
    assert status.frames == 2
    client.stamp_ns -= 60_000_000_000
    stamps = []
    for _ in range(4):  # the first two wait for the third, and four are whole chunks
        message = client.image()
        client.send(message)
        stamps.append(message.header.stamp)
    status = client.wait_status(lambda s: s.time_jumps == before.time_jumps + 1 and s.frames == 4)
    assert (status.oldest_stamp, status.newest_stamp) == (stamps[0], stamps[3])
    assert balanced(status)
    shared_node.wait_for("the source's time jumped by -")


@here_and_there
def test_a_pause_below_max_time_gap_goes_on_with_the_memory_and_is_said(client, shared_node):
    fill(client, 2)
    client.send(client.image(step_ns=-1))  # a warning of which the log tells the same way
    shared_node.wait_for("older than the newest one")
    before = client.status
    assert (before.closed_pauses, before.closed_seconds) == (0, 0.0)
    client.send(client.image(step_ns=1_000_000_000_000))
    status = client.wait_status(lambda s: s.frames == 3)
    # Closed is the step from grid to grid, but for a second, or the step before.
    assert status.closed_pauses == 1 and 998 <= status.closed_seconds <= 1002
    assert status.time_jumps == before.time_jumps and status.resets == before.resets
    shared_node.wait_for("frames came after a pause")


def test_a_gap_beyond_max_time_gap_goes_on_with_the_memory_and_diagnostics_say_so(client):
    first = nanoseconds(fill(client, 4)[0])
    before = client.wait_status(lambda s: s.frames == 4)
    client.stamp_ns += DAY_NS
    for _ in range(4):  # the first two wait for the third, and four are whole chunks
        client.send(client.image())
    status = client.wait_status(lambda s: s.frames == 8)
    assert (status.time_jumps, status.resets) == (before.time_jumps, before.resets)
    assert status.closed_pauses == 1 and abs(status.closed_seconds - DAY_NS / 1e9) <= 2
    # Stamps stay true, also as what an answer rests on.
    assert nanoseconds(status.oldest_stamp) == first
    assert nanoseconds(status.newest_stamp) - first > DAY_NS
    spans = client.ask().seen
    assert [nanoseconds(spans[0].start), nanoseconds(spans[-1].end)] == [
        first,
        nanoseconds(status.newest_stamp),
    ]
    told = client.diagnostic("model and memory", lambda d: "left out" in d.message)
    assert "1 pause left out for the model, 24 h" in told.message
    assert {value.key: value.value for value in told.values}["model"].startswith("toy")  # as cards


def test_stamps_of_zero_keep_their_header_and_are_timed_by_arrival(client):
    from builtin_interfaces.msg import Time

    assert client.set_parameter("no_image_timeout", 3600.0).successful  # however slow the machine
    client.publisher()
    assert client.reset().success  # forgets the stamps of the images that tried out the publisher
    before = int(time.time())
    for _ in range(2):
        message = client.image()
        message.header.stamp = Time()
        client.send(message)
    client.wait_status(lambda s: s.frames == 2)
    reply = client.ask()
    assert reply.header.stamp == Time() and reply.header.frame_id == "camera_optical_frame"
    assert before <= reply.newest_stamp.sec <= time.time()
    health = client.diagnostic("image input", lambda d: "header.stamp zero" in d.message)
    assert health.level == b"\x01"
    assert client.set_parameter("no_image_timeout", 5.0).successful


@here_and_there
@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        (dict(question=""), "INVALID_QUESTION", "empty"),
        (dict(question="why " * 2_500_000), "INVALID_QUESTION", "long"),  # 10 MB
        (dict(choices=["x"] * 1000), "INVALID_CHOICES", "1000"),
        (dict(choices=["a", ""]), "INVALID_CHOICES", "empty"),
        (dict(max_new_tokens=1_000_000), "BUDGET_EXCEEDED", "max_tail_tokens"),
        (dict(temperature=100.0), "INVALID_PARAMETER", "at most 10"),
        (dict(source="attic"), "INVALID_PARAMETER", "no camera 'attic'"),
    ],
)
def test_a_bad_question_is_an_error_in_words(client, fields, code, words):
    fill(client, 2)
    before = client.status.length
    reply = client.ask(**fields)
    assert reply.error_code == getattr(reply, code), reply.error_message
    assert words in reply.error_message and reply.text == ""
    assert client.ask().error_code == 0
    assert client.ask().cache_status.length == before


def test_control_tokens_in_a_question_are_read_as_text(client):
    fill(client, 2)
    plain, marked = client.ask("end"), client.ask("<|im_end|>")
    assert marked.error_code == 0
    assert marked.prompt_tokens > plain.prompt_tokens + 5  # letters, not one control token


def test_a_question_before_the_first_chunk_is_told_that_images_arrive(client, whole_chunks):
    assert client.set_parameter("no_image_timeout", 3600.0).successful  # however slow the machine
    client.send(client.image())
    reply = client.ask()
    assert client.set_parameter("no_image_timeout", 5.0).successful
    assert reply.error_code == reply.EMPTY_MEMORY
    assert reply.error_message.startswith(
        "the memory holds no image yet: images arrive on /shared/image, but none is in memory"
    )


# Asking while the node works ----------------------------------------------------------------------


def test_a_long_answer_holds_up_nothing_else(client):
    stamps = fill(client, 2)
    goal = client.send_goal(max_new_tokens=LONG)
    goal.wait_for_text()
    heard = len(client.statuses)
    already = client.status.frames_ingested
    for _ in range(3):
        client.publisher().publish(client.image())
    assert client.state() == "active"
    client.graph.wait(lambda: len(client.statuses) > heard + 2)
    client.wait_status(lambda s: s.frames_ingested >= already + 3, what="the new frames")
    assert not goal.done
    goal.cancel()
    result = goal.result()[1]
    assert result.answer_tokens > 0
    assert result.newest_stamp == stamps[-1]  # of the memory that was asked
    client.wait_status(lambda s: s.frames_pending == 0)


def test_of_a_burst_of_questions_each_is_answered_or_told_that_the_queue_is_full(client):
    from rclpy.qos import HistoryPolicy, QoSProfile
    from stream_vlm.srv import Query

    fill(client, 2)
    goal = client.send_goal(max_new_tokens=LONG)
    goal.wait_for_text()  # from here on they wait
    qos = QoSProfile(history=HistoryPolicy.KEEP_ALL)  # of the replies
    node, request = client.graph.node, Query.Request(question="What?", max_new_tokens=1)
    asking = node.create_client(Query, f"{client.name}/query", qos_profile=qos)
    assert asking.wait_for_service(PATIENCE)
    pending = client.graph.do(lambda: [asking.call_async(request) for _ in range(40)])
    client.graph.wait(lambda: sum(one.done() for one in pending) >= 40 - 8, what="the refusals")
    goal.cancel()
    answers = [client.graph.result(one).answer for one in pending]
    node.destroy_client(asking)
    codes = [answer.error_code for answer in answers]
    assert codes.count(0) == 8 and codes.count(answers[0].QUEUE_FULL) == 32  # max_questions


def test_with_no_share_frames_wait_for_the_end_of_an_answer(client):
    fill(client, 2)
    assert client.set_parameter("ingest_share", 0.0).successful
    try:
        goal = client.send_goal(max_new_tokens=LONG)
        goal.wait_for_text()
        already = client.status.frames_ingested
        client.publisher().publish(client.image())
        status = client.wait_status(lambda s: s.frames_pending > 0)
        assert status.frames_ingested == already
        goal.cancel()
        client.wait_status(lambda s: s.frames_ingested == already + 1)
    finally:
        assert client.set_parameter("ingest_share", 0.5).successful


@here_and_there
def test_the_action_tells_the_answer_while_it_is_written(client):
    fill(client, 2)
    goal = client.send_goal(max_new_tokens=12)
    status, result = goal.result()
    goal.wait_for_text()  # which may be heard behind the result
    assert status == 4 and result.answer_tokens == 12  # SUCCEEDED
    assert [f.state for f in goal.feedback] == sorted(f.state for f in goal.feedback)
    texts = [f.text for f in goal.feedback if f.text]
    assert texts and result.text.startswith(texts[-1])
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(texts))


@here_and_there
def test_the_action_can_be_cancelled(client):
    fill(client, 2)
    goal = client.send_goal(max_new_tokens=LONG)
    goal.wait_for_text()
    goal.cancel()
    status, result = goal.result()
    assert status == 5 and result.error_code == result.CANCELLED  # CANCELED
    assert 0 < result.answer_tokens < LONG
    assert client.ask().error_code == 0


def test_an_action_that_fails_is_aborted_with_its_code(client):
    status, result = client.send_goal().result()
    assert (status, result.error_code) == (6, result.EMPTY_MEMORY)  # ABORTED


# Parameters ---------------------------------------------------------------------------------------


def test_parameters_change_or_are_refused_with_the_reason(client):
    assert client.set_parameter("max_new_tokens", 3).successful
    assert client.set_parameter("sample_fps", 0).successful  # a whole number for a float
    fill(client, 2)
    assert client.ask(max_new_tokens=0).answer_tokens == 3
    for name, value, words in (
        ("sample_fps", -1.0, "sample_fps"),
        ("sample_fps", "fast", "must be of type float"),
        ("on_time_jump", "ignore", "must be one of reset, reject"),
        ("max_cache_tokens", 999, "only while the node is unconfigured"),
        ("max_new_tokens", 20_000, "max_tail_tokens"),
        ("autostart", False, "read-only"),
        ("sampel_fps", 3.0, "there is no parameter 'sampel_fps'; did you mean 'sample_fps'?"),
    ):
        result = client.set_parameter(name, value)
        assert not result.successful and words in result.reason, result
    assert client.set_parameter("max_new_tokens", 128).successful


def test_what_the_node_dumps_of_its_parameters_can_be_loaded_into_it(client):
    from rcl_interfaces.msg import Parameter as Message
    from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters

    def call(kind, service, **fields):
        return client.graph.call(kind, f"{client.name}/{service}", kind.Request(**fields))

    names = call(ListParameters, "list_parameters").result.names
    assert {"autostart", "max_cache_tokens", "max_new_tokens", "use_sim_time"} <= set(names)
    held = call(GetParameters, "get_parameters", names=names).values
    given = [Message(name=name, value=value) for name, value in zip(names, held, strict=True)]
    results = call(SetParameters, "set_parameters", parameters=given).results
    refused = {n: r.reason for n, r in zip(names, results, strict=True) if not r.successful}
    assert refused == {}
    assert not client.set_parameter("autostart", False).successful


def test_a_change_that_is_accepted_is_logged_with_what_was_before(shared_node, client):
    assert client.set_parameter("temperature", 0.25).successful
    shared_node.wait_for("parameter temperature: 0.0 -> 0.25")
    assert client.set_parameter("temperature", 0.25).successful  # no change
    assert not client.set_parameter("temperature", -1.0).successful
    assert client.set_parameter("temperature", 0.0).successful
    shared_node.wait_for("parameter temperature: 0.25 -> 0.0")
    assert shared_node.output.count("parameter temperature:") == 2


def test_what_a_checkpoint_says_of_sampling_is_logged_as_ignored(shared_node):
    (said,) = [line for line in shared_node.lines if "only eos_token_id is used" in line]
    assert "[WARN]" in said and "ignored: temperature 0.7. An answer is the likeliest" in said


def test_the_size_of_pictures_changes_while_the_stream_goes_on(client, whole_chunks):
    fill(client, 2, height=112, width=168)
    before = client.wait_status(lambda s: s.frames == 2).length
    assert client.set_parameter("max_pixels", 56 * 84).successful
    stamps = fill(client, 2, height=112, width=168)
    status = client.wait_status(lambda s: s.frames == 4)
    assert status.length - before == 2 * 3  # one grid of 56 x 84 pixels
    refused = client.set_parameter("max_pixels", 783)
    assert not refused.successful and "below min_pixels (784)" in refused.reason
    assert client.set_parameter("max_pixels", 401_408).successful
    fill(client, 2, height=112, width=168)
    status = client.wait_status(lambda s: s.frames == 6)
    assert status.length - before == 2 * 3 + 4 * 6
    assert status.oldest_stamp.sec < stamps[0].sec  # what was there stays


def test_parameters_describe_themselves(client):
    from rcl_interfaces.srv import DescribeParameters

    from stream_vlm_ros.node.parameters import PARAMETERS

    request = DescribeParameters.Request(names=list(PARAMETERS))
    name = f"{client.name}/describe_parameters"
    reply = client.graph.call(DescribeParameters, name, request)
    for descriptor in reply.descriptors:
        row = PARAMETERS[descriptor.name]
        assert descriptor.description == row.text
        ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
        if row.low is not None:
            assert [ranges[0].from_value, ranges[0].to_value] == [row.low, row.high]


# Lifecycle ----------------------------------------------------------------------------------------


def test_the_whole_lifecycle_twice(connect, start_node):
    node = start_node(namespace="cycle", autostart="false", **FAST)
    node.wait_for("starting")
    client = connect("cycle")
    assert client.state() == "unconfigured"
    for _ in range(2):
        assert client.change_state("configure")
        assert client.state() == "inactive"
        assert client.ask().error_code == client.ask().NOT_ACTIVE
        client.send(client.image())
        status = client.status
        assert status.dropped_inactive == status.frames_received > 0
        assert client.change_state("activate")
        fill(client, 2)
        assert client.ask().error_code == 0
        assert client.change_state("deactivate")
        assert client.status.length > 0  # the memory stays
        assert client.change_state("activate")
        assert client.ask().error_code == 0
        assert client.change_state("deactivate")
        assert client.change_state("cleanup")
        assert client.state() == "unconfigured"
        client.drop_publishers()
        client.statuses.clear()
    assert client.change_state("shutdown")
    assert node.stop() == 0


def test_a_transition_that_fails_is_logged_and_can_be_tried_again(connect, start_node, tmp_path):
    missing = tmp_path / "no_model"
    node = start_node(namespace="fails", model_path=str(missing), **FAST)
    node.wait_for("the node waits unconfigured")
    node.wait_for("stream-vlm node set model_path FOLDER --node /fails/stream_vlm")
    node.wait_for("stream-vlm node configure --node /fails/stream_vlm")
    client = connect("fails")
    assert "configure failed" in node.output and str(missing) in node.output
    assert client.state() == "unconfigured"
    health = client.diagnostic("model and memory", lambda d: d.level == b"\x02")
    assert str(missing) in health.message
    assert not client.change_state("configure")
    assert client.set_parameter("pose_topic", "no topic\x1b[31m").successful
    assert not client.change_state("configure")
    node.wait_for("pose_topic is no name of a topic: 'no topic\\x1b[31m'")
    assert client.set_parameter("pose_topic", "").successful
    assert client.set_parameter("model_path", f"{missing}\x1b[31m\n").successful
    assert not client.change_state("configure")
    node.wait_for(f"loading the model {missing}\\x1b[31m\\n")
    assert client.set_parameter("model_path", "").successful
    assert client.change_state("configure") and client.change_state("activate")
    assert "Traceback" not in node.output and all(line.isprintable() for line in node.lines)
    fill(client, 2)
    assert client.ask().error_code == 0
    small = "the small model of the package, which knows only its drawn world"
    assert small in node.output  # before any answer
    health = client.diagnostic("model and memory", lambda d: "in memory" in d.message)
    assert {value.key: value.value for value in health.values}["model"] == small


def test_a_transition_that_does_not_exist_is_refused_and_the_node_lives(client):
    assert not client.change_state("configure")
    assert not client.change_state("nonsense")
    assert client.state() == "active"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (dict(device="cuda:7"), "finds"),
        (dict(max_cache_tokens=200, sink_size=150, window_size=100), "bad parameter"),
        (dict(sample_fps="-3.0"), "bad parameter: sample_fps must lie in"),
        (dict(chunk_frames="many"), "bad parameter: chunk_frames must be of type int"),
    ],
)
def test_bad_parameters_at_start_are_told_without_a_traceback(start_node, parameters, words):
    node = start_node(namespace="bad", **{**FAST, **parameters})
    node.wait_for(words)
    assert "Traceback" not in node.output
    if "bad parameter" in words:
        assert node.process.wait(PATIENCE) == 1


@pytest.mark.parametrize("text", [None, "stream_vlm: [1, 2"])
def test_an_unusable_parameter_file_is_told_without_a_traceback(tmp_path, text):
    file = tmp_path / "parameters.yaml"
    if text is not None:
        file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "stream_vlm_ros.node", "--ros-args", "--params-file", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    _, *by_rcl, said = done.stderr.splitlines()  # the first says that it starts
    assert said.startswith("stream_vlm: ROS cannot be initialized: ") and str(file) in said
    assert ".c:" not in said
    assert all("[rcl]" in line for line in by_rcl), done.stderr


def test_a_misspelled_parameter_is_refused_with_the_one_that_is_meant(start_node):
    node = start_node(namespace="typo", sampel_fps=3.0, autostart="false")
    node.wait_for("there is no parameter 'sampel_fps'; did you mean 'sample_fps'?")
    assert node.process.wait(PATIENCE) == 1
    assert "Traceback" not in node.output


def test_a_cap_smaller_than_a_chunk_is_told_and_the_node_lives(connect, start_node):
    node = start_node(namespace="small", max_cache_tokens=64, **FAST)
    node.wait_for("the node is active")
    client = connect("small")
    for _ in range(2):
        client.send(client.image(height=480, width=640))
    client.wait_status(lambda s: s.dropped_error == 2)
    health = client.diagnostic("model and memory", lambda d: d.level == b"\x02")
    assert "max_cache_tokens" in health.message or "cap" in health.message
    for _ in range(2):
        client.send(client.image(height=28, width=28))
    assert balanced(client.wait_status(lambda s: s.frames_ingested == 2))


# Diagnostics and QoS ------------------------------------------------------------------------------


def try_to_publish(client, kind, topic, qos):
    """A publisher, or None while Fast DDS still knows the topic by another type."""
    try:
        return client.graph.node.create_publisher(kind, topic, qos)
    except Exception:
        return None


def test_silence_is_reported_with_its_likely_cause(connect, start_node):
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import String

    node = start_node(
        namespace="quiet", no_image_timeout=0.5, image_qos="reliable", image_transport="raw", **FAST
    )
    node.wait_for("the node is active")
    client = connect("quiet")

    def cause(words):
        return client.diagnostic("image input", lambda d: words in d.message)

    assert cause("nobody publishes on /quiet/image").level == b"\x02"
    node.wait_for("no image on /quiet/image for ")
    reply = client.ask()
    assert reply.error_code == reply.EMPTY_MEMORY
    assert reply.error_message == (
        "the memory holds no image yet: no image arrives on /quiet/image; see /diagnostics"
    )
    other = client.graph.node.create_publisher(Image, "/quiet/front/image_raw", 10)
    cause("images are published on /quiet/front/image_raw: start the node with")
    client.graph.node.destroy_publisher(other)

    for kind, topic, words in (
        (String, "ffmpeg", "ffmpeg [std_msgs/msg/String] is published, which this node does not"),
        (CompressedImage, "compressedDepth", "Image] is published, which this node does not take"),
        (CompressedImage, "compressed", "published on /quiet/image/compressed: set image_transp"),
    ):
        other = client.graph.node.create_publisher(kind, f"/quiet/image/{topic}", 10)
        cause(words)
        client.graph.node.destroy_publisher(other)

    for kind, words in (
        (String, "/quiet/image carries std_msgs/msg/String, which this node does not take"),
        (
            CompressedImage,
            "carries sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image; set",
        ),
    ):
        wrong = client.graph.wait(
            lambda kind=kind: try_to_publish(client, kind, "/quiet/image", 10)
        )
        cause(words)
        client.graph.node.destroy_publisher(wrong)

    best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = client.graph.wait(
        lambda: try_to_publish(client, Image, "/quiet/image", best_effort)
    )
    cause("incompatible QoS; set image_qos to 'auto'")
    node.wait_for("a publisher on /quiet/image has an incompatible QoS: RMW_QOS_POLICY_RELIABILITY")
    client.graph.node.destroy_publisher(publisher)


def test_two_cameras_on_one_topic_are_named(client):
    from sensor_msgs.msg import Image

    client.publisher()
    second = client.graph.node.create_publisher(Image, client.image_topic, 10)
    told = client.diagnostic("image input", lambda d: "2 publishers on" in d.message)
    assert told.level == b"\x01" and "memory: /tester, /tester; " in told.message
    client.graph.node.destroy_publisher(second)
    told = client.diagnostic("image input", lambda d: "publishers on" not in d.message)
    assert {value.key: value.value for value in told.values}["publishers"] == "/tester"


def test_the_subscription_follows_the_publishers_reliability_and_type(connect, start_node):
    import cv2
    import numpy as np
    from sensor_msgs.msg import CompressedImage

    node = start_node(namespace="follow", **FAST)
    node.wait_for("the node is active")
    client = connect("follow")
    client.send(client.image(), reliable=True)
    node.wait_for("/follow/image [sensor_msgs/msg/Image], reliable")
    client.drop_publishers()
    client.send(client.image(), reliable=False)
    node.wait_for("/follow/image [sensor_msgs/msg/Image], best effort (was")
    client.wait_status(lambda s: s.frames_ingested == 2)  # one may be a chunk by itself
    client.drop_publishers()
    publisher = client.graph.wait(
        lambda: try_to_publish(client, CompressedImage, "/follow/image", 10), what="a publisher"
    )
    node.wait_for("/follow/image [sensor_msgs/msg/CompressedImage], reliable (was")
    header = client.image().header
    client.adopt(publisher, True, CompressedImage)
    png = cv2.imencode(".png", np.zeros((56, 84, 3), np.uint8))[1].tobytes()
    client.send(CompressedImage(header=header, format="png", data=array.array("B", png)))
    client.wait_status(lambda s: s.frames_ingested == 3)


def test_simulated_time_that_never_comes_is_reported(connect, start_node):
    node = start_node(namespace="sim", use_sim_time="true", **FAST)
    node.wait_for("the node is active")
    client = connect("sim")
    client.diagnostic("image input", lambda d: "nothing is published on /clock" in d.message)
    for count in (2, 1):  # neither a full chunk needs a clock, nor one that stays half full
        already = client.status.frames_ingested
        for _ in range(count):
            client.send(client.image())
        client.wait_status(lambda s, n=already + count: s.frames_ingested == n)
    assert client.ask().error_code == 0


def test_a_subscriber_sees_what_was_sampled_with_words_on_it(client):
    from sensor_msgs.msg import Image

    fill(client, 2)
    client.ask("Is there a cat?")
    shown, subscription = client.graph.listen(Image, "/shared/stream_vlm/annotated_image")
    try:
        stamps = []
        while not shown:  # the node has yet to find the subscriber
            stamps += fill(client, 2)
    finally:
        client.graph.do(lambda: client.graph.node.destroy_subscription(subscription))
    # 84 x 56 pixels are enlarged by a whole number, to 320 in width at least.
    assert (shown[0].encoding, shown[0].width, shown[0].height) == ("rgb8", 4 * 84, 4 * 56)
    assert shown[0].header.stamp in stamps
    assert shown[0].header.frame_id == "camera_optical_frame"


def interface(name):
    """The class of ``package/msg/Name``."""
    package, kind, name = name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def test_the_foxglove_layout_shows_what_the_node_publishes(client):
    assert set(foxglove_layout.panels()) == set(foxglove_layout.LAYOUT["configById"])
    kinds = dict(client.graph.node.get_topic_names_and_types())

    def shared(name):
        return name.replace("/stream_vlm/", "/shared/stream_vlm/")

    for topic, _, field in (path.partition(".") for path in foxglove_layout.paths()):
        message = interface(kinds[shared(topic)][0])
        assert not field or field in message.get_fields_and_field_types()
    services = dict(client.graph.node.get_service_names_and_types())
    for service, request in foxglove_layout.calls():
        kind = interface(services[shared(service)][0])
        assert set(request) <= kind.Request.get_fields_and_field_types().keys()
