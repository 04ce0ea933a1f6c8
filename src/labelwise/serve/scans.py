"""Scans that a client sends once and names in several requests. They expire like results."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from labelwise.errors import DataError, ResourceError
from labelwise.serve.limits import Limits
from labelwise.serve.uploads import store_scan


class Scans:
    """The scans of a server, by the names that clients gave them. No name becomes one of a file."""

    def __init__(self, root: Path, limits: Limits):
        self._root, self._limits = root, limits
        self._kept: dict[str, tuple[Path, float]] = {}
        self._change = threading.Lock()

    def keep(self, name: str, files: Sequence[tuple[str, BinaryIO]]) -> None:
        """Keep the files of one scan under a name; an older scan of that name is forgotten.

        Errors
            DataError       those of `store_scan`
            ResourceError   as many scans as may wait are kept
        """
        with self._change:
            if name not in self._kept and len(self._kept) >= self._limits.waiting:
                raise ResourceError(
                    "the server keeps enough scans",
                    found=len(self._kept),
                    do="send this scan again later",
                    code="busy",
                )
        folder = self._root / f"kept-{secrets.token_hex(8)}"
        try:
            store_scan(files, folder, self._limits)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._change:
            before = self._kept.pop(name, None)
            self._kept[name] = (folder, time.monotonic())
        if before is not None:
            shutil.rmtree(before[0], ignore_errors=True)

    def lend(self, name: str, folder: Path) -> None:
        """Put the files of a scan into a new folder, without copying them.

        Errors
            DataError   there is no such scan, or it has expired
        """
        with self._change:
            if name not in self._kept:
                raise DataError(
                    "there is no such scan, or it has expired", do="send it again", code="not-found"
                )
            kept, _ = self._kept[name]
            self._kept[name] = (kept, time.monotonic())
            shutil.copytree(kept, folder, copy_function=os.link)

    def forget(self, name: str) -> None:
        """Remove a scan, if it is there."""
        with self._change:
            found = self._kept.pop(name, None)
        if found is not None:
            shutil.rmtree(found[0], ignore_errors=True)

    def expire(self) -> None:
        """Remove what nobody has used for as long as results are kept."""
        before = time.monotonic() - self._limits.keep_seconds
        with self._change:
            old = [name for name, (_, used) in self._kept.items() if used < before]
        for name in old:
            self.forget(name)

    def __contains__(self, name: str) -> bool:
        with self._change:
            return name in self._kept

    def __len__(self) -> int:
        with self._change:
            return len(self._kept)
