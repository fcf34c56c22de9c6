# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm web``: the console in the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from stream_vlm_ros.access import Access, read_key
from stream_vlm_ros.cli_node import named
from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.session.memory_keeper import usual_folder
from stream_vlm_ros.setting import Setting
from stream_vlm_ros.web.extra import why_no_console

if TYPE_CHECKING:
    from stream_vlm_ros.web.live_memory import LiveMemory

# Of no use with a node, which has settings of its own.
ONLY_WITHOUT_NODE = {
    "engine", "topic", "stamps", "max_time_gap", "frame_rate", "size", "loop",
}  # fmt: skip


class WebExtraMissingError(StreamVlmError):
    """What the console is served with is not installed."""


class WebCommand(TyperCommand):
    """``--node`` may stand without a name; with it there are no options of a source."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(named(args)))

    def invoke(self, ctx: Any) -> Any:
        if ctx.params["node"] is not None:
            of_source = ONLY_WITHOUT_NODE | _settings()
            for option in self.params:
                origin = ctx.get_parameter_source(option.name)
                if option.name in of_source and origin and origin.name == "COMMANDLINE":
                    why = f"{option.opts[0]} is of no use with --node"
                    if option.opts[0] == "--model":
                        why += (
                            ": the node's model is its parameter model_path, which is set at its "
                            "start, or while it is unconfigured (docs/node.md)"
                        )
                    raise InvalidParameterError(f"{why}.")
        return super().invoke(ctx)


def _settings() -> set[str]:
    rows: Mapping[str, Setting] = Settings.table()
    return {row.name for row in rows.values() if "web" in row.verbs}


def check_installed() -> None:
    """Raise WebExtraMissingError, in one line, where the extra is not there."""
    if missing := why_no_console():
        raise WebExtraMissingError(missing)


def access_to(host: str, port: int, key_file: str) -> Access:
    """Who is let in; a key is asked for wherever there is one. Raises InvalidParameterError."""
    return Access(host.strip("[]"), port, read_key(key_file))


def with_place(settings: Settings) -> Settings:
    """With a folder for saved memories, where none is named."""
    if settings.memory_folder or settings.engine != "streaming":
        return settings
    return replace(settings, memory_folder=usual_folder())


def of_sources(
    sources: Sequence[str], settings: Settings, options: Mapping[str, Any], looped: bool
) -> list[LiveMemory]:
    """Of sources that are read and remembered here; what is wrong with one is told at once.

    Raises SourceNotFoundError, SourceUnreadableError, InvalidParameterError, ModelLoadError.
    """
    from stream_vlm_ros.demo.defaults import WORLD, shown
    from stream_vlm_ros.errors import check_model_folder
    from stream_vlm_ros.factory import model_folder
    from stream_vlm_ros.sources import open_source, parse_size
    from stream_vlm_ros.web.apart import Camera, remembered_apart

    check_model_folder(model_folder(settings))
    for name in ("frame_store", "answers_file"):
        if len(sources) > 1 and getattr(settings, name):
            raise InvalidParameterError(
                f"{Settings.table()[name].option} is of one camera: leave it out with several"
            )
    named = [WORLD if one == "world" else one for one in sources]
    wanted = {name: value for name, value in options.items() if value is not None}
    if size := parse_size(options.get("size")):
        wanted["size"] = size
    wanted["max_decoded_megapixels"] = settings.max_decoded_megapixels
    cameras = []
    for source in named or [shown(None, settings.model_path)]:
        open_source(source, **wanted)
        cameras.append(Camera(source, with_place(settings), wanted, looped))
    return remembered_apart(cameras)
