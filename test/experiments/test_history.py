# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the history experiment counts, resumes and refuses."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from stream_vlm_ros.engine import EvidenceEpisode
from stream_vlm_ros.experiments import history
from stream_vlm_ros.experiments.command import main
from stream_vlm_ros.experiments.context import Context
from stream_vlm_ros.experiments.history_world import names_evidence, without
from stream_vlm_ros.experiments.options import parser_of
from stream_vlm_ros.experiments.record import Record
from stream_vlm_ros.history.index import Found
from stream_vlm_ros.world.questions import Question
from stream_vlm_ros.world.rare import AGES, MEASURING, Asked, Stretch


def asked(*evidence):
    question = Question("Where was the red star last seen?", "left", "where_left")
    return Asked(question, "where_left", 90.0, ("red star",), 60.0, "1-10 min", evidence, evidence)


def episode(start, end):
    return EvidenceEpisode(start=start, end=end, score=5.0, tier="history")


@pytest.mark.parametrize(
    ("named", "evidence", "expected"),
    [
        ([episode(10, 20)], [Stretch(18, 25)], True),
        ([episode(10, 20)], [Stretch(20, 25)], True),
        ([episode(10, 20)], [Stretch(20.5, 25)], False),
        ([episode(10, 20), episode(40, 50)], [Stretch(18, 25), Stretch(44, 45)], True),
        ([episode(10, 20)], [Stretch(18, 25), Stretch(44, 45)], False),
        ([], [Stretch(18, 25)], False),
        ([], [], True),
        ([episode(10, 20)], [], False),
    ],
)
def test_evidence_is_named_where_every_stretch_of_it_meets_an_episode(named, evidence, expected):
    assert names_evidence(named, asked(*evidence)) is expected


def test_without_a_time_the_engine_finds_all_else_and_is_as_before():
    stamps = np.array([[number, number + 0.5] for number in range(20)])
    serials, spans, left_out = np.arange(20), np.ones(20, np.int64), np.arange(20) % 3
    found = Found(serials, spans, stamps, left_out, torch.arange(40.0).reshape(2, 20))
    index = SimpleNamespace(search=lambda *_, **__: found, grids=20)
    engine = SimpleNamespace(index=index)
    with without(engine, [Stretch(8.0, 9.5)]):
        left = engine.index.search("queries")
        assert engine.index.grids == 20
    # Two grids on either side go, too.
    expected = [*range(6), *range(12, 20)]
    assert left.serials.tolist() == expected
    assert left.stamps.tolist() == [[n, n + 0.5] for n in expected]
    assert left.left_out.tolist() == [n % 3 for n in expected]
    assert left.scores.tolist() == [[float(n) for n in expected], [20.0 + n for n in expected]]
    assert engine.index is index


def world_of(seed, right):
    """A measured world of one type: of ten questions at each age so many are right."""
    rows = [
        {"number": n, "type": type_, "band": band, "age": 100.0, "now": 900.0, "memory": memory,
         "right": n < right, "told": n < 2, "answer": "", "truth": "", "evidence": n < 8,
         "fetched": 240 if n < 5 else 0}
        for type_ in ("where_left", "left_ago")
        for band in AGES
        for memory in history.MEMORIES
        for n in range(10)
    ]  # fmt: skip
    taken = [
        {"number": n, "type": "where_left", "band": "1-3 h", "taken": name,
         "changed": (n < 9) == (name == "evidence"), "right": False}
        for name in ("evidence", "as much else")
        for n in range(10)
    ]  # fmt: skip
    present = [
        {"type": "now", "asked": "plain", "now": 1.0, "history": n < 9, "streaming": True,
         "same": n < 9, "fetched": 0 if n < 9 else 40}
        for n in range(10)
    ]  # fmt: skip
    return {
        "seed": seed, "rows": rows, "taken": taken, "perception": present, "tiers": [],
        "latencies": {"chunk": [0.010 * n for n in range(1, 101)]},
        "seconds": {"streamed_and_asked": 1.0, "all": 2.0},
    }  # fmt: skip


@pytest.fixture
def reported(tmp_path):
    def report(*worlds):
        options = parser_of("history").parse_args([])
        screen = Console(file=io.StringIO(), width=160)
        record = Record("history", "Questions about hours", tmp_path / "out")
        context = Context(options, record, screen)
        history.report(context, list(worlds), {})
        record.finish()
        return json.loads(record.path.read_text()), screen.file.getvalue()

    return report


def test_rows_say_what_is_right_by_type_age_and_memory(reported):
    found, _ = reported(world_of(1, 9), world_of(2, 5))
    assert found["rows"][0] == {
        "type": "where_left", "age": "1-10 min", "memory": "history", "right": 0.7, "asked": 20,
        # Wilson's interval of 14 of 20, by its formula.
        "low": 0.481, "high": 0.8545,
    }  # fmt: skip
    assert len(found["rows"]) == 2 * len(AGES) * len(history.MEMORIES)
    summary = found["summary"]
    assert summary["seeds"] == [1, 2]
    assert summary["true_episode_named"][0]["right"] == 0.8
    assert summary["left_ago_told_by_the_model"][0]["right"] == 0.2
    assert summary["evidence_taken"]["evidence"]["changed"] == 0.9
    assert summary["evidence_taken"]["as much else"]["changed"] == 0.1
    assert summary["fetched"] == {
        "questions": 160, "fetched": 80, "tokens_median": 240, "tokens_max": 240,
    }  # fmt: skip
    present = summary["present"]
    assert (present["asked"], present["fetched"], present["identical"]) == (20, 2, 18)
    assert present["identical_where_nothing_was_fetched"] == 18
    assert (present["history"], present["streaming"]) == (0.9, 1.0)
    assert summary["latencies_ms"]["chunk"] == {"median": 510.0, "95 %": 960.0, "count": 200}


def test_the_table_fits_80_columns(reported):
    _, shown = reported(world_of(1, 10))
    lines = [
        line for line in shown.splitlines() if line[:10].strip() in ("where_left", "per cent r")
    ]
    assert len(lines) == 1 + len(AGES)
    assert max(map(len, lines)) <= 80
    assert "100 72-100" in lines[1]  # ten of ten


def test_bars_are_judged_by_age(reported):
    found, _ = reported(*(world_of(seed, 10) for seed in range(8)))
    judged = {one["name"]: one["passed"] for one in found["criteria"]}
    assert judged["where_left and direction, 3-6 h"] is True
    assert judged["left_ago, 1-10 min"] is True
    assert judged["the true episode is among those named"] is False  # 80 %
    assert judged["answers that change with evidence taken away"] is True
    assert judged["answers that change with as much else taken away"] is True
    assert judged["perception, points below that without a history"] is False  # 10
    assert judged["identical where nothing was fetched"] is True
    assert judged["worlds"] is True
    found, _ = reported(*(world_of(seed, 8) for seed in range(7)))
    judged = {one["name"]: one["passed"] for one in found["criteria"]}
    assert judged["where_left and direction, 3-6 h"] is False  # 80 %
    assert judged["worlds"] is False


@pytest.mark.parametrize(
    "arguments",
    [["--worlds", "0"], ["--jobs", "0"], ["--chunk-frames", "3"], ["--first", "16"],
     ["--layout", "segmented"], ["--taken", "-1"]],
)  # fmt: skip
def test_options_out_of_range_are_refused_before_anything_is_measured(tmp_path, arguments, capsys):
    assert main(["history", "--out", str(tmp_path), *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_file_that_is_not_its_own_is_left_as_it_is(tmp_path, capsys):
    file = tmp_path / f"world-{MEASURING[0]}.json"
    file.write_text('{"somebody": "else"}')
    assert main(["history", "--device", "cpu", "--out", str(tmp_path), "--worlds", "1"]) == 2
    assert "is not what this experiment wrote" in capsys.readouterr().err
    assert file.read_text() == '{"somebody": "else"}'


@pytest.mark.slow
def test_worlds_are_measured_once_and_resumed(tmp_path):
    arguments = [
        "history", "--device", "cpu", "--out", str(tmp_path), "--hours", "0.1", "--once", "3",
        "--repeated", "1", "--never", "2", "--questions", "8", "--moments", "3", "--taken", "2",
        "--threads", "1",
    ]  # fmt: skip
    assert main([*arguments, "--worlds", "1"]) == 1  # one world is too few
    first = (tmp_path / f"world-{MEASURING[0]}.json").read_bytes()
    assert main([*arguments, "--worlds", "2"]) == 1
    assert (tmp_path / f"world-{MEASURING[0]}.json").read_bytes() == first
    found = json.loads((tmp_path / "history.json").read_text())
    assert found["summary"]["seeds"] == list(MEASURING[:2])
    assert {row["memory"] for row in found["rows"]} == set(history.MEMORIES)
    assert sum(row["asked"] for row in found["rows"] if row["memory"] == "history") == 16
    worlds = [json.loads((tmp_path / f"world-{seed}.json").read_text()) for seed in MEASURING[:2]]
    asked = [row for world in worlds for row in world["perception"]]
    assert found["summary"]["present"]["asked"] == len(asked)
    # At most three moments a world, as long as there is something to ask; each question both ways.
    assert 2 <= len({row["now"] for row in asked}) <= 6
    assert sum(row["asked"] == "plain" for row in asked) == len(asked) / 2
