"""Parts of other packages: used where they work, named with their package where they do not."""

from __future__ import annotations

import dataclasses
import logging
import sys

import pydantic.dataclasses
import pytest

from labelwise import ConfigError, importers, load_config, methods, run
from labelwise.evaluate import further
from labelwise.methods import METHODS, PARTS, all_cards, find_method, name_of
from labelwise.methods.card import read_card
from labelwise.nets import factory
from labelwise.nets.factory import find_net
from labelwise.plugins import Parts, _warn_once
from labelwise.train import loggers
from tiny_cohort import write_map, write_scan

METHOD = """
from dataclasses import dataclass
from labelwise import Card, Method, Softmax

@dataclass(frozen=True)
class Config:
    weight: float = 1.0

class Theirs(Method):
    card = Card("Theirs", "", "A method of another package.", frozenset({"full"}))
    Config = Config

    def __init__(self, nets, config):
        super().__init__()
        self.network = nets.network()

    def forward(self, batch, progress):
        return {"supervised": self.network(batch.images).square().mean()}

    def predictor(self):
        return Softmax(self.network)

not_a_method = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path as pip would: its modules, and its entry points with name and version."""
    _warn_once.cache_clear()

    def put(package: str, group: str, points: dict[str, str], **modules: str) -> None:
        folder = tmp_path / package
        info = folder / f"{package}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        lines = "".join(f"{name} = {place}\n" for name, place in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(folder))

    return put


def test_a_method_of_another_package_is_listed_after_ours_and_found(install):
    install("theirs", "labelwise.methods", {"theirs": "their_method:Theirs"}, their_method=METHOD)
    assert PARTS.names()[-1] == "theirs"
    assert run.methods()[-1]["title"] == "Theirs"
    assert name_of(find_method("theirs")) == "theirs"
    assert name_of(find_method("supervised")) == "supervised"


BROKEN = {
    "missing_module": ("nowhere:Theirs", "ModuleNotFoundError"),
    "missing_name": ("their_method:Nobody", "AttributeError"),
    "failing": ("their_failure:Theirs", "ZeroDivisionError: at import"),
    "number": ("their_method:not_a_method", "it is no method"),
    "another_class": ("their_method:Config", "it is no method"),
    "refusing": ("their_refusal:Theirs", "needs an extra"),
}
MODULES = {
    "their_method": METHOD,
    "their_failure": "raise ZeroDivisionError('at import')",
    "their_refusal": "from labelwise import ResourceError\nraise ResourceError('needs an extra')",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plug_in_is_passed_over_with_its_package_and_entry_point(install, caplog, name):
    place, why = BROKEN[name]
    points = {name: place, "theirs": "their_method:Theirs"}
    install("broken_things", "labelwise.methods", points, **MODULES)
    with caplog.at_level(logging.WARNING, "labelwise"):
        listed = all_cards()
    assert "theirs" in listed
    assert name not in listed
    (message,) = [record.getMessage() for record in caplog.records]
    for word in ("broken_things 1.5", f"{name} = {place}", "labelwise.methods", why, "passed over"):
        assert word in message


@pytest.mark.parametrize("name", BROKEN)
def test_whoever_asks_for_a_broken_plug_in_reads_which_package_it_is(install, name):
    place, why = BROKEN[name]
    install("broken_things", "labelwise.methods", {name: place}, **MODULES)
    with pytest.raises(ConfigError, match=r"broken_things 1\.5") as caught:
        load_config(None, method={"name": name})
    assert place in str(caught.value)
    assert why in str(caught.value)


def test_a_broken_plug_in_does_not_disturb_the_others(install):
    install("broken_things", "labelwise.methods", {"failing": "their_failure:Theirs"}, **MODULES)
    assert load_config(None).method.name == "supervised"


@pytest.mark.parametrize(
    ("group", "name", "find", "parts", "ours"),
    [
        ("labelwise.methods", "supervised", find_method, PARTS, "labelwise.methods"),
        ("labelwise.networks", "unet", find_net, factory.PARTS, "labelwise.nets"),
    ],
)
def test_a_plug_in_that_takes_the_name_of_ours_is_refused(install, caplog, group, name, find, parts, ours):
    install("greedy", group, {name: "their_method:Theirs"}, their_method=METHOD)
    with caplog.at_level(logging.WARNING, "labelwise"):
        assert parts.names().count(name) == 1
        assert find(name).__module__.startswith(ours)
    (message,) = {record.getMessage() for record in caplog.records}
    for word in ("greedy 1.5", "refused", f"{name} = their_method:Theirs", group):
        assert word in message


def test_two_packages_cannot_share_a_name(install, caplog):
    install("first", "labelwise.methods", {"theirs": "their_method:Theirs"}, their_method=METHOD)
    install("second", "labelwise.methods", {"theirs": "their_method:Theirs"})
    with caplog.at_level(logging.WARNING, "labelwise"):
        assert PARTS.names().count("theirs") == 1
    (message,) = {record.getMessage() for record in caplog.records}
    assert "first 1.5" in message
    assert "second 1.5" in message


def test_an_unknown_name_is_answered_with_the_nearest_of_all(install):
    install("theirs", "labelwise.methods", {"their_method": "their_method:Theirs"}, their_method=METHOD)
    with pytest.raises(ConfigError, match="did you mean 'their_method'"):
        find_method("theirmethod")


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    weight: float = 1.0
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pydantic.dataclasses.dataclass
class LaxConfig:
    weight: float = 1.0
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


@pydantic.dataclasses.dataclass(config=pydantic.ConfigDict(extra="allow"))
class OpenConfig(LaxConfig):
    pass


@pytest.mark.parametrize("config", [PlainConfig, LaxConfig, OpenConfig])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weigth": 2.0}, "unknown setting 'weigth'; did you mean 'weight'"),
        ({"inner": {"rat": 2.0}}, "unknown setting 'inner.rat'; did you mean 'rate'"),
        ({"many": [{"rat": 2.0}]}, "unknown setting 'many.0.rat'; did you mean 'rate'"),
        ({"weight": "2"}, "setting 'weight' is wrong"),
    ],
)
def test_unknown_settings_are_refused_whatever_dataclass_a_method_uses(
    install, monkeypatch, config, settings, says
):
    install("theirs", "labelwise.methods", {"theirs": "their_method:Theirs"}, their_method=METHOD)
    monkeypatch.setattr(find_method("theirs"), "Config", config)
    with pytest.raises(ConfigError, match=says):
        load_config(None, method={"name": "theirs", "settings": settings})
    good = load_config(None, method={"name": "theirs", "settings": {"weight": 2, "inner": {"rate": 1}}})
    assert good.method.settings == {"weight": 2.0, "inner": {"rate": 1.0}, "many": ()}


def test_a_part_may_be_a_module(install):
    install("theirs", "labelwise.tests", {"theirs": "their_method"}, their_method=METHOD)
    parts = Parts("part", "labelwise.tests", {}, "a module", lambda part: hasattr(part, "Theirs"))
    assert parts.find("theirs").not_a_method == 3


GROUPS = {
    parts.group: parts
    for parts in (methods.PARTS, factory.PARTS, importers.PARTS, further.parts, loggers.PARTS)
}
FAULTS = {
    "no module": ("nowhere_at_all", ""),
    "no such name in it": ("faulty:Nobody", ""),
    "fails when it is imported": ("faulty:part", "1 / 0"),
    "ends the program when it is imported": ("faulty:part", "import sys; sys.exit(0)"),
    "is no Python": ("faulty:part", "def part(:"),
    "calls itself without end": ("faulty:part", "def f(): return f()\nf()"),
    "is a number": ("faulty:part", "part = 3"),
    "is nothing": ("faulty:part", "part = None"),
    "is a class of something else": ("faulty:part", "class part: pass"),
    "is an empty module": ("faulty", ""),
    "fails when it is looked at": (
        "faulty:part",
        "class Odd:\n    def __getattr__(self, name): raise TypeError(name)\npart = Odd()",
    ),
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_part_of_any_kind_costs_nobody_but_whoever_asks_for_it(install, caplog, group, fault):
    place, text = FAULTS[fault]
    parts = GROUPS[group]
    if parts.fits is callable and fault == "is a class of something else":
        pytest.skip("any class is one that can be called")
    install("faulty_things", group, {"bad": place}, faulty=text)
    with caplog.at_level(logging.WARNING, "labelwise"):
        assert "bad" not in parts.theirs()
    (message,) = [record.getMessage() for record in caplog.records]
    for word in ("faulty_things 1.5", f"bad = {place}", group, "passed over"):
        assert word in message
    with pytest.raises(ConfigError, match=r"faulty_things 1\.5"):
        parts.find("bad")


@pytest.mark.parametrize("group", GROUPS)
def test_no_part_of_any_kind_takes_the_name_of_ours(install, caplog, group):
    parts = GROUPS[group]
    name = next(iter(parts.ours))
    install("greedy", group, {name: "faulty:part"}, faulty="raise AssertionError('imported')")
    with caplog.at_level(logging.WARNING, "labelwise"):
        assert parts.names().count(name) == 1
        parts.find(name)
    assert "greedy 1.5" in caplog.text
    assert "refused" in caplog.text


IMPORTER = """
from labelwise.importers import folders
LOOKS_FOR = "archive.ini"

def matches(folder):
    return (folder / "archive.ini").is_file()

def scan(folder, *, data_set="archive", liver: int = 1):
    {0}
    return folders.scan(
        folder, classes={{"liver": liver}}, modality="ct", images="scans", labels="masks", data_set=data_set
    )
"""


def archive(folder):
    write_scan(folder / "scans" / "a.nii.gz")
    write_map(folder / "masks" / "a.nii.gz", 4)
    (folder / "archive.ini").touch()
    return folder


def test_an_importer_of_another_package_is_found_by_the_folder_and_takes_options(install, tmp_path):
    install(
        "archives", "labelwise.importers", {"archive": "our_archive"}, our_archive=IMPORTER.format("pass")
    )
    folder = archive(tmp_path / "data")
    assert importers.detect(folder) == "archive"
    manifest = run.import_data([folder], tmp_path / "m", liver=4)
    assert [(case.id, case.data_set, case.annotated) for case in manifest.cases] == [
        ("a", "archive", {"liver"})
    ]
    with pytest.raises(ConfigError, match="did you mean 'liver'"):
        run.import_data([folder], tmp_path / "n", livre=4)
    assert "archive" in importers.PARTS.names()


@pytest.mark.parametrize("fault", ["return None", "return 3", "return (1, 2)", "return []"])
def test_an_importer_that_gives_no_manifest_is_named(install, tmp_path, fault):
    install("archives", "labelwise.importers", {"archive": "our_archive"}, our_archive=IMPORTER.format(fault))
    with pytest.raises(ConfigError, match="'archive' gives no manifest"):
        run.import_data([archive(tmp_path / "data")], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_importer_that_fails_at_a_folder_leaves_it_to_the_others(install, tmp_path, caplog):
    text = IMPORTER.format("pass").replace("return (folder", "raise OSError('no net') or (folder")
    install("archives", "labelwise.importers", {"archive": "our_archive"}, our_archive=text)
    write_scan(tmp_path / "data" / "a.nii.gz")
    with caplog.at_level(logging.WARNING, "labelwise"):
        assert importers.detect(tmp_path / "data") == "folders"
    assert "OSError: no net" in caplog.text
    assert "archive" in caplog.text


def test_every_card_is_read_from_the_file_of_its_method_as_the_class_has_it():
    assert {name: read_card(place) for name, place in METHODS.items()} == {
        name: find_method(name).card for name in METHODS
    }
