# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console of a node, on this machine alone: ``python -m stream_vlm_ros.web /NODE PORT``."""

import sys

from stream_vlm_ros.access import Access
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.processes.children import signals_as_ctrl_c
from stream_vlm_ros.web.serving import of_node, serve

INTERRUPTED = 130


def main(node: str, port: str) -> None:
    """Serve it until the process is told to end."""
    try:
        with signals_as_ctrl_c():
            serve(of_node(node), Access(port=int(port)))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except StreamVlmError as refusal:
        sys.exit(str(refusal))


if __name__ == "__main__":
    main(*sys.argv[1:])
