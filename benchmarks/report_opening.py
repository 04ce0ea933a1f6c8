"""How long a report takes to open in a browser: until it can be read, and until its viewer shows the first scan.

    python benchmarks/report_opening.py acdc=runs/acdc la2018=runs/la2018

Each folder holds evaluated runs on real scans. Their report shows 20 cases in the viewer; it is opened several times
in headless Chromium, and WebGL is drawn by the processor. Seconds on the clock are those of this machine with whatever
else runs on it; processor seconds, of all processes of the browser together, are what a free core would take at most.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from metadata import write_result
from playwright.sync_api import sync_playwright

from labelwise import run

CASES, REPEATS = 20, 3
SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 120_000  # ms; only to end a hang


def processor_seconds() -> float:
    """Of all processes that this one has started."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def opened(page: Path) -> list[tuple[float, float, float]]:
    """Seconds until the page is loaded; until the viewer is ready if scrolled to at once, by clock and processor."""
    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=SOFTWARE)
        for _ in range(REPEATS):
            tab = browser.new_page(viewport={"width": 1280, "height": 800})
            start, worked = time.perf_counter(), processor_seconds()
            tab.goto(page.as_uri(), timeout=PATIENCE)
            loaded = time.perf_counter() - start
            tab.locator("#viewer-root").scroll_into_view_if_needed()
            tab.locator("#viewer-root[data-state=ready]").wait_for(timeout=PATIENCE)
            found.append((loaded, time.perf_counter() - start, processor_seconds() - worked))
            tab.close()
        browser.close()
    return found


def measured(runs: Path, scratch: Path) -> dict[str, Any]:
    """Size and times of the report on the runs in a folder."""
    folders = sorted(file.parent for file in runs.glob("*/scores.csv"))
    start = time.perf_counter()
    page = run.report(folders, scratch / "report.html", viewer_cases=CASES)
    made = time.perf_counter() - start
    loaded, ready, worked = zip(*opened(page), strict=True)
    return {
        "runs": len(folders),
        "viewer_cases": CASES,
        "page_mb": round(page.stat().st_size / 1e6, 2),
        "made_in_seconds": round(made, 1),
        "loaded_after_seconds": round(statistics.median(loaded), 2),
        "viewer_ready_after_seconds": round(statistics.median(ready), 2),
        "processor_seconds_until_then": round(statistics.median(worked), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", help="name=folder of evaluated runs")
    found = {}
    for text in parser.parse_args().runs:
        name, _, folder = text.partition("=")
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = measured(Path(folder), Path(scratch))
        print(name, found[name])
    write_result("report_opening", {"repeats": REPEATS, "measured": found})


if __name__ == "__main__":
    main()
