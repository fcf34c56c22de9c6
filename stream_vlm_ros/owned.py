# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is ours on a disk: a mark in a folder proves it, and nothing else is removed or overwritten.

A folder that the user names may be a link to one; below it no link is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from stream_vlm_ros.errors import InvalidParameterError

Buffer = bytes | memoryview

MARK = ".stream_vlm"
_WORDS = "stream_vlm: {}\nThis program writes and removes what it puts into this folder.\n"
_LONGEST_MARK = 1024


class NotOursError(InvalidParameterError):
    """A folder or file that is in the way, and that this program did not make."""


def place_to_write(what: str, name: str | os.PathLike[str]) -> Path:
    """A folder or file as the user named it.

    Raises InvalidParameterError for the empty name, which `Path` takes for the working folder:
    somebody else's files are there.

    Args:
        what: has the name; a sentence begins with it.
    """
    if not os.fspath(name):
        raise InvalidParameterError(f"{what} is empty: name a folder (. is the working folder).")
    return Path(name)


def kind_of(folder: Path) -> str | None:
    """What the mark in ``folder`` says that it is; None without a mark of ours."""
    try:
        file = open_regular(folder / MARK)
    except OSError:
        return None
    with os.fdopen(file, "rb") as mark:
        first = mark.read(_LONGEST_MARK).split(b"\n")[0].decode("utf-8", "replace")
    return first.removeprefix("stream_vlm: ") if first.startswith("stream_vlm: ") else None


def mark(folder: Path, kind: str) -> None:
    """Say in ``folder`` that it is ours; OSError where that cannot be written."""
    write_whole(folder / MARK, _WORDS.format(kind).encode())


def check(
    folder: Path,
    kind: str,
    writes: Sequence[str] = ("*",),
    known: Callable[[Path], bool] = lambda folder: False,
    link: bool = False,
) -> None:
    """Raise NotOursError unless ``folder`` is missing, free of what would be written, or ours.

    Args:
        kind: what its mark must say.
        writes: patterns of the names that would be written; others of the user's may stay.
        known: recognises, without a mark, what a version before the mark has made.
        link: the folder may be a link to one, as the user named it himself.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() and not link:
        raise NotOursError(f"{folder} is a link, not a folder of this program: move it away.")
    if not folder.is_dir():
        raise NotOursError(f"{folder} is a file, not a folder: move it away, or name another.")
    if kind_of(folder) == kind:
        return
    names = set(os.listdir(folder))
    if MARK in names and _is_empty_file(folder / MARK):  # a process was killed as it made it
        names.remove(MARK)
    found = sorted(name for name in names if any(fnmatch(name, p) for p in writes))
    if found and not known(folder):
        raise NotOursError(
            f"{folder} holds {_listed(found)}, which this program did not put there: "
            "it is left as it is. Name a new or an empty folder, or move it away."
        )


def _is_empty_file(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@contextlib.contextmanager
def held(folder: Path, kind: str, mode: int = 0o777) -> Iterator[None]:
    """Make ``folder``, mark it, and keep other processes from it until the block ends.

    The lock ends with the process, however that ends. Raises NotOursError where another process
    holds it, OSError where it cannot be written. A folder that was made here and in which nothing
    was put is removed again.
    """
    made = not folder.is_dir()
    folder.mkdir(mode, parents=True, exist_ok=True)
    lock = open_regular(folder / MARK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two the one who held it may have removed the folder.
            if not os.path.samestat(os.fstat(lock), os.lstat(folder / MARK)):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            made = False
            raise NotOursError(
                f"{folder} is in use by another process: give each its own folder."
            ) from None
        if kind_of(folder) != kind:
            os.ftruncate(lock, 0)
            write_all(lock, _WORDS.format(kind).encode())
            os.fsync(lock)
        yield
    finally:
        with contextlib.suppress(OSError, NotOursError):
            if made and os.listdir(folder) == [MARK]:
                remove_tree(folder, kind)
        os.close(lock)


def remove_tree(folder: Path, kind: str) -> None:
    """Remove a folder of ours with all that is in it, its mark last; links are not followed.

    Raises NotOursError without the mark; nothing is removed then.
    """
    if folder.is_symlink() or kind_of(folder) != kind:
        raise NotOursError(f"{folder} was not made by this program: it is left as it is.")
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.name == MARK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    os.unlink(folder / MARK)
    folder.rmdir()


def put_in_place(new: Path, folder: Path, kind: str) -> None:
    """Rename ``new``, which is complete, to ``folder``; one of ours that is there goes last."""
    check(folder, kind)
    old = _aside(folder)
    if folder.is_dir():
        os.rename(folder, old)
    os.rename(new, folder)
    if kind_of(old) == kind:
        remove_tree(old, kind)
    elif old.is_dir():
        old.rmdir()  # it was empty


def tidy(folder: Path, kind: str) -> None:
    """What a process that was killed in `put_in_place` has left: the old one back, or away."""
    old = _aside(folder)
    if kind_of(old) != kind or old.is_symlink():
        return
    if os.path.lexists(folder):
        remove_tree(old, kind)
    else:
        os.rename(old, folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def write_whole(
    path: Path, data: bytes | Iterable[Buffer], mode: int = 0o666, *, durable: bool = True
) -> None:
    """Write a file that is whole at any moment: under another name first, and then renamed.

    A link in its place is replaced, not followed. OSError where it cannot be written; then what was
    there before is still there.

    Args:
        data: all of it, or pieces that are asked for one after the other.
        durable: it is on the disk when this returns, whatever happens to the machine then.
    """
    part = path.with_name(f"{_stem_of_parts(path)}{secrets.token_hex(4)}.part")
    file = _new_part(part, mode)
    try:
        try:
            for piece in (data,) if isinstance(data, bytes) else data:
                write_all(file, piece)
            if durable:
                os.fsync(file)
            os.replace(part, path)
        finally:
            os.close(file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    if not durable:
        return
    with contextlib.suppress(OSError):  # a file system that cannot; the file itself is there
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _stem_of_parts(path: Path) -> str:
    """How the names of its parts begin: a name has 255 bytes, whatever letters they make."""
    return "." + os.fsdecode(os.fsencode(path.name)[:200]) + "."


def _new_part(part: Path, mode: int) -> int:
    """A new file, locked against `remove_parts` of other processes."""
    while True:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:  # else one of them took it away before it was locked
                return file
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        os.close(file)


def remove_parts(path: Path) -> None:
    """Remove what processes that were killed in `write_whole` have left of ``path``.

    One that is being written is left alone. OSError where one cannot be removed.
    """
    named = re.compile(re.escape(_stem_of_parts(path)) + r"[0-9a-f]{8}\.part")
    for name in filter(named.fullmatch, os.listdir(path.parent)):
        try:
            file = open_regular(path.with_name(name))
        except OSError:  # a link, or gone meanwhile
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path.with_name(name))
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            os.close(file)


def write_all(file: int, data: Buffer) -> None:
    """Write every byte; a disk that fills up takes fewer at first, and refuses the next."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def open_regular(
    name: str | Path, flags: int = os.O_RDONLY, mode: int = 0o600, **where: int
) -> int:
    """A descriptor of a plain file; OSError for a link, a pipe, a folder."""
    # O_NONBLOCK: a pipe would wait for its other end.
    file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, **where)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{name} is not a plain file")
    return file
