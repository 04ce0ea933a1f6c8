"""A folder of masks of one structure in several scans is never taken for structures of one scan."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from labelwise import run
from labelwise.errors import DataError
from labelwise.formats import read_labels, value_names, write_labels
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parent))
from clinic import AFFINE, BOXES, label_map, write_scan

SEVERAL = (
    "{}",
    "p{}",
    "case_{:03d}",
    "liver_p{}",
    "p{}_liver",
    "patient {} liver",
    "2024-01-0{}_spleen",
    "liver{}",
)
ONE_SCAN = (
    ("liver", "spleen", "aorta"),
    ("vertebrae_L1", "vertebrae_L2", "vertebrae_L3"),
    ("rib_left_1", "rib_left_2", "rib_right_1"),
    ("kidney_left", "kidney_right", "tumour_1"),
    ("gtv", "ctv", "liver"),
    ("0_lesion", "1_Liver", "2_gtv"),
)


def masks(folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir()
    for name, structure in zip(names, BOXES, strict=False):
        write_labels(folder / f"{name}.nii.gz", Volume(label_map({structure: 1}), AFFINE))
    return folder


@pytest.mark.parametrize("pattern", SEVERAL)
def test_masks_that_are_named_after_patients_are_refused(tmp_path, pattern):
    folder = masks(tmp_path / "masks", tuple(pattern.format(number) for number in (1, 2, 3)))
    scan = write_scan(tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match="one structure in several scans") as caught:
        run.convert(folder, tmp_path / "out.nii.gz")
    assert "--classes liver=1" in str(caught.value)
    with pytest.raises(DataError, match="one structure in several scans"):
        run.show(folder, tmp_path / "pages", image=scan)
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize("pattern", SEVERAL)
def test_with_classes_each_of_them_is_converted_by_itself(tmp_path, pattern):
    names = tuple(pattern.format(number) for number in (1, 2, 3))
    run.convert(masks(tmp_path / "masks", names), tmp_path / "out", classes={"liver": 1})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(f"{n}.nii.gz" for n in names)
    for name, structure in zip(names, BOXES, strict=False):
        file = tmp_path / "out" / f"{name}.nii.gz"
        assert np.array_equal(read_labels(file).data, label_map({structure: 1}))
        assert value_names(file)[1] == "liver"


@pytest.mark.parametrize("names", ONE_SCAN)
def test_masks_that_are_named_after_structures_become_one_label_map(tmp_path, names):
    run.convert(masks(tmp_path / "masks", names), tmp_path / "out.nii.gz")
    assert set(value_names(tmp_path / "out.nii.gz").values()) == {"background", *names}


STRANGE = (("anna", "berta", "clara"), ("alpha", "beta_x", "Maier, J."), ("links", "rechts"), ("a", "b", "c"))


@pytest.mark.parametrize("names", STRANGE)
def test_names_that_nobody_knows_are_of_one_scan_only_if_it_is_named(tmp_path, names):
    folder = masks(tmp_path / "masks", names)
    scan = write_scan(tmp_path / "scans" / "scan.nii.gz")
    for like in (None, scan.parent):  # a folder of scans is not one
        with pytest.raises(DataError, match="one structure in several scans") as caught:
            run.convert(folder, tmp_path / "out.nii.gz", like=like)
        assert "--like" in str(caught.value)
        assert names[0] in str(caught.value)
        assert not (tmp_path / "out.nii.gz").exists()
    run.convert(folder, tmp_path / "out.nii.gz", like=scan)
    assert set(value_names(tmp_path / "out.nii.gz").values()) == {"background", *names}
    run.show(folder, tmp_path / "out.png", image=scan)
    with pytest.raises(DataError, match="one structure in several scans"):
        run.show(folder, tmp_path / "pages")


def test_a_single_mask_of_any_name_is_a_structure(tmp_path):
    run.convert(masks(tmp_path / "masks", ("thing",)), tmp_path / "out.nii.gz")
    assert value_names(tmp_path / "out.nii.gz")[1] == "thing"
