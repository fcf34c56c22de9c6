"""Streamed equals offline: with nothing evicted, many chunks compute what one pass computes."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLForConditionalGeneration

from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.engine.model import StreamQwenModel

SLOW_EXAMPLES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class Recorder:
    """Keeps everything that one engine put through its language model, to replay it offline."""

    def __init__(self, model: StreamQwenModel):
        self.model = model
        self.embeddings, self.positions, self.logits = [], [], []
        self._forward = model.stream_forward

    def __enter__(self):
        def forward(embeddings, positions, fork):
            hidden = self._forward(embeddings, positions, fork)
            self.embeddings.append(embeddings[0])
            self.positions.append(positions)
            self.logits.append(self.model.logits(hidden[0]))
            return hidden

        self.model.stream_forward = forward
        return self

    def __exit__(self, *exc):
        del self.model.stream_forward

    def streamed(self) -> torch.Tensor:
        return torch.cat(self.logits)

    def offline(self) -> torch.Tensor:
        """One pass of the stock class over the same embeddings and positions."""
        stock = stock_twin(self.model)
        with torch.no_grad():
            out = stock.model.language_model(
                inputs_embeds=torch.cat(self.embeddings)[None],
                position_ids=torch.cat(self.positions, dim=1)[:, None],
                use_cache=False,
            )
            return stock.lm_head(out.last_hidden_state)[0]


def stock_twin(model: StreamQwenModel) -> Qwen2_5_VLForConditionalGeneration:
    """The library's class with the same weights, its own attention and its own rotation."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = "eager"
    stock = Qwen2_5_VLForConditionalGeneration(config).eval()
    stock.load_state_dict(model.state_dict())
    return stock


def assert_equal_logits(streamed: torch.Tensor, offline: torch.Tensor) -> None:
    scale = offline.abs().max()
    assert (streamed - offline).abs().max() / scale < 1e-4
    # A tie within rounding may fall either way; everywhere else the choice must be the same.
    best = offline.max(-1).values
    chosen = offline.gather(1, streamed.argmax(-1, keepdim=True))[:, 0]
    assert (best - chosen).max() <= 1e-4 * scale


@SLOW_EXAMPLES
@given(
    heads=st.sampled_from([(2, 1, 16), (4, 2, 16), (4, 4, 8), (6, 2, 24)]),
    merge=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    layout=st.sampled_from(["continuous", "segmented"]),
    fps=st.sampled_from([0.3, 1.0, 2.0, 4.0]),
    seed=st.integers(0, 2**16),
)
def test_streamed_logits_equal_one_offline_pass_of_the_same_tokens(
    toys, heads, merge, size, chunks, layout, fps, seed
):
    n, kv, d = heads
    model = toys.model(seed, heads=n, kv_heads=kv, head_dim=d, vision={"spatial_merge_size": merge})
    processor = toys.processor()
    image_settings = processor.image_settings.__class__(min_pixels=14 * 14, merge_size=merge)
    processor = type(processor)(processor.tokenizer, image_settings, processor.chat_template)
    engine = VideoStreamingInference(model, processor, layout=layout)
    rows, columns = size
    with Recorder(model) as record:
        for number, count in enumerate(chunks):
            frames = toys.frames(count, rows * 14 * merge, columns * 14 * merge, seed + number)
            engine.append_video_chunk(frames, fps=fps)
        engine.ask("What is there?", max_new_tokens=4)
    assert_equal_logits(record.streamed(), record.offline())


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_kept_exchanges_are_part_of_the_same_offline_pass(toys, layout):
    model = toys.model(3)
    engine = VideoStreamingInference(model, toys.processor(), layout=layout)
    with Recorder(model) as record:
        for number in range(3):
            engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
            engine.ask(f"And now {number}?", max_new_tokens=3, update_state=True)
        engine.append_video_chunk(toys.frames(3, 84, 56, seed=9), fps=2)
        engine.ask("At the end?", max_new_tokens=3)
    assert_equal_logits(record.streamed(), record.offline())


def test_the_size_of_the_pictures_may_change_while_streaming(toys):
    model = toys.model(4)
    engine = VideoStreamingInference(model, toys.processor())
    with Recorder(model) as record:
        for number, (height, width) in enumerate([(56, 84), (140, 28), (28, 28), (112, 168)]):
            engine.append_video_chunk(toys.frames(4, height, width, seed=number), fps=2)
        engine.ask("What is there?", max_new_tokens=3)
    assert_equal_logits(record.streamed(), record.offline())


@pytest.mark.parametrize(
    ("rows", "columns", "grids"),
    # Conditions under which the library's positions follow the trained rule: whole seconds a
    # grid, and t does not reach past rows and columns: (grids - 1) * step < max(rows, columns).
    [(2, 3, 2), (5, 2, 3), (4, 7, 4), (1, 3, 1)],
)
def test_pixels_to_generated_tokens_equal_the_stock_model(toys, rows, columns, grids):
    model, processor = toys.model(5), toys.processor()
    engine = VideoStreamingInference(model, processor)
    frames = toys.frames(2 * grids, rows * 28, columns * 28, seed=1)
    for start in range(0, len(frames), 2):
        engine.append_video_chunk(frames[start : start + 2], fps=2)  # 1 s a grid: 2 positions
    answer, metrics = engine.ask("What do you see?", max_new_tokens=12)

    stock, tokenizer, config = stock_twin(model), processor.tokenizer, model.config
    messages = [
        {
            "role": "user",
            "content": [{"type": "video"}, {"type": "text", "text": "What do you see?"}],
        }
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|video_pad|>", "<|video_pad|>" * (grids * rows * columns))
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    patches = processor.frame_processor()(frames)
    with torch.no_grad():
        out = stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == config.video_token_id).int() * 2,
            pixel_values_videos=patches.pixel_values,
            video_grid_thw=torch.tensor([patches.grid_thw]),
            second_per_grid_ts=torch.tensor([1.0]),
            max_new_tokens=12,
            do_sample=False,
        )
    assert answer == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert metrics["prompt_tokens"] < ids.shape[1]


def test_the_vision_tower_computes_what_the_stock_one_computes(toys):
    model = toys.model(6, vision={"depth": 3, "fullatt_block_indexes": [1]})
    stock = stock_twin(model)
    # 10 x 14 patches in windows of 8 x 8: whole windows and three kinds of cut ones.
    patches = toys.processor().frame_processor()(toys.frames(6, 140, 196))
    grid = torch.tensor([patches.grid_thw])
    with torch.no_grad():
        expected = stock.model.visual(patches.pixel_values, grid_thw=grid).pooler_output
    features = model.encode_frames(patches)
    assert (features - expected).abs().max() / expected.abs().max() < 1e-5


def test_a_plain_call_of_the_model_is_the_stock_model(toys):
    model = toys.model(7)
    ids = torch.randint(0, 200, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # a padded batch needs its mask
    with torch.no_grad():
        expected = stock_twin(model)(input_ids=ids, attention_mask=mask).logits
        logits = model(input_ids=ids, attention_mask=mask).logits
    keep = mask.bool()
    assert (logits - expected)[keep].abs().max() / expected.abs().max() < 1e-5
