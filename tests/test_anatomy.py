"""The table of anatomical structures: every spelling leads to one structure, and codes are those of SNOMED CT."""

from __future__ import annotations

import math
import re

import pytest

from labelwise.anatomy import canonical, colours_of, find, named_side, other_sides, structures

TOTALSEGMENTATOR = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left
lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right
esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left
kidney_cyst_right sacrum vertebrae_S1 vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1
vertebrae_T12 vertebrae_T11 vertebrae_T10 vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5
vertebrae_T4 vertebrae_T3 vertebrae_T2 vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4
vertebrae_C3 vertebrae_C2 vertebrae_C1 heart aorta pulmonary_vein brachiocephalic_trunk
subclavian_artery_right subclavian_artery_left common_carotid_artery_right common_carotid_artery_left
brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left superior_vena_cava
inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left
iliac_vena_right humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right
femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right
gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left
autochthon_right iliopsoas_left iliopsoas_right brain skull rib_left_1 rib_left_2 rib_left_3 rib_left_4
rib_left_5 rib_left_6 rib_left_7 rib_left_8 rib_left_9 rib_left_10 rib_left_11 rib_left_12 rib_right_1
rib_right_2 rib_right_3 rib_right_4 rib_right_5 rib_right_6 rib_right_7 rib_right_8 rib_right_9 rib_right_10
rib_right_11 rib_right_12 sternum costal_cartilages
""".split()  # noqa: SIM905 - 117 names


def test_every_class_of_totalsegmentator_is_a_structure_of_its_own():
    assert len(TOTALSEGMENTATOR) == 117
    found = [find(name) for name in TOTALSEGMENTATOR]
    assert [name for name, one in zip(TOTALSEGMENTATOR, found, strict=True) if one is None] == []
    assert len({one.name for one in found if one}) == 117


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("kidney_left", "left kidney"),
        ("Left-Kidney", "left kidney"),
        ("kidney", "kidneys"),
        ("oesophagus", "esophagus"),
        ("postcava", "inferior vena cava"),
        ("IVC", "inferior vena cava"),
        ("arota", "aorta"),
        ("prostate/uterus", "prostate or uterus"),
        ("adrenal", "adrenal glands"),
        ("Right Adrenal Gland", "right adrenal gland"),
        ("liver tumor", "liver tumour"),
        ("Head_of_femur_L", "left femoral head"),
        ("PZ", "prostate peripheral zone"),
        ("my own class", "my own class"),
    ],
)
def test_known_spellings_become_canonical_and_others_stay(spelling, name):
    assert canonical(spelling) == name


def test_no_spelling_means_two_structures():
    meant: dict[str, str] = {}
    for structure in structures().values():
        for name in (structure.name, *structure.synonyms):
            key = re.sub(r"[^a-z0-9]+", " ", name.lower())
            assert meant.setdefault(key, structure.name) == structure.name, name


def test_partners_point_at_each_other_and_at_one_whole():
    for structure in structures().values():
        assert structure.side == "" or structure.whole == ""
        if not structure.laterality:
            assert structure.partner == ""
            continue
        partner = structures()[structure.partner]
        assert (partner.partner, partner.whole) == (structure.name, structure.whole)
        assert (partner.code, partner.laterality) == (
            structure.code,
            "right" if structure.laterality == "left" else "left",
        )
        assert structure.whole == "" or structure.whole in structures()


def test_colours_are_those_that_users_of_slicer_know():
    colours = {name: structure.colour for name, structure in structures().items()}
    assert colours["liver"] == (221, 130, 101)
    assert colours["spleen"] == (157, 108, 162)
    assert colours["left kidney"] == colours["right kidney"] == colours["kidneys"] == (185, 102, 83)
    assert colours["inferior vena cava"] == (0, 151, 206)
    assert colours["left rib 3"] == (253, 232, 158)


def test_a_structure_that_looks_like_one_before_it_is_tinted_in_pictures_and_the_first_keeps_its_colour():
    names = dict(
        enumerate(("left kidney", "right kidney", "liver", "stomach", "a thing", "a thing b"), start=1)
    )
    plain, apart = colours_of(names), colours_of(names, apart=True)
    assert plain[1] == plain[2] == apart[1] == (185, 102, 83)
    assert (plain[3], apart[3]) == ((221, 130, 101),) * 2
    assert plain[4] != apart[4]
    assert all(math.dist(apart[a], apart[b]) >= 48 for a in apart for b in apart if a < b)
    many = colours_of({value: f"vertebra T{value}" for value in range(1, 13)}, apart=True)
    assert len(set(many.values())) > 3


def test_the_structures_of_an_abdomen_have_colours_of_their_own():
    names = (
        "liver",
        "spleen",
        "pancreas",
        "gallbladder",
        "stomach",
        "kidneys",
        "aorta",
        "bladder",
        "lungs",
        "heart",
    )
    assert len({structures()[name].colour for name in names}) == len(names)


def test_codes_are_those_of_snomed_ct():
    concepts = pytest.importorskip("pydicom.sr._concepts_dict", reason="pydicom is not installed").concepts
    known = {
        (code, meaning) for entries in concepts["SCT"].values() for code, (meaning, _) in entries.items()
    }
    coded = [structure for structure in structures().values() if structure.code]
    assert len(coded) > 100
    assert [one.name for one in coded if (one.code, one.meaning) not in known] == []


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("kidney_left", "left"),
        ("Right Adrenal Gland", "right"),
        ("Parotid_L", "left"),  # not in the table
        ("rt optic nerve", "right"),
        ("middle lobe of right lung", "right"),  # has no partner
        ("left ventricle", ""),  # its mirror image is no right ventricle
        ("left atrial appendage", ""),
        ("liver", ""),  # lies at the right, but is not named by it
        ("vertebrae_L1", ""),
        ("left or right", ""),
    ],
)
def test_a_class_is_named_by_a_side_only_if_its_mirror_image_has_another_name(name, side):
    assert named_side(name) == side


def test_the_other_side_is_found_under_any_spelling():
    names = ["kidney_left", "Right Kidney", "Parotid_L", "parotid r", "left lung", "liver"]
    assert other_sides(names) == {
        "kidney_left": "Right Kidney",
        "Right Kidney": "kidney_left",
        "Parotid_L": "parotid r",
        "parotid r": "Parotid_L",
        "left lung": "",
    }
