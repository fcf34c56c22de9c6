# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Streamed equals offline: with nothing evicted, many chunks compute what one pass computes.

The oracle is the library's class, which wrote the folder that ours is loaded from and loads it by
itself.
"""

import tempfile
from pathlib import Path

import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_qwen import library_checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

from stream_vlm_ros.engine import StreamQwenModel, VideoStreamingInference
from stream_vlm_ros.errors import InvalidParameterError

SLOW_EXAMPLES = settings(
    max_examples=examples(12),
    derandomize=True,
)


class Recorder:
    """Keeps everything that one engine put through its language model, to replay it offline."""

    def __init__(self, model: StreamQwenModel, stock: Qwen2_5_VLForConditionalGeneration):
        self.model, self.stock = model, stock
        self.embeddings, self.positions, self.logits = [], [], []
        self._forward = model.stream_forward

    def __enter__(self):
        def forward(embeddings, positions, fork, *options, **named):
            hidden = self._forward(embeddings, positions, fork, *options, **named)
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
        stock = self.stock
        with torch.no_grad():
            out = stock.model.language_model(
                inputs_embeds=torch.cat(self.embeddings)[None],
                position_ids=torch.cat(self.positions, dim=1)[:, None],
                use_cache=False,
            )
            return stock.lm_head(out.last_hidden_state)[0]


def both_from(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[StreamQwenModel, Qwen2_5_VLForConditionalGeneration]:
    """Ours and the library's model, each loaded from a folder by itself."""
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    return StreamQwenModel.from_pretrained(folder, torch_dtype=dtype), stock.eval()


def both(seed: int, **changes: object) -> tuple[StreamQwenModel, object]:
    """As `both_from`, from a folder that the library wrote."""
    with tempfile.TemporaryDirectory() as folder:
        return both_from(library_checkpoint(Path(folder), seed, **changes))


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
    model, stock = both(
        seed, heads=n, kv_heads=kv, head_dim=d, vision={"spatial_merge_size": merge}
    )
    processor = toys.processor()
    image_settings = processor.image_settings.__class__(min_pixels=14 * 14, merge_size=merge)
    processor = type(processor)(processor.tokenizer, image_settings, processor.chat_template)
    engine = VideoStreamingInference(model, processor, layout=layout)
    rows, columns = size
    with Recorder(model, stock) as record:
        for number, count in enumerate(chunks):
            frames = toys.frames(count, rows * 14 * merge, columns * 14 * merge, seed + number)
            engine.append_video_chunk(frames, fps=fps)
        engine.ask("What is there?", max_new_tokens=4)
    assert_equal_logits(record.streamed(), record.offline())


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_kept_exchanges_are_part_of_the_same_offline_pass(toys, layout):
    model, stock = both(3)
    engine = VideoStreamingInference(model, toys.processor(), layout=layout)
    with Recorder(model, stock) as record:
        for number in range(3):
            engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
            engine.ask(f"And now {number}?", max_new_tokens=3, update_state=True)
        engine.append_video_chunk(toys.frames(3, 84, 56, seed=9), fps=2)
        engine.ask("At the end?", max_new_tokens=3)
    assert_equal_logits(record.streamed(), record.offline())


def test_the_size_of_the_pictures_may_change_while_streaming(toys):
    model, stock = both(4)
    engine = VideoStreamingInference(model, toys.processor())
    with Recorder(model, stock) as record:
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
    (model, stock), processor = both(5), toys.processor()
    engine = VideoStreamingInference(model, processor)
    frames = toys.frames(2 * grids, rows * 28, columns * 28, seed=1)
    for start in range(0, len(frames), 2):
        engine.append_video_chunk(frames[start : start + 2], fps=2)  # 1 s a grid: 2 positions
    answer, metrics = engine.ask("What do you see?", max_new_tokens=12)

    tokenizer, config = processor.tokenizer, model.config
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
    model, stock = both(6, vision={"depth": 3, "fullatt_block_indexes": [1]})
    # 10 x 14 patches in windows of 8 x 8: whole windows and three kinds of cut ones.
    patches = toys.processor().frame_processor()(toys.frames(6, 140, 196))
    grid = torch.tensor([patches.grid_thw])
    with torch.no_grad():
        expected = stock.model.visual(patches.pixel_values, grid_thw=grid).pooler_output
    features = model.encode_frames(patches)
    assert (features - expected).abs().max() / expected.abs().max() < 1e-5


FOLDERS = {
    "one file": {},
    "shards": {"max_shard_size": "20KB"},
    "tied": {"tied": True},
    "flat config": {"flat": True},
    "tied shards, flat config": {"tied": True, "flat": True, "max_shard_size": "20KB"},
    "the library's names": {"names": "library"},
    "released names": {"names": "released"},
}


@pytest.mark.parametrize("written", FOLDERS.values(), ids=FOLDERS)
def test_whatever_folder_it_is_loaded_from_it_is_the_stock_model(toys, tmp_path, written):
    folder = library_checkpoint(tmp_path, 8, **written)
    assert len(list(folder.glob("*.safetensors"))) > 3 or "max_shard_size" not in written
    model, stock = both_from(folder)
    engine = VideoStreamingInference(model, toys.processor())
    with Recorder(model, stock) as record:
        for number in range(3):
            engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
        engine.ask("What is there?", max_new_tokens=3)
    assert_equal_logits(record.streamed(), record.offline())
    patches = toys.processor().frame_processor()(toys.frames(4))
    with torch.no_grad():
        grid = torch.tensor([patches.grid_thw])
        expected = stock.model.visual(patches.pixel_values, grid_thw=grid).pooler_output
    assert (model.encode_frames(patches) - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_in_16_bits_it_is_as_near_to_the_exact_logits_as_the_stock_model_is(
    toys, tmp_path, dtype, layout
):
    """Both round to the format at the same places, but sum in another order.

    So each is off from the logits of the same rounded weights in float32 by what the format costs,
    and two such errors, that partly cancel or add, differ by at most their sum: ours must be within
    twice the stock model's. What the format costs by itself: a step of 2^-8 (bfloat16) or 2^-11
    for some ten roundings a layer, two layers deep, on logits that are sums of 64 products: below
    an eighth, and a hundredth, of their size.
    """
    folder = library_checkpoint(tmp_path, 9)
    model, stock = both_from(folder, dtype)
    exact = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    exact = exact.float().eval()
    engine = VideoStreamingInference(model, toys.processor(), layout=layout)
    with Recorder(model, stock) as record:
        for number in range(4):
            engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
        engine.ask("What is there?", max_new_tokens=4)
    ours, theirs = record.streamed().double(), record.offline().double()
    record.stock = exact
    record.embeddings = [embeddings.float() for embeddings in record.embeddings]
    expected = record.offline().double()
    cost = (theirs - expected).norm()
    assert (ours - expected).norm() <= 2 * cost
    assert cost / expected.norm() < {torch.bfloat16: 1 / 8, torch.float16: 1 / 100}[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["3b", "7b"])
def test_two_layers_at_the_released_widths_are_the_stock_models(toys, tmp_path, shape):
    """Heads of 128 in sections of 16, 24 and 24; two layers of each tower, and few words."""
    hidden, inner, heads, kv_heads, tied = {
        "3b": (2048, 11008, 16, 2, True),
        "7b": (3584, 18944, 28, 4, False),
    }[shape]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    folder = library_checkpoint(
        tmp_path,
        10,
        tied=tied,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        text={"intermediate_size": inner, "rope_parameters": rope, "rms_norm_eps": 1e-6},
        vision={"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
    )
    model, stock = both_from(folder)
    assert model.kv_shape.head_dim == 128 and model.config.text_config.hidden_size == hidden
    engine = VideoStreamingInference(model, toys.processor())
    with Recorder(model, stock) as record:
        for number in range(3):
            engine.append_video_chunk(toys.frames(4, 112, 196, seed=number), fps=2)
        engine.ask("What is there?", max_new_tokens=3)
    assert_equal_logits(record.streamed(), record.offline())
    patches = toys.processor().frame_processor()(toys.frames(4, 140, 196))
    with torch.no_grad():
        grid = torch.tensor([patches.grid_thw])
        expected = stock.model.visual(patches.pixel_values, grid_thw=grid).pooler_output
    assert (model.encode_frames(patches) - expected).abs().max() / expected.abs().max() < 1e-5


def test_a_plain_call_by_token_ids_is_refused_in_words(toys):
    with pytest.raises(InvalidParameterError, match="appends to a memory"):
        toys.model(7)(input_ids=torch.randint(0, 200, (2, 9)))
