# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import io

import pytest
from rich.console import Console

from stream_vlm_ros.console import (
    bytes_text,
    duration_text,
    one_line,
    plural,
    printable,
    say_lines,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_250_000, "1.2 MB"), (7.1e9, "7.1 GB"),
     (999_960, "1.0 MB"), (5e15, "5000.0 TB")],
)  # fmt: skip
def test_bytes_are_written_in_a_unit_that_reads_well(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
     (83, "1 min 23 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations_are_written_as_people_say_them(seconds, text):
    assert duration_text(seconds) == text


def test_one_thing_is_singular():
    assert (plural(1, "chunk"), plural(0, "chunk"), plural(2000, "chunk")) == (
        "1 chunk",
        "0 chunks",
        "2,000 chunks",
    )


def test_control_characters_become_dots():
    assert printable("a\x1b[2Jb\x00\n\u202ec") == "a·[2Jb·\n·c"
    assert one_line(" a\n\n b\t") == "a b"
    assert one_line("x" * 50, longest=10) == "x" * 9 + "…"


def test_a_message_breaks_between_words_on_a_terminal_and_its_commands_stay_whole():
    words, command = "nothing is there, but this brings it:", "    hf download " + 30 * "x"
    for terminal, first in ((True, ["nothing is there, but", "this brings it:"]), (False, [words])):
        stream = io.StringIO()
        console = Console(file=stream, width=24, force_terminal=terminal, color_system=None)
        say_lines(console, f"{words}\n{command}")
        assert [line.rstrip() for line in stream.getvalue().splitlines()] == [*first, command]
