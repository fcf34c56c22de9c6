# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Who may reach the service: who tells one of its keys, or this machine alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream_vlm_ros.access import Access, is_loopback, is_of_own_page
from stream_vlm_ros.errors import StreamVlmError

if TYPE_CHECKING:
    from fastapi.requests import HTTPConnection

LOCAL = "local"  # whose sessions are, where no key is needed


class NotAdmittedError(StreamVlmError):
    """Who asks has told no key, or another one."""

    code = "UNAUTHORIZED"


class ForeignPageError(StreamVlmError):
    """A page of another site's asks."""

    code = "FORBIDDEN"


@dataclass(frozen=True)
class Keys:
    """Attributes:
        keys: each has its own sessions; none: this machine alone is let in, without one.
        host: where is listened.

    Raises InvalidParameterError for a host that others can reach, without a key.
    """

    keys: Sequence[str] = ()
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        Access(self.host, key=self.keys[0] if self.keys else "")

    def owner(self, heads: Mapping[str, str], safe: bool = False) -> str:
        """Whose sessions who asks may reach: a name that does not tell the key.

        Args:
            heads: of the request, their names in lower case.
            safe: it changes nothing.

        Raises NotAdmittedError, ForeignPageError.
        """
        if not is_of_own_page(heads, self.host, safe, bool(self.keys)):
            raise ForeignPageError("this was sent by another site's page, or to another name")
        if not self.keys:
            if not _began_here(heads.get("x-forwarded-for", "")):
                raise NotAdmittedError(
                    "this server has no key, and so serves its own machine alone, also behind a "
                    "proxy: give it --key-file"
                )
            return LOCAL
        scheme, _, given = heads.get("authorization", "").partition(" ")
        told = given.strip().encode() if scheme.lower() == "bearer" else b""
        found = ""
        for key in self.keys:  # all of them: it takes as long whichever it is
            if hmac.compare_digest(told, key.encode()):
                found = hashlib.sha256(key.encode()).hexdigest()[:32]
        if not found and told:
            raise NotAdmittedError("the key that was sent is not one of this server's")
        if not found:
            raise NotAdmittedError(
                "this server needs a key: send it as the header Authorization: Bearer KEY"
            )
        return found


def _began_here(forwarded_for: str) -> bool:
    """Whether all that a proxy names of a request's way is of this machine."""
    return all(is_loopback(one.strip()) for one in forwarded_for.split(",") if one.strip())


def owner_of(connection: HTTPConnection) -> str:
    """Whose key came with a request that was let in."""
    owner: str = connection.scope["owner"]
    return owner
