"""Files appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labelwise.errors import ResourceError

# What a system answers when a folder is renamed over another: Linux, others, Windows.
_FOLDER_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def _machine() -> str:
    """Four signs for this machine, and for this container of it: process numbers mean something only there."""
    space = Path("/proc/self/ns/pid")
    name = platform.node() + (str(space.readlink()) if space.is_symlink() else "")
    return hashlib.sha256(name.encode()).hexdigest()[:4]


_HERE, _COUNTER, _STARTED = _machine(), itertools.count(), time.time()
_TOKEN = 12  # letters of a temporary name before that of the file: process, number, machine


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path (file or folder) beside `path` and rename it to `path` at the end.

    If the block raises, the temporary file or folder is removed and `path` is untouched. An existing
    file is replaced; an existing folder is replaced too. The temporary name keeps the suffixes of
    `path`, because writers choose a format by them. Several processes may write one path at a time: the last
    one stays.

    Errors
        ResourceError   the disk is full, the folder is read-only, or the path cannot be written
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # The data must be on disk before the name is: else a crash can leave an empty file under the name.
        for file in [temporary, *temporary.rglob("*")]:
            if file.is_file():
                _flush(file)
        _rename(temporary, path)
    except OSError as error:
        _discard(temporary)
        raise _as_resource_error(error, path) from error
    except BaseException:
        _discard(temporary)
        raise


def discard_leftovers(path: Path | str) -> None:
    """Remove what processes that were killed while writing `path` have left under temporary names.

    The name of `path` may hold wildcards. What a process that still runs is writing stays, on this machine; what
    another machine left stays for a day.
    """
    path = Path(path)
    left = [*path.parent.glob(f".{'?' * _TOKEN}.{path.name}")]
    if (
        path.suffix == ".safetensors"
    ):  # its writer has temporary names of its own, which say nothing of a process
        left += path.parent.glob(".tmp??????")
    for temporary in left:
        with suppress(FileNotFoundError):  # it was renamed meanwhile
            if _is_left(temporary):
                _discard(temporary)


def _beside(path: Path) -> Path:
    """A temporary name that says which process of which machine writes there."""
    return path.with_name(f".{os.getpid() & 0xFFFFFF:06x}{next(_COUNTER) % 256:02x}{_HERE}.{path.name}")


def _is_left(temporary: Path) -> bool:
    changed = temporary.stat().st_mtime
    if changed < time.time() - 86400:
        return True
    token = temporary.name[1 : 1 + _TOKEN]
    try:
        process = int(token[:6], 16)
    except ValueError:  # of another writer, by whoever held this folder before
        return changed < _STARTED
    if not token.endswith(_HERE):
        return False
    if process == os.getpid() & 0xFFFFFF:
        return changed < _STARTED
    return not _is_alive(process)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_new_json(path: Path | str, value: object) -> bool:
    """Write a JSON file unless there is one; whether it is the one that was written now.

    Of several processes that write at a time exactly one is told True.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        try:
            temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            _flush(temporary)
            try:
                os.link(temporary, path)  # fails if there is one, and shows no half of it
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS or path.exists():
                    raise
                temporary.replace(path)
            return True
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Errors of the operating system while writing `path` become ResourceErrors with a remedy."""
    try:
        yield
    except OSError as error:
        raise _as_resource_error(error, Path(path)) from error


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically, in UTF-8; what a killed program left of it is tidied away."""
    discard_leftovers(path)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write a JSON file atomically: two spaces of indentation, NaN refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _flush(file: Path) -> None:
    with file.open("r+b") as handle:  # Windows flushes only what may be written
        os.fsync(handle.fileno())


def _rename(temporary: Path, path: Path) -> None:
    """Rename over `path`. A folder with content has to step aside first; only for that instant there is none."""
    try:
        temporary.replace(path)
        return
    except OSError as error:
        if not temporary.is_dir() or error.errno not in _FOLDER_IN_THE_WAY:
            raise
    aside = _beside(path)
    with suppress(FileNotFoundError):  # another process was faster
        path.replace(aside)
    _rename(temporary, path)
    _discard(aside)


def _discard(temporary: Path) -> None:
    """Remove what was begun; what cannot be removed must not hide the error that led here."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with suppress(OSError):
            temporary.unlink()


def _as_resource_error(error: OSError, path: Path) -> OSError | ResourceError:
    reasons = {
        errno.ENOSPC: ("the disk is full", "free some space and repeat the command; finished work is kept"),
        errno.EDQUOT: (
            "the disk quota is used up",
            "free some space and repeat the command; finished work is kept",
        ),
        errno.EROFS: ("the folder is read-only", "choose another output folder"),
        errno.EACCES: (
            "no permission to write here",
            "choose another output folder or change its permissions",
        ),
        errno.EPERM: (
            "no permission to write here",
            "choose another output folder or change its permissions",
        ),
        errno.EEXIST: ("a part of the path is a file, not a folder", "choose another output folder"),
        errno.EISDIR: ("a folder of this name is in the way", "name a file in it, or another file"),
        errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another output folder"),
    }
    if error.errno not in reasons:
        return error
    what, do = reasons[error.errno]
    return ResourceError(f"cannot write: {what}", file=path, do=do)
