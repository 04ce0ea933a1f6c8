"""A file is understood once: what was read of it is kept in memory until the file changes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
_MOST = 20_000  # files; headers have a few hundred bytes each
_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system ticks every two seconds


def once_per_file(read: Callable[[Path], Result]) -> Callable[[Path], Result]:
    """`read`, but what it returned for a file is returned again while the file is the same one, of one size and time.

    The result is shared: nobody may change it. Errors are not kept. Neither is what was read of a file that has
    changed a moment ago: it may change again within one tick of its clock.
    """
    kept: OrderedDict[Path, tuple[tuple[int, ...], Result]] = OrderedDict()

    @wraps(read)
    def remembering(path: Path) -> Result:
        try:
            status = path.stat()
        except OSError:
            return read(path)  # which says what is wrong
        state = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = kept.get(path)
        if known is not None and known[0] == state:
            return known[1]
        result = read(path)
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            kept[path] = (state, result)
            while len(kept) > _MOST:
                kept.popitem(last=False)
        return result

    return remembering
