"""Real time: the search for a rate, and the whole way through the node over DDS."""

from __future__ import annotations

import os

import pytest

from stream_vlm_ros.engine.errors import InvalidParameterError
from stream_vlm_ros.node.replay_player import highest_rate
from stream_vlm_ros.replay import realtime
from stream_vlm_ros.replay.job import ReplayJob
from stream_vlm_ros.replay.questions import load_questions
from stream_vlm_ros.replay.settings import EngineSettings

QUESTIONS = """
questions:
  - {text: "What is visible now?", at: 2.5, id: now}
  - {text: "Was there a circle?", at: 3, choices: [yes, no], expect: [yes, no], id: circle}
  - {text: "What came last?", at: end, id: last}
"""


@pytest.mark.parametrize("limit", [0.5, 1.0, 3.3, 17.0, 64.0, 119.0, 500.0])
def test_the_highest_rate_is_found_to_five_percent(limit):
    tried = []

    def measure(rate):
        tried.append(rate)
        return 0.0 if rate <= limit else 1 - limit / rate + 0.05

    found = highest_rate(measure, highest=120.0, loss=0.05)
    if limit < 1:
        assert found == 0
    elif limit >= 120:
        assert found == 120
    else:
        assert limit - max(0.05 * limit, 0.25) <= found <= limit
    assert len(tried) <= 14
    assert max(tried) <= 120


def test_what_real_time_cannot_do_is_refused(write_questions, tmp_path):
    questions = load_questions(write_questions(QUESTIONS))
    with pytest.raises(InvalidParameterError, match="ros2 bag record"):
        ReplayJob("world:1", questions, [EngineSettings()], tmp_path, bag=True, realtime=True)


@pytest.mark.ros
def test_the_node_answers_in_real_time_and_no_frame_is_unaccounted_for(
    write_questions, tmp_path, monkeypatch
):
    monkeypatch.setattr(realtime, "own_domain", lambda: int(os.environ["ROS_DOMAIN_ID"]))
    settings = EngineSettings(
        device="cpu", max_pixels=12_544, max_cache_tokens=400, max_new_tokens=6
    )
    questions = load_questions(write_questions(QUESTIONS))
    options = {"end": 5.0, "size": (128, 96)}
    job = ReplayJob("world:1", questions, [settings], tmp_path / "r", options, realtime=True)
    report = job.run()
    (run,) = report["runs"]
    assert report["mode"] == "realtime"
    assert [(a["id"], a["status"]) for a in run["answers"]] == [
        ("now", "answered"),
        ("circle", "answered"),
        ("last", "answered"),
    ]
    frames, drops = run["frames"], run["frames"]["drops"]
    assert frames["decoded"] == 50
    assert frames["decoded"] == frames["ingested"] + sum(drops.values())
    assert 8 <= frames["ingested"] <= 10  # 2 a second for 5 seconds
    now = run["answers"][0]
    newest = now["seen"][-1][1]
    assert 0 <= newest <= 2.6  # nothing of the future; the source's own time, not "now"
    assert run["series"][-1]["cache_length"] <= 400
