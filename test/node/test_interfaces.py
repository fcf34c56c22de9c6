# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The messages fit each other, and say every error."""

import pytest

from stream_vlm_ros import errors
from stream_vlm_ros.errors import InvalidChoicesError, InvalidParameterError, StreamVlmError

pytestmark = pytest.mark.ros


@pytest.fixture
def interfaces():
    from stream_vlm_ros.node import interfaces

    return interfaces


def constants(message):
    names = [n for n in dir(message) if n.isupper() and not n.endswith("__DEFAULT")]
    return {n: getattr(message, n) for n in names if n != "SLOT_TYPES"}


def test_one_message_carries_an_answer_whichever_way_it_was_asked():
    from stream_vlm.action import Ask
    from stream_vlm.srv import Query

    carried = {"answer": "stream_vlm/Answer", "answers": "sequence<stream_vlm/Answer>"}
    assert Query.Response.get_fields_and_field_types() == carried
    assert Ask.Result.get_fields_and_field_types() == carried
    assert Query.Request.get_fields_and_field_types() == Ask.Goal.get_fields_and_field_types()


def test_every_error_of_the_package_has_its_code():
    from stream_vlm.msg import Answer

    from stream_vlm_ros.session import question

    kinds = [*vars(errors).values(), *vars(question).values()]
    kinds = [k for k in kinds if isinstance(k, type) and issubclass(k, StreamVlmError)]
    # The node reads no files of frames: errors of sources cannot reach an answer.
    codes = {kind.code for kind in kinds if not issubclass(kind, errors.SourceError)}
    assert codes == set(constants(Answer)) - {"NONE"}
    numbers = [getattr(Answer, code) for code in codes]
    assert len(set(numbers)) == len(numbers) and 0 not in numbers


def test_every_counter_has_its_field():
    from stream_vlm.msg import CacheStatus

    from stream_vlm_ros.session.counters import FrameCounters

    names = [n for n in CacheStatus.get_fields_and_field_types() if n.startswith("dropped_")]
    counts = FrameCounters().snapshot()
    assert set(names) == {name for name in counts if name.startswith("dropped_")}


def test_what_a_request_leaves_out_is_the_nodes(interfaces):
    from stream_vlm.srv import Query

    from stream_vlm_ros.config import Settings

    node = Settings(max_new_tokens=33, temperature=0.5)
    assert interfaces.to_question(Query.Request(question="?"), node).max_new_tokens == 33
    assert interfaces.to_question(Query.Request(question="?"), node).temperature == 0.5
    request = Query.Request(question="?", max_new_tokens=5, temperature=0.0)
    own = interfaces.to_question(request, node)
    assert (own.max_new_tokens, own.temperature) == (5, 0.0)
    assert own.refuse_forgotten
    assert not interfaces.to_question(request, Settings(refuse_forgotten=False)).refuse_forgotten


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"temperature": 11.0}, InvalidParameterError, "at most 10"),
        ({"temperature": float("nan")}, InvalidParameterError, "at most 10"),
        ({"keep_exchange": True, "choices": ["a"]}, InvalidChoicesError, "cannot be kept"),
        ({"history": "sometimes"}, InvalidParameterError, "never, auto, always or empty"),
        ({"history": "auto"}, InvalidParameterError, "this node keeps no history"),
        ({"thumbnails": 7}, InvalidParameterError, "at most 6 an episode, got 7"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(interfaces, fields, error, words):
    from stream_vlm.srv import Query

    from stream_vlm_ros.config import Settings

    with pytest.raises(error, match=words):
        interfaces.to_question(Query.Request(question="?", **fields), Settings())


def test_a_request_may_name_the_history_where_the_node_keeps_one(interfaces):
    from stream_vlm.srv import Query

    from stream_vlm_ros.config import Settings

    plain, node = Settings(), Settings(history="auto")
    asked = interfaces.to_question(Query.Request(question="?", history="always"), node)
    assert (asked.history, asked.thumbnails) == ("always", 0)
    assert interfaces.to_question(Query.Request(question="?"), node).history == ""
    # An engine without a history is not told of one.
    never = Query.Request(question="?", history="never", thumbnails=6)
    assert interfaces.to_question(never, plain).history == ""
    assert interfaces.to_question(never, plain).thumbnails == 6


def test_evidence_carries_stamps_pictures_and_poses(interfaces):
    from stream_vlm.msg import CacheStatus

    from stream_vlm_ros.history.poses import Pose
    from stream_vlm_ros.session.memory_summary import EpisodeState
    from stream_vlm_ros.session.question import Outcome, Question

    episode = EpisodeState(
        1_000_000_007,
        3_000_000_000,
        2.5,
        "history",
        (1_000_000_007, 3_000_000_000),
        ((3_000_000_000, b"jpeg"),),
        (Pose(1_000_000_007, "map", (1.0, 2.0, 3.0), (0.0, 0.0, 0.6, 0.8)),),
    )
    outcome = Outcome(Question("?"), fetched_tokens=400, evidence=(episode,))
    answer = interfaces.to_answer(outcome, CacheStatus())
    [told] = answer.evidence
    assert (told.span.start.sec, told.span.start.nanosec, told.span.end.sec) == (1, 7, 3)
    assert (told.score, told.tier, answer.fetched_tokens) == (2.5, "history", 400)
    assert [(stamp.sec, stamp.nanosec) for stamp in told.stamps] == [(1, 7), (3, 0)]
    [picture], [pose] = told.thumbnails, told.poses
    assert (picture.format, bytes(picture.data), picture.header.stamp.sec) == ("jpeg", b"jpeg", 3)
    assert (pose.header.frame_id, pose.header.stamp.nanosec) == ("map", 7)
    assert (pose.pose.position.z, pose.pose.orientation.w) == (3.0, 0.8)


def test_a_status_tells_what_each_tier_of_the_history_holds(interfaces):
    from stream_vlm_ros.session.memory_summary import MemorySummary, TierState

    tiers = (
        TierState("pictures", 5, 10, 900, 1000, "/frames", 7, 9_000_000_001),
        TierState("keys", 0, 0, 0, 50, "device", None, None, left_out=30),
    )
    pictures, keys = interfaces.to_cache_status(MemorySummary(tiers=tiers), "active", {}).tiers
    assert (pictures.name, pictures.grids, pictures.frames) == ("pictures", 5, 10)
    assert (pictures.bytes, pictures.max_bytes, pictures.where) == (900, 1000, "/frames")
    assert (pictures.oldest.nanosec, pictures.newest.sec, pictures.newest.nanosec) == (7, 9, 1)
    assert (keys.newest.sec, keys.where, keys.left_out) == (0, "device", 30)


def test_a_status_tells_since_when_and_why_there_is_no_connection_and_what_was_lost(interfaces):
    from stream_vlm_ros.remote.worker import Connection
    from stream_vlm_ros.session.memory_summary import MemorySummary

    counts = {"queue_depth": 0}
    lost = Connection("robot at ws://there", "", 5 * 10**9, "no cable" * 1000, "an hour is lost")
    status = interfaces.to_cache_status(MemorySummary(), "active", counts, connection=lost)
    assert status.disconnected_since.sec == 5 and status.gap == "an hour is lost"
    assert status.connection_error.startswith("no cable") and len(status.connection_error) < 1000
    there = Connection("robot at ws://there", "a model", None, "", "")
    status = interfaces.to_cache_status(MemorySummary(), "active", counts, connection=there)
    assert (status.disconnected_since.sec, status.connection_error) == (0, "")


def test_a_status_tells_stretches_of_time_and_all_levels_in_one_order(interfaces):
    from stream_vlm_ros.session.memory_summary import LevelState, MemorySummary

    empty = interfaces.to_cache_status(MemorySummary(), "inactive", {})
    assert empty.spans == []
    names = ["sink", "sampled", "important", "window"]
    assert [(level.name, level.frames, level.tokens) for level in empty.levels] == [
        (name, 0, 0) for name in names
    ]
    levels = tuple(
        LevelState(name, number, 6 * number, ((number, number + 1),) * number)
        for number, name in enumerate(names)
    )
    spans = ((1_000_000_007, 2_000_000_000), (5_000_000_000, 5_000_000_000))
    status = interfaces.to_cache_status(
        MemorySummary(length=50, spans_ns=spans, levels=levels), "active", {"frames_received": 3}
    )
    spans = [(s.start.sec, s.start.nanosec, s.end.sec, s.end.nanosec) for s in status.spans]
    assert spans == [(1, 7, 2, 0), (5, 0, 5, 0)]
    assert [(level.name, level.frames, level.tokens) for level in status.levels] == [
        ("sink", 0, 0),
        ("sampled", 1, 6),
        ("important", 2, 12),
        ("window", 3, 18),
    ]
    sampled = [(span.start.nanosec, span.end.nanosec) for span in status.levels[1].spans]
    assert sampled == [(1, 2)] and [len(level.spans) for level in status.levels] == [0, 1, 2, 3]
    assert (status.length, status.frames_received) == (50, 3)


def test_times_keep_their_nanoseconds(interfaces):
    stamp = interfaces.to_time(1_700_000_000_123_456_789)
    assert (stamp.sec, stamp.nanosec) == (1_700_000_000, 123_456_789)
    assert interfaces.to_time(None).sec == 0
    duration = interfaces.to_duration(1.25)
    assert (duration.sec, duration.nanosec) == (1, 250_000_000)


def test_what_was_sent_is_repeated_at_a_bounded_length(interfaces):
    from stream_vlm.msg import CacheStatus

    from stream_vlm_ros.node.health import Health, Level
    from stream_vlm_ros.session.question import Outcome, Question

    long = "x" * 10_000_000
    error = InvalidParameterError(f"there is no memory {long}")
    filled = interfaces.to_answer(Outcome(Question("?"), error=error), CacheStatus())
    assert filled.error_message.startswith("there is no memory xxx")
    assert len(filled.error_message) < 600
    status = interfaces.to_diagnostic(Health("t", Level.OK, long, {"last": long}), "n", "cpu")
    assert len(status.message) < 600 and len(status.values[0].value) < 600
