# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Errors as answers of HTTP, in the form in which OpenAI's API gives them."""

from __future__ import annotations

import math
from typing import Any

from stream_vlm_ros.errors import StreamVlmError

STATUS = {
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "NO_SESSION": 404,
    "NOT_FOUND": 404,
    "TOO_SLOW": 408,
    "TOO_LARGE": 413,
    "HEAD_TOO_LARGE": 431,
    "TOO_MANY_SESSIONS": 429,
    "QUEUE_FULL": 429,
    "CANCELLED": 503,  # by what became of the session; who cancelled it reads nothing any more
    "STREAM_BUSY": 503,
    "NOT_ACTIVE": 503,
    "ENDING": 503,
    "DEVICE_UNAVAILABLE": 503,
    "INTERNAL": 500,
    "NOT_FINITE": 500,
    "NO_FOLDER": 503,
    "TOO_MANY_CONNECTIONS": 503,
}  # others are the client's: 400. No 409, after which OpenAI's clients ask again by themselves
RETRY_AFTER = {"QUEUE_FULL": 1.0, "NOT_ACTIVE": 2.0, "STREAM_BUSY": 1.0}  # s, usually
TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error",
}  # fmt: skip


def status_of(fault: StreamVlmError) -> tuple[int, dict[str, str]]:
    """The status, and headers."""
    status = STATUS.get(fault.code, 400)
    headers = {}
    after = getattr(fault, "retry_after", RETRY_AFTER.get(fault.code))
    if after is not None:
        headers["Retry-After"] = str(math.ceil(after))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return status, headers


def body_of(fault: StreamVlmError) -> dict[str, Any]:
    """The body; the fault's ``param``, if it has one, is what of the request is wrong."""
    status = STATUS.get(fault.code, 400)
    usual = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(fault),
            "type": TYPES.get(status, usual),
            "param": getattr(fault, "param", None),
            "code": fault.code,
        }
    }
