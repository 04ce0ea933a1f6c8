"""What happened, step by step: ``log.jsonl`` with one JSON object per line, and progress for whoever watches."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from labelwise.atomic import atomic_path, explained, write_text
from labelwise.documents import parse_json
from labelwise.errors import warn_about

if TYPE_CHECKING:  # `report` reads logs, and needs none of them
    from lightning_fabric.loggers.logger import Logger


PICTURES = "pictures"  # in the folder of a run


class Record:
    """The log of a run. Written by rank 0 only; other ranks pass ``path=None``.

    A resumed run first drops the events behind its checkpoint `keep_until` (stage, step), so that every step
    stands in the log once. Further `loggers` of Fabric are told the numbers of each event, at its step plus those of
    the stages before.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        keep_until: tuple[int, int] = (0, 0),
        loggers: Sequence[Logger] = (),
        steps_before: int = 0,
    ):
        self.path, self.loggers, self.steps_before = path, list(loggers), steps_before
        if path is not None and path.exists():
            kept = [event for event in read_log(path) if (event.get("stage", 0), event["step"]) <= keep_until]
            write_text(path, "".join(json.dumps(event) + "\n" for event in kept))

    def write(self, event: str, step: int, **facts: Any) -> None:
        """Append one event, flushed, so that a killed run loses nothing of its log."""
        if self.path is None:
            return
        known = {name: None if value != value else value for name, value in facts.items()}  # JSON has no NaN
        line = json.dumps({"time": round(time.time(), 3), "step": step, "event": event, **known})
        with explained(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        numbers = _numbers(event, facts)
        self._tell(lambda logger: logger.log_metrics(numbers, self.steps_before + step))

    def show(self, pictures: Mapping[str, bytes], step: int, folder: Path) -> None:
        """Keep pictures (name -> WebP) as ``folder/NAME/step_000100.webp``; loggers that take any get them too."""
        step += self.steps_before
        for name, data in pictures.items():
            with atomic_path(folder / name / f"step_{step:06d}.webp") as temporary:
                temporary.write_bytes(data)
            self._tell(partial(_show, name=name, data=data, step=step))

    def end(self, status: str) -> None:
        """Tell the loggers how the training ended: success, interrupted or failed."""
        self._tell(lambda logger: logger.finalize(status))

    def _tell(self, tell: Callable[[Any], None]) -> None:
        """Tell all loggers something. One that fails is left alone from then on: it must not cost a training."""
        for logger in tuple(self.loggers):
            try:
                with redirect_stdout(sys.stderr):  # what it says must not stand in a result
                    tell(logger)
            except Exception as error:  # noqa: BLE001 - of another package, or of a server that is not there any more
                self.loggers.remove(logger)
                warn_about(
                    f"a logger fails ({type(error).__name__}: {error}): the training goes on without it, and log.jsonl "
                    "holds everything",
                    [type(logger).__name__],
                )


def _show(logger: Any, *, name: str, data: bytes, step: int) -> None:
    if (log_image := getattr(logger, "log_image", None)) is not None:
        rows = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        log_image(key=f"validation/{name}", images=[rows], step=step)


def _numbers(event: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """What a logger shows of an event; a score that is undefined is left out."""
    if event == "validation":
        is_defined = facts["score"] == facts["score"]  # NaN is not itself
        return {"validation/dice": facts["score"]} if is_defined else {}
    terms = {f"term/{name}": value for name, value in facts.get("terms", {}).items()}
    return {name: facts[name] for name in ("loss", "rate") if name in facts} | terms


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log. A last line cut off by a kill is left out, and so is whatever is no event."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "step" in event:
            events.append(event)
    return events
