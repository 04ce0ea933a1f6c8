"""The plan: every open setting gets a value that the network takes, with a reason; what is set stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelwise import load_config
from labelwise.config import RunConfig, with_settings
from labelwise.plan.choose import PLANNED, Plan, make_plan
from labelwise.plan.facts import Facts, Hardware, gather
from labelwise.preprocess.fingerprint import ScanStatistics, scan_statistics
from labelwise.run.planning import current
from labelwise.types import IGNORE, Case, LabelSpace, Volume

RECIPES = Path(__file__).parents[2] / "recipes"
CPU = Hardware("cpu", 16 * 2**30, 2)
GPU = Hardware("cuda", 24 * 2**30, 8)
CT = Facts(
    intensities=("ct",),
    channels=1,
    structures=("liver", "spleen"),
    cases=40,
    labelled=10,
    complete=10,
    shape=(320, 260, 110),
    largest=(400, 300, 200),
    spacing_mm=(0.8, 0.8, 2.5),
    structures_mm={"liver": (180.0, 150.0, 140.0), "spleen": (80.0, 90.0, 90.0)},
)
SHORT_AXIS = replace(CT, shape=(216, 256, 9), spacing_mm=(1.5, 1.5, 10.0), structures=("left ventricle",))


def planned(facts: Facts = CT, hardware: Hardware = CPU, **settings: Any) -> tuple[RunConfig, Plan]:
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    method = {"method": {"name": dotted.pop("method")}} if "method" in dotted else {}
    config = load_config(None, dotted, **method)
    found = make_plan(facts, hardware, current(config), config.planned)
    return with_settings(config, found.settings), found


KINDS = [
    (CT, CPU, "supervised"),
    (CT, GPU, "supervised"),
    (CT, GPU, "mean_teacher"),
    (CT, CPU, "pipo_fan"),  # needs its own network
    (CT, CPU, "dkuxnet"),  # works in 3D only
    (CT, CPU, "ltuda"),  # has two stages
    (SHORT_AXIS, CPU, "mean_teacher"),
    (SHORT_AXIS, GPU, "dkuxnet"),
    (replace(CT, shape=(20, 18, 12), spacing_mm=(14.0, 14.0, 14.0)), CPU, "supervised"),
    (replace(CT, channels=4, complete=40, labelled=40), GPU, "cps"),
]


@pytest.mark.parametrize(("facts", "hardware", "method"), KINDS)
def test_every_open_setting_is_decided_with_a_reason_and_fits_the_others(facts, hardware, method):
    config, plan = planned(facts, hardware, method=method)
    assert config.planned == ()
    assert set(plan.settings) == set(PLANNED) - {"method.name"}
    assert all(len(line.why.split()) > 2 for line in plan.lines)
    assert all(line.setting in plan.to_text() and line.why in plan.to_text() for line in plan.lines)


def test_the_same_facts_give_the_same_plan():
    assert planned()[1] == planned()[1]


def test_what_is_set_stays():
    config, plan = planned(
        train__steps=[7], sampling__patch_size=[64, 64, 32], train__optimizer__rate=0.5, augment__preset="la"
    )
    assert config.train.steps == (7,)
    assert config.sampling.patch_size == (64, 64, 32)
    assert config.train.optimizer.rate == 0.5
    assert (config.augment.preset, config.augment.mirror_axes) == ("la", (0, 1))
    assert not {"train.steps", "sampling.patch_size", "augment.mirror_axes"} & set(plan.settings)


def test_a_network_is_kept_with_its_settings():
    config, plan = planned(net__settings__width=4)
    assert (config.net.name, config.net.settings["width"]) == ("unet", 4)
    assert not {"net.name", "net.settings"} & set(plan.settings)
    assert all(size % 16 == 0 for size in config.sampling.patch_size)


def test_a_planned_preset_keeps_single_changes_out_of_it():
    config, _ = planned(augment__noise={"probability": 1.0, "low": 0.5, "high": 0.5})
    assert config.augment.preset == "light"
    assert config.augment.noise.low == 0.5
    kept, _ = planned(augment__mirror_axes=[2])
    assert (kept.augment.preset, kept.augment.mirror_axes) == ("default", (2,))


def test_recipes_of_papers_leave_nothing_open():
    config = load_config(RECIPES / "la2018/supervised.toml")
    assert (config.base, config.planned) == ("fixed", ())
    assert "workers" in load_config(RECIPES / "la2018/supervised.toml", {"base": "plan"}).planned


# what a plan says


def test_few_thick_slices_make_a_network_on_slices():
    config, plan = planned(SHORT_AXIS)
    assert config.dims == 2
    assert "9 slices" in next(line.why for line in plan.lines if line.setting == "sampling.patch_size")
    assert planned(CT)[0].dims == 3
    assert planned(SHORT_AXIS, method="dkuxnet")[0].dims == 3


def test_patches_are_not_mirrored():
    assert planned()[0].augment.mirror_axes == ()


@pytest.mark.parametrize(
    ("facts", "turned"),
    [
        (replace(SHORT_AXIS, turned=0.2), True),
        (replace(SHORT_AXIS, turned=0.01), False),  # an exception
        (
            replace(SHORT_AXIS, turned=0.2, structures=("left kidney", "right kidney"), structures_mm={}),
            False,
        ),
        (replace(CT, turned=0.2), False),  # in 3D, the shape of a crop says nothing of how a patient lies
    ],
)
def test_slices_are_turned_where_scans_lie_in_several_ways_and_no_class_has_a_side(facts, turned):
    config, _ = planned(facts)
    assert config.augment.on_side == (facts.turned if turned else 0)
    if turned:
        assert config.sampling.patch_size[0] == config.sampling.patch_size[1]
    config.augment.check_sides(LabelSpace(("background", *facts.structures)))


def test_channels_are_dropped_where_cases_lack_some():
    lacking, plan = planned(replace(CT, channels=2, lacking=3))
    assert lacking.augment.drop_channels == 0.2
    assert "3 of 40 cases lack a channel" in plan.to_text()
    assert planned(replace(CT, channels=2))[0].augment.drop_channels == 0


def test_a_patch_that_is_no_square_is_not_turned():
    config, _ = planned(replace(SHORT_AXIS, turned=0.2), sampling__patch_size=[192, 160, 1])
    assert not config.augment.on_side


def test_a_processor_sees_coarser_scans_but_small_structures_keep_six_voxels():
    config, _ = planned()
    assert config.prepare.spacing_mm is not None
    assert min(config.prepare.spacing_mm) > 0.8
    small = replace(CT, structures_mm={"spleen": (6.0, 6.0, 20.0)})
    kept, _ = planned(small)
    for size, spacing in zip((6.0, 6.0, 20.0), kept.prepare.spacing_mm or CT.spacing_mm, strict=True):
        assert size / spacing >= 6
    assert planned(hardware=GPU)[0].prepare.spacing_mm is None


def test_more_memory_allows_larger_patches():
    sizes = [
        np.prod(planned(hardware=replace(GPU, memory_bytes=gib * 2**30))[0].sampling.patch_size)
        for gib in (4, 12, 40)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_methods_that_use_unlabelled_scans_get_as_many_of_them():
    sampling = planned(method="mean_teacher")[0].sampling
    assert sampling.labelled_cases == sampling.unlabelled_cases == 2
    assert planned(method="supervised")[0].sampling.unlabelled_cases == 0
    complete = replace(CT, cases=10)
    assert planned(complete, method="mean_teacher")[0].sampling.unlabelled_cases == 0


def test_methods_that_learn_mostly_from_unlabelled_scans_train_longer():
    alone, both = (planned(SHORT_AXIS, method=name)[0] for name in ("supervised", "self_training"))
    few = planned(replace(SHORT_AXIS, labelled=20, complete=20), method="self_training")[0]
    assert (alone.train.steps, few.train.steps, both.train.steps) == ((3000,), (3000,), (4500,))


def test_the_rate_fits_the_optimizer():
    assert planned(train__optimizer__name="sgd")[0].train.optimizer.rate == 0.01
    assert planned()[0].train.optimizer.rate < 0.01


# what it follows from


def scan(shape: tuple[int, int, int], labelled: bool) -> tuple[Volume, Volume | None]:
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    image = np.zeros((1, *shape), np.float32)
    image[:, 2:-2, 2:-2] = 1.0 + np.arange(shape[2])
    labels = np.zeros(shape, np.uint8)
    labels[3:8, 4:6, 1:4] = 2
    labels[-1, -1, -1] = IGNORE
    return Volume(image, affine), Volume(labels, affine) if labelled else None


def test_facts_are_medians_of_the_cropped_scans_and_of_what_is_annotated():
    statistics = [
        scan_statistics(image, "mr", labels)
        for image, labels in (scan((20, 24, 10), True), scan((24, 24, 10), False), scan((30, 34, 12), True))
    ]
    assert [one.cropped for one in statistics] == [(16, 20, 10), (20, 20, 10), (26, 30, 12)]
    assert statistics[0].structures_mm == {2: (10.0, 4.0, 12.0)}
    cases = [
        Case("a", ("a.nii",), "a.nii", frozenset({"liver", "spleen"})),
        Case("b", ("b.nii",)),
        Case("c", ("c.nii",), "c.nii", frozenset({"spleen"})),
    ]
    space = LabelSpace(("background", "liver", "spleen"))
    facts = gather(statistics, cases, space, spacing_mm=(2.0, 2.0, 4.0), shape=None)
    assert (facts.cases, facts.labelled, facts.complete, facts.unlabelled) == (3, 2, 1, 2)
    assert (facts.shape, facts.largest) == ((20, 20, 10), (26, 30, 12))
    assert facts.structures_mm == {"spleen": (10.0, 4.0, 12.0)}
    assert facts.at_spacing((4.0, 4.0, 4.0)).shape == (10, 10, 10)
    fixed = gather(statistics, cases, space, spacing_mm=None, shape=(10, 10, None))
    assert fixed.shape == (10, 10, 10)
    assert fixed.spacing_mm == (4.0, 4.0, 4.0)


def test_of_structures_that_are_one_component_in_every_scan_the_largest_component_is_kept():
    facts = replace(
        CT, structures=("liver", "kidney tumour", "spleen"), components={"kidney tumour": 1, "spleen": 1}
    )
    config, plan = planned(facts)
    assert config.inference.postprocess.largest_component
    assert config.inference.postprocess.classes == (3,)  # a second lesion is a lesion too
    (why,) = (line.why for line in plan.lines if line.setting == "inference.postprocess")
    assert "spleen" in why
    assert "tumour" not in why
    config, _ = planned(replace(facts, components={"kidney tumour": 1}))
    assert not config.inference.postprocess.largest_component


def test_of_pairs_that_are_two_components_in_every_scan_the_two_largest_are_kept():
    found = {"spleen": 1, "kidneys": 2, "liver": 2}  # only the kidneys are two structures
    config, plan = planned(replace(CT, structures=("spleen", "kidneys", "liver"), components=found))
    postprocess = config.inference.postprocess
    assert (postprocess.largest_component, postprocess.classes, postprocess.pairs) == (True, (1, 2), (2,))
    (why,) = (line.why for line in plan.lines if line.setting == "inference.postprocess")
    assert "two components in every annotated scan: kidneys" in why


@pytest.mark.parametrize(
    ("stray", "ignored", "scans", "components"),
    [
        (0, 0, 3, {"liver": 1}),
        (1, 0, 3, {"liver": 1}),  # one voxel of a thousand: a slip of the pen
        (200, 0, 3, {"liver": 2}),
        (0, 0, 2, {}),  # too few scans
        (0, 9, 3, {}),  # nothing is known between the annotated slices
    ],
)
def test_components_are_what_every_scan_shows(stray, ignored, scans, components):
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[:10, :10, :10] = 1
    labels[15, :10, :20].flat[:stray] = 1
    labels[..., 11 : 11 + ignored] = IGNORE
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    one = scan_statistics(Volume(image, np.eye(4)), "mr", Volume(labels, np.eye(4)))
    cases = [
        Case(str(number), (Path("s.nii"),), Path("l.nii"), frozenset({"liver"})) for number in range(scans)
    ]
    facts = gather([one] * scans, cases, LabelSpace(("background", "liver")), spacing_mm=None, shape=None)
    assert facts.components == components


def test_scans_lie_the_other_way_if_their_longer_side_does():
    def lying(*shape: int) -> ScanStatistics:
        return ScanStatistics("mr", shape, (1.0, 1.0, 8.0))

    scans = [lying(200, 150, 9)] * 7 + [lying(150, 200, 9)] * 2 + [lying(200, 198, 9)]
    cases = [Case(str(number), ("s.nii",)) for number in range(10)]
    facts = gather(
        scans, cases, LabelSpace(("background", "myocardium")), spacing_mm=None, shape=(128, 128, None)
    )
    assert facts.turned == 0.2
