# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Answers of engines that share a model are written together, and say what each would alone."""

import gc
import weakref

import pytest
import torch

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.captured import PLAIN_STEP, Recording
from stream_vlm_ros.engine.decode_path import LANES, CapturedDecode, DecodePath
from stream_vlm_ros.engine.decoding import Answer
from stream_vlm_ros.engine.together import EngineGroup, write_together
from stream_vlm_ros.errors import NotFiniteError
from stream_vlm_ros.session.engine_thread import MAX_ANSWERS

CAPS = (220, 160, 220)
QUESTIONS = ("What is it?", "Where was the red one?", "What was it before that?")
TOKENS = (9, 14, 6)  # of the answers
FAR = "the memory lies elsewhere"


@pytest.fixture
def model(toys):
    """Each token of its answers is a letter or a few, and none their end."""
    model, tokenizer = toys.model(0), toys.processor().tokenizer
    head = model.state_dict()["lm_head.weight"]
    for token in range(len(head)):
        if not tokenizer.decode([token]).isalpha():
            head[token] = 0.0  # of the others one is always likelier
    return model


class Cameras:
    """Three engines on one model, and the same three each by itself.

    steps: their answers go by a step of fixed shape, as in a CUDA graph.
    """

    def __init__(self, toys, model, steps, **options):
        self.toys, self.model = toys, model
        self.group = EngineGroup(CAPS)
        self.make = make = lambda cap, **more: VideoStreamingInference(
            model, toys.processor(), None, EvictionConfig.novelty(cap), **options, **more
        )
        self.together = [make(cap, group=self.group) for cap in CAPS]
        self.alone = [make(cap) for cap in CAPS]
        if steps:
            self.group.decode_path = self.captured(PLAIN_STEP)
        self.passes = []  # how many tokens went together
        path, computed = self.group.decode_path, self.passes
        compute_all = path.compute_all
        path.compute_all = lambda several: computed.append(len(several)) or compute_all(several)
        for number in range(9):
            self.watch(number)

    def captured(self, kernels, **options):
        return CapturedDecode(self.model, self.group.memory, kernels, **options)

    def watch(self, number, which=(0, 1, 2)):
        for camera in which:
            frames = self.toys.frames(4, 56, 84, seed=10 * number + camera)
            for engines in (self.together, self.alone):
                engines[camera].append_video_chunk(frames, fps=2)

    def ask(self, camera, engines=None, **options):
        engine = (engines or self.together)[camera]
        return engine.ask_stream(QUESTIONS[camera], TOKENS[camera], **options)

    def expected(self, camera, **options):
        return self.ask(camera, self.alone, **options).complete()


@pytest.fixture(params=[False, True], ids=["call by call", "steps"])
def cameras(request, toys, model):
    return Cameras(toys, model, request.param)


def write(answers, pieces=10**6):
    """Pieces of each, written together; who failed, with what."""
    going, failed = list(answers), {}
    while going and (pieces := pieces - 1) >= 0:
        write_together(going)
        for answer in list(going):
            try:
                next(answer)
            except StopIteration:
                going.remove(answer)
            except Exception as fault:
                going.remove(answer)
                failed[answer] = fault
    return failed


def assert_same(answer, expected):
    """``expected``: text and metrics."""
    text, metrics = expected
    assert answer.text == text
    assert answer.metrics.token_ids == metrics.token_ids
    assert answer.metrics.finish_reason == metrics.finish_reason
    assert answer.metrics.cache_length == metrics.cache_length
    # Sums of some hundred float32 in another order, and their logarithms.
    found, alone = answer.metrics.token_logprobs, metrics.token_logprobs
    assert found == pytest.approx(alone, abs=1e-4)


def test_answers_written_together_are_those_written_one_by_one(cameras):
    answers = [cameras.ask(camera) for camera in range(3)]
    assert write(answers) == {}
    for camera, answer in enumerate(answers):
        assert_same(answer, cameras.expected(camera))
    # The first token of each by itself, the last as the step before it ends: 5 times all three,
    # 3 times two, and what is left of the longest by itself.
    assert cameras.passes == [3] * 5 + [2] * 3
    path = cameras.group.decode_path
    if isinstance(path, CapturedDecode):
        assert path.steps == 8 and not path.detours and not path.refused


def test_each_draws_stops_and_is_penalised_by_its_own(cameras):
    text = cameras.expected(1)[0]
    options = [
        {"do_sample": True, "temperature": 1.3, "seed": 5},
        {"stop": [text[4:7]]},
        {"repetition_penalty": 1.7, "update_state": True},
    ]
    answers = [cameras.ask(camera, **its) for camera, its in enumerate(options)]
    assert write(answers) == {}
    for camera, (answer, its) in enumerate(zip(answers, options, strict=True)):
        assert_same(answer, cameras.expected(camera, **its))
    found, expected = (engines[2].cache_manager for engines in (cameras.together, cameras.alone))
    assert found.get_seq_length() == expected.get_seq_length()
    assert (found.gather() - expected.gather()).abs().max() <= 1e-4 * expected.gather().abs().max()


def test_one_that_joins_in_the_middle_and_one_that_is_closed_disturb_no_other(cameras):
    first = [cameras.ask(0), cameras.ask(1)]
    write(first, pieces=3)
    last = cameras.ask(2)
    write([*first, last], pieces=2)
    first[0].close()
    assert not cameras.together[0].cache_manager.living_forks
    assert write([first[1], last]) == {}
    assert_same(first[1], cameras.expected(1))
    assert_same(last, cameras.expected(2))
    again = cameras.ask(0)
    write([again])
    assert_same(again, cameras.expected(0))


def test_one_that_is_cancelled_ends_and_the_others_go_on(cameras):
    told = []
    cancelled = cameras.ask(0, cancel=lambda: len(told) > 3 or told.append(0))
    others = [cameras.ask(1), cameras.ask(2)]
    assert write([cancelled, *others]) == {}
    assert cancelled.metrics.finish_reason == "cancelled"
    assert cancelled.metrics.token_ids == cameras.expected(0)[1].token_ids[:4]
    for camera, answer in zip((1, 2), others, strict=True):
        assert_same(answer, cameras.expected(camera))


def test_one_that_fails_fails_alone(cameras):
    def broken():
        broken.calls += 1
        if broken.calls == 4:
            raise ValueError("of a user's function")

    broken.calls = 0
    answers = [cameras.ask(0, cancel=broken), cameras.ask(1), cameras.ask(2)]
    failed = write(answers)
    assert list(failed) == answers[:1] and isinstance(failed[answers[0]], ValueError)
    assert not cameras.together[0].cache_manager.living_forks
    for camera in (1, 2):
        assert_same(answers[camera], cameras.expected(camera))


def test_a_memory_that_is_no_number_spoils_no_other_answer(cameras):
    answers = [cameras.ask(camera) for camera in range(3)]
    write(answers, pieces=3)
    (fork,) = cameras.together[1].cache_manager.living_forks
    fork.parts[0].memory[:, :, :, fork.parts[0].slots] = torch.nan
    failed = write(answers)
    assert list(failed) == [answers[1]] and isinstance(failed[answers[1]], NotFiniteError)
    for camera in (0, 2):
        assert_same(answers[camera], cameras.expected(camera))


def test_chunks_are_appended_between_two_pieces(toys, model):
    for steps in (False, True):
        cameras = Cameras(toys, model, steps, fork_slack_tokens=120)
        answers = [cameras.ask(camera) for camera in range(3)]
        alone = [cameras.ask(camera, cameras.alone) for camera in range(3)]
        for number in range(9, 13):
            write(answers, pieces=1)
            for answer in alone:
                next(answer)
            cameras.watch(number, which=(number % 3,))
        write(answers)
        for answer, other in zip(answers, alone, strict=True):
            assert_same(answer, other.complete())


def test_a_memory_that_is_cleared_ends_its_answer_and_no_other(cameras):
    answers = [cameras.ask(camera) for camera in range(3)]
    write(answers, pieces=3)
    cameras.together[0].reset()
    assert write(answers) == {}
    assert answers[0].metrics.finish_reason == "cancelled"
    for camera in (1, 2):
        assert_same(answers[camera], cameras.expected(camera))


@pytest.mark.parametrize("steps", [False, True])
def test_a_pass_that_fails_is_done_again_one_by_one(toys, model, steps, monkeypatch, caplog):
    cameras = Cameras(toys, model, steps)
    batch_forward = type(cameras.model).batch_forward

    def failing(self, embeddings, positions, forks, *rest):
        batch_forward(self, embeddings, positions, forks, *rest)
        raise torch.OutOfMemoryError("too large together")

    monkeypatch.setattr(type(cameras.model), "batch_forward", failing)
    if steps:  # the first is held against the pass that fails
        kernels = PLAIN_STEP._replace(attend=failing_kernel)
        cameras.group.decode_path = cameras.captured(kernels)
    answers = [cameras.ask(camera) for camera in range(3)]
    assert write(answers) == {}
    for camera, answer in enumerate(answers):
        assert_same(answer, cameras.expected(camera))
    assert "too large together" in caplog.text


def failing_kernel(*_):
    raise torch.OutOfMemoryError("no room for its splits")


def test_an_answer_made_of_anothers_steps_is_written_with_others(cameras):
    def of(inner, release=lambda: None):
        def pieces():
            yield "("
            yield from inner.steps()
            yield ")"
            return inner.metrics

        return Answer(pieces(), release)

    inner = cameras.ask(0)
    answers = [of(inner), cameras.ask(1)]
    assert write(answers) == {}
    assert answers[0].text == f"({inner.text})"
    assert_same(inner, cameras.expected(0))
    assert cameras.passes.count(2) >= 6
    inner = cameras.ask(0)
    left = of(inner)
    write([left], pieces=3)
    left.close()
    assert not cameras.together[0].cache_manager.living_forks


def test_what_is_asked_for_alone_is_written_alone(cameras):
    for camera in range(3):
        assert_same_result(cameras.together[camera].ask(QUESTIONS[camera], TOKENS[camera]),
                           cameras.expected(camera))  # fmt: skip
    assert cameras.passes == []


def assert_same_result(found, expected):
    assert found[0] == expected[0]
    assert found[1].token_logprobs == expected[1].token_logprobs  # to the bit


def test_a_memory_read_in_too_many_parts_goes_alone(toys, model, monkeypatch):
    cameras = Cameras(toys, model, steps=True)
    answers = [cameras.ask(camera) for camera in range(3)]
    forks = [engine.cache_manager.living_forks[0] for engine in cameras.together]
    most = max(len(fork.parts) for fork in forks) - 1
    monkeypatch.setattr("stream_vlm_ros.engine.captured.MAX_PARTS", most)
    assert write(answers) == {}
    for camera, answer in enumerate(answers):
        assert_same(answer, cameras.expected(camera))
    assert set(cameras.group.decode_path.detours) == {
        f"the memory is read in more than {most} parts"
    }


@pytest.mark.parametrize(("cap", "tail"), [(300, 2048), (160, 2049)])
def test_a_memory_or_a_tail_that_lies_elsewhere_goes_alone(toys, model, cap, tail):
    """The group has room for one more than it was made for, which is not larger than the largest,
    and its tail not than the first's."""
    cameras = Cameras(toys, model, steps=True)
    other = VideoStreamingInference(
        model, toys.processor(), None, EvictionConfig.novelty(cap), group=cameras.group,
        max_tail_tokens=tail,
    )  # fmt: skip
    for number in range(9):
        other.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
    second = cameras.together[0].ask_stream("Which?", 4)  # while the first is being written
    answers = [cameras.ask(0), other.ask_stream("What?", 8), cameras.ask(1), cameras.ask(2)]
    second.close()
    assert write(answers) == {}
    assert_same(answers[0], cameras.expected(0))
    assert_same(answers[1], other.ask_stream("What?", 8).complete())
    assert_same(answers[2], cameras.expected(1))
    detours = cameras.group.decode_path.detours
    assert detours[FAR] == 7 and detours["another answer is being written from its memory"] == 8


def test_a_step_that_computes_something_else_is_not_used(toys, model):
    cameras = Cameras(toys, model, steps=True)

    def wrong(queries, stream, tail, memory, *given):
        return -PLAIN_STEP.attend(queries, stream, tail, memory, *given)

    path = cameras.group.decode_path = cameras.captured(PLAIN_STEP._replace(attend=wrong))
    answers = [cameras.ask(camera) for camera in range(3)]
    assert write(answers) == {}
    for camera, answer in enumerate(answers):
        assert_same(answer, cameras.expected(camera))
    assert "differs" in path.refused[""] and path.steps == 1


def test_one_graph_serves_all_and_its_results_hold_until_they_are_read(toys, model):
    """Every replay writes to the same place."""
    cameras, recorded = Cameras(toys, model, steps=True), []
    place = torch.empty(LANES, model.config.text_config.vocab_size)

    def recorder(step, pool):
        recorded.append(step)
        return Recording(lambda: place.copy_(step()), None)

    path = cameras.captured(PLAIN_STEP, graph=True, recorder=recorder)
    cameras.group.decode_path = path
    path.warm_up()
    path.warm_up()
    assert len(recorded) == 1 and path.steps == 0
    answers = [cameras.ask(camera) for camera in range(3)]
    write(answers[:2], pieces=3)
    write_together(answers[:2])  # and read only after the next step
    write(answers[1:], pieces=2)
    assert write(answers) == {}
    for camera, answer in enumerate(answers):
        assert_same(answer, cameras.expected(camera))
    assert len(recorded) == 1 and path.steps > 5


def test_a_step_that_cannot_be_recorded_leaves_answers_as_they_were(toys, model, caplog):
    cameras = Cameras(toys, model, steps=True)

    def recorder(step, pool):
        raise RuntimeError("no graphs here")

    path = cameras.captured(PLAIN_STEP, graph=True, recorder=recorder)
    cameras.group.decode_path = path
    path.warm_up()
    assert "answers are written by turns: RuntimeError: no graphs here" in caplog.text
    answers = [cameras.ask(camera) for camera in range(3)]
    assert write(answers) == {}
    assert_same(answers[0], cameras.expected(0))
    assert path.steps == 0 and path.detours["RuntimeError: no graphs here"] > 0


def test_more_answers_than_a_step_takes_go_in_several(toys, model):
    group = EngineGroup([100] * (LANES + 2))
    config = EvictionConfig(100, 16, 48)
    engines = [
        VideoStreamingInference(model, toys.processor(), None, config, group=group)
        for _ in range(LANES + 2)
    ]
    group.decode_path = CapturedDecode(model, group.memory)
    alone = VideoStreamingInference(model, toys.processor(), None, config)
    frames = toys.frames(4, 56, 84)
    for engine in (*engines, alone):
        engine.append_video_chunk(frames, fps=2)
    answers = [engine.ask_stream("What is it?", 4) for engine in engines]
    assert write(answers) == {}
    expected = alone.ask("What is it?", 4)
    for answer in answers:
        assert_same(answer, expected)
    assert group.decode_path.steps == 2 * 3


def test_engines_by_themselves_have_no_path_in_common(toys, model):
    engine = VideoStreamingInference(model, toys.processor(), None, EvictionConfig.novelty(160))
    assert engine.group is None
    cameras = Cameras(toys, model, steps=False)
    assert type(cameras.group.decode_path) is DecodePath


@pytest.mark.parametrize("failing", ["batch_forward", "logits"])
def test_a_pass_that_fails_at_any_place_leaves_each_answer_as_it_was(
    toys, model, monkeypatch, failing
):
    cameras = Cameras(toys, model, steps=False)
    answers = [cameras.ask(camera) for camera in range(3)]
    assert write(answers, pieces=1) == {}
    usual, faults = getattr(model, failing), iter([torch.OutOfMemoryError("for a moment")])

    def once(*given, **options):
        found = usual(*given, **options)
        if (fault := next(faults, None)) is not None:
            raise fault
        return found

    monkeypatch.setattr(model, failing, once)
    assert write(answers) == {}
    for camera, answer in enumerate(answers):
        assert_same(answer, cameras.expected(camera))


def test_an_answer_whose_memory_was_cleared_does_not_break_up_the_others(cameras, caplog):
    answers = [cameras.ask(camera) for camera in range(3)]
    assert write(answers, pieces=1) == {}
    write_together(answers)  # up to what has to be computed next
    for answer in answers:
        next(answer)
    first, *others = answers
    first.coming()
    cameras.together[0].reset()
    assert write(answers) == {} and first.metrics.finish_reason == "cancelled"
    for camera, answer in enumerate(others, start=1):
        assert_same(answer, cameras.expected(camera))
    assert "one by one" not in caplog.text


def test_an_answer_that_has_ended_keeps_nothing_of_its_session(cameras):
    """Without a garbage collection: what it held would not be there for the next one."""
    tails = cameras.group.tails(0)
    gc.collect()
    gc.disable()
    try:
        answers = [cameras.ask(camera) for camera in range(3)]
        write(answers)
        engines = [weakref.ref(engine) for engine in cameras.together]
        del answers
        cameras.together.clear()
        assert [engine() for engine in engines] == [None] * 3
        later = [cameras.make(CAPS[1], group=cameras.group) for _ in range(4)]  # one is to spare
        assert all(tails.holds(engine.cache_manager.question_tail) for engine in later)
    finally:
        gc.enable()


def test_as_many_answers_are_handed_out_as_a_step_takes():
    assert MAX_ANSWERS == LANES
