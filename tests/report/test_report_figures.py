import re
import xml.etree.ElementTree as ElementTree

import pytest

from labelwise.report.figures import coverage_picture, learning_curves


def log(steps=20, terms=("supervised", "consistency"), stage=0):
    records = []
    for step in range(1, steps + 1):
        values = {name: (n + 1) / step for n, name in enumerate(terms)}
        fields = {"step": step, "stage": stage, "time": 0.0}
        records.append({**fields, "event": "train", "loss": sum(values.values()), "terms": values})
        if step % 5 == 0:
            records.append({**fields, "event": "validation", "score": step / (2 * steps)})
    return records


@pytest.fixture(scope="module")
def curves():
    return learning_curves(log())


def texts(picture):
    root = ElementTree.fromstring(picture.data)
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_log_gives_a_loss_and_a_score_picture(curves):
    loss, score = curves
    assert {"loss", "supervised", "consistency", "step"} <= set(texts(loss))
    assert "validation score" in texts(score)
    assert score.alt == "Validation score: best 0.500 at step 20 of 20."


def test_steps_of_a_second_stage_are_counted_on():
    loss, score = learning_curves(log(stage=1) + log(stage=0))
    assert "40 steps" in loss.alt
    assert score.alt.endswith("of 40.")


def test_nothing_logged_gives_no_picture():
    assert learning_curves([]) == ()
    assert learning_curves([{"event": "start", "step": 0}]) == ()
    assert len(learning_curves([r for r in log() if r["event"] == "train"])) == 1


def test_an_undefined_score_and_a_missing_term_are_gaps():
    records = [*log(), {"step": 21, "event": "validation", "score": None}]
    records.append({"step": 21, "event": "train", "loss": -0.5, "terms": {"late": -0.5}})
    loss, score = learning_curves(records)
    assert "late" in texts(loss)
    assert "best 0.500" in score.alt
    assert "never defined" in learning_curves([{"step": 1, "event": "validation", "score": None}])[0].alt


def test_a_curve_of_any_length_stays_small():
    short, long = learning_curves(log(steps=400))[0], learning_curves(log(steps=4000))[0]
    assert len(long.data) < 1.3 * len(short.data)


def test_equal_logs_give_equal_bytes(curves):
    assert learning_curves(log()) == curves


def test_two_pictures_in_one_page_do_not_share_ids(curves):
    ids = [set(re.findall(r'\bid="([^"]+)"', picture.data.decode())) for picture in curves]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_every_reference_inside_a_picture_finds_its_target(curves):
    text = curves[0].data.decode()
    targets = re.findall(r'(?:url\(#|href="#)([^)"]+)', text)
    assert targets
    assert set(targets) <= set(re.findall(r'\bid="([^"]+)"', text))


def test_a_picture_takes_the_colour_of_the_page_and_asks_for_nothing(curves):
    text = curves[0].data.decode()
    assert "currentColor" in text
    assert "#010203" not in text
    assert "<style" not in text
    assert not re.findall(r'(?:href|src)="(?!#)', text)


def test_coverage_shows_every_count():
    picture = coverage_picture({"lits": {"liver": 100}, "kits": {"kidney": 7}}, {"lits": 131, "kits": 210})
    assert {"100", "7", "liver", "kidney", "131 cases"} <= set(texts(picture))
    assert "lits: liver 100" in picture.alt
    assert "1 case" in texts(coverage_picture({"lits": {"liver": 1}}, {"lits": 1}))


def test_any_name_can_be_drawn():
    names = ["a$b$", "<script>", "脾脏"]
    assert set(names) <= set(
        texts(coverage_picture({name: dict.fromkeys(names, 1) for name in names}, dict.fromkeys(names, 2)))
    )
    assert set(names) <= set(texts(learning_curves(log(terms=names))[0]))
