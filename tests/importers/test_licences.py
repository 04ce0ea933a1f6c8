"""Under which terms data were given is asked once, at the import, and stands in the card of every model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from labelwise import run
from labelwise.cohort.data_set import forbids_commercial_use
from labelwise.cohort.join import join
from labelwise.cohort.manifest import read_manifest, write_manifest
from labelwise.errors import ConfigError
from labelwise.importers import IMPORTERS
from labelwise.importers.licences import LICENCES, licence_in, licensed
from labelwise.run.warm_start import licences_of
from tiny_cohort import manifest_of, paper_case, write_map, write_scan


def folder_of(place, **more):
    """Two scans as nnU-Net has them."""
    for n in range(2):
        write_scan(place / "imagesTr" / f"c{n}_0000.nii.gz", seed=n)
        write_map(place / "labelsTr" / f"c{n}.nii.gz", 1)
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "file_ending": ".nii.gz",
        **more,
    }
    (place / "dataset.json").write_text(json.dumps(about))
    return place


def licences(folder):
    return {name: data_set.licence for name, data_set in read_manifest(folder).data_sets.items()}


def test_what_is_stated_counts_then_the_description_beside_the_scans(command, tmp_path):
    first, second = folder_of(tmp_path / "one", licence="CC BY-NC 4.0"), folder_of(tmp_path / "two")
    answer = command("import", f"a={first}", f"b={second}", "-o", tmp_path / "told")
    assert answer.code == 0, answer.err
    assert licences(tmp_path / "told") == {"a": "CC BY-NC 4.0", "b": ""}
    assert "data sets whose terms forbid commercial use: 1 (a (CC BY-NC 4.0))" in answer.err
    stated = ["--licence", "a=CC BY 4.0", "--licence", "b=of our hospital"]
    assert command("import", f"a={first}", f"b={second}", "-o", tmp_path / "stated", *stated).code == 0
    assert licences(tmp_path / "stated") == {"a": "CC BY 4.0", "b": "of our hospital"}
    assert command("import", second, "-o", tmp_path / "all", "--licence", "CC0").code == 0
    assert licences(tmp_path / "all") == {"two": "CC0"}
    with pytest.raises(ConfigError, match="--licence names no data set 'c'"):
        run.import_data({"a": first}, tmp_path / "wrong", licence={"c": "CC0"})


def test_known_data_sets_have_their_licence_and_others_none():
    assert LICENCES.keys() <= IMPORTERS.keys()
    plain = manifest_of(paper_case(0))
    assert licensed(plain, "acdc", None).data_sets["site"].licence == "CC BY-NC-SA 4.0"
    assert licensed(plain, "folders", None).data_sets["site"].licence == ""
    assert licensed(plain, "acdc", "bought").data_sets["site"].licence == "bought"
    own = replace(plain, data_sets={"site": replace(plain.data_sets["site"], licence="CC0")})
    assert licensed(own, "acdc", None).data_sets["site"].licence == "CC0"
    assert licence_in({"license": " CC  BY "}) == "CC BY"
    assert licence_in({"licence": ["CC0"]}) == ""


def test_a_licence_survives_the_manifest_and_the_join(tmp_path):
    one = licensed(manifest_of(paper_case(0, data_set="a")), "acdc", None)
    two = manifest_of(paper_case(1, data_set="b"))
    write_manifest(join([one, two]), tmp_path)
    assert licences(tmp_path) == {"a": "CC BY-NC-SA 4.0", "b": ""}
    assert 'licence = "CC BY-NC-SA 4.0"' in (tmp_path / "dataset.toml").read_text()


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [
        ("CC BY-NC-SA 4.0", True),
        ("Attribution-NonCommercial 4.0", True),
        ("for non-commercial use", True),
        ("terms of the challenge: for research only", True),
        ("CC BY 4.0", False),
        ("CC BY-SA 4.0", False),
        ("of the National Cancer Institute, NCI", False),
        ("", False),
    ],
)
def test_words_that_forbid_commercial_use_are_known(licence, forbids):
    assert forbids_commercial_use(licence) is forbids


def test_a_model_names_the_licences_of_what_it_and_its_first_weights_have_learnt_from(tiny_run, tmp_path):
    told = json.loads((tiny_run / "model" / "model.json").read_text())["training"]
    assert told["licences"] == dict.fromkeys(told["data_sets"], "")
    assert "| north | not stated |" in (tiny_run / "model" / "card.md").read_text()
    assert licences_of(tiny_run) == told["licences"]
    assert licences_of(None) == {}
    (tmp_path / "encoder.pth").write_bytes(b"")
    assert licences_of(tmp_path / "encoder.pth") == {"encoder.pth": ""}
