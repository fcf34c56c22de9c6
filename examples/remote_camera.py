# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A camera that sends its frames to ``stream-vlm serve`` and asks: copy it, in any language.

It needs the server's own protocol alone (docs/camera-protocol.md), no model and no ROS::

    python examples/remote_camera.py kitchen.mp4 --session front --ask "What do you see now?"

The server's key, if it has one, is read from the variable STREAM_VLM_API_KEY, or with --key-file
FILE from the first line of a file.

In Python take the asyncio client of websockets, as here: over TLS its client of threads may lose
bytes that it reads in one thread while it writes in another.
"""

import argparse
import asyncio
import io
import json
import os
import re
import struct
from pathlib import Path

from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

import stream_vlm_ros.world  # noqa: F401 - a source may be drawn
from stream_vlm_ros.errors import SourceError
from stream_vlm_ros.sources import open_source

CHUNK = 4  # frames that are encoded together


def frame_message(sequence: int, stamp_ns: int, jpeg: bytes) -> bytes:
    """A frame: 28 bytes, little-endian, then the JPEG."""
    kind, encoding, spare, height, width = 1, 1, 0, 0, 0  # a frame, as a JPEG, which has its size
    head = (kind, encoding, spare, height, width, stamp_ns, sequence)
    return struct.pack("<BBHIIqQ", *head) + jpeg


def jpeg_of(image: Image.Image) -> bytes:
    """Its bytes."""
    written = io.BytesIO()
    image.save(written, "JPEG", quality=90)
    return written.getvalue()


async def heard(camera: ClientConnection, *kinds: str) -> dict:
    """The next event of one of these kinds; what went wrong is told."""
    while True:
        event = json.loads(await camera.recv())
        if event["type"] in ("error", "input_frame_buffer.dropped", "session.ending"):
            print(event)
        if event["type"] in kinds:
            return event


def refusal(fault: InvalidStatus) -> str:
    """Why the server takes no connection, in its own words."""
    status, body = fault.response.status_code, fault.response.body or b""
    try:
        told = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):  # it is another server
        told = fault.response.reason_phrase
    hint = " (it is read from STREAM_VLM_API_KEY, or --key-file)" if status == 401 else ""
    return f"refused with status {status}: {told}{hint}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "source",
        nargs="?",
        default="world:1",
        help="a video, a folder of images, a camera, an address; else the small model's world",
    )
    parser.add_argument(
        "--url", default="ws://127.0.0.1:8090", help="http:// is read as ws://, https:// as wss://"
    )
    parser.add_argument(
        "--key-file",
        help="its first line is the server's key; else STREAM_VLM_API_KEY, if it is set",
    )
    parser.add_argument("--session", default="front", help="its name at the server")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second")
    parser.add_argument("--frames", type=int, default=40, help="how many")
    parser.add_argument("--ask", default="What do you see now?")
    options = parser.parse_args()
    try:
        key = os.environ.get("STREAM_VLM_API_KEY", "")
        if options.key_file:
            key = Path(options.key_file).expanduser().read_text().partition("\n")[0]
        asyncio.run(watch(options, key.strip()))
    except SourceError as fault:
        parser.error(str(fault))
    except InvalidStatus as fault:
        parser.error(f"{options.url}: {refusal(fault)}")
    except (OSError, WebSocketException) as fault:
        parser.error(f"{options.url}: {fault}")


async def watch(options: argparse.Namespace, key: str) -> None:
    """Send what is seen, and ask."""
    frames = iter(open_source(options.source, fps=options.fps))
    url = re.sub("^http", "ws", options.url.rstrip("/"))
    headers = {"x-session-id": options.session} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )
    async with connect(
        f"{url}/v1/realtime",
        subprotocols=["stream-vlm.v1"],
        additional_headers=headers,
        compression=None,  # pictures are dense
    ) as camera:
        session = (await heard(camera, "session.created"))["session"]
        update = {"type": "session.update", "settings": {"commit": "client"}}
        await camera.send(json.dumps(update))
        # A session goes on after its connection: frames that it has are not sent again.
        sequence, newest_ns = session.get("accepted_sequence", 0), session.get("accepted_ns", -1)
        first, older = sequence, 0
        # The connection is kept alive while the source is waited for.
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            if frame.stamp_ns <= newest_ns:
                older += 1
                continue
            sequence += 1
            jpeg = jpeg_of(Image.fromarray(frame.image))
            await camera.send(frame_message(sequence, frame.stamp_ns, jpeg))
            if sequence % CHUNK == 0:
                await camera.send(json.dumps({"type": "input_frame_buffer.commit"}))
                await heard(camera, "input_frame_buffer.ingested", "input_frame_buffer.dropped")
            if sequence >= options.frames:
                break
        if older:
            print(
                f"Frames sent: {sequence - first}. Not sent: {older}, as session {options.session} "
                f"has what was seen up to {newest_ns / 1e9:g} s (another video: another --session)"
            )
        ask = {"type": "response.create", "event_id": "q1", "response": {"text": options.ask}}
        await camera.send(json.dumps(ask))
        response = (await heard(camera, "response.done"))["response"]
        print(response["error"]["message"] if "error" in response else response.get("text", ""))


if __name__ == "__main__":
    main()
