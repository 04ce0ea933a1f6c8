"""The page of results without a reference: what was found in each case, in pictures, in numbers and in the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labelwise.atomic import write_text
from labelwise.report.figures import Picture
from labelwise.report.page import style, template, viewer_parts
from labelwise.report.viewer import ViewerCase


@dataclass(frozen=True)
class FoundCase:
    """What a page says of a case."""

    case: str
    panels: tuple[Picture, ...]
    volumes: Sequence[tuple[str, str, str]]  # structure, "#rrggbb", volume in words
    absent: tuple[str, ...]  # structures without a voxel
    warnings: Sequence[str]  # what was said of the scan when it was segmented


def write_result_page(
    path: Path, *, title: str, cases: Sequence[FoundCase], viewer: Sequence[ViewerCase], oriented: bool
) -> None:
    """Write the page, atomically.

    Errors
        ResourceError   the file cannot be written
    """
    page = template("result.html").render(
        title=title, cases=cases, style=style(), **viewer_parts(viewer, oriented=oriented)
    )
    write_text(path, page)
