"""The page in a browser: it shows, scrolls and stays on its own. Skipped where Chromium or Playwright is absent."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromium import axe, needs_chromium
from chromium import browser as browser
from labelwise.evaluate.scores import Score
from labelwise.report.agreement import Reading, data_sets
from labelwise.report.compare import compare
from labelwise.report.cost import Budget, annotation_cost
from labelwise.report.figures import coverage_picture, learning_curves
from labelwise.report.overlays import case_picture
from labelwise.report.page import write_page
from labelwise.report.result import Structure, ready_result, result_panels
from labelwise.report.result_page import FoundCase, write_result_page
from labelwise.report.viewer import result_case, viewer_case
from labelwise.run import report as run_report
from labelwise.types import LabelSpace, Volume

pytestmark = needs_chromium
SPACE = LabelSpace(("background", "liver", "spleen"))
RUNS = ("supervised", "mean_teacher_with_a_long_name")
READY = "#viewer-root[data-state=ready]"
PATIENCE = 120_000  # ms; only to end a hang


def scores(shift):
    return [
        Score(f"case{n}", structure, metric, value, "ok", unit)
        for n in range(32)
        for structure in SPACE.structures
        for metric, value, unit in (
            ("dice", 0.6 + shift + 0.01 * (n % 7), ""),
            ("hd95", 9 - 10 * shift + n % 5, "mm"),
            ("reference_volume", 1.0 + n, "ml"),
        )
    ]


def scan(seed):
    """(1, X, Y, Z) noise with two bright boxes, the label map, and a prediction that is one voxel off."""
    labels = np.zeros((40, 36, 24), np.uint8)
    labels[8:20, 8:20, 4:14] = 1
    labels[22:32, 14:26, 8:20] = 2
    image = np.random.default_rng(seed).normal(0, 0.1, labels.shape) + labels
    return (
        Volume(image[None].astype(np.float32), np.diag([2.0, 2.0, 3.0, 1.0])),
        labels,
        np.roll(labels, 1, 2),
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    comparison = compare({run: scores(0.1 * n) for n, run in enumerate(RUNS)})
    records = [
        {"step": n, "event": "train", "loss": 1 / n, "terms": {"a": 0.5 / n, "b": 0.5 / n}}
        for n in range(1, 9)
    ]
    worst, viewer = [], []
    for case in ("case0", "case1"):
        image, labels, prediction = scan(0)
        options = {"label_space": SPACE, "annotated": SPACE.structures}
        dice = {"liver": 0.8, "spleen": 0.7}
        worst += [
            case_picture(case, image, labels, prediction, dice=dice, run=run, **options) for run in RUNS
        ]
        viewer.append(viewer_case(case, image, labels, dict.fromkeys(RUNS, prediction), **options))
    write_page(
        file,
        title="Two structures",
        facts={"seed": 3, "Settings": {"steps": [1, 2]}},
        comparison=comparison,
        curves={run: learning_curves(records) for run in RUNS},
        worst=worst,
        best=worst[:1],
        viewer=viewer,
        coverage=coverage_picture({"lits": {"liver": 3}}, {"lits": 4}),
        data_sets=sites(),
        cost=worth(),
    )
    return file


def sites():
    """Two data sets of which one draws larger, by models that have learnt from the other."""
    return data_sets(
        "supervised",
        [
            Reading(
                (left_out,), name, name == left_out, f"{name}{n}", f"{name}{n}", "liver", 0.7 + 0.01 * n, 0.7
            )
            for left_out in ("a data set with a long name", "b")
            for name in ("a data set with a long name", "b")
            for n in range(8)
        ],
    )


def worth():
    """The worth of labels for two methods, with bands."""
    of_case = np.random.default_rng(0).normal(0, 0.05, (1, 32, 2))
    rows = {
        run: [
            Budget(f"n{n}", {"liver": n, "spleen": n}, n, 0.9 - 0.1 * place - 0.6 / np.sqrt(n) + of_case)
            for n in (4, 8, 16)
        ]
        for place, run in enumerate(RUNS)
    }
    return annotation_cost(rows, SPACE.structures, np.arange(32), (0.8, 0.9), resamples=50)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The page of a result without a reference."""
    file = tmp_path_factory.mktemp("page") / "found.html"
    image, labels, _ = scan(0)
    structures = {1: Structure("liver", (221, 130, 101)), 2: Structure("spleen", (157, 108, 162))}
    result = ready_result(Volume(labels, image.affine), structures, image)
    rows = [(one.name, "#dd8265", "12.5 ml") for one in structures.values()]
    case = FoundCase("case0", result_panels(result, "case0"), rows, ("pancreas",), ["the scan is not in HU"])
    viewer = result_case("case0", image, labels, structures)
    write_result_page(file, title="case0", cases=[case], viewer=[viewer], oriented=True)
    return file


@pytest.fixture(scope="module", params=["acdc", "la2018"])
def real_report(request, tmp_path_factory):
    """The page of trained runs on real scans, all test cases in the viewer."""
    place = Path(os.environ.get("LABELWISE_TEST_RUNS", "nowhere")) / request.param
    runs = sorted(file.parent for file in place.glob("*/scores.csv"))
    if not runs:
        pytest.skip(f"LABELWISE_TEST_RUNS names no folder with evaluated runs in {request.param}/")
    file = tmp_path_factory.mktemp(request.param) / "report.html"
    return run_report(runs, file, title=f"Runs on {request.param}", viewer_cases=20)


@pytest.fixture
def opened(browser, report):
    """Opens the report; what goes wrong in it, and what it asks for, is kept in ``wrong``."""
    contexts = []

    def call(width=1280, scheme="light", file=report, **options):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on(
            "console",
            lambda said: page.wrong.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.on("request", lambda asked: page.wrong.append(asked.url) if not local(asked.url) else None)
        page.goto(file.as_uri())
        return page

    yield call
    for context in contexts:
        context.close()


def local(address):
    return address.startswith(("file:", "data:", "blob:"))


def view(page):
    page.locator("#viewer-root").scroll_into_view_if_needed()
    page.locator(READY).wait_for()
    page.wait_for_timeout(300)
    return page


def drawn(page):
    """(rows, columns, 3) what the canvas shows."""
    return np.asarray(
        Image.open(io.BytesIO(page.locator("#viewer-canvas").screenshot())).convert("RGB"), np.int16
    )


def moved(before, after):
    return float((np.abs(before - after).max(axis=2) > 20).mean())


def test_the_viewer_draws_scrolls_and_shows_what_is_chosen(opened):
    page = view(opened(width=700))
    page.select_option("#viewer-view", "0")
    page.wait_for_timeout(300)
    first = drawn(page)
    assert (first > 40).mean() > 0.1, "the canvas is blank"
    page.locator("#viewer-canvas").focus()
    page.keyboard.press("PageUp")
    page.wait_for_timeout(300)
    assert page.locator("#viewer-slice-number").inner_text() == "17 of 24"
    scrolled = drawn(page)
    assert moved(first, scrolled) > 0.01, "another slice shows the same"
    page.select_option("#viewer-layer", "differs/1")
    page.wait_for_timeout(300)
    assert page.locator("#viewer-classes label").all_inner_texts() == [
        "too much",
        "missing",
        "another structure",
    ]
    assert moved(scrolled, drawn(page)) > 0.005, "what differs looks like the prediction"
    page.select_option("#viewer-layer", "nothing")
    page.wait_for_timeout(300)
    plain = drawn(page)
    assert np.ptp(plain, axis=2).mean() < np.ptp(first, axis=2).mean(), "the scan alone is coloured"
    page.select_option("#viewer-layer", "map/0")
    page.locator("#viewer-classes input").first.uncheck()
    page.select_option("#viewer-case", "1")
    page.locator(READY).wait_for()
    assert "case1" in page.locator("#viewer-status").inner_text()
    assert page.wrong == []


def test_the_page_asks_for_nothing_and_says_no_error(opened):
    page = opened()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    view(page)
    assert page.wrong == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(opened, width):
    page = opened(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier_is_found_by_axe(opened, scheme):
    page = view(opened(scheme=scheme, bypass_csp=True))
    found = axe.Axe().run(page).response["violations"]
    serious = {
        one["id"]: [node["html"][:120] for node in one["nodes"]][:3]
        for one in found
        if one["impact"] in ("serious", "critical")
    }
    assert serious == {}


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_result_without_a_reference_is_drawn_fits_the_screen_and_has_no_barrier(
    opened, found, width, scheme
):
    page = view(opened(width=width, scheme=scheme, file=found, bypass_csp=True))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#viewer-layer").input_value() == "map/0"
    assert page.locator("#viewer-classes label").all_inner_texts() == ["liver", "spleen"]
    coloured = drawn(page)
    page.select_option("#viewer-layer", "nothing")
    page.wait_for_timeout(300)
    assert np.ptp(drawn(page), axis=2).mean() < np.ptp(coloured, axis=2).mean()
    assert {one["impact"] for one in axe.Axe().run(page).response["violations"]} <= {"minor", "moderate"}
    assert page.wrong == []


@pytest.mark.real_data
def test_a_report_of_real_runs_is_small_quiet_and_its_viewer_draws_and_scrolls(opened, real_report):
    assert real_report.stat().st_size < 15e6
    page = view(opened(width=700, file=real_report))
    assert page.locator("#viewer-case option").count() == 20
    page.select_option("#viewer-view", "0")
    page.wait_for_timeout(300)
    first = drawn(page)
    assert (first > 40).mean() > 0.05, "the canvas is blank"
    page.locator("#viewer-canvas").focus()
    for _ in range(2):
        page.keyboard.press("PageUp")
    page.wait_for_timeout(300)
    assert moved(first, drawn(page)) > 0.005, "another slice shows the same"
    assert page.wrong == []


@pytest.mark.real_data
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_of_real_runs_fits_the_screen_and_has_no_barrier(opened, real_report, width, scheme):
    page = view(opened(width=width, scheme=scheme, file=real_report, bypass_csp=True))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert {one["impact"] for one in axe.Axe().run(page).response["violations"]} <= {"minor", "moderate"}
    assert page.wrong == []


def test_the_page_prints_without_the_viewer(opened):
    page = opened()
    page.emulate_media(media="print")
    assert not page.locator(".viewer").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_webgl_the_page_says_why_there_is_no_viewer(browser, report):
    context = browser.new_context()
    context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page = context.new_page()
    page.goto(report.as_uri())
    page.locator("#viewer-root").scroll_into_view_if_needed()
    page.locator("#viewer-root[data-state=failed]").wait_for(state="attached", timeout=PATIENCE)
    assert "WebGL 2" in page.locator("#viewer-status").inner_text()
    context.close()
