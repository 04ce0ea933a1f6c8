"""The page of the server in a browser: a scan is dropped, followed, shown and downloaded. Skipped without Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import AFFINE, PATIENCE, running, voxels
from served import expected as expected
from served import model as model
from served import scans as scans

from chromium import axe, needs_chromium
from chromium import browser as browser
from labelwise.formats import write_image
from labelwise.types import Volume

pytestmark = needs_chromium
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    """A server that wants a token."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "token").write_text(TOKEN)
    with running([model], folder / "audit.jsonl", token_file=folder / "token") as client:
        yield str(client.base_url)


@pytest.fixture
def opened(browser, address):
    """Opens the page and hands it the token; what goes wrong, and what it asks of others, is kept in ``wrong``."""
    contexts = []

    def call(width, scheme):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("request", lambda asked: page.wrong.append(asked.url) if not ours(asked.url) else None)
        page.goto(address)
        page.locator("#token").fill(TOKEN)
        page.locator("#token").press("Enter")
        page.locator("#model option").wait_for(state="attached")
        return page

    def ours(asked):
        return asked.startswith((address, "data:", "blob:"))

    yield call
    for context in contexts:
        context.close()


def require_no_barrier(page):
    found = axe.Axe().run(page).response["violations"]
    assert {
        one["id"]: one["nodes"][0]["html"][:120] for one in found if one["impact"] in ("serious", "critical")
    } == {}


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_scan_is_chosen_followed_shown_and_downloaded(opened, scans, expected, tmp_path, width, scheme):
    page = opened(width, scheme)
    assert page.locator("#classes").inner_text().startswith("Finds ")
    require_no_barrier(page)
    page.locator("#files").set_input_files(scans / "scan.nii.gz")
    page.get_by_role("button", name="Download NIfTI").wait_for()
    assert "Done by structures" in page.locator(".state").inner_text()
    assert "voxel size" in page.locator(".warnings").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download NIfTI").press("Enter")
    assert download.value.suggested_filename == "scan.nii.gz"
    assert Path(download.value.path()).read_bytes() == expected("scan.nii.gz", "nifti")
    frame = page.frame_locator("iframe")
    frame.locator("#viewer-root").scroll_into_view_if_needed()
    frame.locator("#viewer-root[data-state=ready]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    require_no_barrier(page)
    page.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
    page.get_by_role("button", name="Remove from the server").click()
    page.locator(".job").wait_for(state="detached")
    assert page.wrong == []


def test_a_folder_of_dicom_travels_as_one_archive_and_comes_back_as_dicom_seg(opened, scans):
    page = opened(700, "light")
    page.locator("#folder").set_input_files(scans / "series")
    page.get_by_role("button", name="Download DICOM-SEG").wait_for()
    assert page.locator(".job h2").inner_text() == "series"
    assert page.wrong == []


def test_what_is_wrong_with_a_scan_stands_on_the_page(opened, tmp_path):
    page = opened(700, "light")
    (tmp_path / "broken.nii.gz").write_bytes(b"noise")
    (tmp_path / "letter.txt").write_text("Dear colleague")
    write_image(tmp_path / "good.nii.gz", Volume(voxels(1)[None], AFFINE))
    page.locator("#files").set_input_files(
        [tmp_path / name for name in ("broken.nii.gz", "good.nii.gz", "letter.txt")]
    )
    page.get_by_role("button", name="Download NIfTI").wait_for()
    assert page.locator("#problem").inner_text().startswith("1 file passed over")
    page.locator(".state.caution").wait_for()
    assert "cannot be read" in page.locator(".state.caution").inner_text()
    assert page.wrong == []


def test_the_policy_of_the_page_lets_nothing_in_from_elsewhere(browser, address):
    page = browser.new_page()
    page.goto(address)
    refused = page.evaluate(
        """() => new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.intruder = true";
          document.head.append(script);
        })"""
    )
    assert refused.startswith("script-src")
    assert page.evaluate("window.intruder") is None
    page.close()
