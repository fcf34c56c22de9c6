"""Weights laid end to end: the same parameters in another place, one product instead of three."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from toy_qwen import question_logits
from transformers import Qwen2_5_VLForConditionalGeneration

from stream_vlm_ros.engine import StreamQwenModel, VideoStreamingInference
from stream_vlm_ros.engine.packed import PackedLayer, feed_forward, joined, pack
from stream_vlm_ros.engine.question_path import StaticTextPath, TextPath
from stream_vlm_ros.engine.static_step import attend_step


@pytest.fixture
def apart(toys):
    return toys.model(4)


@pytest.fixture
def together(toys):
    model = toys.model(4)
    pack(model)
    return model


def layers(model):
    return model.model.language_model.layers


def places(model):
    return {name: weight.data_ptr() for name, weight in model.named_parameters()}


def bytes_held(model):
    """Of all storages that parameters lie in, each once."""
    storages = [weight.untyped_storage() for weight in model.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_the_parameters_keep_their_values_and_take_no_more_memory(apart, together):
    weights = dict(together.named_parameters())
    assert list(weights) == [name for name, _ in apart.named_parameters()]
    for name, weight in apart.named_parameters():
        assert torch.equal(weights[name], weight) and weights[name].requires_grad
        assert weights[name].is_leaf and weights[name].is_contiguous()
    assert bytes_held(together) == bytes_held(apart)


def test_the_joined_weights_are_the_librarys_one_below_the_other(apart, together):
    for ours, theirs in zip(layers(together), layers(apart), strict=True):
        packed = PackedLayer.of(ours)
        attention, mlp = theirs.self_attn, theirs.mlp
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        assert torch.equal(packed.qkv, torch.cat([module.weight for module in projections]))
        assert torch.equal(packed.qkv_bias, torch.cat([module.bias for module in projections]))
        assert torch.equal(packed.gate_up, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        assert PackedLayer.of(theirs) is None
        packed.qkv[0, 0] += 1  # one place, two names
        assert ours.self_attn.q_proj.weight[0, 0] == packed.qkv[0, 0]


def test_a_changed_parameter_changes_the_joined_weights(together):
    layer = layers(together)[1]
    with torch.no_grad():
        layer.mlp.up_proj.weight.fill_(7)
    assert (PackedLayer.of(layer).gate_up[-len(layer.mlp.up_proj.weight) :] == 7).all()


def test_packing_again_moves_nothing_until_the_model_was_moved_or_cast(together):
    before = places(together)
    together.to("cpu")
    pack(together)
    assert places(together) == before
    together.to(torch.bfloat16)
    assert PackedLayer.of(layers(together)[0]) is None
    pack(together)
    assert PackedLayer.of(layers(together)[0]).qkv.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_model_packed_in_any_mode_can_still_be_trained(apart, mode):
    with mode():
        pack(apart)
    layer = layers(apart)[0]
    normed = torch.randn(5, layer.self_attn.q_proj.in_features)
    layer.self_attn.k_proj(normed).sum().backward()
    assert layer.self_attn.k_proj.weight.grad.abs().sum() > 0
    assert layer.self_attn.q_proj.weight.grad is None


def test_saved_and_loaded_a_packed_model_is_the_same_model(apart, together, tmp_path):
    state = apart.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in together.state_dict().items())
    together.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "model.safetensors")) == len(state)
    for kind in (StreamQwenModel, Qwen2_5_VLForConditionalGeneration):
        loaded = kind.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(loaded[name], state[name]) for name in state)
    other = copy.deepcopy(together)
    other.load_state_dict({name: weight + 1 for name, weight in state.items()})
    together.load_state_dict(other.state_dict())
    attention = layers(together)[0].self_attn
    first = PackedLayer.of(layers(together)[0]).qkv[: attention.q_proj.out_features]
    assert torch.equal(first, state["model.language_model.layers.0.self_attn.q_proj.weight"] + 1)


def test_a_layer_with_an_adapter_in_it_is_left_alone(together):
    class Adapter(torch.nn.Linear):
        """Stands for what adds something to a weight."""

    layer = layers(together)[0]
    layer.self_attn.v_proj.__class__ = Adapter
    assert PackedLayer.of(layer) is None
    before = places(together)
    pack(together.to(torch.float64))
    assert places(together) != before and PackedLayer.of(layers(together)[1]) is not None
    assert joined([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]) is None


def test_only_weights_that_lie_end_to_end_are_joined():
    whole = torch.arange(24.0).view(6, 4)
    assert torch.equal(joined([whole[1:3], whole[3:4], whole[4:]]), whole[1:])
    assert joined([whole[1:3], whole[4:]]) is None  # a gap
    assert joined([whole[3:], whole[:3]]) is None  # the wrong way round
    assert joined([whole[:2, :2], whole[2:4, :2]]) is None  # a piece of each row
    assert joined([whole[:3], whole[3:].clone()]) is None
    assert joined([torch.empty(2, 4, device="meta")] * 2) is None


def test_a_layers_products_are_those_of_its_modules(together):
    layer = layers(together)[0]
    packed = PackedLayer.of(layer)
    hidden = torch.randn(3, layer.self_attn.q_proj.in_features)
    attention = layer.self_attn
    apart = [f(hidden) for f in (attention.q_proj, attention.k_proj, attention.v_proj)]
    at_once = functional.linear(hidden, packed.qkv, packed.qkv_bias)
    torch.testing.assert_close(at_once, torch.cat(apart, -1))
    torch.testing.assert_close(feed_forward(layer.mlp, hidden, packed), layer.mlp(hidden))


@pytest.mark.parametrize("packed_again", [True, False])
def test_steps_compute_what_plain_calls_compute_wherever_the_weights_are(
    toys, together, processor, packed_again
):
    engine = VideoStreamingInference(together, processor)
    for number in range(3):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    plain = TextPath(together)
    steps = StaticTextPath(together, engine.cache_manager, attend_step)
    for _ in range(2):
        ours, theirs = (question_logits(engine, path=path) for path in (steps, plain))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
        for weight in together.parameters():  # as a move there and back leaves them
            weight.data = weight.data * 1.5
        if packed_again:
            pack(together)
