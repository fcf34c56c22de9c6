# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``ros2 run stream_vlm stream_vlm_node``, or ``python -m stream_vlm_ros.node``."""

import sys

from stream_vlm_ros.config import NODE, Settings
from stream_vlm_ros.errors import cut
from stream_vlm_ros.node.spinning import keep_freed_memory, run
from stream_vlm_ros.processes.ros_process import end_quietly_on_signals, leave


def usage() -> str:
    """What --help prints."""
    rows = [row for row in Settings.table().values() if NODE in row.takers]
    return "\n".join(
        [
            "usage: stream_vlm_node [-h] [--ros-args [-p NAME:=VALUE]... [--params-file FILE] ...]",
            "",
            "Streams images into a visual memory and answers questions about it.",
            "",
            "Parameters, with their defaults (docs/node.md):",
            *(f"  {row.name}: {row.default!r}" for row in rows),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Start the node; 0 when it was told to end, 1 for what it was given and cannot use."""
    given = sys.argv[1:] if arguments is None else arguments
    plain = given[: given.index("--ros-args")] if "--ros-args" in given else given
    if {"-h", "--help"} & set(plain):
        print(usage())
        return 0
    for word in plain:  # rcl leaves out what it does not know, and remaps what is no parameter
        name, assigned, value = word.partition(":=")
        if not assigned or name in Settings.table():
            meant = f"{name}:={value}" if assigned else "NAME:=VALUE"
            words = f"bad argument {cut(word)}: parameters are given by --ros-args -p {cut(meant)}"
            print(f"stream_vlm: {words} (--help)", file=sys.stderr)
            return 1
    end_quietly_on_signals()
    keep_freed_memory()
    print("stream_vlm: starting", file=sys.stderr, flush=True)
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

    return run(lambda: StreamVlmNode(arguments=given), arguments)


if __name__ == "__main__":
    leave(main())
