# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What config/foxglove.json shows, read as Foxglove reads it."""

import json
from pathlib import Path

LAYOUT = json.loads((Path(__file__).parents[2] / "config" / "foxglove.json").read_text())


def panels(place=None):
    """The names of the panels that have a place."""
    place = LAYOUT["layout"] if place is None else place
    if isinstance(place, str):
        return [place]
    assert place["direction"] in ("row", "column")
    return panels(place["first"]) + panels(place["second"])


def paths():
    """Topics, some with the name of a field behind a dot."""
    for name in panels():
        settings = LAYOUT["configById"][name]
        match name.partition("!")[0]:
            case "Image":
                yield settings["imageMode"]["imageTopic"]
            case "RawMessages":
                yield settings["topicPath"]
            case "Plot":
                assert all(path["enabled"] for path in settings["paths"])
                yield from (path["value"] for path in settings["paths"])
            case "RosOut" | "DiagnosticSummary":
                yield settings["topicToRender"]


def calls():
    """Services, and what is sent to each."""
    for name in panels():
        if name.startswith("CallService!"):
            settings = LAYOUT["configById"][name]
            yield settings["serviceName"], json.loads(settings["requestPayload"])
