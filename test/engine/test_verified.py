# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is fast must first prove itself, and gives way to the plain way where it fails."""

import logging

import pytest
import torch

from stream_vlm_ros.engine.attention.verified import Verified, relative_difference


def differ(found, expected):
    return "" if found == expected else f"{found} is not {expected}"


class Ways:
    """A fast and a plain way that count their calls."""

    def __init__(self, fast):
        self._fast, self.calls = fast, []

    def fast(self):
        self.calls.append("fast")
        return self._fast()

    def plain(self):
        self.calls.append("plain")
        return 7


@pytest.fixture
def verified():
    return Verified("things take longer")


def test_the_first_result_of_each_kind_is_held_against_the_plain_one(verified):
    ways = Ways(lambda: 7)
    for kind in ("a", "a", "b", "a", "b"):
        assert verified.run(kind, ways.fast, ways.plain, differ) == 7
    assert ways.calls == ["fast", "plain", "fast", "fast", "plain", "fast", "fast"]
    assert verified.refused == {}


def broken():
    raise RuntimeError("no such\nprocessor")


@pytest.mark.parametrize(("way", "why"), [(lambda: 8, "8 is not 7"), (broken, "no such processor")])
def test_what_fails_at_first_is_left_for_good_and_said_once(verified, caplog, way, why):
    ways = Ways(way)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert verified.run(("here", 3), ways.fast, ways.plain, differ) == 7
        assert verified.attempt(("here", 3), ways.fast) is None
    assert ways.calls.count("fast") == 1
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("things take longer (here, 3): ")
    assert why in caplog.text and why in verified.refused[("here", 3)]


def test_what_fails_later_is_left_then_and_the_call_is_answered(verified):
    results = iter([lambda: 7, lambda: 7, broken, lambda: 7])
    ways = Ways(lambda: next(results)())
    for _ in range(5):
        assert verified.run("a", ways.fast, ways.plain, differ) == 7
    assert ways.calls == ["fast", "plain", "fast", "fast", "plain", "plain", "plain"]


def test_a_kind_that_fails_leaves_the_others_their_way(verified):
    verified.run("a", broken, lambda: 7, differ)
    assert verified.run("b", lambda: 7, lambda: 7, differ) == 7
    assert list(verified.refused) == ["a"]


def test_a_fault_that_is_not_its_own_is_raised_and_refuses_nothing(verified):
    def full():
        raise torch.OutOfMemoryError("none left")

    with pytest.raises(torch.OutOfMemoryError):
        verified.run("a", full, lambda: 7, differ)
    assert verified.refused == {}
    graphs = Verified("no graph", spare=())  # for which being too large is a reason
    assert graphs.run("a", full, lambda: 7, differ) == 7
    assert "none left" in graphs.refused["a"]


def test_results_differ_by_more_than_a_share_of_the_whole_or_where_they_are_not_numbers():
    expected = torch.tensor([3.0, 4.0])  # of size 5
    assert relative_difference(expected + torch.tensor([0.04, 0.0]), expected, 0.01) == ""
    assert "0.012" in relative_difference(expected + torch.tensor([0.06, 0.0]), expected, 0.01)
    assert "nan" in relative_difference(expected * torch.nan, expected, 0.01)


def test_where_the_plain_result_is_no_number_the_next_call_decides(verified):
    for number in (torch.nan, torch.inf):
        assert relative_difference(torch.ones(2), torch.tensor([1.0, number]), 0.01) is None
    results = iter([None, None, "", ""])
    ways = Ways(lambda: 8)
    said = [verified.run("a", ways.fast, ways.plain, lambda *_: next(results)) for _ in range(4)]
    assert said == [7, 7, 8, 8]
    assert ways.calls == ["fast", "plain"] * 3 + ["fast"]
    assert verified.refused == {}


def test_what_found_no_memory_is_tried_again_once_some_was_given_back(caplog):
    verified, room = Verified("things take longer", spare=()), []

    def hungry():
        if not room:
            raise torch.OutOfMemoryError("all is taken")
        return 7

    ways, wrong = Ways(hungry), Ways(lambda: 8)
    for _ in range(3):
        assert verified.run("large", ways.fast, ways.plain, differ) == 7
    assert verified.run("wrong", wrong.fast, wrong.plain, differ) == 7
    assert ways.calls.count("fast") == 1 and "all is taken" in verified.refused["large"]
    verified.memory_given_back()
    assert verified.run("large", ways.fast, ways.plain, differ) == 7
    assert ways.calls.count("fast") == 2 and "all is taken" in verified.refused["large"]
    assert [line.getMessage().split(":")[0] for line in caplog.records] == [
        "things take longer (large)",
        "things take longer (wrong)",
    ]
    room.append("some")
    verified.memory_given_back()
    for _ in range(3):
        assert verified.run("large", ways.fast, ways.plain, differ) == 7
    assert ways.calls[-4:] == ["fast", "plain", "fast", "fast"]  # it must prove itself first
    assert list(verified.refused) == ["wrong"]
