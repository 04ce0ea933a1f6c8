import io
import math

import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from PIL import Image

from labelwise.errors import DataError
from labelwise.report.overlays import case_picture, choose_slice, structure_colours, what_differs
from labelwise.types import IGNORE, LabelSpace, Volume

SPACE = LabelSpace(("background", "liver", "spleen"))


def volume(data, spacing=(1.0, 1.0, 1.0)):
    return Volume(np.asarray(data, np.float32)[None], np.diag([*spacing, 1.0]))


def draw(image, reference, prediction, **options):
    options = {"label_space": SPACE, "dice": {"liver": 0.9, "spleen": math.nan}, **options}
    return case_picture("case7", image, reference, prediction, **options)


def pixels(shown):
    """(rows, columns, 3) in 0..1"""
    return np.asarray(Image.open(io.BytesIO(shown.picture.data)).convert("RGB"), np.float32) / 255


def panel(shown, row, column, rows=3):
    """One of the panels; right for pictures whose rows are equally high."""
    whole = pixels(shown)
    height, width = whole.shape[0] // rows, whole.shape[1] // 3
    return whole[row * height : (row + 1) * height, column * width : (column + 1) * width]


def test_the_slice_with_the_most_wrong_voxels_is_chosen():
    reference = np.zeros((6, 6, 4), np.uint8)
    prediction = reference.copy()
    prediction[:2, :2, 1] = 1
    prediction[:3, :3, 2] = 1
    assert choose_slice(reference, prediction) == 2


def test_a_perfect_prediction_shows_the_largest_structure_area():
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


def test_convention_the_right_of_the_patient_is_on_the_left_and_front_and_head_are_on_top():
    """A bright corner at the right, the front and the head, seen in all planes; from the side the front is left."""
    image = np.zeros((60, 60, 60))
    image[40:, 40:, 40:] = 1
    nothing = np.zeros(image.shape, np.uint8)
    prediction = np.zeros_like(nothing)
    prediction[45:55, 45:55, 45:55] = 1  # where the slices are taken
    prediction[20:59, 20:59, 50] = prediction[20:59, 50, 20:59] = prediction[50, 20:59, 20:59] = 1
    shown = draw(volume(image), nothing, prediction, window=(0, 1), oriented=False)
    for row in range(3):
        grey = panel(shown, row, 0).mean(axis=2)
        middle, centre = grey.shape[0] // 2, grey.shape[1] // 2
        brightness = {
            "top left": grey[:middle, :centre].mean(),
            "top right": grey[:middle, centre:].mean(),
            "bottom left": grey[middle:, :centre].mean(),
            "bottom right": grey[middle:, centre:].mean(),
        }
        assert max(brightness, key=brightness.get) == "top left"


def test_convention_a_millimetre_is_as_long_across_as_upwards():
    """A cube of 40 mm on voxels of 1 x 2 x 4 mm is a square in all planes."""
    image = np.zeros((100, 50, 25))
    image[30:70, 15:35, 7:17] = 1
    cube = image.astype(np.uint8)
    shown = draw(volume(image, (1.0, 2.0, 4.0)), cube, cube, window=(0, 1), oriented=False)
    for row in range(3):
        bright = panel(shown, row, 2).mean(axis=2) > 0.5  # nothing differs, so nothing is coloured
        height = bright[:, bright.shape[1] // 2].sum()
        width = bright[bright.shape[0] // 2].sum()
        assert width > 40
        assert width == pytest.approx(height, rel=0.12)


def test_sides_are_not_written_where_the_file_does_not_tell_them():
    nothing = np.zeros((40, 40, 40), np.uint8)
    told, untold = (draw(volume(nothing), nothing, nothing, oriented=oriented) for oriented in (True, False))
    left = np.s_[60:130, :30]
    assert (panel(told, 0, 0)[left] > 0.5).any()
    assert not (panel(untold, 0, 0)[left] > 0.5).any()
    assert told.picture.caption == "axial slice 1 of 40, coronal slice 1 of 40, sagittal slice 1 of 40"
    assert untold.picture.caption == "Z slice 1 of 40, Y slice 1 of 40, X slice 1 of 40"


def test_reference_prediction_and_what_differs_stand_side_by_side():
    image = volume(np.zeros((40, 40, 40)))
    structure = np.zeros((40, 40, 40), np.uint8)
    structure[10:30, 10:30, 10:30] = 1
    nothing = np.zeros_like(structure)

    def coloured(shown):
        return [bool((np.ptp(panel(shown, 0, column), axis=2) > 0.1).mean() > 0.05) for column in range(3)]

    assert coloured(draw(image, structure, nothing)) == [True, False, True]
    assert coloured(draw(image, nothing, structure)) == [False, True, True]
    assert coloured(draw(image, structure, structure)) == [True, True, False]


def test_what_is_too_much_missing_or_another_structure_is_told_apart():
    reference = np.array([0, 1, 1, 1, 2, IGNORE])
    prediction = np.array([1, 0, 2, 1, 2, 1])
    assert what_differs(reference, prediction).tolist() == [1, 2, 3, 0, 0, 0]


def test_predictions_of_structures_that_are_not_annotated_are_not_drawn():
    image = volume(np.zeros((20, 20, 2)))
    reference = np.zeros((20, 20, 2), np.uint8)
    reference[5:9, 5:9, 0] = 1
    prediction = reference.copy()
    prediction[2:18, 2:18, 1] = 2  # spleen, of which this case says nothing
    partly, fully = (
        draw(image, reference, prediction, annotated=["liver"]),
        draw(image, reference, prediction),
    )
    assert partly.picture.caption.startswith("axial slice 1 of 2")
    assert fully.picture.caption.startswith("axial slice 2 of 2")
    assert list(partly.colours) == ["liver"]


@pytest.mark.parametrize("fill", [0, 1, IGNORE])
def test_empty_full_and_unknown_slices_can_be_drawn(fill):
    labels = np.full((9, 7, 1), fill, np.uint8)
    prediction = np.ones_like(labels)
    assert draw(volume(np.zeros((9, 7, 1))), labels, prediction).picture.data.startswith(b"RIFF")


def test_the_words_beside_the_picture_say_what_is_seen():
    labels = np.ones((9, 7, 3), np.uint8)
    shown = draw(volume(np.zeros((9, 7, 3))), labels, labels, run="mean_teacher")
    assert shown.picture.alt == (
        "Case case7, axial slice 1 of 3, coronal slice 1 of 7, sagittal slice 1 of 9: reference, prediction of "
        "mean_teacher, and what differs. Dice: liver 90.0 %."
    )
    assert shown.mean_dice == pytest.approx(0.9)


def test_colours_are_distinct_for_any_number_of_structures():
    structures = [f"structure{n}" for n in range(40)]
    colours = structure_colours(structures)
    assert len(set(colours.values())) == 40
    assert all(len(colour) == 7 for colour in colours.values())


def test_drawing_leaves_no_figure_behind():
    labels = np.ones((9, 7, 1), np.uint8)
    draw(volume(np.zeros((9, 7, 1))), labels, labels)
    assert not Gcf.figs
