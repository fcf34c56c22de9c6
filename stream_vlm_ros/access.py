# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Who may reach what is served: this machine alone, or whoever has the key."""

from __future__ import annotations

import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from stream_vlm_ros.errors import InvalidParameterError, cut

KEY_VARIABLE = "STREAM_VLM_API_KEY"
SHORTEST, LONGEST = 16, 1024  # characters of a key


@dataclass(frozen=True)
class Access:
    """Where is listened, and what must be known to be let in.

    Attributes:
        host, port: where is listened; port 0 is any that is free.
        key: what everybody must tell; "": nothing, as only this machine can reach it.

    Raises InvalidParameterError for a host that others can reach, without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key and not is_loopback(self.host):
            raise InvalidParameterError(
                f"--host {cut(self.host)} lets other machines in, which needs a key: give "
                f"--key-file FILE or set {KEY_VARIABLE} to {SHORTEST} characters or more, such as "
                "of: openssl rand -hex 16"
            )

    def admits(self, given: str) -> bool:
        """Whether ``given`` is the key, or none is needed; takes as long whatever it is."""
        return not self.key or hmac.compare_digest(given.encode(), self.key.encode())


def is_loopback(host: str) -> bool:
    """Whether a name or address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_key(file: str = "") -> str:
    """The key: of a file, else of the environment; "" where there is neither.

    Raises InvalidParameterError for a file or a key that is of no use.
    """
    if file:
        path = Path(os.path.expanduser(file))
        try:
            if path.stat().st_mode & 0o077:
                raise InvalidParameterError(
                    f"others on this machine can read the key in {path}: chmod 600 {path}"
                )
            with path.open("rb") as opened:
                key = opened.read(LONGEST + 1).decode().strip()
        except OSError as error:
            raise InvalidParameterError(
                f"the key in {cut(str(path))} cannot be read: {error.strerror}"
            ) from error
        except ValueError:
            raise InvalidParameterError(f"{path} holds no text, and so no key") from None
        return _checked(key, str(path))
    if KEY_VARIABLE in os.environ:
        return _checked(os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE)
    return ""


def _checked(key: str, where: str) -> str:
    if not SHORTEST <= len(key) <= LONGEST or not key.isascii() or not key.isprintable():
        raise InvalidParameterError(
            f"the key in {where} must be one line of {SHORTEST} to {LONGEST} ASCII characters, "
            "such as of: openssl rand -hex 16"
        )
    return key
