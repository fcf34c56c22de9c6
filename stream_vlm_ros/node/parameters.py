# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A table of settings as the parameters of a node: declared with descriptors, read, checked.

Which parameters the node has is said in :class:`stream_vlm_ros.config.Settings`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import yaml
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter_service import ParameterService

from stream_vlm_ros.config import ALL_CAMERAS, NODE, Settings
from stream_vlm_ros.errors import InvalidParameterError, cut
from stream_vlm_ros.setting import CONFIGURE, START, Setting

# The node's parameters by name.
PARAMETERS = {name: row for name, row in Settings.table().items() if NODE in row.takers}


def declare(node: Node, rows: Iterable[Setting]) -> dict[str, Any]:
    """Declare ``rows`` as parameters of a node; the values it was started with, checked.

    Raises InvalidParameterError when values given at start are refused, and names them all.
    """
    values, refused = {}, []
    for row in rows:
        default = list(row.default) if row.type is tuple else row.default
        try:
            value = node.declare_parameter(row.name, default, descriptor(row)).value
            values[row.name] = row.checked(value)
        except Exception as refusal:
            refused.append((_refusal_text(node, row, refusal), refusal))
    if refused:
        raise InvalidParameterError("; ".join(text for text, _ in refused)) from refused[0][1]
    return values


def read(node: Node, rows: Iterable[Setting]) -> dict[str, Any]:
    """The values of ``rows`` that a node holds now, checked."""
    return {row.name: row.checked(node.get_parameter(row.name).value) for row in rows}


def row_of_source(name: str, settings: Settings) -> Setting | None:
    """The row of the parameter ``CAMERA.SETTING``; None: ``name`` is not that of one, or a setting
    that all cameras share. Its default is what holds for that camera without it."""
    source, dot, own = name.partition(".")
    if not dot or source not in settings.sources or own in ALL_CAMERAS or own not in PARAMETERS:
        return None
    default = getattr(settings.of_source(source, {}), own)
    return replace(PARAMETERS[own], name=name, default=default)


def declare_of_sources(node: Node, settings: Settings) -> None:
    """Declare what the node was started with for each of its cameras; raises as `declare` does."""
    given = getattr(node, "_parameter_overrides", {})
    rows = [row for name in given if (row := row_of_source(name, settings)) is not None]
    declare(node, [row for row in rows if not node.has_parameter(row.name)])


def read_of_source(
    node: Node,
    source: str,
    settings: Settings,
    changes: Mapping[str, Any] = MappingProxyType({}),
    without: Container[str] = (),
) -> Settings:
    """The settings of one of several cameras, as the node's parameters are now.

    Args:
        changes: values by full name, which hold instead of the parameters'.
        without: full names of parameters that count as not set.
    """
    own = {}
    for name, row in PARAMETERS.items():
        full = f"{source}.{name}"
        if name in ALL_CAMERAS or full in without:
            continue
        if full in changes:
            own[name] = changes[full]
        elif node.has_parameter(full):
            own[name] = replace(row, name=full).checked(node.get_parameter(full).value)
    try:
        return settings.of_source(source, own)
    except InvalidParameterError as refusal:
        raise InvalidParameterError(f"{source}: {refusal}") from None


class CamerasLast(ParameterService):
    """Sets the parameters of a request one by one as rclpy's does, but cameras' own last: in what
    `ros2 param dump` writes, ``front.weight`` comes before the ``sources`` that name the camera."""

    def _set_parameters_callback(self, request: Any, response: Any) -> Any:
        given = list(request.parameters)
        order = sorted(range(len(given)), key=lambda at: "." in given[at].name)
        request.parameters = [given[at] for at in order]
        results = list(super()._set_parameters_callback(request, response).results)
        response.results = [results[order.index(at)] for at in range(len(given))]
        return response


def descriptor(row: Setting) -> ParameterDescriptor:
    """A row as rclpy declares it."""
    found = ParameterDescriptor(
        name=row.name,
        description=row.text,
        additional_constraints=_constraints(row),
        read_only=row.change == START,
        # Where a number of another type is taken, the type is checked by the row: rclpy would
        # refuse the whole number in `-p sample_fps:=2`, and the camera in `-p source:=0`.
        # Of texts one alone will do, with commas. A camera's own can be set to nothing.
        dynamic_typing="." in row.name
        or row.type in (float, tuple)
        or (row.type is str and not row.choices),
    )
    if row.low is not None and row.high is not None:
        if row.type is int:
            found.integer_range = [
                IntegerRange(from_value=int(row.low), to_value=int(row.high), step=0)
            ]
        else:
            found.floating_point_range = [
                FloatingPointRange(from_value=float(row.low), to_value=float(row.high), step=0.0)
            ]
    return found


def refuse_unknown(node: Node, arguments: Sequence[str] = ()) -> None:
    """Raise InvalidParameterError, naming each, where a node was started with parameters that it
    has not declared. Those that rclpy declares when it needs them are left to it.

    Args:
        arguments: of the process. What a parameter file among them gives to several nodes (``/**``)
            is meant for whichever has it: the log warns of that, and the node starts.
    """
    shared = _shared(node, arguments)
    unknown = []
    for name in getattr(node, "_parameter_overrides", {}):
        if node.has_parameter(name) or name.startswith("qos_overrides."):
            continue
        words = unknown_parameter(name)
        if name in shared:
            node.get_logger().warning(
                f"{words} (left out: a parameter file gives it to several nodes)"
            )
        else:
            unknown.append(words)
    if unknown:
        raise InvalidParameterError("; ".join(unknown))


def unknown_parameter(name: str) -> str:
    """What to say of a parameter that the node does not have."""
    return cut(Settings.unknown(name).replace("setting", "parameter", 1))


def _shared(node: Node, arguments: Sequence[str]) -> set[str]:
    """The names that parameter files give to several nodes alone. rcl, which has read them, hands
    them on as if they had been given to this one; the log warns of a file that gives it nothing."""
    full_name = node.get_fully_qualified_name()
    shared: set[str] = set()
    own: set[str] = set()
    for flag, file in itertools.pairwise(arguments):
        if flag != "--params-file":
            continue
        with open(file, encoding="utf-8") as text:
            sections = list(_sections(yaml.safe_load(text) or {}))
        for nodes, values in sections:
            if nodes.endswith("*"):
                shared |= set(_dotted(values))
            elif _matches(nodes, full_name):
                own |= set(_dotted(values))
        if sections and not any(_matches(nodes, full_name) for nodes, _ in sections):
            named = cut(", ".join(nodes for nodes, _ in sections) or "nothing")
            node.get_logger().warning(
                f"{file} gives this node, {full_name}, no parameters: what it names is {named}"
            )
    return shared - own


def _sections(values: Mapping[str, Any], nodes: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of nodes as a parameter file has them, with a slash before them, and their values."""
    for key, value in values.items():
        if key == "ros__parameters":
            yield nodes, value or {}
        elif isinstance(value, dict):
            yield from _sections(value, f"{nodes}/{str(key).strip('/')}")


def _matches(nodes: str, full_name: str) -> bool:
    """Whether a section of a parameter file is for a node: * is one part of its name, ** any."""
    parts = {"**": ".*", "*": "[^/]*"}
    pattern = "".join(parts.get(part, re.escape(part)) for part in re.split(r"(\*+)", nodes))
    return re.fullmatch(pattern, full_name) is not None


def _dotted(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _constraints(row: Setting) -> str:
    parts = [f"one of: {', '.join(row.choices)}"] if row.choices else []
    if row.change == CONFIGURE:
        parts.append("can be set only while the node is unconfigured")
    return "; ".join(parts)


def _refusal_text(node: Node, row: Setting, refusal: Exception) -> str:
    """Our own words for a value given at start, else those of rclpy."""
    given = getattr(node, "_parameter_overrides", {}).get(row.name)
    if given is not None:
        try:
            row.checked(given.value)
        except InvalidParameterError as ours:
            return str(ours)
    return f"{row.name}: {refusal}"
