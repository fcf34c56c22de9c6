# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the network offers to what comes: batches, foreign memory, keys that are not rotated."""

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW, question_logits, stock_twin

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention.base import BatchAttention, KVPart, Readout
from stream_vlm_ros.engine.cache.mrope import Vec, rotate
from stream_vlm_ros.engine.graph_runner import GraphRunner, TextRunner, text_positions


def watch(engine, toys, chunks, seed=0):
    for number in range(chunks):
        engine.append_video_chunk(toys.frames(4, seed=seed + number), fps=2)


def test_sessions_with_pasts_of_any_length_pass_the_layers_as_one_batch(toys, model, processor):
    """Each as it would alone: one unbounded, one that forgot, one that has seen nothing yet."""
    engines = [
        VideoStreamingInference(model, processor, eviction_config=config, layout="segmented")
        for config in (None, EvictionConfig(120, **SINK_AND_WINDOW), None)
    ]
    for number, (engine, chunks) in enumerate(zip(engines, (3, 9, 0), strict=True)):
        watch(engine, toys, chunks, seed=10 * number)
    texts = [list(range(5, 5 + count)) for count in (9, 1, 4)]
    forks, alone, requests, positions = [], [], [], []
    for engine, ids in zip(engines, texts, strict=True):
        manager = engine.cache_manager
        start = manager.ledger.next_position
        with manager.fork(len(ids)) as fork:
            embeddings = model.embed_tokens(ids)[None]
            places = text_positions(start, 0, len(ids))
            alone.append((model.stream_forward(embeddings, places, fork)[0], fork.own().clone()))
        forks.append(manager.fork(len(ids)))
        requests.append((model.attention_over(forks[-1]), len(ids)))
        positions.append(places)
    with torch.inference_mode():
        together = model.decode(
            model.embed_tokens([token for ids in texts for token in ids]),
            torch.cat(positions, dim=1),
            BatchAttention(requests),
            model.functions,
        )
    for (hidden, kv), fork, found in zip(
        alone, forks, together.split([len(ids) for ids in texts]), strict=True
    ):
        torch.testing.assert_close(found, hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fork.own(), kv, rtol=1e-4, atol=1e-5)
        fork.release()


def test_a_request_reads_memory_that_is_not_the_streams_as_if_it_were(toys, model, processor):
    """The same past, half of it moved into a tensor of another size."""
    engine = VideoStreamingInference(model, processor)
    watch(engine, toys, 4)
    expected = question_logits(engine)
    manager = engine.cache_manager
    past = manager.get_seq_length()
    foreign = torch.full((*manager.memory.shape[:3], 70, 16), torch.nan)
    foreign[:, :, :, 3 : 3 + 50] = manager.memory[:, :, :, past - 50 : past]

    class Elsewhere:
        def __init__(self, runner):
            self._runner = runner

        def append(self, ids, start, fork):
            fork.parts = [
                KVPart(manager.memory, slice(0, past - 50), None),
                KVPart(foreign, slice(3, 53), None),
            ]
            return self._runner.append(ids, start, fork)

    steps = GraphRunner(model, manager)
    for runner in (TextRunner(model), steps):
        found = question_logits(engine, path=Elsewhere(runner))
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    # Captured steps read one memory: they leave it to plain calls, and say so.
    assert list(steps.detours) == ["the memory lies elsewhere"]


@pytest.mark.parametrize("batch", [1, 2])
def test_keys_and_queries_can_be_read_as_they_were_before_their_rotation(
    toys, model, processor, batch
):
    """Those of the library's projections; rotated, they are what is stored."""
    engine = VideoStreamingInference(model, processor)
    watch(engine, toys, 2)
    manager, stock = engine.cache_manager, stock_twin(model)
    start, count = manager.ledger.next_position, 7
    readout = Readout(queries={0: [3, 1]}, keys={0: [0, 1], 1: [1]})
    embeddings = model.embed_tokens(torch.arange(batch * count).view(batch, count))
    with manager.fork(1) as stem, stem.branch(count, batch) as fork:
        places = text_positions(start, 0, count)
        model.stream_forward(embeddings, places, fork, readout=readout)
        nothing = torch.empty(batch, 2, 0, 16)
        # Of each layer the keys that it holds, [batch, kv_heads, n, head_dim].
        stored = [layer.update(nothing, nothing)[0] for layer in fork.layers]
    attention = stock.model.language_model.layers[0].self_attn
    with torch.no_grad():
        normed = stock.model.language_model.layers[0].input_layernorm(embeddings.flatten(0, 1))
        queries = attention.q_proj(normed).view(batch * count, -1, 16).transpose(0, 1)
        keys = attention.k_proj(normed).view(batch * count, -1, 16).transpose(0, 1)
    torch.testing.assert_close(readout.queries(0), queries[[3, 1]])
    torch.testing.assert_close(readout.keys(0), keys)
    cos, sin = model.rotary.forward(places.repeat(1, batch), torch.float32)
    for layer, heads in ((0, [0, 1]), (1, [1])):
        rotated = rotate(readout.keys(layer), cos, sin).unflatten(1, (batch, count))
        torch.testing.assert_close(rotated.transpose(0, 1), stored[layer][:, heads])


def test_a_readout_goes_on_over_several_passes(toys, model, processor):
    engine = VideoStreamingInference(model, processor)
    watch(engine, toys, 1)
    manager = engine.cache_manager
    start = manager.ledger.next_position
    apart, whole = Readout(keys={1: [0]}), Readout(keys={1: [0]})
    for readout, pieces in ((apart, [[1, 2], [3]]), (whole, [[1, 2, 3]])):
        with manager.fork(3) as fork:
            for ids in pieces:
                places = text_positions(start, fork.length, len(ids))
                model.stream_forward(model.embed_tokens(ids)[None], places, fork, readout=readout)
    torch.testing.assert_close(apart.keys(1), whole.keys(1))


def test_steps_read_what_plain_calls_read_and_leave_other_heads_to_them(toys, model, processor):
    engine = VideoStreamingInference(model, processor)
    watch(engine, toys, 2)
    manager = engine.cache_manager
    start, prompt = manager.ledger.next_position, list(range(1, 22))
    chosen = Readout(queries={1: [2, 0]}, keys={0: [1]})
    steps = GraphRunner(model, manager, reads=chosen)
    read = []
    for runner in (TextRunner(model), steps):
        readout = chosen.like()
        with manager.question_fork(len(prompt), 2) as fork:
            runner.append(prompt, start, fork, readout)
            runner.append([7], start, fork, readout)
        read.append((readout.queries(1), readout.keys(0)))
    for found, expected in zip(*reversed(read), strict=True):
        assert found.shape[1] == len(prompt) + 1  # no padding
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert steps.steps == 2 and not steps.detours
    with manager.question_fork(1, 0) as fork:
        steps.append([7], start, fork, other := Readout(keys={1: [0]}))
    assert other.keys(1).shape == (1, 1, 16)
    assert list(steps.detours) == ["heads are read that the steps do not read"]


def test_features_added_after_the_first_layers_are_as_if_those_layers_had_given_them(
    toys, processor
):
    """DeepStack: what is added behind layer 0 is what a larger bias of its output would be."""
    model, stock = toys.model(3, layers=3), None
    stock = stock_twin(model)
    hidden = model.embed_tokens(list(range(6)))
    places = text_positions((0, 0, 0), 0, 6)
    more = 0.1 * torch.randn(2, 6, hidden.shape[1])
    engine = VideoStreamingInference(model, processor)
    with engine.cache_manager.fork(6) as fork, torch.inference_mode():
        found = model.decode(
            hidden, places, model.attention_over(fork), model.functions, added=list(more)
        )

    def add(number):
        return lambda module, given, out: out + more[number]

    layers = stock.model.language_model.layers
    hooks = [layers[number].register_forward_hook(add(number)) for number in range(2)]
    with torch.no_grad():
        expected = stock.model.language_model(
            inputs_embeds=hidden[None], position_ids=places[:, None], use_cache=False
        ).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_interleaved_axes_are_another_list_of_axes():
    """As Qwen3-VL lays them out: every third frequency is an h, every third a w, t beyond."""
    from stream_vlm_ros.engine.cache.mrope import MultimodalRotary

    sections, half = (4, 2, 2), 8
    axis_of = [i % 3 if i < 3 * sections[i % 3] else 0 for i in range(half)]
    assert axis_of == [0, 1, 2, 0, 1, 2, 0, 0]
    rotary = MultimodalRotary(10_000.0, axis_of)
    angles = rotary.angles(torch.tensor(Vec(5, 70, 900))[:, None])[0]
    expected = [(5, 70, 900)[axis] * 10_000.0 ** (-i / half) for i, axis in enumerate(axis_of)]
    assert angles.tolist() == pytest.approx(expected, rel=1e-6)
