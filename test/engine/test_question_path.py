# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions in steps of fixed shape compute what they compute call by call."""

import logging
import sys
import weakref
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded import in_place
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_qwen import SINK_AND_WINDOW, question_logits, written_in_turns

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference, captured
from stream_vlm_ros.engine.attention.base import KVPart
from stream_vlm_ros.engine.attention.step import MAX_PARTS, StepInputs, StepMemory, attend_step
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.captured import PLAIN_STEP, Joined, Recording, StepKernels
from stream_vlm_ros.engine.decoding import Sampler
from stream_vlm_ros.engine.graph_runner import SIZES, GraphRunner, Step, TextRunner, text_runner
from stream_vlm_ros.engine.inputs.chat import ChatLayout
from stream_vlm_ros.errors import InvalidParameterError

MEMORIES = {
    "unbounded": None,
    "sink and window": EvictionConfig(170, **SINK_AND_WINDOW),
    "all levels": EvictionConfig.novelty(170),
}
END = 9  # any token


def make(model, processor, memory="unbounded", **options):
    return VideoStreamingInference(model, processor, eviction_config=MEMORIES[memory], **options)


def watch(engine, toys, chunks, exchanges=()):
    for number in range(chunks):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
        if number in exchanges:
            engine.ask("So?", 3, update_state=True)


def both_paths(engine):
    return (
        TextRunner(engine.model),
        GraphRunner(engine.model, engine.cache_manager),
    )


def said_on(path, engine, prompt, tokens):
    """Logits after a prompt and after each of some tokens behind it, and what is in the tail."""
    manager = engine.cache_manager
    start = manager.ledger.next_position
    with manager.question_fork(len(prompt), len(tokens)) as fork:
        logits = [path.append(prompt, start, fork).clone()]
        logits += [path.append([token], start, fork).clone() for token in tokens]
        assert fork.length == len(prompt) + len(tokens)
        return torch.stack(logits), fork.own().clone()


def assert_equal(one, other):
    # Sums of some hundred float32 in another order, through two layers: 2^-24 * some hundred.
    assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def words(count, seed=0):
    return torch.randint(0, 250, (count,), generator=torch.manual_seed(seed)).tolist()


@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_steps_compute_what_plain_calls_compute_whatever_is_remembered(
    toys, model, processor, memory, layout, policy
):
    engine = make(model, processor, memory, layout=layout, position_policy=policy)
    plain, steps = both_paths(engine)
    seen = set()
    for chunks, exchanges in ((1, ()), (5, (3,)), (6, ()), (9, (4,))):
        watch(engine, toys, chunks, exchanges)
        for one, other in zip(
            said_on(steps, engine, words(21), words(3, seed=1)),
            said_on(plain, engine, words(21), words(3, seed=1)),
            strict=True,
        ):
            assert_equal(one, other)
        with engine.cache_manager.fork(1) as fork:
            seen |= {len(fork.parts)} | {"turned" for part in fork.parts if part.rope_offset}
    assert not steps.detours and steps.steps == 4 * (1 + 3)
    if memory == "sink and window" and policy == "contiguous":
        assert "turned" in seen and max(seen - {"turned"}) > 1


def test_steps_serve_a_memory_with_tokens_left_out(toys, model, processor):
    engine = make(model, processor, "all levels", skip_similarity=0.5)
    for number in range(20):
        engine.append_video_chunk(toys.frames(4, seed=number // 3), fps=2)
    plain, steps = both_paths(engine)
    assert_equal(question_logits(engine, path=steps), question_logits(engine, path=plain))
    assert not steps.detours


# Either side of a step's size, and longer than the longest.
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 600])
def test_a_prompt_of_any_length_fits_the_steps(toys, model, processor, length):
    engine = make(model, processor, "sink and window")
    watch(engine, toys, 12)
    plain, steps = both_paths(engine)
    for one, other in zip(
        said_on(steps, engine, words(length), words(2, seed=1)),
        said_on(plain, engine, words(length), words(2, seed=1)),
        strict=True,
    ):
        assert_equal(one, other)
    assert steps.steps == -(-length // SIZES[-1]) + 2


@pytest.mark.parametrize("room", [50, 16])  # (a step of 64 is larger than the whole tail)
def test_the_tail_can_be_used_up_to_its_last_token(toys, model, processor, room):
    engine = make(model, processor, "sink and window", max_tail_tokens=room)
    watch(engine, toys, 12)
    plain, steps = both_paths(engine)
    prompt, answer = words(room - 10), words(10, seed=1)
    for one, other in zip(
        said_on(steps, engine, prompt, answer), said_on(plain, engine, prompt, answer), strict=True
    ):
        assert_equal(one, other)


def scores_on(path, engine, prompt, texts):
    manager = engine.cache_manager
    with manager.question_fork(len(prompt), 0) as fork:
        scores = path.score(prompt, texts, END, manager.ledger.next_position, fork)
        return torch.tensor(scores), fork.own().clone()


@pytest.mark.parametrize(
    ("prompt", "texts", "steps_taken"),
    [
        (48, [3, 1, 2, 5, 3], 1),
        (48, [1], 1),
        (256, [4, 4], 2),  # the prompt fills a step
        (300, [4, 4], 2),
        (48, [10] * 64, 1 + 2),  # 20 behind the prompt, then 25 and 19
        (250, [7, 256], 2 + 1),  # neither fits behind the prompt, nor both into one step
    ],
)
def test_choices_are_scored_side_by_side_as_they_are_one_by_one(
    toys, model, processor, prompt, texts, steps_taken
):
    engine = make(model, processor, "sink and window")
    watch(engine, toys, 12)
    plain, steps = both_paths(engine)
    choices = [words(length, seed) for seed, length in enumerate(texts)]
    ours, tail = scores_on(steps, engine, words(prompt), choices)
    theirs, their_tail = scores_on(plain, engine, words(prompt), choices)
    assert_equal(ours, theirs)
    assert_equal(tail, their_tail)  # the prompt alone
    assert steps.steps == steps_taken and not steps.detours


@pytest.mark.parametrize(("lengths", "steps_taken"), [([5, 5, 4, 7, 6], 3), ([12], 1), ([13], 1)])
def test_choices_share_the_room_that_the_question_leaves(
    toys, model, processor, lengths, steps_taken
):
    """12 tokens: what does not fit comes in another step, or, longer than that, the plain way."""
    engine = make(model, processor, "sink and window", max_tail_tokens=60)
    watch(engine, toys, 12)
    plain, steps = both_paths(engine)
    choices = [words(length, seed) for seed, length in enumerate(lengths)]
    assert_equal(
        scores_on(steps, engine, words(48), choices)[0],
        scores_on(plain, engine, words(48), choices)[0],
    )
    assert steps.steps == steps_taken


def test_a_choice_too_long_for_a_step_is_scored_all_the_same(toys, model, processor):
    engine = make(model, processor, max_tail_tokens=700)
    watch(engine, toys, 3)
    plain, steps = both_paths(engine)
    choices = [words(257), words(2)]
    assert_equal(
        scores_on(steps, engine, words(20), choices)[0],
        scores_on(plain, engine, words(20), choices)[0],
    )


@pytest.mark.parametrize("memory", ["unbounded", "all levels"])
def test_engines_forced_onto_either_path_say_the_same_and_leave_no_trace(
    toys, model, processor, memory
):
    engines = [make(model, processor, memory, question_path=path) for path in ("static", "eager")]
    for engine in engines:
        watch(engine, toys, 14, exchanges=(2, 6))
    static, eager = engines
    assert static.warm_up()["path"] == "static" and eager.warm_up()["path"] == "eager"
    before = static.cache_manager.gather()
    assert static.ask("What is there?", 12)[0] == eager.ask("What is there?", 12)[0]
    options = dict(do_sample=True, seed=3, repetition_penalty=1.2)
    assert static.ask("And?", 12, **options)[0] == eager.ask("And?", 12, **options)[0]
    choices = ["red", "a blue one", "none"]
    ours, theirs = (engine.ask_choice("Which?", choices) for engine in engines)
    assert ours[0] == theirs[0]
    assert ours[1]["scores"] == pytest.approx(theirs[1]["scores"], rel=1e-5)
    assert torch.equal(static.cache_manager.gather(), before)
    assert torch.allclose(before, eager.cache_manager.gather(), rtol=0, atol=1e-4)
    assert static.text_path.steps > 24 and not static.text_path.detours


def test_answers_written_at_once_do_not_meet_in_one_tail(toys, model, processor, caplog):
    engine = make(model, processor, "sink and window", question_path="static")
    watch(engine, toys, 9)
    questions = ["What is it?", "Where?", "How many are there?"]
    alone = [engine.ask(question, 8)[0] for question in questions]
    assert not engine.text_path.detours
    with caplog.at_level(logging.WARNING):
        writers = [engine.ask_stream(question, 8) for question in questions]
        running = list(writers)
        while running:
            running = [writer for writer in running if next(writer, None) is not None]
    assert [writer.text for writer in writers] == alone
    # Two of the three, each a prompt and what followed.
    assert set(engine.text_path.detours) == {"another answer is being written from its memory"}
    assert len(caplog.records) == 1


def test_chunks_that_come_while_an_answer_is_written_do_not_change_it(toys, model, processor):
    engine = make(model, processor, "sink and window", question_path="static", fork_slack_tokens=24)
    watch(engine, toys, 12)
    alone = engine.ask("What is it?", 8)[0]
    writer = engine.ask_stream("What is it?", 8)
    next(writer)
    watch(engine, toys, 2)
    for _ in writer:
        pass
    assert writer.text == alone and not engine.text_path.detours


def test_a_memory_in_too_many_parts_is_read_the_plain_way_and_the_log_says_so_once(
    toys, model, processor, monkeypatch, caplog
):
    engine = make(model, processor, "sink and window", question_path="static")
    watch(engine, toys, 12)
    with engine.cache_manager.fork(1) as fork:
        assert len(fork.parts) > 1
    expected = engine.ask("What is it?", 5)[0], engine.ask_choice("Which?", ["a", "b"])[0]
    monkeypatch.setattr(captured, "MAX_PARTS", 1)
    steps = engine.text_path.steps
    with caplog.at_level(logging.WARNING):
        got = engine.ask("What is it?", 5)[0], engine.ask_choice("Which?", ["a", "b"])[0]
    assert got == expected and engine.text_path.steps == steps
    assert [record.getMessage() for record in caplog.records] == [
        "questions are answered more slowly: the memory is read in more than 1 parts"
    ]


def test_a_memory_that_grows_is_followed(toys, model, processor, monkeypatch):
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)
    engine = make(model, processor, question_path="static")
    sizes = set()
    for number in range(20):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
        sizes.add(engine.cache_manager.memory.shape[3])
        plain = TextRunner(engine.model)
        assert_equal(question_logits(engine), question_logits(engine, path=plain))
    assert len(sizes) > 1
    saved = engine.cache_manager.clone()
    engine.reset()
    engine.cache_manager.restore(saved)
    assert_equal(question_logits(engine), question_logits(engine, path=plain))


@pytest.mark.parametrize("how", ["chunks", "an exchange that is kept", "a clone"])
def test_a_memory_that_is_replaced_is_let_go_at_once(toys, model, processor, monkeypatch, how):
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)
    engine = make(model, processor, question_path="static")
    manager = engine.cache_manager
    watch(engine, toys, 1)
    engine.ask("What is there?", 4)
    old = weakref.ref(manager.memory)
    if how == "chunks":
        watch(engine, toys, 8)
    elif how == "an exchange that is kept":
        engine.ask("What is there? " * 4, 4, update_state=True)
        assert manager.get_seq_length() > 64
    else:
        manager.restore(manager.clone())
    assert old() is None
    plain = TextRunner(engine.model)
    assert_equal(question_logits(engine), question_logits(engine, path=plain))


def test_an_answer_goes_on_by_the_same_steps_while_its_memory_is_replaced(
    toys, model, processor, monkeypatch
):
    recorder = Recorder()
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)
    engine = make(model, processor)
    engine.text_path = graph_path(engine, recorder)
    watch(engine, toys, 1)
    alone = engine.ask("What is there?", 8)[0]
    writer = engine.ask_stream("What is there?", 8)
    next(writer)
    made = len(recorder.made)
    engine.ask("And what is " + "there " * 9, 4, update_state=True)
    assert engine.cache_manager.memory.shape[3] > 64
    assert writer.complete()[0] == alone
    assert len(recorder.made) == made


# -- what a capture demands, as far as a CPU can tell ---------------------------------------------


def test_padding_and_slots_never_written_change_nothing(model):
    """Whatever lies there: not even NaN gets through."""
    shape = (2, 2, 2, 30, 16)
    stream, tail = torch.randn(shape), torch.randn(shape)
    stream[:, :, :, 20:], tail[:, :, :, 7:] = torch.nan, torch.nan
    memory, found = StepMemory(stream, tail), []
    memory.load([KVPart(stream, slice(5, 20), None)])
    for size in (4, 16):
        inputs = StepInputs(size, memory)
        inputs.load([1, 2, 3, 4], torch.arange(4).expand(3, 4), past=7, shared=4)
        hidden, logits = Step(model, memory, inputs)()
        assert hidden.isfinite().all()
        found.append((hidden[:4].clone(), logits, tail[:, :, :, :11].clone()))
    for one, other in zip(*found, strict=True):
        assert_equal(one, other)
    assert tail[:, :, :, 11:29].isnan().all()  # written: its own slots, and that for padding


@given(
    st.lists(  # of the loads, one after the other: of each request, whether its parts are turned
        st.lists(st.lists(st.booleans(), max_size=MAX_PARTS), max_size=3), min_size=1, max_size=5
    )
)
def test_parts_are_seen_as_they_were_loaded_last_whatever_was_before(loads):
    angle = torch.linspace(0.1, 1.0, 16)
    stream = torch.zeros(1, 2, 2, 40, 16)
    memory = StepMemory(stream, torch.zeros(1, 2, 2, 31, 16), requests=3)
    for number, requests in enumerate(loads, 1):
        cos, sin = (number * angle).cos(), (number * angle).sin()
        memory.load(
            *(
                [
                    KVPart(stream, slice(6 * at, 6 * at + 1), (cos, sin) if turned else None)
                    for at, turned in enumerate(parts)
                ]
                for parts in requests
            )
        )
        lengths = memory.lengths.view(3, MAX_PARTS)
        assert lengths.sum(1).tolist() == [*map(len, requests), *[0] * (3 - len(requests))]
        for offsets, parts in zip(memory.offsets, requests, strict=False):
            for at, turned in enumerate(parts):
                assert_equal(offsets[0, at], cos if turned else torch.ones(16))
                assert_equal(offsets[1, at], sin if turned else torch.zeros(16))


def test_a_step_is_told_how_many_tokens_of_each_request_are_real():
    """For each part of its memory, as kernels over sequences of any lengths want it."""
    memory = StepMemory(torch.zeros(1, 2, 2, 30, 16), torch.zeros(1, 2, 2, 31, 16), requests=3)
    chunks, tokens = StepInputs(4, memory), StepInputs(1, memory)
    for real in ([4, 2, 3], [1]):
        chunks.load_chunks([torch.zeros(3, count) for count in real])
        counts = chunks.parts_real.view(3, MAX_PARTS)
        assert counts.tolist() == [[n] * MAX_PARTS for n in [*real, 0, 0][:3]]
    for real in ([1, 1, 1], [1]):
        tokens.load_tokens(real, torch.zeros(3, len(real)), [0] * len(real), [0] * len(real))
        counts = tokens.parts_real.view(3, MAX_PARTS)
        assert counts.tolist() == [[n] * MAX_PARTS for n in [*real, 0, 0][:3]]
    alone = StepInputs(16, StepMemory(*torch.zeros(2, 1, 2, 2, 31, 16)))
    for count in (9, 16, 3):
        alone.load(words(count), torch.zeros(3, count), past=2, shared=count)
        assert alone.parts_real.tolist() == [count] * MAX_PARTS


class OnDevice(TorchDispatchMode):
    """Fails where an operation takes or gives a tensor of the host: what no capture survives."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, result)):
            assert not isinstance(x, torch.Tensor) or x.is_meta, function
        return result


def lengthless(queries, stream, tail, memory, inputs, scaling):
    """Stands for the kernel: of its shape, and reads nothing back."""
    return queries.transpose(0, 1).contiguous()


def test_a_step_leaves_the_device_for_nothing(toys):
    """On a device without values, where reading one back is an error."""
    model = toys.model(0).to("meta")
    memory = StepMemory(*torch.zeros(2, 2, 2, 2, 30, 16, device="meta"))
    kernels = StepKernels(lengthless)
    Step(model, memory, StepInputs(1, memory), kernels)()  # moves the rotation's frequencies there
    for size in SIZES:
        inputs = StepInputs(size, memory)
        step = Step(model, memory, inputs, kernels)
        with OnDevice():
            hidden, logits = step()
        assert hidden.is_meta and logits.shape == (model.config.text_config.vocab_size,)


def test_a_step_is_one_graph_whatever_the_lengths(model):
    """Traced whole, with no break: no Python in it depends on a value; and traced just once."""
    torch._dynamo.reset()
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph

    memory = StepMemory(torch.zeros(2, 2, 2, 30, 16), torch.zeros(2, 2, 2, 30, 16))
    inputs = StepInputs(16, memory)
    step = Step(model, memory, inputs, StepKernels(lengthless))
    traced = torch.compile(step.__call__, fullgraph=True, dynamic=False, backend=record)
    for count, past in ((3, 0), (16, 5), (9, 20)):
        inputs.load(words(count), torch.zeros(3, count), past, shared=count)
        expected = step()
        for one, other in zip(traced(), expected, strict=True):
            assert_equal(one, other)
    assert len(graphs) == 1


def test_all_layers_share_what_is_compiled(toys, monkeypatch):
    torch._dynamo.reset()
    model, built = toys.model(3, layers=4), Counter()

    def compile_(function, **options):
        def backend(graph, inputs):
            built[function.__name__] += 1
            return graph

        return plain_compile(function, backend=backend, **options)

    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_)
    memory = StepMemory(torch.zeros(4, 2, 2, 30, 16), torch.zeros(4, 2, 2, 30, 16))
    for size in (1, 16):
        inputs = StepInputs(size, memory)
        inputs.load([5], torch.zeros(3, 1), past=3, shared=1)
        fused, plain = (Step(model, memory, inputs, compiled=on) for on in (True, False))
        assert_equal(fused()[1], plain()[1])
    assert built == {"rms_norm": 2, "finish_layer": 2}


class Recorder:
    """Records no graph, which only a GPU can: each has its place for what comes out."""

    def __init__(self, works=lambda step: True):
        self.works, self.made, self.alive = works, [], weakref.WeakKeyDictionary()

    def __call__(self, step, pool):
        if not self.works(step):
            raise RuntimeError("no such\nkernel")
        # Memory is shared with graphs that are there, and never with those that are gone.
        assert set(self.alive.values()) == ({pool} if pool else set())
        self.made.append(step.inputs.size)
        replay = in_place(step)
        self.alive[replay] = pool or f"pool {len(self.made)}"
        return Recording(replay, self.alive[replay])


def graph_path(engine, recorder=None, kernels=PLAIN_STEP, compiled=False):
    return GraphRunner(
        engine.model,
        engine.cache_manager,
        kernels,
        graph=True,
        compiled=compiled,
        recorder=recorder or Recorder(),
    )


def test_each_size_is_recorded_once_however_the_memory_grows(toys, model, processor):
    recorder = Recorder()
    engine = make(model, processor, "sink and window")
    path = engine.text_path = graph_path(engine, recorder)
    report = engine.warm_up()
    assert recorder.made == sorted(SIZES, reverse=True) and path.captures == len(SIZES)
    assert report["path"] == "graph" and report["reason"] == "" and report["seconds"] > 0
    plain = make(model, processor, "sink and window")
    for number in range(14):
        for one in (engine, plain):
            one.append_video_chunk(toys.frames(4, seed=number), fps=2)
        question = "What is there?" * (number + 1)
        assert engine.ask(question, 4)[0] == plain.ask(question, 4)[0]
        choices = ["a", "bc" * 50, "d" * 200]  # too long for one step
        ours, theirs = (one.ask_choice("Which?", choices)[1] for one in (engine, plain))
        assert ours["scores"] == pytest.approx(theirs["scores"], rel=1e-5)
    engine.warm_up()
    assert path.captures == len(SIZES) and not path.detours


def test_a_memory_that_grows_has_its_steps_recorded_anew(toys, model, processor, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)
    engine = make(model, processor)
    engine.text_path, plain = graph_path(engine, recorder), TextRunner(model)
    engine.warm_up()
    watch(engine, toys, 20)
    assert_equal(question_logits(engine), question_logits(engine, path=plain))
    engine.warm_up()
    assert sorted(recorder.made) == sorted([*SIZES, *SIZES])
    assert engine.text_path.name == "graph" and not engine.text_path.detours


def test_answers_written_at_once_each_go_ahead_for_themselves(toys, model, processor):
    engine = make(model, processor, "sink and window")
    engine.text_path = graph_path(engine)
    watch(engine, toys, 9)
    questions = ["What is it?", "Where?", "How many are there?"]
    alone = [engine.ask(question, 8)[0] for question in questions]
    assert written_in_turns(engine, questions, 8) == alone


def test_what_cannot_be_recorded_is_answered_the_plain_way_and_the_log_says_why(
    toys, model, processor, caplog
):
    engine = make(model, processor, "sink and window")
    watch(engine, toys, 12)
    expected = engine.ask("What is it?", 5)[0]
    engine.text_path = graph_path(engine, Recorder(works=lambda step: False), compiled=True)
    with caplog.at_level(logging.WARNING):
        assert engine.ask("What is it?", 5)[0] == expected
        assert engine.ask("What is it?", 5)[0] == expected
    assert [record.getMessage() for record in caplog.records] == [
        "questions are answered without torch.compile: RuntimeError: no such kernel",
        "questions are answered more slowly: no CUDA graph serves: RuntimeError: no such kernel",
    ]
    report = engine.warm_up()
    assert report["path"] == "eager" and "no such kernel" in report["reason"]


@pytest.mark.parametrize("wrong_from", [0, 20])  # at once, or with the token behind the prompt
def test_a_graph_that_computes_something_else_is_found_out_before_it_answers(
    toys, model, processor, wrong_from
):
    def attend_wrongly(queries, stream, tail, memory, inputs, scaling):
        out = attend_step(queries, stream, tail, memory, inputs, scaling)
        return out * (1 if inputs.scalars[0, 2] < wrong_from else -1)

    engine = make(model, processor, "all levels")
    engine.text_path = graph_path(engine, kernels=StepKernels(attend_wrongly))
    report = engine.warm_up()
    assert report["path"] == "eager" and "its result differs by" in report["reason"]
    watch(engine, toys, 5)
    right = make(model, processor, "all levels")
    watch(right, toys, 5)
    assert engine.ask("What is it?", 8)[0] == right.ask("What is it?", 8)[0]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("end", ["length", "stop", "end token", "end token alone", "cancel"])
def test_going_ahead_while_the_text_is_put_together_changes_nothing(
    toys, model, processor, monkeypatch, end, keep
):
    if end.startswith("end token"):
        first = make(model, processor)
        watch(first, toys, 3)
        ids = first.ask("What is it?", 12)[1]["token_ids"]
        last = next(at for at in range(3, 12) if ids[at] not in ids[:at])
        monkeypatch.setattr(model.generation_config, "eos_token_id", [ids[last]])
        if end == "end token alone":  # a chat whose answers end by it, and by nothing more
            usual = ChatLayout.__init__

            def init(chat, *given, **options):
                usual(chat, *given, **options)
                chat.answer_end = [ids[last]]

            monkeypatch.setattr(ChatLayout, "__init__", init)
    engines = make(model, processor), make(model, processor)
    ahead = engines[0]
    ahead.text_path = graph_path(ahead)
    said = []
    for engine in engines:
        watch(engine, toys, 3)
        whole = engine.ask("What is it?", 12)[0]
        options = {
            "length": dict(max_new_tokens=6),
            "stop": dict(max_new_tokens=12, stop=[whole[4:6]]),
            "end token": dict(max_new_tokens=12),
            "end token alone": dict(max_new_tokens=12),
            "cancel": dict(max_new_tokens=12, cancel=iter([False] * 4 + [True]).__next__),
        }[end]
        said.append(engine.ask("What is it?", update_state=keep, **options)[0])
        said.append(engine.ask("And?", 5)[0])
        watch(engine, toys, 1)
    assert said[:2] == said[2:]
    memories = [engine.cache_manager.gather() for engine in engines]
    assert_equal(*memories)
    assert ahead.text_path.steps and not ahead.text_path.detours


def joined_wrongly(functions):
    return functions._replace(finish=lambda hidden, *others: (-hidden, -hidden))


@pytest.mark.parametrize("fault", ["it cannot be recorded", "it computes something else"])
def test_joined_kernels_that_fail_cost_themselves_and_not_the_graphs(
    toys, model, processor, caplog, fault
):
    recorder = Recorder(works=lambda step: not step.joined or fault == "it computes something else")
    engine = make(model, processor)
    path = engine.text_path = graph_path(
        engine, recorder, StepKernels(joined=Joined(joined_wrongly))
    )
    with caplog.at_level(logging.WARNING):
        assert engine.warm_up()["path"] == "graph"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("a further token takes longer")
    assert "no such kernel" in said or "its result differs by" in said
    watch(engine, toys, 2)
    right = make(model, processor)
    watch(right, toys, 2)
    assert engine.ask("What is it?", 8)[0] == right.ask("What is it?", 8)[0]
    assert (
        path.captures == len(SIZES) + (fault == "it computes something else") and not path.detours
    )


def test_joined_kernels_are_those_of_steps_of_one_token(toys, model, processor):
    taken = []

    def join(functions):
        def finish(hidden, *others):
            taken.append(len(hidden))
            return functions.finish(hidden, *others)

        return functions._replace(finish=finish)

    engine = make(model, processor)
    engine.text_path = graph_path(engine, kernels=StepKernels(joined=Joined(join)), compiled=True)
    engine.warm_up()
    assert set(taken) == {1} and not engine.text_path.joined.refused
    watch(engine, toys, 2)
    right = make(model, processor)
    watch(right, toys, 2)
    assert engine.ask("What is it?", 8)[0] == right.ask("What is it?", 8)[0]


def test_what_fails_at_other_sizes_is_not_blamed_on_joined_kernels(toys, model, processor):
    engine = make(model, processor)
    kernels = StepKernels(joined=Joined(joined_wrongly))
    path = graph_path(engine, Recorder(works=lambda step: step.inputs.size == 1), kernels)
    engine.text_path = path
    assert "no such kernel" in engine.warm_up()["reason"] and not path.joined.refused


@pytest.mark.parametrize(("options", "ahead"), [({}, 1), ({"repetition_penalty": 1.3}, 0)])
def test_the_next_step_is_begun_before_the_likeliest_token_is_read(
    toys, model, processor, monkeypatch, options, ahead
):
    engine = make(model, processor)
    path = engine.text_path = graph_path(engine)
    engine.warm_up()
    watch(engine, toys, 2)
    before, begun = path.steps, []
    choose = Sampler.choose

    def watched(sampler, logits):
        begun.append(path.steps - before)
        return choose(sampler, logits)

    monkeypatch.setattr(Sampler, "choose", watched)
    tokens = engine.ask("What is it?", 6, **options)[1]["answer_tokens"]
    # One is the prompt's, and of the last token none.
    assert begun == [number + ahead for number in range(1, tokens)] + [tokens]


def test_a_compiler_that_fails_costs_the_fusion_and_not_the_graphs(toys, model, processor):
    recorder = Recorder(works=lambda step: not step.compiled)
    engine = make(model, processor)
    engine.text_path = graph_path(engine, recorder, compiled=True)
    assert engine.warm_up()["path"] == "graph"
    watch(engine, toys, 2)
    plain = TextRunner(engine.model)
    assert_equal(question_logits(engine), question_logits(engine, path=plain))


def test_a_compiler_that_fails_after_some_sizes_costs_no_choice(toys, model, processor):
    engine, plain = make(model, processor), make(model, processor)
    recorder = Recorder(works=lambda step: not step.compiled or step.inputs.size < 32)
    engine.text_path = graph_path(engine, recorder, compiled=True)
    for one in (engine, plain):
        watch(one, toys, 2)
    ours, theirs = (one.ask_choice("Which?", ["a", "bc"])[1].scores for one in (engine, plain))
    assert_equal(torch.tensor(ours), torch.tensor(theirs))
    assert recorder.made == [1, 16, *SIZES]


def test_without_triton_a_gpu_answers_the_plain_way_and_the_log_says_why(
    model, processor, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "stream_vlm_ros.engine.attention.triton_decode", None)
    manager = make(model, processor).cache_manager
    with caplog.at_level(logging.WARNING):
        path = text_runner("auto", model, manager, torch.device("cuda"))
    assert type(path) is TextRunner and path.warm_up()["path"] == "eager"
    assert "stream_vlm_ros.engine.attention.triton_decode" in path.warm_up()["reason"]
    assert [record.getMessage() for record in caplog.records] == [
        f"questions are answered more slowly: {path.reason}"
    ]


def test_the_path_is_chosen_by_device_or_by_name(model, processor):
    manager = make(model, processor).cache_manager
    here = torch.device("cpu")
    assert type(text_runner("auto", model, manager, here)) is TextRunner
    assert type(text_runner("static", model, manager, here)) is GraphRunner
    with pytest.raises(InvalidParameterError, match="'graph' needs a CUDA GPU"):
        make(model, processor, question_path="graph")
    with pytest.raises(InvalidParameterError, match="'fast' is unknown: use one of auto, eager"):
        make(model, processor, question_path="fast")
