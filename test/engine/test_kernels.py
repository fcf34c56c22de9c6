# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The Triton kernels compute what plain torch computes.

On a GPU as compiled for it, elsewhere in Triton's interpreter: that is chosen before Triton is
first imported, and so this file is also a program that a test runs in a process of its own.
"""

import itertools

import torch

from stream_vlm_ros.engine.attention.base import KVPart
from stream_vlm_ros.engine.attention.step import StepInputs, StepMemory, attend_step, place_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Products and sums of numbers around 1, as their format rounds them.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3}
# Bytes of shared memory: as the device has it, and in the interpreter no bound.
SHARED = (
    getattr(torch.cuda.get_device_properties(0), "shared_memory_per_block_optin", 0)
    if DEVICE == "cuda"
    else 1 << 30
)
PROCESSORS = (1, 6)  # many keys a program, or few
PLACED = (1, 5)  # tokens
PRODUCTS = [(37, 64, True), (8, 2048, False), (9, 2500, True)]  # rows, columns, bias
STEPS = [  # tokens, the step's size, tokens in the tail before, parts of the memory
    (1, 1, 0, []),
    (1, 1, 7, [(0, 100), (120, 290)]),
    (20, 32, 5, [(10, 11), (50, 250)]),
    (16, 16, 0, [(0, 300)]),
    (30, 32, 10, [(0, 64), (64, 128), (200, 300)]),
    (9, 16, 3, [(0, 10), (20, 20), (30, 40), (50, 60), (70, 80), (90, 300)]),
    (0, 16, 0, []),
    (690, 704, 0, [(0, 30), (40, 300)]),  # a chunk's
]


def test_the_kernels_compute_what_plain_torch_computes(words_of_program):
    ways = len(PROCESSORS) + 1
    cases = len(PLACED) + len(PRODUCTS) + ways * (len(STEPS) + 2)
    assert words_of_program(__file__) == ["equal"] * len(TOLERANCES) * cases


def by_parts(
    queries,
    queries_begin,
    queries_count,
    keys,
    values,
    keys_begin,
    keys_count,
    max_queries,
    max_keys,
    scaling,
):
    """Stands for a kernel over sequences of any lengths: its log-sum-exp is natural."""
    assert int(keys_count.max()) <= max_keys
    assert queries.shape[0] == (len(queries_begin) - 1) * max_queries
    out = torch.full_like(queries, torch.nan)  # of what is not there, nobody reads
    lse = queries.new_full(queries.shape[1::-1], torch.nan, dtype=torch.float32)
    group = queries.shape[1] // keys.shape[1]
    for number, length in enumerate(keys_count.tolist()):
        if length:
            begin = int(queries_begin[number])
            rows = slice(begin, begin + int(queries_count[number]))
            of = slice(int(keys_begin[number]), int(keys_begin[number]) + length)
            key, value = (x[of].repeat_interleave(group, 1).double() for x in (keys, values))
            scores = torch.einsum("qhd,khd->hqk", queries[rows].double(), key) * scaling
            lse[:, rows] = scores.logsumexp(-1).float()
            out[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).to(out.dtype)
    return out, lse


def ways_to_attend():
    from stream_vlm_ros.engine.attention import flash3
    from stream_vlm_ros.engine.attention.triton_decode import split_attention

    for processors in PROCESSORS:
        yield split_attention(processors, shared=SHARED)
    yield flash3.step_attention(attend_step, by_parts, lambda *_: True)


def compare(attend, dtype, count, size, past, parts):
    noise = torch.Generator(DEVICE).manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=noise, device=DEVICE).to(dtype)

    kv_heads, group, head_dim = 2, 3, 32
    stream, tail = random(1, 2, kv_heads, 300, head_dim), random(1, 2, kv_heads, 705, head_dim)
    used = torch.zeros(300, dtype=torch.bool)
    for start, stop in parts:
        used[start:stop] = True
    stream[:, :, :, ~used] = torch.nan  # never written
    tail[:, :, :, past + count :] = torch.nan

    memory = StepMemory(stream, tail)
    memory.load([KVPart(stream, slice(*part), offset(random, head_dim)) for part in parts])
    inputs = StepInputs(size, memory)
    shared = count // 2  # behind them, texts of four tokens side by side
    begins = [0] * shared + [shared + at // 4 * 4 for at in range(count - shared)]
    inputs.load([0] * count, torch.zeros(3, count), past, shared, begins)
    queries = random(size, kv_heads * group, head_dim).transpose(0, 1)
    given = (queries, stream[0], tail[0], memory, inputs, head_dim**-0.5)
    out, expected = attend(*given), attend_step(*given)
    assert out.shape == expected.shape == (size, kv_heads * group, head_dim)
    assert not out[count:].any()
    assert (out - expected).abs().max() <= TOLERANCES[dtype], (out - expected).abs().max()


def offset(random, head_dim):
    angles = random(head_dim // 2).float().repeat(2)  # another for each part
    return angles.cos(), angles.sin()


def compare_requests(attend, dtype):
    """Chunks of three requests in a step for four, over memories that lie in one tensor."""
    noise = torch.Generator(DEVICE).manual_seed(4)

    def random(*shape):
        return torch.randn(*shape, generator=noise, device=DEVICE).to(dtype)

    kv_heads, group, head_dim, size, room = 2, 3, 32, 16, 20
    stream = random(1, 2, kv_heads, 300, head_dim)
    tail = random(1, 2, kv_heads, 4 * room + 1, head_dim)
    memory = StepMemory(stream, tail, requests=4, longest=100)
    memories = [stream[:, :, :, first : first + 100] for first in (200, 0, 100)]
    parts = [[(0, 40), (50, 99)], [], [(3, 7), (10, 90), (95, 100)]]
    memory.load(
        *(
            [KVPart(mine, slice(*part), offset(random, head_dim)) for part in some]
            for mine, some in zip(memories, parts, strict=True)
        )
    )
    inputs = StepInputs(size, memory)
    counts = (16, 1, 9)
    inputs.load_chunks([torch.zeros(3, count) for count in counts])
    queries = random(4 * size, kv_heads * group, head_dim).transpose(0, 1)
    out = attend(queries, stream[0], tail[0], memory, inputs, head_dim**-0.5)
    for number, count in enumerate(counts):
        one = StepMemory(memories[number], tail[:, :, :, number * room : (number + 1) * room + 1])
        one.load([KVPart(memories[number], slice(*part), None) for part in parts[number]])
        one.offsets.copy_(memory.offsets[number])
        alone, own = StepInputs(size, one), slice(number * size, number * size + count)
        alone.load([0] * count, torch.zeros(3, count), 0, count)
        expected = attend_step(
            queries[:, number * size : (number + 1) * size], one.stream[0], one.tail[0], one, alone,
            head_dim**-0.5,
        )  # fmt: skip
        assert (out[own] - expected[:count]).abs().max() <= TOLERANCES[dtype]
    assert not out[size + 1 : 2 * size].any() and not out[3 * size :].any()


def compare_tokens(attend, dtype):
    """A token of each of three requests in a step for four, whose tails lie anywhere."""
    noise = torch.Generator(DEVICE).manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, generator=noise, device=DEVICE).to(dtype)

    kv_heads, group, head_dim = 2, 3, 32
    stream, tail = random(1, 2, kv_heads, 300, head_dim), random(1, 2, kv_heads, 200, head_dim)
    memory = StepMemory(stream, tail, requests=4, longest=100)
    memories = [stream[:, :, :, first : first + 100] for first in (200, 0, 100)]
    parts = [[(0, 40), (50, 99)], [], [(3, 7), (10, 90), (95, 100)]]
    memory.load(
        *(
            [KVPart(mine, slice(*part), offset(random, head_dim)) for part in some]
            for mine, some in zip(memories, parts, strict=True)
        )
    )
    inputs, firsts, past = StepInputs(1, memory), (120, 3, 60), (7, 0, 50)
    inputs.load_tokens([5, 6, 7], torch.ones(3, 3), firsts, past)
    assert inputs.ids[:3].tolist() == [5, 6, 7] and inputs.slots.tolist() == [127, 3, 110, 199]
    queries = random(4, kv_heads * group, head_dim).transpose(0, 1)
    out = attend(queries, stream[0], tail[0], memory, inputs, head_dim**-0.5)
    for number, (first, before) in enumerate(zip(firsts, past, strict=True)):
        one = StepMemory(memories[number], tail[:, :, :, first : first + before + 2])
        one.load([KVPart(memories[number], slice(*part), None) for part in parts[number]])
        one.offsets.copy_(memory.offsets[number])
        alone = StepInputs(1, one)
        alone.load([0], torch.zeros(3, 1), before, 1)
        expected = attend_step(
            queries[:, number : number + 1], one.stream[0], one.tail[0], one, alone,
            head_dim**-0.5,
        )  # fmt: skip
        assert (out[number] - expected[0]).abs().max() <= TOLERANCES[dtype]
    assert not out[3].any()


def multiply(dtype, rows, columns, with_bias):
    from stream_vlm_ros.engine.attention.triton_decode import matvec

    noise = torch.Generator(DEVICE).manual_seed(2)

    def random(*shape):
        return (torch.randn(*shape, generator=noise, device=DEVICE) / columns**0.5).to(dtype)

    given, weight = random(1, columns), random(rows + 3, columns)[3:]
    bias = random(rows) if with_bias else None
    expected = torch.nn.functional.linear(
        given.double(), weight.double(), bias.double() if with_bias else None
    )
    traced = torch.compile(matvec, fullgraph=True, backend="aot_eager")
    for product in (matvec, traced):
        out = product(given, weight, bias)
        assert out.shape == (1, rows) and out.dtype == dtype
        assert (out - expected).abs().max() <= TOLERANCES[dtype]


def place_rows(dtype, tokens):
    from stream_vlm_ros.engine.attention.triton_decode import place

    noise = torch.Generator(DEVICE).manual_seed(3)
    heads, kv_heads, head_dim = 6, 2, 32
    given = torch.randn(tokens, 10 * head_dim, generator=noise, device=DEVICE).to(dtype)
    angles = torch.randn(tokens, head_dim // 2, generator=noise, device=DEVICE).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.tensor([5, 3, 30, 7, 8][:tokens], device=DEVICE)
    found = []
    for function in (place, place_step):
        tail = torch.zeros(2, 2, kv_heads, 31, head_dim, device=DEVICE, dtype=dtype)
        queries = function(given, cos, sin, slots, tail[1])
        assert queries.shape == (heads, tokens, head_dim)
        found.append((queries, tail))
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= TOLERANCES[dtype]


if __name__ == "__main__":
    for dtype, tokens in itertools.product(TOLERANCES, PLACED):
        place_rows(dtype, tokens)
        print("equal")
    for dtype, size in itertools.product(TOLERANCES, PRODUCTS):
        multiply(dtype, *size)
        print("equal")
    for attend, dtype in itertools.product(ways_to_attend(), TOLERANCES):
        for step in STEPS:
            compare(attend, dtype, *step)
            print("equal")
        compare_requests(attend, dtype)
        print("equal")
        compare_tokens(attend, dtype)
        print("equal")
