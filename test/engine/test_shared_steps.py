# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Engines of a group take the steps of their questions from one place, and answer as alone."""

import gc
import weakref

import pytest
from recorded import in_place

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.captured import Recording
from stream_vlm_ros.engine.graph_runner import SIZES, GraphRunner
from stream_vlm_ros.engine.together import EngineGroup

CAPS = (220, 160, 190)
CHOICES = ["a", "bc", "def"]


class Recorder:
    """Of steps that, as a CUDA graph's, leave what they give in the same place each time."""

    def __init__(self):
        self.made = []

    def __call__(self, step, pool):
        self.made.append(step.inputs.size)
        return Recording(in_place(step), pool or object())


class Fleet:
    """Engines of one group, and beside each the same engine alone."""

    def __init__(self, toys, graph):
        self.toys, self.model, self.recorder = toys, toys.model(0), Recorder()
        self.group = EngineGroup(CAPS)
        self.engines = [self.make(cap, group=self.group) for cap in CAPS]
        self.alone = [self.make(cap) for cap in CAPS]
        self.path = self.engines[0].text_path
        if graph:
            self.path = GraphRunner(
                self.model, self.group.memory, graph=True, recorder=self.recorder
            )
            for engine in self.engines:
                engine.text_path = self.path
        for number in range(8):
            for camera in range(3):
                self.watch(camera, number)

    def make(self, cap, **options):
        config = EvictionConfig.novelty(cap)
        processor = self.toys.processor()
        return VideoStreamingInference(
            self.model, processor, None, config, question_path="static", **options
        )

    def watch(self, camera, number):
        frames = self.toys.frames(4, 56, 84, seed=10 * number + camera)
        for engine in (self.engines[camera], self.alone[camera]):
            engine.append_video_chunk(frames, fps=2)


@pytest.fixture(params=[False, True], ids=["taken each time", "recorded"])
def fleet(request, toys):
    return Fleet(toys, request.param)


def test_each_is_answered_from_its_own_memory(fleet):
    for number in range(3):
        for camera in (2, 0, 1):
            found, expected = (
                engines[camera].ask(f"What is it? {number}", 5 + camera)
                for engines in (fleet.engines, fleet.alone)
            )
            assert found[0] == expected[0]
            chosen = fleet.engines[camera].ask_choice("Which?", CHOICES)
            alone = fleet.alone[camera].ask_choice("Which?", CHOICES)
            assert chosen[0] == alone[0]
            assert chosen[1]["scores"] == pytest.approx(alone[1]["scores"], rel=1e-5)
            fleet.watch(camera, 20 + number)
    assert fleet.path.steps > 0 and not fleet.path.detours


def test_answers_written_by_turns_leave_each_other_what_was_begun(fleet):
    questions = ("What is it?", "Where was the red one?", "So?")
    answers = [e.ask_stream(q, 9) for e, q in zip(fleet.engines, questions, strict=True)]
    going = list(answers)
    while going:
        for answer in list(going):
            if next(answer, None) is None:
                going.remove(answer)
    for answer, alone, question in zip(answers, fleet.alone, questions, strict=True):
        text, metrics = alone.ask(question, 9)
        assert answer.text == text and answer.metrics.token_ids == metrics.token_ids
        # Sums of some hundred float32 in another order, and their logarithms.
        found = answer.metrics.token_logprobs
        assert found == pytest.approx(metrics.token_logprobs, abs=1e-4)
    assert not fleet.path.detours


def test_what_the_first_one_has_recorded_serves_all_that_come_later(toys):
    fleet = Fleet(toys, graph=True)
    group = EngineGroup([100, 100])
    late = [fleet.make(100, group=group) for _ in range(2)]
    path = GraphRunner(fleet.model, group.memory, graph=True, recorder=fleet.recorder)
    for engine in late:
        engine.text_path = path
    fleet.recorder.made.clear()
    first, second = (engine.warm_up() for engine in late)
    assert fleet.recorder.made == sorted(SIZES, reverse=True)
    assert first["seconds"] > second["seconds"] == 0.0 and second["path"] == "graph"


def test_an_engine_of_a_group_takes_the_path_of_its_kind(toys):
    fleet = Fleet(toys, graph=False)
    assert len({id(engine.text_path) for engine in fleet.engines}) == 1
    assert fleet.alone[0].text_path is not fleet.alone[1].text_path


def test_a_session_that_has_ended_leaves_its_place_to_the_next(fleet):
    gone = weakref.ref(fleet.engines[1].cache_manager)
    fleet.engines[1].ask("What is it?", 3)
    fleet.engines[1] = None
    gc.collect()
    assert gone() is None
    fleet.engines[1] = fleet.make(CAPS[1], group=fleet.group)
    fleet.engines[1].text_path = fleet.path
    fleet.alone[1] = fleet.make(CAPS[1])
    for number in range(30, 36):
        fleet.watch(1, number)
    for camera in range(3):
        found = fleet.engines[camera].ask("What is it?", 6)[0]
        assert found == fleet.alone[camera].ask("What is it?", 6)[0]
    assert not fleet.path.detours


def test_a_memory_that_lies_elsewhere_is_read_call_by_call(toys):
    fleet = Fleet(toys, graph=False)
    more = [fleet.make(CAPS[0], group=fleet.group) for _ in range(2)]  # there is room for one
    alone = fleet.make(CAPS[0])
    for number in range(8):
        for engine in (*more, alone):
            engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
    for engine in more:
        assert engine.ask("What is it?", 6)[0] == alone.ask("What is it?", 6)[0]
    assert set(fleet.path.detours) == {"the memory lies elsewhere"}


def test_choices_stay_within_the_room_that_their_own_engine_has(toys):
    """Engines of one group may have room for longer and for shorter questions."""
    fleet = Fleet(toys, graph=False)
    group, options = EngineGroup(CAPS), {"max_tail_tokens": 64}
    engines = [fleet.make(CAPS[0], group=group)]
    engines += [fleet.make(CAPS[0], group=group, **options) for _ in range(2)]
    alone = fleet.make(CAPS[0], **options)
    for number in range(8):
        for engine in (*engines, alone):
            engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
    under_way, expected = (one.ask_stream("What is it?", 12) for one in (engines[2], alone))
    next(under_way), next(expected)
    engines[1].ask_choice("Which?", ["abcdefghi" + chr(97 + number) for number in range(5)])
    for answer in (under_way, expected):
        for _ in answer:
            pass
    assert under_way.text == expected.text
    assert under_way.metrics.token_ids == expected.metrics.token_ids
