"""The parameters of the demo's two nodes: name, default, description, and allowed values."""

from __future__ import annotations

from typing import Any, NamedTuple

from stream_vlm_ros.errors import InvalidParameterError


class Setting(NamedTuple):
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    low: float | None = None


SOURCE_PARAMETERS = {
    "source": Setting("", "Video file, folder of images, camera (/dev/video0), or world:SEED."),
    "rate": Setting(0.0, "Images per second, thinned out by stamp. 0: every one.", low=0.0),
    "size": Setting("", "Width x height to scale to, such as 640x480. Empty: as filmed."),
    "loop": Setting(True, "Start again at the end; the stamps run on."),
    "stamps": Setting(
        "video",
        "video: start time + the frame's time in the source. publish: the time of publishing.",
        ("video", "publish"),
    ),
    "reliability": Setting(
        "reliable", "Reliability offered on image.", ("reliable", "best_effort")
    ),
    "depth": Setting(5, "Queue depth of the publisher.", low=1),
    "wait_for_subscriber": Setting(False, "Hold the first image until somebody listens."),
}

CLIENT_PARAMETERS = {
    "node": Setting("stream_vlm", "Name of the node that is asked."),
    "source": Setting("", "What the source shows, as given to it: who asks depends on it."),
    "seconds": Setting(40.0, "How long to ask, from the first frame in memory on.", low=1.0),
    "count": Setting(0, "How many questions. 0: one every few seconds.", low=0),
    "questions": Setting([""], "Questions to ask in turn. Empty: those that suit the source."),
    "sample_fps": Setting(2.0, "Frames per second the node takes, to know what it saw.", low=0.01),
    "max_new_tokens": Setting(0, "Longest answer, in tokens. 0: as the node is set.", low=0),
    "patience": Setting(120.0, "Seconds to wait for the node, or for one answer.", low=1.0),
}


def declare(node: Any, table: dict[str, Setting]) -> dict[str, Any]:
    """Declare ``table`` on an rclpy node; its values, checked.

    Raises InvalidParameterError for a value of the wrong type or outside its choices.
    """
    from rcl_interfaces.msg import ParameterDescriptor

    values = {}
    for name, setting in table.items():
        descriptor = ParameterDescriptor(
            description=setting.description,
            additional_constraints=", ".join(setting.choices),
            dynamic_typing=True,  # so that "rate:=5" and "source:=0" are taken too
            read_only=True,
        )
        value = node.declare_parameter(name, setting.default, descriptor).value
        values[name] = check(name, setting, value)
    return values


def check(name: str, setting: Setting, value: Any) -> Any:
    """``value`` in the type of the setting's default; raises InvalidParameterError."""
    wanted = type(setting.default)
    if wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    elif wanted is float and type(value) is int:
        value = float(value)
    elif wanted is list:
        value = [text for text in value if text]  # ROS has no empty list of a type
    if type(value) is not wanted:
        raise InvalidParameterError(f"{name} must be of type {wanted.__name__}, not {value!r}.")
    if setting.choices and value not in setting.choices:
        raise InvalidParameterError(
            f"{name} must be {' or '.join(setting.choices)}, not {value!r}."
        )
    if setting.low is not None and not value >= setting.low:
        raise InvalidParameterError(f"{name} must be at least {setting.low}, not {value}.")
    return value
