"""One program at a time in a folder, by a lock of the operating system: it ends with the program, however that ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labelwise.atomic import explained
from labelwise.errors import ResourceError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Hold `folder` (made if it is missing) for this process; what stays empty is removed again.

    On file systems without locks this only makes sure that the folder can be written to.

    Errors
        ResourceError   another program is writing into the folder, or nobody can
    """
    folder = Path(folder)
    is_new, file = not folder.exists(), folder / LOCK
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor, file):
            raise ResourceError(
                "another program is writing into this folder",
                file=folder,
                do="wait until it ends, or choose another folder",
            )
        try:
            yield
        finally:
            _remove(file)
    finally:
        os.close(descriptor)
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _lock(descriptor: int, file: Path) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    # The holder before may have removed the file after this process had opened it: then nothing is held.
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def _remove(file: Path) -> None:
    with suppress(OSError):  # Windows keeps a file that is open; the next program takes it over
        file.unlink()
