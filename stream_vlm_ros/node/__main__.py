# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``ros2 run stream_vlm stream_vlm_node``, or ``python -m stream_vlm_ros.node``."""

import sys

from stream_vlm_ros.node.spinning import keep_freed_memory, run
from stream_vlm_ros.processes.ros_process import end_quietly_on_signals, leave


def main(arguments: list[str] | None = None) -> int:
    """Start the node; 0 when it was told to end, 1 for parameters that were refused."""
    end_quietly_on_signals()
    keep_freed_memory()
    print("stream_vlm: starting", file=sys.stderr, flush=True)
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

    return run(StreamVlmNode, arguments)


if __name__ == "__main__":
    leave(main())
