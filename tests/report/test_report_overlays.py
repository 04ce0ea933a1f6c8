import io
import math

import matplotlib.image
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf

from labelwise.errors import DataError
from labelwise.report.overlays import case_picture, choose_slice, organ_colours
from labelwise.types import IGNORE, LabelSpace, Volume

SPACE = LabelSpace(("background", "liver", "spleen"))


def volume(data, spacing=(1.0, 1.0, 1.0)):
    return Volume(np.asarray(data, np.float32)[None], np.diag([*spacing, 1.0]))


def draw(image, reference, prediction, **options):
    options = {"label_space": SPACE, "dice": {"liver": 0.9, "spleen": math.nan}, **options}
    return case_picture("case7", image, reference, prediction, **options)


def pixels(shown):
    """(rows, columns, 3) in 0..1"""
    return matplotlib.image.imread(io.BytesIO(shown.picture.data), format="png")[..., :3]


def test_the_slice_with_the_most_wrong_voxels_is_chosen():
    reference = np.zeros((6, 6, 4), np.uint8)
    prediction = reference.copy()
    prediction[:2, :2, 1] = 1
    prediction[:3, :3, 2] = 1
    assert choose_slice(reference, prediction) == 2


def test_a_perfect_prediction_shows_the_largest_organ_area():
    reference = np.zeros((6, 6, 4), np.uint8)
    reference[:2, :2, 1] = 1
    reference[:3, :3, 3] = 2
    assert choose_slice(reference, reference) == 3


def test_unknown_voxels_are_never_wrong():
    reference = np.zeros((6, 6, 4), np.uint8)
    reference[..., 0] = IGNORE
    prediction = np.ones_like(reference)
    prediction[:3, :, 1:] = 0
    prediction[..., 3] = 1
    assert choose_slice(reference, prediction) == 3


def test_grids_must_agree():
    with pytest.raises(DataError, match="not on one grid"):
        choose_slice(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)))
    labels = np.zeros((4, 4, 2), np.uint8)
    with pytest.raises(DataError, match="case 'case7'"):
        draw(volume(np.zeros((4, 4, 3))), labels, labels)


def test_convention_the_right_of_the_patient_is_on_the_left_and_the_front_on_top():
    image = np.zeros((60, 60, 1))
    image[40:, 40:] = 1  # right, front
    nothing = np.zeros(image.shape, np.uint8)
    grey = pixels(draw(volume(image), nothing, nothing, window=(0, 1))).mean(axis=2)
    middle, centre = grey.shape[0] // 2, grey.shape[1] // 2
    brightness = {
        "top left": grey[:middle, :centre].mean(),
        "top right": grey[:middle, centre:].mean(),
        "bottom left": grey[middle:, :centre].mean(),
        "bottom right": grey[middle:, centre:].mean(),
    }
    brightest = brightness.pop("top left")
    assert brightest > 5 * max(brightness.values())


def test_convention_a_millimetre_is_as_long_across_as_upwards():
    """A square of 40 mm on voxels of 1 x 2 mm stays a square."""
    image = np.zeros((100, 50, 1))
    image[30:70, 15:35] = 1
    nothing = np.zeros(image.shape, np.uint8)
    bright = pixels(draw(volume(image, (1.0, 2.0, 5.0)), nothing, nothing, window=(0, 1))).mean(axis=2) > 0.5
    # Measured through the middle, where no sign stands.
    height, width = bright[100:-100, bright.shape[1] // 2].sum(), bright[bright.shape[0] // 2, 100:-100].sum()
    assert width > 50
    assert width == pytest.approx(height, rel=0.05)


def test_sides_are_not_written_where_the_file_does_not_tell_them():
    nothing = np.zeros((40, 40, 1), np.uint8)
    told, untold = (draw(volume(nothing), nothing, nothing, oriented=oriented) for oriented in (True, False))
    assert pixels(told)[180:250, :30].any()
    assert not pixels(untold)[180:250, :30].any()
    assert (told.picture.caption, untold.picture.caption) == ("axial slice 1 of 1", "slice 1 of 1")


def test_prediction_is_coloured_and_reference_is_a_line():
    image = volume(np.zeros((40, 40, 1)))
    organ = np.zeros((40, 40, 1), np.uint8)
    organ[10:30, 10:30] = 1
    nothing = np.zeros_like(organ)
    lined = np.ptp(pixels(draw(image, organ, nothing)), axis=2) > 0.1
    filled = np.ptp(pixels(draw(image, nothing, organ)), axis=2) > 0.1
    assert lined.any()
    assert filled.sum() > 3 * lined.sum()


def test_predictions_of_organs_that_are_not_annotated_are_not_drawn():
    image = volume(np.zeros((20, 20, 2)))
    reference = np.zeros((20, 20, 2), np.uint8)
    reference[5:9, 5:9, 0] = 1
    prediction = reference.copy()
    prediction[2:18, 2:18, 1] = 2  # spleen, of which this case says nothing
    partly, fully = (
        draw(image, reference, prediction, annotated=["liver"]),
        draw(image, reference, prediction),
    )
    assert partly.picture.caption == "axial slice 1 of 2"
    assert fully.picture.caption == "axial slice 2 of 2"
    assert list(partly.colours) == ["liver"]


@pytest.mark.parametrize("fill", [0, 1, IGNORE])
def test_empty_full_and_unknown_slices_can_be_drawn(fill):
    labels = np.full((9, 7, 1), fill, np.uint8)
    prediction = np.ones_like(labels)
    assert draw(volume(np.zeros((9, 7, 1))), labels, prediction).picture.data.startswith(b"\x89PNG")


def test_the_words_beside_the_picture_say_what_is_seen():
    labels = np.ones((9, 7, 3), np.uint8)
    shown = draw(volume(np.zeros((9, 7, 3))), labels, labels, run="mean_teacher")
    assert shown.picture.alt == (
        "Case case7, axial slice 1 of 3: prediction of mean_teacher as colour, reference as line. "
        "Dice: liver 90.0 %."
    )
    assert shown.mean_dice == pytest.approx(0.9)


def test_colours_are_distinct_for_any_number_of_organs():
    organs = [f"organ{n}" for n in range(40)]
    colours = organ_colours(organs)
    assert len(set(colours.values())) == 40
    assert all(len(colour) == 7 for colour in colours.values())


def test_drawing_leaves_no_figure_behind():
    labels = np.ones((9, 7, 1), np.uint8)
    draw(volume(np.zeros((9, 7, 1))), labels, labels)
    assert not Gcf.figs
