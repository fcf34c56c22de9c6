# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The stream against the stock model's one offline pass.

The same frames and the same question, streamed in chunks and through
Qwen2_5_VLForConditionalGeneration. If the offline pass runs out of memory, it is tried again with
every 2nd and then every 4th frame, and that is noted. The stream takes all frames in any case, and
then also those that the offline pass could take, to compare like with like.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, StoppingCriteria

from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel
from stream_vlm_ros.engine.attention.verified import is_out_of_memory
from stream_vlm_ros.engine.model.qwen2_5_vl import library_name
from stream_vlm_ros.errors import InvalidParameterError

from . import answers
from .context import Context
from .expected_counts import TextTokens
from .peak_memory import PeakMemory
from .reference import NATIVE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stream_vlm_ros.engine import VideoStreamingInference


def run(context: Context) -> None:
    context.peak_memory.limit(context.options.memory_gib)
    pictures = context.pictures(answers.settled(context))
    frames = list(pictures)
    context.note_end(pictures, len(frames))
    taken, native = ladder(context, frames)
    streams = {len(frames): stream(context, frames)}
    if len(taken) not in streams:
        streams[len(taken)] = stream(context, taken)
    compare(context, streams, native)
    if context.truth_is_known:
        judge_both(context, frames)
    elif context.not_judged:
        context.record.note(f"The two answers are not compared: {context.not_judged}.")
        if not context.options.no_answers:
            small = answers.small_context(context, frames=24)
            judge_both(small, list(small.pictures(answers.settled(small))))


def ladder(context: Context, frames: list[Any]) -> tuple[list[Any], dict[str, Any] | None]:
    """The offline pass over as many frames as its memory allows; None if over none."""
    record = context.record
    tries: list[list[Any]] = []
    taken, native = frames, None
    for every in (1, 2, 4):
        try:
            native = offline_pass(context, frames[::every])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            count = len(frames[::every])
            tries.append([count, f"every {every}", "out of memory", said[:90]])
            record.add(run="offline", every=every, frames=count, out_of_memory=said)
            record.note(f"The offline pass ran out of memory with {count} frames.")
        else:
            taken = frames[::every]
            tries.append([len(taken), f"every {every}", "done", ""])
            break
        finally:
            # Outside the except clause: the traceback holds the tensors.
            gc.collect()
            if context.model.device.type == "cuda":
                torch.cuda.empty_cache()
    record.check(
        "the offline pass ran, at least with every 4th frame",
        native is not None,
        f"{len(tries)} tries",
        "one that ends",
    )
    context.table("Tries of the offline pass", ["frames", "taken", "end", "error"], tries)
    return taken, native


def offline_pass(context: Context, frames: list[tuple[Any, float]]) -> dict[str, Any]:
    """Frames and question through the stock model; all from patches to the last token is timed."""
    stock = stock_twin(context.model.network, context.options.attention)
    generate(context, stock, frames[:2], context.question)  # the first call starts things up
    with context.screen.status(f"Offline pass over {len(frames)} frames"):
        found = generate(context, stock, frames, context.question)
    context.record.add(run="offline", **found)
    context.record.save()
    return found


def generate(
    context: Context,
    stock: Qwen2_5_VLForConditionalGeneration,
    frames: list[tuple[Any, float]],
    question: str,
) -> dict[str, Any]:
    """One pass of the stock model, and what it took."""
    options, model = context.options, context.model
    ids = offline_ids(model.processor, model.network, question, context.system_prompt)
    context.peak_memory.reset()
    clock = _clock(model.device)
    begin = clock()
    patches = model.processor.frame_processor(model.device)(
        [image for image, _ in frames], options.min_pixels, options.max_pixels
    )
    video = model.network.config.video_token_id
    at = ids.index(video)
    ids = [*ids[:at], *[video] * patches.tokens, *ids[at + 1 :]]
    tensor = torch.tensor([ids], device=model.device)
    first = FirstToken(clock, context.peak_memory)
    depth = model.processor.image_settings.temporal_patch_size
    with torch.inference_mode():
        out = stock.generate(
            input_ids=tensor,
            attention_mask=torch.ones_like(tensor),
            mm_token_type_ids=(tensor == video).int() * 2,
            pixel_values_videos=patches.pixel_values.to(model.network.dtype),
            video_grid_thw=torch.tensor([patches.grid_thw], device=model.device),
            second_per_grid_ts=torch.tensor([seconds_a_grid(frames, depth)]),
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            stopping_criteria=[first],
        )
    end = clock()
    tokens = out[0, len(ids) :]
    answer = model.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    return {
        "frames": len(frames),
        "prompt_tokens": len(ids),
        "cache_length": len(ids),
        "ttft": first.at - begin,
        "latency": end - begin,
        "answer": answer,
        "answer_tokens": len(tokens),
        "encoded_gib": first.memory["allocated_gib"],
        "encoded_peak_gib": first.memory["peak_gib"],
        **context.peak_memory.read(),
    }


def stream(context: Context, frames: list[tuple[Any, float]]) -> dict[str, Any]:
    """The same through the engine. TTFT and latency are those of the question: the video is encoded
    as it comes, before anyone asks."""
    options = context.options
    engine = context.engine(None)
    context.peak_memory.reset()
    begin = time.perf_counter()
    append(context, engine, frames)
    encoding, encoded = time.perf_counter() - begin, context.peak_memory.read()
    engine.warm_up()  # the first call of a kind pays for starting up
    engine.ask(context.question, 1)
    answer, metrics = engine.ask(context.question, options.max_new_tokens)
    found = {
        "frames": len(frames),
        "chunks": -(-len(frames) // options.chunk_frames),
        "cache_length": metrics["cache_length"],
        "prompt_tokens": metrics["prompt_tokens"],
        "encoding": encoding,
        "ttft": metrics["ttft"],
        "latency": metrics["latency"],
        "answer": answer,
        "answer_tokens": metrics["answer_tokens"],
        "encoded_gib": encoded["allocated_gib"],
        "encoded_peak_gib": encoded["peak_gib"],
        **context.peak_memory.read(),
    }
    context.record.add(run="stream", **found)
    return found


def append(
    context: Context, engine: VideoStreamingInference, frames: list[tuple[Any, float]]
) -> None:
    size = context.options.chunk_frames
    with context.progress(f"streaming {len(frames)} frames", -(-len(frames) // size)) as step:
        for start in range(0, len(frames), size):
            images, stamps = map(list, zip(*frames[start : start + size], strict=True))
            result = engine.append_video_chunk(images, timestamps=stamps)
            step(f"{result['cache_length']:,} tokens")


def judge_both(context: Context, frames: list[tuple[Any, float]]) -> None:
    """Ask stream and offline pass the same about what the last frames show."""
    world = context.world()
    assert world is not None
    questions = answers.questions_now(world, [t for _, t in frames], context.options.seed)[:6]
    engine, stock = context.engine(None), stock_twin(context.model.network)
    append(context, engine, frames)
    streamed = sum(answers.is_right(one, engine.ask(one.text, 24)[0]) for one in questions)
    offline = sum(
        answers.is_right(one, generate(context, stock, frames, one.text)["answer"])
        for one in questions
    )
    answers.judge(
        context,
        f"{context.model.card.name}, streamed, about {world.name}",
        streamed,
        len(questions),
    )
    context.record.check(
        "as many right answers as offline",
        streamed >= offline if questions else None,
        f"{streamed} of {len(questions)}",
        f">= {offline}",
    )


def compare(
    context: Context, streams: dict[int, dict[str, Any]], native: dict[str, Any] | None
) -> None:
    """Criteria and the table. Streams by their frames: all of them, and as many as offline."""
    record, options = context.record, context.options
    whole, streamed = next(iter(streams.values())), [*streams.values()][-1]
    record.summary.update(streamed=whole, native=native)
    context.compare_with_reference(NATIVE)
    show(context, streams, native)
    if native is None:
        return
    text = TextTokens.of(context.model.processor)
    asked = streamed["prompt_tokens"] + streamed["cache_length"]
    # In the segmented layout every chunk closes its user turn, and the question opens one more
    # (its opening is that of a video's turn, less the vision mark).
    more = 0
    if options.layout == "segmented":
        more = (streamed["chunks"] - 1) * (text.close + text.turn) + (text.close + text.turn - 2)
    record.check(
        "the same tokens but for the layout's own",
        asked == native["prompt_tokens"] + more,
        f"{asked} = {streamed['cache_length']} + {streamed['prompt_tokens']}",
        f"{native['prompt_tokens']} + {more}",
    )
    faster = native["ttft"] / streamed["ttft"]
    record.check("the first token comes sooner", faster > 1, f"{faster:.1f}x", "> 1x")
    sooner = native["latency"] / streamed["latency"]
    record.check("the answer comes sooner", sooner > 1, f"{sooner:.1f}x", "> 1x")
    record.summary.update(
        streamed_as_offline=streamed,
        ttft_ratio=faster,
        latency_ratio=sooner,
        peak_saved_percent=saved(streamed["peak_gib"], native["peak_gib"]),
    )
    if not context.not_judged and streamed["answer"] and native["answer"]:
        record.summary["same_answer"] = streamed["answer"] == native["answer"]
        context.say(f"Stream : {streamed['answer']!r}\nOffline: {native['answer']!r}")
    if options.layout == "continuous":
        record.note(
            "The answers may differ where the library's positions do: its text goes on after "
            "rows and columns only (5.23), and it cuts seconds a grid to whole ones (5.17)."
        )

    def draw(figure: Figure, axes: Axes) -> None:
        names = ["TTFT", "whole answer"]
        for offset, (label, found) in enumerate((("stream", streamed), ("offline", native))):
            at = [index + 0.4 * offset for index in range(2)]
            axes.bar(at, [found["ttft"], found["latency"]], 0.38, label=label)
        axes.set_xticks([0.2, 1.2], names)
        axes.set(ylabel="seconds", yscale="log", title=f"{streamed['frames']} frames")
        axes.legend()

    record.plot("times", draw)


def show(
    context: Context, streams: dict[int, dict[str, Any]], native: dict[str, Any] | None
) -> None:
    """The table: every stream, the offline pass if one ended, and the reference's figures."""
    if context.model.device.type == "cpu":
        context.record.note("On a CPU memory is the whole process's, with weights and program.")
    cells = []
    for name, key, *theirs in (
        ("TTFT, s", "ttft", "0.050", "4.164"),
        ("whole answer, s", "latency", "0.912", "10.041"),
        ("in use when encoded, GiB", "encoded_gib", "–", "–"),
        ("peak until encoded, GiB", "encoded_peak_gib", "–", "–"),
        ("in use after the answer, GiB", "allocated_gib", "–", "–"),
        ("peak memory, GiB", "peak_gib", "7.61 (36 % less)", "11.93"),
        ("tokens of stream, of prompt", "cache_length", "14,419", "14,381"),
        ("encoding as it comes, s", "encoding", "–", "–"),
    ):
        found = None if native is None else native.get(key)
        told = [_figure(one[key]) for one in streams.values()]
        if found is not None and key.endswith("_gib"):
            told = [f"{_figure(v[key])} ({_less(v[key], found)})" for v in streams.values()]
        cells.append([name, *told, _figure(found), *theirs])
    context.table(
        "Stream and offline pass (reference: 24 frames, RTX 4090)",
        [
            "",
            *(f"stream, {frames} frames" for frames in streams),
            "no offline pass" if native is None else f"offline, {native['frames']} frames",
            "reference's stream",
            "reference's offline",
        ],
        cells,
    )


def saved(ours: float, theirs: float) -> int:
    """In per cent."""
    return round(100 * (1 - ours / theirs))


def _less(ours: float, theirs: float) -> str:
    percent = saved(ours, theirs)
    return f"{percent} % less" if percent >= 0 else f"{-percent} % more"


def stock_twin(
    network: StreamQwenModel, attention: str = "sdpa"
) -> Qwen2_5_VLForConditionalGeneration:
    """The library's class on the very same weights, with its own attention and rotation.

    Raises InvalidParameterError for an attention that the library does not have here.
    """
    config = type(network.config).from_dict(network.config.to_dict())
    config._attn_implementation = attention
    try:
        with torch.device("meta"):
            stock = Qwen2_5_VLForConditionalGeneration(config).eval()
    except (ValueError, ImportError) as error:
        raise InvalidParameterError(
            f"--attention {attention}: transformers has none of that name here: sdpa, eager, or "
            "flash_attention_2 where flash-attn is installed"
        ) from error
    weights = {library_name(name): weight for name, weight in network.state_dict().items()}
    stock.load_state_dict(weights, strict=False, assign=True)
    stock.tie_weights()
    # What is not in the file is computed when a model is built: so build it where there is memory.
    text, vision = stock.model.language_model, stock.model.visual
    text.rotary_emb = type(text.rotary_emb)(config=config.text_config).to(network.device)
    with torch.device(network.device):
        tower = type(vision)(_one_layer(config.vision_config))
    vision.rotary_pos_emb = tower.rotary_pos_emb
    left = [
        name
        for name, tensor in (*stock.named_parameters(), *stock.named_buffers())
        if tensor.is_meta
    ]
    assert not left, f"weights were not taken over: {left[:3]}"
    stock.generation_config = network.generation_config
    return stock


def _one_layer(config: Any) -> Any:
    """A vision tower of that kind, but small: its rotation does not depend on its depth."""
    return type(config).from_dict({**config.to_dict(), "depth": 1, "fullatt_block_indexes": [0]})


def offline_ids(
    processor: StreamProcessor, network: StreamQwenModel, question: str, system: str | None = None
) -> list[int]:
    """Ids of a conversation with one video, its pad standing once."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    said = [] if system is None else [{"role": "system", "content": system}]
    text = processor.apply_chat_template([*said, {"role": "user", "content": content}], True)
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    if ids.count(network.config.video_token_id) != 1:
        raise InvalidParameterError("The chat template does not say where the video goes.")
    return ids


def seconds_a_grid(frames: list[tuple[Any, float]], depth: int) -> float:
    """Of evenly sampled frames."""
    if len(frames) < 2:
        return 1.0
    return depth * (frames[-1][1] - frames[0][1]) / (len(frames) - 1)


class FirstToken(StoppingCriteria):
    """Never stops; notes time and memory when it is first asked: after the first token."""

    def __init__(self, clock: Any, memory: PeakMemory) -> None:
        self._clock, self.at = clock, 0.0
        self._memory, self.memory = memory, dict[str, float]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self.at:
            self.at, self.memory = self._clock(), self._memory.read()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _clock(device: torch.device) -> Any:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
