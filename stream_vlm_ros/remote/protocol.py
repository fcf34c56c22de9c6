# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The protocol between a camera and `stream-vlm serve`: one WebSocket, frames as binary messages,
all else as JSON events.

Events are named after OpenAI's Realtime API where one fits (``session.update``,
``input_frame_buffer.commit`` after its ``input_audio_buffer.commit``, ``response.create``); those
of frames and of the memory have names of their own. Times are stamps of the camera's source, in
nanoseconds.

A session outlives its connection. Who connects again is told by `SessionCreated` up to which stamp
frames were accepted, and sends the later ones once more. Frames that wait for their `Commit` when a
connection ends were not accepted. How the newest chunks and frames ended (`Ingested`, `Dropped`) is
told once more, right behind `SessionCreated`: the last word may not have arrived.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.session.question import MAX_THUMBNAILS

VERSION = 1
SUBPROTOCOL = f"stream-vlm.v{VERSION}"  # of the WebSocket; names the version
PATH = "/v1/realtime"
SESSION_HEADER = "x-session-id"
MAX_EVENT_BYTES = 1 << 20  # of JSON
MAX_FRAME_BYTES = 64 << 20  # of a binary message

JPEG, RAW = 1, 2  # how a frame's pixels travel: as a JPEG, or uint8 [height, width, 3] RGB
_HEAD = struct.Struct("<BBHIIqQ")  # kind, encoding, 0, height, width, stamp, sequence
_FRAME = 1  # kind


# Of what a client says: 64 bits, signed, as stamps are.
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
EventId = Annotated[str, msgspec.Meta(max_length=100)]


class ProtocolError(StreamVlmError):
    """A message that is none of this protocol's, or comes where it has no place."""

    code = "PROTOCOL_ERROR"


# -- frames ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameMessage:
    """A frame as it travels.

    Attributes:
        sequence: counts up within a session, from 1; gaps of up to 2^32 are allowed.
        stamp_ns: of the source.
        encoding: `JPEG` or `RAW`.
        height, width: of a `RAW` frame; 0 with a JPEG, which says so itself.
        pixels: the JPEG, or height x width x 3 bytes.
    """

    sequence: int
    stamp_ns: int
    encoding: int
    height: int
    width: int
    pixels: bytes | memoryview

    def packed(self) -> bytes:
        """The binary message: 28 bytes, little-endian, then the pixels."""
        head = _HEAD.pack(
            _FRAME, self.encoding, 0, self.height, self.width, self.stamp_ns, self.sequence
        )
        return head + bytes(self.pixels)


def unpacked(message: bytes) -> FrameMessage:
    """The frame of a binary message; raises ProtocolError."""
    if len(message) < _HEAD.size:
        raise ProtocolError(f"a binary message of {len(message)} bytes has no room for a head")
    kind, encoding, spare, height, width, stamp_ns, sequence = _HEAD.unpack_from(message)
    if kind != _FRAME or spare:
        raise ProtocolError(f"a binary message of kind {kind} is no frame")
    pixels = memoryview(message)[_HEAD.size :]
    if encoding == RAW:
        if not 0 < height * width * 3 == len(pixels):
            raise ProtocolError(
                f"frame {sequence} says {width}x{height}, which are {height * width * 3} bytes of "
                f"RGB, and has {len(pixels)}"
            )
    elif encoding != JPEG:
        raise ProtocolError(f"frame {sequence} is of encoding {encoding}: 1 is JPEG, 2 is raw RGB")
    elif not pixels:
        raise ProtocolError(f"frame {sequence} is empty")
    return FrameMessage(sequence, stamp_ns, encoding, height, width, pixels)


# -- what is told in events ------------------------------------------------------------------


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of an event."""


class ServerBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A part of an event of the server's; a later version may add fields."""


class Fault(ServerBody):
    """Why something was refused, or failed. ``code`` is the `StreamVlmError`'s."""

    code: str
    message: str
    event_id: str = ""  # of the event that it answers


class Level(ServerBody):
    """See `stream_vlm_ros.session.memory_summary.LevelState`."""

    name: str
    frames: int = 0
    tokens: int = 0
    spans_ns: tuple[tuple[int, int], ...] = ()


class Tier(ServerBody):
    """See `stream_vlm_ros.session.memory_summary.TierState`."""

    name: str
    grids: int = 0
    frames: int = 0
    bytes: int = 0
    max_bytes: int = 0
    where: str = ""
    oldest_ns: int | None = None
    newest_ns: int | None = None
    error: str = ""
    left_out: int = 0


class Memory(ServerBody):
    """See `stream_vlm_ros.session.memory_summary.MemorySummary`."""

    length: int = 0
    cap: int = 0
    sink: int = 0
    window: int = 0
    memory_bytes: int = 0
    chunks: int = 0
    frames: int = 0
    evictions: int = 0
    evicted_tokens: int = 0
    closed_pauses: int = 0
    closed_seconds: float = 0.0
    oldest_ns: int | None = None
    newest_ns: int | None = None
    spans_ns: tuple[tuple[int, int], ...] = ()
    levels: tuple[Level, ...] = ()
    tiers: tuple[Tier, ...] = ()


class Saved(ServerBody):
    """What is told of saved memories, as `stream_vlm_ros.session.memory_keeper.SavedState`."""

    saved_ns: int | None = None  # by the server's clock
    name: str = ""
    bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    loaded: str = ""


class Status(ServerBody):
    """A session at one moment.

    Attributes:
        counters: frames by what became of them, named as the fields of ``CacheStatus``.
        queue_depth: commands that wait.
        fault: why the newest chunk was refused; "" if it was not.
        gap: what was lost with a server that ended, in words; "" if nothing.
    """

    memory: Memory = msgspec.field(default_factory=Memory)
    saved: Saved = msgspec.field(default_factory=Saved)
    counters: dict[str, int] = {}
    queue_depth: int = 0
    fault: str = ""
    gap: str = ""


class Session(ServerBody):
    """What a session is, told when one connects.

    Attributes:
        id: the name of the session.
        resumed: it was there before, with what it had seen.
        restored: it was begun from a saved memory, as the server that had it has ended.
        accepted_ns: stamp of the newest frame accepted so far: later ones are to be sent (again).
        accepted_sequence: of that frame; 0: none, or not known any more.
        model, device: what answers, and where it runs.
        plan: what the memory takes, in one line.
        factor: pixels of the sides of a token's patch (28): pictures are of multiples of it.
        min_pixels, max_pixels: bounds of a picture; it is resized to lie within them.
        settings: those that hold for this session, by name.
    """

    id: str
    resumed: bool = False
    restored: bool = False
    accepted_ns: int | None = None
    accepted_sequence: int = 0
    model: str = ""
    device: str = ""
    plan: str = ""
    factor: int = 28
    min_pixels: int = 0
    max_pixels: int = 0
    settings: dict[str, Any] = {}


class Ask(Body):
    """A question; see `stream_vlm_ros.session.question.Question`."""

    text: str
    choices: tuple[str, ...] = ()
    max_new_tokens: Integer = 128
    temperature: float = 0.0
    keep_exchange: bool = False
    about_ns: tuple[Integer, Integer] | None = None
    refuse_forgotten: bool = True
    history: Literal["", "never", "auto", "always"] = ""
    thumbnails: Annotated[int, msgspec.Meta(ge=0, le=MAX_THUMBNAILS)] = 0


class Thumbnail(ServerBody):
    """A kept picture."""

    stamp_ns: int
    jpeg: bytes  # base64 in JSON


class Episode(ServerBody):
    """Evidence; see `stream_vlm_ros.session.memory_summary.EpisodeState`."""

    start_ns: int
    end_ns: int
    score: float = 0.0
    tier: str = ""
    stamps_ns: tuple[int, ...] = ()
    thumbnails: tuple[Thumbnail, ...] = ()


class Response(ServerBody):
    """What came of a question; see `stream_vlm_ros.session.question.Outcome`."""

    id: str
    status: str = "completed"  # or "cancelled", "failed"
    text: str = ""
    error: Fault | None = None
    choice_index: int = -1
    choice_scores: tuple[float, ...] = ()
    choice_tokens: tuple[int, ...] = ()
    waiting: float = 0.0
    ttft: float = 0.0
    latency: float = 0.0
    prompt_tokens: int = 0
    fetched_tokens: int = 0
    answer_tokens: int = 0
    finish_reason: str = ""
    memory: Memory = msgspec.field(default_factory=Memory)
    evidence: tuple[Episode, ...] = ()


# -- events of the client --------------------------------------------------------------------


class _Client(
    msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type"
):
    event_id: EventId = ""  # told back with whatever answers it


class SessionUpdate(_Client, tag="session.update"):
    """Change settings of the session, all or none: those that `SessionCreated` tells, by name,
    within the server's own bounds. ``commit``: "server" gathers chunks itself, "client" waits for
    `Commit`."""

    settings: dict[str, Any]


class SessionClose(_Client, tag="session.close"):
    """End the session and forget what it saw. Without it, it goes on after a disconnection."""


class Commit(_Client, tag="input_frame_buffer.commit"):
    """What was sent since the last one is a chunk."""


class Clear(_Client, tag="input_frame_buffer.clear"):
    """Drop the frames that wait to become a chunk, and the chunks that wait."""


class ResponseCreate(_Client, tag="response.create"):
    """Ask. ``event_id``, which must not be empty, becomes the response's id."""

    response: Ask


class ResponseCancel(_Client, tag="response.cancel"):
    """End an answer within a token."""

    response_id: str


class MemoryReset(_Client, tag="memory.reset"):
    """Forget what was seen; after a time jump what is kept on disk stays."""

    time_jump: bool = False


class MemorySave(_Client, tag="memory.save"):
    """Save the memory at the server; "": under the session's name."""

    name: str = ""


class MemoryLoad(_Client, tag="memory.load"):
    """Put a memory saved at the server in the place of the present one."""

    name: str = ""


class MemoryList(_Client, tag="memory.list"):
    """Which memories are saved at the server for this session's key."""


class MemoryPicture(_Client, tag="memory.picture"):
    """Give the kept picture next to a time."""

    stamp_ns: Integer
    within_ns: Integer | None = None
    max_size: Integer = 320


ClientEvent = (
    SessionUpdate
    | SessionClose
    | Commit
    | Clear
    | ResponseCreate
    | ResponseCancel
    | MemoryReset
    | MemorySave
    | MemoryLoad
    | MemoryList
    | MemoryPicture
)


# -- events of the server --------------------------------------------------------------------


class _Server(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="type"):
    event_id: str = ""  # of the client's event that it answers


class SessionCreated(_Server, tag="session.created"):
    """The first event of every connection."""

    session: Session
    status: Status


class SessionUpdated(_Server, tag="session.updated"):
    """Answers `SessionUpdate`."""

    session: Session


class SessionEnding(_Server, tag="session.ending"):
    """The server ends this connection; whether to come again, and when, is in it.

    ``retry_after``: seconds; None: never with these credentials or this session.
    """

    code: str
    message: str
    retry_after: float | None = None


class SessionClosed(_Server, tag="session.closed"):
    """Answers `SessionClose`."""


class Ingested(_Server, tag="input_frame_buffer.ingested"):
    """A chunk is in the memory: frames of these sequences, and the stamp of the newest."""

    first: int
    last: int
    frames: int
    newest_ns: int
    closed_seconds: float = 0.0  # of a pause before it, which the model does not see


class Dropped(_Server, tag="input_frame_buffer.dropped"):
    """Frames that do not get into the memory, and why.

    ``cause``: the field of ``CacheStatus`` without its ``dropped_``: "overflow", "error" and so on.
    Of the sequences from ``first`` to ``last``, others may have come to another end.
    """

    first: int
    last: int
    frames: int
    cause: str
    message: str = ""


class MemoryStatus(_Server, tag="memory.status"):
    """After each chunk, and at least every few seconds."""

    status: Status


class ResponseReading(_Server, tag="response.created"):
    """The question is being read."""

    response_id: str


class TextDelta(_Server, tag="response.output_text.delta"):
    """The answer has grown."""

    response_id: str
    delta: str


class ResponseDone(_Server, tag="response.done"):
    """The answer, or what went wrong: exactly one for each `ResponseCreate`."""

    response: Response


class MemoryDone(_Server, tag="memory.done"):
    """Answers `MemoryReset`, `MemorySave`, `MemoryLoad`, `MemoryList`; failing is an `ErrorEvent`.

    ``newest_ns``: of a memory that was loaded. ``names``: of saved memories, newest first.
    """

    words: str
    bytes: int = 0
    seconds: float = 0.0
    newest_ns: int | None = None
    names: tuple[str, ...] = ()


class PictureDone(_Server, tag="memory.picture.done"):
    """Answers `MemoryPicture`; None: no such picture is kept."""

    picture: Thumbnail | None = None


class ErrorEvent(_Server, tag="error"):
    """An event was refused, or what it ordered failed. The connection goes on."""

    error: Fault


ServerEvent = (
    SessionCreated
    | SessionUpdated
    | SessionEnding
    | SessionClosed
    | Ingested
    | Dropped
    | MemoryStatus
    | ResponseReading
    | TextDelta
    | ResponseDone
    | MemoryDone
    | PictureDone
    | ErrorEvent
)

_encoder = msgspec.json.Encoder()
_client_events = msgspec.json.Decoder(ClientEvent)
_server_events = msgspec.json.Decoder(ServerEvent)


def encoded(event: ClientEvent | ServerEvent) -> str:
    """The text message of an event."""
    return _encoder.encode(event).decode()


def client_event(text: str | bytes) -> ClientEvent:
    """The event that a client sent; raises ProtocolError."""
    return _decoded(_client_events, text)


def server_event(text: str | bytes) -> ServerEvent:
    """The event that a server sent; raises ProtocolError."""
    return _decoded(_server_events, text)


def _decoded(decoder: msgspec.json.Decoder[Any], text: str | bytes) -> Any:
    if len(text) > MAX_EVENT_BYTES and decoder is _client_events:
        raise ProtocolError(f"an event of {len(text):,} bytes is longer than {MAX_EVENT_BYTES:,}")
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise ProtocolError(f"no event of version {VERSION}: {cut(str(fault))}") from None


def schema() -> dict[str, Any]:
    """JSON schema of all events, for the documentation."""
    (client, server), parts = msgspec.json.schema_components([ClientEvent, ServerEvent])
    return {"client": client, "server": server, "$defs": parts}
