# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the programs of the demo can be told: the parameters of its two nodes, the options of its
command line, and what it changes in the parameters of the third node."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, ModelLoadError, check_model_folder
from stream_vlm_ros.setting import START, SettingTable, setting

NODE_NAME = "stream_vlm"
fixed = partial(setting, change=START)
option = partial(fixed, verbs=("demo",))

# The node's own defaults, but for what makes it run well on a CPU. config/demo.yaml holds them.
DEMO = Settings(
    max_cache_tokens=4096,
    max_pixels=100_352,
    history="auto",
    max_new_tokens=64,
    status_period=0.5,
)


# -- rules: raise a StreamVlmError for a text that is of no use, such as the path of no file -------


def as_far_as_known(rule: Callable[[str], object]) -> Callable[[str], None]:
    """A rule for a text that anybody may have written, under whichever Python.

    A name that the system does not take (too long, or with bytes that are no UTF-8) is refused.
    Launch may run under another Python than the node, without the libraries that tell: then the
    process that needs them says it.
    """

    @wraps(rule)
    def checked(text: str) -> None:
        try:
            rule(text)
        except (OSError, ValueError) as error:
            raise InvalidParameterError(str(error)) from None
        except ModuleNotFoundError:
            pass

    return checked


@as_far_as_known
def check_checkpoint(text: str) -> None:
    """The folder of a checkpoint, or ""; what is in its files is not seen."""
    if text:
        check_model_folder(Path(text))
        if not (Path(os.path.expanduser(text)) / "config.json").is_file():
            raise ModelLoadError(f"{text} has no config.json: not a checkpoint folder")


@as_far_as_known
def check_source(text: str) -> None:
    """What `open_source` opens, "real" or ""."""
    from stream_vlm_ros.demo.defaults import default_video
    from stream_vlm_ros.sources import open_source

    if text == "real":
        default_video()
    elif text:
        open_source(text)


@as_far_as_known
def check_size(text: str) -> None:
    """Width x height, or ""."""
    from stream_vlm_ros.sources import parse_size

    parse_size(text)


# -- the tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceSettings(SettingTable):
    """Of the node that publishes a source's frames."""

    source: str = fixed("", "Video file, folder of images, camera (/dev/video0), or world:SEED.")
    rate: float = fixed(0.0, "Images per second, thinned out by stamp. 0: every one.", 0.0, 1000.0)
    size: str = fixed("", "Width x height to scale to, such as 640x480. Empty: as filmed.")
    max_decoded_megapixels: float = fixed(
        Settings.max_decoded_megapixels,
        "Pictures of more megapixels are left out, by their headers.",
        0.01,
        1000.0,
    )
    loop: bool = fixed(True, "Start again at the end; the stamps run on.")
    stamps: str = fixed(
        "video",
        "video: start time + the frame's time in the source. publish: the time of publishing.",
        choices=("video", "publish"),
    )
    reliability: str = fixed(
        "reliable", "Reliability offered on image.", choices=("reliable", "best_effort")
    )
    depth: int = fixed(5, "Queue depth of the publisher.", 1, 10_000)
    wait_for_subscriber: bool = fixed(False, "Hold the first image until somebody listens.")


@dataclass(frozen=True)
class ClientSettings(SettingTable):
    """Of the node that asks questions."""

    node: str = fixed(NODE_NAME, "Name of the node that is asked.")
    source: str = fixed("", "What the source shows, as given to it: who asks depends on it.")
    seconds: float = fixed(
        40.0, "How long to ask, from the first frame in memory on.", 1.0, 1_000_000.0
    )
    count: int = fixed(0, "How many questions. 0: one every few seconds.", 0, 1_000_000)
    questions: tuple[str, ...] = fixed(
        ("",), "Questions to ask in turn. Empty: those that suit the source."
    )
    sample_fps: float = fixed(
        2.0, "Frames per second the node takes, to know what it saw.", 0.01, 120.0
    )
    typed: bool = fixed(False, "Then ask what comes over stdin, which is a socket.")
    max_new_tokens: int = fixed(0, "Longest answer, in tokens. 0: as the node is set.", 0, 100_000)
    patience: float = fixed(
        120.0, "Seconds to wait for the node, or for one answer.", 1.0, 86_400.0
    )


@dataclass(frozen=True)
class DemoSettings(SettingTable):
    """Of the whole demo, by whatever it is started."""

    video: str = option(
        "",
        "What the camera shows: a video file, a folder of images, /dev/video0, world:SEED, or "
        "real: a short real video. Empty: the drawn world that the small model knows; the real "
        "video to a model that is given.",
        rule=check_source,
    )
    rate: float = option(
        0.0, "Images per second that are published. 0: the video's own.", 0.0, 1000.0
    )
    seconds: float = option(
        40.0,
        "How long the client asks; then the demo ends.",
        1.0,
        1_000_000.0,
        environment="DEMO_SECONDS",
    )


@dataclass(frozen=True)
class DemoOptions(DemoSettings):
    """Options of ``stream-vlm demo``; it has those of `Settings` for "demo", too."""

    size: str = option("", "Scale the video to WIDTHxHEIGHT.", rule=check_size)
    web: bool = option(
        True,
        "Show it in the browser, too, where the console is installed.",
        environment="DEMO_WEB",
    )
    count: int = option(0, "How many questions. 0: one every few seconds.", 0, 1_000_000)
