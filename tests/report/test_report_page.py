import base64
import gzip
import hashlib
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest

from labelwise.evaluate.scores import Score
from labelwise.report.compare import compare
from labelwise.report.figures import Picture, coverage_picture, learning_curves
from labelwise.report.overlays import CasePicture
from labelwise.report.page import MOST_CURVES, NIIVUE, curves_of, write_page
from labelwise.report.viewer import viewer_case
from labelwise.types import LabelSpace, Volume

VOID = {"meta", "link", "img", "br", "wbr"}
SPACE = LabelSpace(("background", "liver", "spleen"))
NASTY = '<script>alert("&")</script>'


class Outline(HTMLParser):
    """Tags in order, with attributes; raises where they are not nested properly."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def scores(shift, structures=("liver", "spleen"), cases=6):
    return [
        Score(f"case{n}", structure, "dice", 0.6 + shift + 0.03 * n, "ok")
        for n in range(cases)
        for structure in structures
    ]


def overlay(case, dice):
    picture = Picture(b"RIFF", "webp", f"Overlay of {case}", "axial slice 1 of 2")
    return CasePicture(case, picture, {"liver": dice}, {"liver": "#e69f00"}, "supervised")


def records():
    return [{"step": n, "event": "train", "loss": 1 / n, "terms": {"supervised": 1 / n}} for n in range(1, 9)]


@pytest.fixture
def page(tmp_path):
    def write(**options):
        arguments = {
            "title": "Two structures",
            "facts": {
                "seed": 3,
                "Settings": {"method": {"name": "mean_teacher", "channels": [1, 2]}, "none": None},
            },
            "comparison": compare({"supervised": scores(0), "mean_teacher": scores(0.1)}),
            "curves": {"supervised": learning_curves(records())},
            "worst": [overlay("good", 0.9), overlay("undefined", math.nan), overlay("bad", 0.2)],
            "coverage": coverage_picture({"lits": {"liver": 3}}, {"lits": 4}),
            "measured_on": "the test split",
            **options,
        }
        write_page(tmp_path / "report.html", **arguments)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_the_answer_comes_before_everything_else(page):
    text = page()
    order = [
        "mean_teacher has the best mean Dice",
        "Measured on the test split: 6 cases",
        "<table>",
        "<figure",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_sections_come_in_the_order_of_interest(page):
    assert Outline(page()).headings == [
        "Two structures",
        "Result",
        "Structure by structure",
        "Cases, worst first",
        "Training",
        "supervised",
        "Annotations in the data",
        "Settings and environment",
        "Settings",
    ]


def test_what_is_not_there_has_no_section(page):
    one = compare({"only": scores(0, ("atrium",))})
    text = page(comparison=one, facts={}, curves={"only": ()}, worst=[], coverage=None, measured_on="")
    assert Outline(text).headings == ["Two structures", "Result", "Structure by structure"]
    assert "Measured on 6 cases of 6 patients, atrium only" in text


def test_the_worst_case_is_shown_first_and_the_undefined_last(page):
    text = page()
    assert text.index(">bad<") < text.index(">good<") < text.index(">undefined<")


def test_the_page_asks_for_nothing_and_runs_nothing(page):
    text = page()
    outline = Outline(text)
    addresses = [a[name] for _, a in outline.tags for name in ("src", "href") if name in a]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not outline.named("script")
    assert "url(" not in text.replace("url(#", "")
    assert "default-src 'none'" in text


def test_every_text_is_escaped(page):
    text = page(
        title=NASTY,
        facts={NASTY: {NASTY: NASTY}},
        comparison=compare({NASTY: scores(0, (NASTY, "b")), "other": scores(0.1, (NASTY, "b"))}),
        curves={
            NASTY: learning_curves(
                [{"step": 1, "event": "train", "loss": 1.0, "terms": {NASTY: 1.0, "b": 2.0}}]
            )
        },
        worst=[CasePicture(NASTY, Picture(b"", "webp", NASTY, NASTY), {NASTY: 1.0}, {NASTY: NASTY}, NASTY)],
        best=[CasePicture(NASTY, Picture(b"", "webp", NASTY, NASTY), {NASTY: 1.0}, {NASTY: NASTY}, NASTY)],
        coverage=coverage_picture({NASTY: {NASTY: 1}}, {NASTY: 1}),
        measured_on=NASTY,
    )
    assert not Outline(text).named("script")
    assert text.count("&lt;script&gt;") > 10


def test_a_dollar_sign_is_only_a_dollar_sign(page):
    assert "<h1>$title costs 5 $</h1>" in page(title="$title costs 5 $")


def test_every_picture_has_words_and_every_table_a_caption(page):
    text = page()
    outline = Outline(text)
    assert all(image["alt"] for image in outline.named("img"))
    assert all(a.get("aria-label") for a in outline.named("div") if a.get("role") == "img")
    assert text.count("<table>") == text.count("<caption>") > 2
    assert {a["scope"] for a in outline.named("th")} == {"row", "col"}


def test_the_best_value_is_marked_for_eye_and_ear(page):
    assert re.search(r'<td class="best"><strong>77\.5</strong><span class="unseen"> best</span>', page())


def test_long_names_break_after_an_underscore_and_numbers_only_after_a_comma(page):
    """Else a name as long as a phone is wide hides all numbers, or runs into the picture beside it."""
    text = page(
        comparison=compare({"supervised": scores(0, cases=30), "mean_teacher": scores(0.1, cases=30)})
    )
    assert '<th scope="row"><span>mean_<wbr>teacher</span></th>' in text
    assert '<th scope="col"><span>mean_<wbr>teacher</span></th>' in text
    assert re.search(r"<small>\[\+10\.0,\n\+10\.0\],\np&nbsp;&lt;&nbsp;0\.001</small>", text)
    assert re.search(r"figcaption {[^}]*overflow-wrap: anywhere", text)


def test_a_single_curve_is_as_wide_as_one_of_two(page):
    assert re.search(r"\.curves {[^}]*auto-fill", page())


def test_settings_are_shown_as_dotted_names(page):
    text = page()
    assert "<dt>method.name</dt><dd>mean_teacher</dd>" in text
    assert "<dt>method.channels</dt><dd>1, 2</dd>" in text
    assert "<dt>none</dt><dd>–</dd>" in text
    assert "<dt>seed</dt><dd>3</dd>" in text


def test_the_page_says_that_it_is_no_medical_device(page):
    assert "Research use only, not a medical device." in page()


def test_undefined_values_are_listed(page):
    some = [*scores(0), Score("case9", "liver", "dice", math.nan, "both_empty")]
    text = page(comparison=compare({"a": some}))
    assert "a, Dice: 2 of 14 values left out (1 both empty, 1 missing)" in text
    assert "No value was undefined" in page()


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_light_and_dark_pages(page):
    """WCAG 2.2 AA: 4.5 to 1 for text."""
    values = re.findall(r"--(\w+): (#[0-9a-f]{6});", page())
    for theme in (dict(values[: len(values) // 2]), dict(values[len(values) // 2 :])):
        for ink in ("ink", "quiet"):
            for ground in ("page", "tint"):
                assert contrast(theme[ink], theme[ground]) > 4.5


def test_a_failed_write_leaves_the_old_page(tmp_path, page):
    before = page()
    with pytest.raises(AttributeError):
        page(comparison=None)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


NARROW = np.zeros((12, 10, 6), np.uint8)
NARROW[3:8, 3:8, 2:4] = 1


def seen_case(name="case0", **options):
    options = {"label_space": SPACE, "annotated": ("liver", "spleen"), **options}
    image = Volume(np.random.default_rng(0).normal(size=(1, *NARROW.shape)).astype(np.float32), np.eye(4))
    return viewer_case(name, image, NARROW, {"supervised": np.roll(NARROW, 1, 0)}, **options)


def test_a_page_with_a_viewer_runs_only_the_script_that_it_names_by_its_hash(page):
    text = page(viewer=[seen_case()])
    policy = unescape(re.search(r'script-src ([^"]*)"', text)[1])
    script = re.search(r"<script>(.*?)</script>", text, flags=re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"'sha256-{digest}' blob:"
    assert "default-src 'none'" in text
    assert "NiiVue (BSD 2-Clause" in text


def test_the_licence_of_the_viewer_is_shipped_beside_it():
    assets = resources.files("labelwise.report").joinpath("assets")
    assert "BSD 2-Clause License" in assets.joinpath("NIIVUE_LICENSE.txt").read_text()
    assert gzip.decompress(assets.joinpath(NIIVUE).read_bytes()).startswith(b"(function")


def test_names_cannot_break_out_of_the_data_of_the_viewer(page):
    space = LabelSpace(("background", "</script><b>x"))
    text = page(viewer=[seen_case("</script><b>x", label_space=space, annotated=())])
    assert "<b>x" not in text


def test_more_runs_than_curves_are_told(page):
    runs = {f"run{n}": scores(0.01 * n) for n in range(MOST_CURVES + 2)}
    comparison = compare(runs)
    assert curves_of(comparison) == tuple(f"run{n}" for n in range(2, MOST_CURVES + 2))
    curves = {run: learning_curves(records()) for run in curves_of(comparison)}
    assert f"Of the {MOST_CURVES} best runs." in page(comparison=comparison, curves=curves)


def test_the_pictures_of_one_case_stand_together(page):
    shown = [overlay("a", 0.5), overlay("b", 0.4), overlay("a", 0.1), overlay("b", 0.9)]
    text = page(worst=shown)
    assert re.findall(r"<figcaption><strong>(\w)<", text) == ["a", "a", "b", "b"]


def test_a_structure_that_vanished_is_told_in_scans(page):
    lost = [
        replace(one, value=0.0, status="prediction_empty") if one.case == "case1" else one
        for one in scores(0)
    ]
    text = page(comparison=compare({"a": lost}))
    assert text.count("5 of 6") == 2
    assert text.count("1&nbsp;missed") == 2
