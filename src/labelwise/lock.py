"""One program at a time in a folder, by a lock of the operating system: it ends with the program, however that ends."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from labelwise.atomic import explained
from labelwise.errors import ResourceError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP)


@contextmanager
def only_writer(folder: Path | str) -> Iterator[None]:
    """Hold `folder` (made if it is missing) for this process; what stays empty is removed again.

    On file systems without locks this only makes sure that the folder can be written to.

    Errors
        ResourceError   another program is writing into the folder, or nobody can
    """
    folder = Path(folder)
    is_new, file = not folder.exists(), folder / LOCK
    lock = FileLock(file, timeout=0)
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _acquire(lock, folder)
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows keeps a file that is open; it goes with the release
                file.unlink()
            lock.release()
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire()
    except Timeout as error:
        raise ResourceError(
            "another program is writing into this folder",
            file=folder,
            do="wait until it ends, or choose another folder",
            code="locked",
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        (folder / LOCK).unlink(missing_ok=True)
