# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Who may reach what is served: this machine alone, or whoever has the key."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stream_vlm_ros.errors import InvalidParameterError, cut

KEY_VARIABLE = "STREAM_VLM_API_KEY"
SHORTEST, LONGEST = 16, 1024  # characters of a key
LONGEST_FILE = 1 << 20  # bytes
NAVIGATION = ("navigate", "document")


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


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises InvalidParameterError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = f"port {port} is taken; choose another with --port"
        else:
            hint = f"{host} port {port} cannot be listened at: {error.strerror}"
        raise InvalidParameterError(hint) from error
    # What is accepted inherits it. asyncio sets it only on sockets made for TCP by number; without
    # it a small message waits up to 40 ms for the one before to be acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def read_key(file: str = "") -> str:
    """The key: of a file, else of the environment; "" where there is neither.

    Raises InvalidParameterError for a file or a key that is of no use.
    """
    keys = read_keys(file)
    if len(keys) > 1:
        raise InvalidParameterError(f"{cut(file)} holds {len(keys)} keys; here it is to be one")
    return keys[0] if keys else ""


def read_keys(file: str = "") -> tuple[str, ...]:
    """The keys: one a line of a file, else the one of the environment.

    Empty lines, and lines that begin with #, are left out.

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
                lines = opened.read(LONGEST_FILE).decode().splitlines()
                if opened.read(1):
                    raise InvalidParameterError(f"{path} is too long for a file of keys")
        except OSError as error:
            raise InvalidParameterError(
                f"the key in {cut(str(path))} cannot be read: {error.strerror}"
            ) from error
        except ValueError:
            raise InvalidParameterError(f"{path} holds no text, and so no key") from None
        keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
        if not keys:
            keys = [""]
        return tuple(dict.fromkeys(_checked(key, str(path)) for key in keys))
    if KEY_VARIABLE in os.environ:
        return (_checked(os.environ[KEY_VARIABLE].strip(), KEY_VARIABLE),)
    return ()


def is_of_own_page(heads: Mapping[str, str], own_host: str, safe: bool, has_key: bool) -> bool:
    """Whether a request was sent by a page of the server's own, or by none.

    Args:
        heads: of the request, their names in lower case.
        own_host: where is listened.
        safe: it changes nothing.
        has_key: a key is needed. Else its name for this machine must be of this machine: another
            site could name it as its own.
    """
    host = heads.get("host", "")
    origin = heads.get("origin", "")
    if not safe and origin and origin.partition("://")[2].lower() != host.lower():
        return False
    # Another site's page takes nothing of ours into it; a link to the page may stand there.
    by_a_link = (heads.get("sec-fetch-mode"), heads.get("sec-fetch-dest")) == NAVIGATION
    if heads.get("sec-fetch-site") in ("cross-site", "same-site") and not by_a_link:
        return False
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # no address
        return False
    return has_key or is_loopback(name) or name == own_host.lower()


def _checked(key: str, where: str) -> str:
    if not SHORTEST <= len(key) <= LONGEST or not key.isascii() or not key.isprintable():
        raise InvalidParameterError(
            f"the key in {where} must be one line of {SHORTEST} to {LONGEST} ASCII characters, "
            "such as of: openssl rand -hex 16"
        )
    return key
