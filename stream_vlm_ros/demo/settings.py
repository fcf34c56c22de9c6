"""The parameters of the demo's two nodes, and what the demo changes in those of the third."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from stream_vlm_ros.config import Settings
from stream_vlm_ros.setting import START, SettingTable, setting

fixed = partial(setting, change=START)

# The node's own defaults, but for what makes it run well on a CPU. config/demo.yaml holds them.
DEMO = Settings(max_cache_tokens=4096, max_pixels=100_352, max_new_tokens=64, status_period=0.5)


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

    node: str = fixed("stream_vlm", "Name of the node that is asked.")
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
    max_new_tokens: int = fixed(0, "Longest answer, in tokens. 0: as the node is set.", 0, 100_000)
    patience: float = fixed(
        120.0, "Seconds to wait for the node, or for one answer.", 1.0, 86_400.0
    )
