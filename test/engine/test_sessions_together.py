# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whatever engines that compute together do at once, each does what it would by itself.

A machine drives three engines of one group, whose chunks and answers go together, and one that
shares their model alone. Beside each is the same engine in a world of its own, which is given the
same, one by one. What the three compute is theirs up to rounding, with the same tokens kept and the
same said; what the fourth computes is the same to the bit.
"""

from collections import Counter
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from amounts import examples
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from toy_qwen import toy_frames, toy_model, toy_processor

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.captured import PLAIN_STEP
from stream_vlm_ros.engine.chunk_path import CapturedChunks
from stream_vlm_ros.engine.decode_path import CapturedDecode
from stream_vlm_ros.engine.together import EngineGroup, append_together, write_together
from stream_vlm_ros.errors import StreamVlmError

CAPS = (220, 160, 220, 190)
ALONE = 3  # which of them is in no group
SLACK = 60
WHY = "for a moment"  # a pass fails
SIZES = ((56, 84), (84, 56))
QUESTIONS = ("What is it?", "Where was the red one?", "What was it before that?", "So?")
CHOICES = ("red", "a blue one", "so")
CAMERAS = st.integers(0, 3)
DECODINGS = st.sampled_from(
    [
        {},
        {},
        {"update_state": True},
        {"do_sample": True, "temperature": 1.3, "seed": 5},
        {"repetition_penalty": 1.7, "update_state": True},
    ]
)


# What is to happen at least once, that nothing is compared with nothing.
WANTED = [
    ("chunks", "in a step"),
    ("chunks", "in a pass"),
    ("answers", "in a step"),
    ("answers", "in a pass"),
    ("answers", "StopIteration"),
    ("answers", "ValueError"),
    "length",
    "cancelled",
    "closed",
    "choices",
    "evicted",
    "chunks beside an answer",
    "two answers of a memory",
    "forgotten under an answer",
    "failed passes",
    "InvalidImageError",
]


def letters_model():
    """Each token of its answers is a letter or a few, and none their end."""
    model, tokenizer = toy_model(0), toy_processor().tokenizer
    head = model.state_dict()["lm_head.weight"]
    for token in range(len(head)):
        if not tokenizer.decode([token]).isalpha():
            head[token] = 0.0  # of the others one is always likelier
    return model


class Told:
    """What an answer is told between two tokens: to go on, to end, or to fail."""

    word = None

    def __call__(self):
        if self.word == "fail":
            raise ValueError("of a user's function")
        return self.word == "cancel"


def outcome(answer):
    """Its next piece, its end or its fault: what it is, and in words."""
    try:
        return str, next(answer)
    except StopIteration:
        return StopIteration, ""
    except (ValueError, StreamVlmError) as fault:
        return type(fault), str(fault)


class Sessions(RuleBasedStateMachine):
    """
    model: one for all examples.
    met: how often what happened in all examples.
    """

    model: ClassVar = None
    met: ClassVar = Counter()

    @initialize(
        steps=st.booleans(),
        layout=st.sampled_from(["continuous", "segmented"]),
        question_path=st.sampled_from(["eager", "static"]),
    )
    def begin(self, steps, layout, question_path):
        """``steps``: of fixed shape, as a CUDA graph's, take several chunks and answers."""
        group = EngineGroup([cap + SLACK for cap in CAPS[:ALONE]])
        self.fault, self.pairs, self.open, self.seen = None, [], [], 0
        self.refused = []  # why steps are not taken, of each path that has any
        for number, cap in enumerate(CAPS):
            make = lambda group=None, cap=cap: VideoStreamingInference(  # noqa: E731
                self.model,
                toy_processor(),
                None,
                EvictionConfig.novelty(cap),
                fork_slack_tokens=SLACK,
                layout=layout,
                question_path=question_path,
                group=group,
            )
            self.pairs.append((make(None if number == ALONE else group), make()))
        self.together = [engine for engine, _ in self.pairs]
        if steps:
            kernels = PLAIN_STEP._replace(attend=self.attend)
            functions, batches = self.model.functions, (2, 1)
            path = CapturedChunks(self.model, functions, group.room, kernels, batches=batches)
            for engine in self.together[:ALONE]:
                engine.chunk_path = path
            group.decode_path = CapturedDecode(self.model, group.memory, kernels)
            self.refused = [path.refused, group.decode_path.refused]
        self.usual, self.model.batch_forward = self.model.batch_forward, self.batch_forward
        self.watch([(camera, 0) for camera in range(4)])

    def batch_forward(self, embeddings, positions, forks, lengths, functions):
        found = self.usual(embeddings, positions, forks, lengths, functions)
        self.met["answers" if max(lengths) == 1 else "chunks", "in a pass"] += 1
        self.fail()
        return found

    def attend(self, queries, stream, tail, memory, inputs, scaling):
        what = "answers" if inputs.size == 1 else "chunks"
        self.met[what, "in a step"] += memory.requests > 1
        self.fail()
        return PLAIN_STEP.attend(queries, stream, tail, memory, inputs, scaling)

    def fail(self):
        """Where it was told so, once."""
        if self.fault is not None:
            fault, self.fault = self.fault, None
            self.met["failed passes"] += 1
            raise fault

    def watch(self, which, broken=None):
        chunks = []
        for number, (camera, size) in enumerate(which):
            frames = toy_frames(4, *SIZES[size], seed=self.seen)
            self.seen += 1
            chunks.append((camera, [frames[0], frames[1][:1]] if number == broken else frames))
        times = [[2.0 * self.seen + 0.5 * k for k in range(len(frames))] for _, frames in chunks]
        given = [
            (self.together[camera], frames, at)
            for (camera, frames), at in zip(chunks, times, strict=True)
        ]
        for (camera, frames), at, found in zip(chunks, times, append_together(given), strict=True):
            try:
                expected = self.pairs[camera][1].append_video_chunk(frames, timestamps=at)
            except StreamVlmError as fault:
                assert (type(found), str(found)) == (type(fault), str(fault))
                self.met[type(fault).__name__] += 1
                continue
            assert not isinstance(found, BaseException), found
            for name in ("tokens", "evicted_tokens", "cache_length", "grid", "closed_seconds"):
                assert found[name] == expected[name], name
            self.met["evicted"] += found.evicted_tokens
            self.met["chunks beside an answer"] += any(one.camera == camera for one in self.open)

    @rule(
        which=st.lists(
            st.tuples(CAMERAS, st.integers(0, 1)),
            min_size=1,
            max_size=4,
            unique_by=lambda one: one[0],
        ),
        broken=st.sampled_from([None, None, None, 0]),
    )
    def some_cameras_see_a_chunk(self, which, broken):
        self.watch(which, broken)

    @rule(times=st.integers(2, 4))
    def all_cameras_see_chunks(self, times):
        for _ in range(times):
            self.watch([(camera, camera // 2) for camera in range(4)])

    @rule(cameras=st.sets(CAMERAS, min_size=1), tokens=st.integers(1, 9), decoding=DECODINGS)
    def questions_come(self, cameras, tokens, decoding):
        for camera in sorted(cameras):
            told = Told()
            answers = [
                engine.ask_stream(QUESTIONS[camera], tokens + camera, cancel=told, **decoding)
                for engine in self.pairs[camera]
            ]
            keeps = "update_state" in decoding
            one = SimpleNamespace(camera=camera, told=told, answers=answers, keeps=keeps)
            self.open.append(one)
            self.met["two answers of a memory"] += sum(o.camera == camera for o in self.open) > 1

    @precondition(lambda self: self.open)
    @rule(rounds=st.integers(1, 4))
    def answers_go_on(self, rounds):
        for _ in range(rounds):
            self.write()

    def write(self):
        """A piece of each answer."""
        write_together([one.answers[0] for one in self.open])
        for one in list(self.open):
            found, expected = map(outcome, one.answers)
            assert found == expected
            if (how := found[0]) is not str:
                self.open.remove(one)
                self.met["answers", how.__name__] += 1
            if how is StopIteration:
                self.compare(one)

    def compare(self, one):
        found, expected = (answer.metrics for answer in one.answers)
        assert found.token_ids == expected.token_ids
        assert found.finish_reason == expected.finish_reason
        assert found.cache_length == expected.cache_length
        if one.camera == ALONE:
            assert found.token_logprobs == expected.token_logprobs
        else:
            # Sums of some hundred float32 in another order, and their logarithms.
            assert found.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-4)
        self.met[found.finish_reason] += 1

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 9))
    def an_answer_is_cancelled(self, number):
        self.open[number % len(self.open)].told.word = "cancel"
        self.write()

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 9))
    def an_answer_fails(self, number):
        self.open[number % len(self.open)].told.word = "fail"
        self.write()

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 9), ahead=st.booleans())
    def an_answer_is_closed(self, number, ahead):
        one = self.open.pop(number % len(self.open))
        # What follows in it is computed with the others' all the same. (One that keeps its exchange
        # may come to its end by that.)
        if ahead and not one.keeps:
            write_together([one.answers[0], *(other.answers[0] for other in self.open)])
        for answer in one.answers:
            answer.close()
        self.met["closed"] += 1
        self.write()

    @rule(cameras=st.permutations(range(ALONE)), rounds=st.integers(2, 3))
    def another_takes_the_place_of_one_of_two_answers(self, cameras, rounds):
        while self.open:
            self.an_answer_is_closed(0, False)
        for places in ({cameras[0]}, {cameras[1]}, {cameras[2]}):
            if len(self.open) == 2:
                self.an_answer_is_closed(0, False)
            self.questions_come(places, 9, {})
            self.answers_go_on(rounds)

    @rule(camera=CAMERAS, ahead=st.booleans())
    def a_memory_is_forgotten(self, camera, ahead):
        if ahead:  # the next token is known, and nobody has been told of it
            write_together([one.answers[0] for one in self.open])
        for engine in self.pairs[camera]:
            engine.reset()
        for one in [one for one in self.open if one.camera == camera]:
            found, expected = one.answers
            while (how := outcome(found)[0]) is str:
                assert ahead
            assert how is outcome(expected)[0] is StopIteration
            assert expected.metrics.finish_reason in ("cancelled", "length")  # if all was said
            said, also = found.metrics.token_ids, expected.metrics.token_ids
            assert said[: len(also)] == also and len(said) <= len(also) + ahead
            self.open.remove(one)
            self.met["forgotten under an answer"] += 1
        self.write()
        self.watch([(camera, 0)])

    @rule(camera=CAMERAS, ahead=st.booleans())
    def all_are_asked_and_one_ends_by_this_one_by_that(self, camera, ahead):
        self.questions_come(range(4), 9, {})
        self.write()
        self.all_cameras_see_chunks(1)
        self.an_answer_is_cancelled(camera)
        self.an_answer_fails(camera + 1)
        self.a_memory_is_forgotten((camera + 2) % 4, ahead)
        self.choices_are_scored_beside_the_answers((camera + 3) % 4)

    @rule(camera=CAMERAS)
    def choices_are_scored_beside_the_answers(self, camera):
        found, expected = (engine.ask_choice("Which?", CHOICES) for engine in self.pairs[camera])
        assert found[0] == expected[0]
        assert found[1].scores == pytest.approx(expected[1].scores, rel=1e-4)
        self.met["choices"] += 1

    @rule()
    def the_next_pass_of_several_fails(self):
        self.fault = torch.OutOfMemoryError(WHY)

    @invariant()
    def all_hold_the_same(self):
        for engine, other in getattr(self, "pairs", []):
            found, expected = engine.cache_manager, other.cache_manager
            assert found.get_seq_length() == expected.get_seq_length()
            assert found.ledger.positions().tolist() == expected.ledger.positions().tolist()
            assert found.time_spans() == expected.time_spans()
            assert len(found.living_forks) == len(expected.living_forks)

    def teardown(self):
        if not hasattr(self, "pairs"):
            return
        self.fault, self.model.batch_forward = None, self.usual
        while self.open:
            self.write()
        self.all_hold_the_same()
        # What is wrong gives way to plain calls, and would not be seen in what comes of it.
        assert {why for one in self.refused for why in one.values()} <= {f"OutOfMemoryError: {WHY}"}
        for camera, (engine, other) in enumerate(self.pairs):
            assert not engine.cache_manager.living_forks
            found, expected = engine.cache_manager.gather(), other.cache_manager.gather()
            if camera == ALONE:
                assert torch.equal(found, expected)
            else:  # chunk after chunk: see test_chunk_path
                assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_engines_that_compute_together_do_what_each_would_by_itself():
    Sessions.model, Sessions.met = letters_model(), Counter()
    run_state_machine_as_test(
        Sessions,
        settings=settings(
            max_examples=examples(12),
            stateful_step_count=25,
            derandomize=True,
            phases=[Phase.generate],  # to shrink what fails takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert {kind for kind in WANTED if not Sessions.met[kind]} == set()
