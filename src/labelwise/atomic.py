"""Files appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labelwise.errors import ResourceError

# What a system answers when a folder is renamed over another: Linux, others, Windows.
_FOLDER_IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES)


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
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
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


def discard_leftovers(path: Path | str, *, days: float = 0) -> None:
    """Remove what processes that were killed while writing `path` have left under temporary names.

    The name of `path` may hold wildcards. With `days`, only what is older: other processes may be writing there.
    """
    path, newest = Path(path), time.time() - 86400 * days
    for temporary in path.parent.glob(f".????????.{path.name}"):
        with suppress(FileNotFoundError):  # it was renamed meanwhile
            if not days or temporary.stat().st_mtime < newest:
                _discard(temporary)


@contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Errors of the operating system while writing `path` become ResourceErrors with a remedy."""
    try:
        yield
    except OSError as error:
        raise _as_resource_error(error, Path(path)) from error


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
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
    aside = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
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
