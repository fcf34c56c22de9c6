# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What travels is what is held on both sides, field by field."""

import dataclasses
import typing

import msgspec
import pytest

from stream_vlm_ros.remote import protocol
from stream_vlm_ros.remote.values import to_summary
from stream_vlm_ros.serve.telling import memory_of, saved_of
from stream_vlm_ros.session.memory_keeper import SavedState
from stream_vlm_ros.session.memory_summary import (
    EpisodeState,
    LevelState,
    MemorySummary,
    TierState,
)
from stream_vlm_ros.session.question import Outcome, Question

# What is held, what travels of it, and what of it does not: the header is made again of the newest
# stamp, and poses are the robot's own.
PAIRS = [
    (MemorySummary, protocol.Memory, {"header"}),
    (LevelState, protocol.Level, set()),
    (TierState, protocol.Tier, set()),
    (SavedState, protocol.Saved, set()),
    (EpisodeState, protocol.Episode, {"poses"}),
    # Over a WebSocket a robot asks no more than a node may.
    (Question, protocol.Ask, {"earlier", "top_p", "stop", "seed"}),
]


@pytest.mark.parametrize(("held", "told", "kept"), PAIRS)
def test_what_travels_has_the_fields_of_what_is_held(held, told, kept):
    names = [field.name for field in dataclasses.fields(held)]
    assert kept <= {*names}
    assert [name for name in names if name not in kept] == list(told.__struct_fields__)


@pytest.mark.parametrize(("held", "told"), [pair[:2] for pair in PAIRS[:4]])
def test_what_travels_has_the_types_of_what_is_held(held, told):
    def plain(hint):
        if hint in (LevelState, TierState):
            return {LevelState: protocol.Level, TierState: protocol.Tier}[hint]
        arguments = typing.get_args(hint)
        return (typing.get_origin(hint), *map(plain, arguments)) if arguments else hint

    travels = typing.get_type_hints(told)
    is_held = typing.get_type_hints(held, localns={"Pose": object})
    for name in told.__struct_fields__:
        assert plain(travels[name]) == plain(is_held[name]), name


def test_what_came_of_a_question_travels_with_all_its_numbers():
    numbers = {
        field.name
        for field in dataclasses.fields(Outcome)
        if field.type in ("int", "float", "str", "tuple[float, ...]", "tuple[int, ...]")
    }
    # The text has another name, and what a robot cannot tell is for OpenAI's clients.
    assert numbers - {"answer", "cache_length"} <= {*protocol.Response.__struct_fields__}


def counted(kind, start=1):
    """One of these of which no two numbers are the same."""
    hints = typing.get_type_hints(kind, localns={"Pose": object})
    values = {}
    for at, field in enumerate(dataclasses.fields(kind), start):
        hint = hints[field.name]
        if hint in (int, float) or hint == int | None:
            values[field.name] = at
        elif hint is str:
            values[field.name] = f"{field.name} {at}"
        elif hint == tuple[tuple[int, int], ...]:
            values[field.name] = ((at, at + 100), (at + 200, at + 300))
        elif hint == tuple[LevelState, ...]:
            values[field.name] = (counted(LevelState, 1000), counted(LevelState, 2000))
        elif hint == tuple[TierState, ...]:
            values[field.name] = (counted(TierState, 3000),)
    return kind(**values)


def test_a_memory_comes_as_it_was_held():
    memory = counted(MemorySummary)
    there = msgspec.json.decode(msgspec.json.encode(memory_of(memory)), type=protocol.Memory)
    assert to_summary(there, lambda stamp_ns: stamp_ns) == dataclasses.replace(
        memory, header=memory.newest_ns
    )
    state = counted(SavedState)
    there = msgspec.json.decode(msgspec.json.encode(saved_of(state)), type=protocol.Saved)
    assert msgspec.structs.asdict(there) == dataclasses.asdict(state)
