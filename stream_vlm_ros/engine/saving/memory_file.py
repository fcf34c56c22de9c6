# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The file of a memory: safetensors, so that any reader of that format opens it.

Written and read here and not by the format's library, which holds all tensors a second time to
write them, and maps a file to read it (one that is cut meanwhile ends the process). What is read
may come from anywhere: every length is checked against the file before anything is taken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from stream_vlm_ros.errors import MemoryFileError, cut
from stream_vlm_ros.owned import NotOursError, open_regular, remove_parts, write_whole

FORMAT, VERSION = "stream_vlm memory", 3
MAX_HEADER = 2**20  # bytes: ours has a line for each layer
MAX_TEXT = 2**28  # bytes of the bookkeeping, and of its arrays
_BLOCK = 2**20  # bytes that are summed while they are in a core's cache
_SUMS = "sums"

_NUMBERS = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}
_NAMES = {number: name for name, number in _NUMBERS.items()}
# Bits of a number's exponent: all of them are set in infinity and not-a-number.
_EXPONENTS = {torch.float32: 0x7F80_0000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}


def write(
    path: str | Path, metadata: Mapping[str, str], tensors: Sequence[tuple[str, torch.Tensor]]
) -> int:
    """Write tensors that lie on the host; the file's size in bytes.

    ``path`` is whole at any moment: the old file until the new one is on the disk. It is readable
    by its owner alone.

    Raises:
        NotOursError: there is something at ``path`` that is no saved memory.
        MemoryFileError: it cannot be written (a full disk); what was there is still there.
    """
    path = _place(path)
    sizes: list[tuple[str, str, tuple[int, ...], int]] = [
        (name, _NAMES[one.dtype], tuple(one.shape), one.nbytes) for name, one in tensors
    ]
    sums_size = 8 * (1 + len(tensors))  # of the header first
    sizes.append((_SUMS, "U8", (sums_size,), sums_size))
    told = {**metadata, "format": FORMAT, "version": str(VERSION)}
    header: dict[str, Any] = {"__metadata__": told}
    end = 0
    for name, numbers, shape, size in sizes:
        places = [end, end + size]
        header[name] = {"dtype": numbers, "shape": list(shape), "data_offsets": places}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise MemoryFileError(f"{cut(str(path))}: a header of {len(text):,} bytes is too long")

    def blocks() -> Generator[memoryview]:
        with threads(1) as (meanwhile, over):  # nobody waits for the sums
            sums = meanwhile.map(lambda named: _sum(named[1], over), tensors)
            yield memoryview(len(text).to_bytes(8, "little") + text)
            for _, tensor in tensors:
                for block in _blocks(tensor):
                    yield _view(block)
            yield _view(np.array([zlib.crc32(text), *sums], np.uint64).view(np.uint8))

    try:
        check_replaceable(path)
        remove_parts(path)
        with contextlib.closing(blocks()) as pieces:
            write_whole(path, pieces, mode=0o600)
    except OSError as error:
        raise MemoryFileError(
            f"the memory cannot be saved as {cut(str(path))}: {error.strerror or error}"
        ) from error
    return 8 + len(text) + end


def check_replaceable(path: Path) -> None:
    """Raise NotOursError if what is at ``path`` is no saved memory, of whatever version."""
    if not os.path.lexists(path):
        return
    try:
        with MemoryFile(path, any_version=True):
            pass
    except MemoryFileError as refusal:
        raise NotOursError(
            f"{cut(str(path))} is left as it is: {refusal.reason}. Name another file, or move it "
            "away"
        ) from refusal


def _place(path: str | Path) -> Path:
    """MemoryFileError for what names no file: no text, or of letters that no name has."""
    if not isinstance(path, (str, Path)):
        raise MemoryFileError(f"the file of a memory is named by text, not by {cut(repr(path))}")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise MemoryFileError(f"no file can be named {cut(ascii(str(path)))}") from error
    if "\0" in str(path):
        raise MemoryFileError(f"no file can be named {cut(ascii(str(path)))}")
    return Path(os.path.abspath(os.path.expanduser(path)))


class MemoryFile:
    """A saved memory, opened for reading; a context manager.

    Args:
        any_version: to recognise it alone.

    Raises:
        MemoryFileError: with the reason: it is not there, is a link, no memory, cut, of another
            version, or its header lies.
    """

    def __init__(self, path: str | Path, any_version: bool = False) -> None:
        self.path = _place(path)
        try:
            self._file = open_regular(self.path)
        except OSError as error:
            raise self.refusal(error.strerror or "not a plain file") from error
        try:
            self._read_header(any_version)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def refusal(self, reason: str) -> MemoryFileError:
        """What to raise about this file."""
        return MemoryFileError(f"the memory {cut(str(self.path))} is refused: {reason}", reason)

    def _read_header(self, any_version: bool) -> None:
        self.size = os.fstat(self._file).st_size
        length = int.from_bytes(self._bytes(8, 0), "little") if self.size >= 8 else MAX_HEADER
        if length >= MAX_HEADER or length > self.size - 8:
            raise self.refusal("it is no saved memory")
        text = self._bytes(length, 8)
        try:
            header = json.loads(text)
            self.metadata = header.pop("__metadata__")
            kind, version = self.metadata["format"], self.metadata["version"]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise self.refusal("it is no saved memory") from None
        if kind != FORMAT or any(not isinstance(text, str) for text in self.metadata.values()):
            raise self.refusal("it is no saved memory")
        if any_version:
            return
        if version != str(VERSION):
            raise self.refusal(
                f"it is of version {cut(version, 20)}, and this program reads version {VERSION}"
            )
        self._tensors: dict[str, tuple[torch.dtype, list[int], int, int]] = {}
        end = 8 + length
        try:
            for name, one in header.items():
                numbers, shape = _NUMBERS[one["dtype"]], one["shape"]
                first, last = one["data_offsets"]
                counts = [*shape, first, last]
                if any(type(count) is not int or not 0 <= count < 2**48 for count in counts):
                    raise ValueError
                elements = 1
                for count in shape:
                    elements = min(elements * count, 2**48)
                if first + 8 + length != end or last - first != elements * numbers.itemsize:
                    raise ValueError
                self._tensors[name] = numbers, shape, end, last - first
                end += last - first
            if _SUMS not in self._tensors or len(self._tensors[_SUMS][1]) != 1:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise self.refusal("its header contradicts itself") from None
        if end != self.size:
            what = "cut" if end > self.size else "longer than it says"
            raise self.refusal(f"it is {what}: {self.size:,} bytes instead of {end:,}")
        names = [name for name in self._tensors if name != _SUMS]
        _, _, at, size = self._tensors[_SUMS]
        if size != 8 * (1 + len(names)):
            raise self.refusal("its header contradicts itself")
        first, *sums = np.frombuffer(self._bytes(size, at), np.uint64).tolist()
        if zlib.crc32(text) != first:
            raise self.refusal("it is damaged: the sum of its header is another")
        self._sums = dict(zip(names, sums, strict=True))

    def names(self) -> set[str]:
        """Of its tensors."""
        return set(self._sums)

    def shape(self, name: str) -> tuple[torch.dtype, list[int]]:
        """Number format and shape of a tensor."""
        if name not in self._sums:
            raise self.refusal(f"it has no part {name}")
        return self._tensors[name][:2]

    def text(self, name: str) -> bytes:
        """The bytes of a small part."""
        numbers, shape = self.shape(name)
        if numbers != torch.uint8 or len(shape) != 1 or shape[0] > MAX_TEXT:
            raise self.refusal(f"its part {name} is no text of at most {MAX_TEXT:,} bytes")
        held = torch.empty(shape, dtype=torch.uint8)
        self.read(name, held)
        return held.numpy().tobytes()

    def read(self, name: str, into: torch.Tensor, over: Over | None = None) -> torch.Tensor:
        """Fill a contiguous tensor of the host, of that number format and shape, and return it.

        Raises MemoryFileError for bytes that are not those saved, and for numbers that are not
        finite; CancelledError once ``over`` is set.
        """
        assert self.shape(name) == (into.dtype, list(into.shape))
        at, exponent = self._tensors[name][2], _EXPONENTS.get(into.dtype)
        total = 0
        for block in _blocks(into, over):
            self._fill(_view(block), at)
            at += len(block)
            total = _with_block(total, block)
            if exponent is not None and not _finite(block, exponent, into.itemsize):
                raise self.refusal("it holds a value that is not a finite number")
        if total != self._sums[name]:
            raise self.refusal(f"it is damaged: the sum of its part {name} is another")
        return into

    def _bytes(self, count: int, at: int) -> bytes:
        held = bytearray(count)
        self._fill(memoryview(held), at)
        return bytes(held)

    def _fill(self, into: memoryview, at: int) -> None:
        while into:
            try:
                count = os.preadv(self._file, [into], at)
            except OSError as error:
                raise self.refusal(f"it cannot be read: {error.strerror}") from error
            if not count:
                raise self.refusal("it was cut while it was read")
            at, into = at + count, into[count:]


class Over(NamedTuple):
    """Set where one of two events is."""

    own: threading.Event
    others: threading.Event | None

    def is_set(self) -> bool:
        return self.own.is_set() or (self.others is not None and self.others.is_set())


@contextlib.contextmanager
def threads(
    count: int, over: threading.Event | None = None
) -> Iterator[tuple[ThreadPoolExecutor, Over]]:
    """So many threads, and what is set when the block is left, however that happens: what they do
    then for nobody is to end with it, not with a whole layer of gigabytes.

    Args:
        over: where this is set nobody wants it, either.
    """
    pool, left = ThreadPoolExecutor(count), threading.Event()
    try:
        yield pool, Over(left, over)
    finally:
        left.set()
        pool.shutdown(cancel_futures=True)


def _blocks(tensor: torch.Tensor, over: Over | None = None) -> Iterator[np.ndarray]:
    """The bytes of a contiguous tensor, in pieces; CancelledError once ``over`` is set."""
    data = tensor.flatten().view(torch.uint8).numpy()
    for start in range(0, len(data), _BLOCK):
        if over is not None and over.is_set():
            raise CancelledError
        yield data[start : start + _BLOCK]


def _weights(count: int) -> np.ndarray:
    """Odd numbers of 64 bits without a pattern: the SplitMix64 sequence from 0."""
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)
    for shift, factor in (30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)


_WEIGHTS, _WEIGHTS_OF_HALVES = np.split(_weights(2 * (_BLOCK // 8)), 2)


def _sum(tensor: torch.Tensor, over: Over) -> int:
    """The sum of a part: of its words of 64 bits, each times a weight of its place, and of their
    upper halves times another.

    As fast as memory, where a CRC-32 takes longer than the disk. A word that changes in one bit
    always shows, since weights are odd; other changes, as good as always. Without the second sum a
    product would lose what a word's highest bits say of their place.
    """
    total = 0
    for block in _blocks(tensor, over):
        total = _with_block(total, block)
    return total


def _with_block(total: int, block: np.ndarray) -> int:
    """The sum of what came before, and of its next block."""
    if missing := -len(block) % 8:
        block = np.concatenate([block, np.zeros(missing, np.uint8)])
    words = block.view(np.uint64)
    own = int(np.einsum("i,i", words, _WEIGHTS[: len(words)]))
    own += int(np.einsum("i,i", words >> np.uint64(32), _WEIGHTS_OF_HALVES[: len(words)]))
    return (total * int(_WEIGHTS[0]) + own) % 2**64


def _view(block: np.ndarray) -> memoryview:
    return memoryview(block)  # type: ignore[arg-type]  # it has the buffer interface


def _finite(block: np.ndarray, exponent: int, size: int) -> bool:
    numbers = block.view(np.dtype(f"u{size}"))
    mask = numbers.dtype.type(exponent)
    return bool((numbers & mask).max() < mask)
