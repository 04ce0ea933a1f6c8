"""Augmentation: exact where it copies voxels, equal to SciPy where it resamples; labels follow the image."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Generator, Tensor

from labelwise.errors import ConfigError
from labelwise.loading import intensity, warp
from labelwise.loading.augment import PRESETS, AugmentConfig, Chance, Views, augment
from labelwise.settings import build_settings
from labelwise.types import IGNORE, LabelSpace

CUBE = (16, 16, 16)


def always(low: float, high: float | None = None) -> Chance:
    return Chance(1.0, low, low if high is None else high)


def make_views(count: int = 3, size: tuple[int, ...] = CUBE, modalities: int = 2, seed: int = 0) -> Views:
    generator = Generator().manual_seed(seed)
    images = torch.randn(count, modalities, *size, generator=generator)
    labels = torch.randint(4, (count, *size), generator=generator, dtype=torch.uint8)
    return Views(images, labels, {"distance": labels[:, None].float() / 4})


def copy_of(views: Views) -> Views:
    targets = {name: values.clone() for name, values in views.targets.items()}
    valid = None if views.valid is None else views.valid.clone()
    return Views(views.images.clone(), views.labels.clone(), targets, valid=valid)


def apply(
    views: Views,
    patch_size: tuple[int, int, int] = CUBE,
    *,
    seed: int = 0,
    spacing=(1, 1, 1),
    **settings: Any,
):
    config = AugmentConfig(**{"preset": "none", **settings})
    spacing_mm = torch.tensor([spacing] * len(views.labels), dtype=torch.float32)
    return augment(
        copy_of(views), config, Generator().manual_seed(seed), patch_size=patch_size, spacing_mm=spacing_mm
    )


def assert_same(found: Views, expected: Views) -> None:
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    assert all(torch.equal(found.targets[name], values) for name, values in expected.targets.items())


# mirrors and quarter turns


def test_quarter_turns_and_mirrors_are_those_of_the_official_la_code(golden):
    vector = golden("mean_teacher")
    volume = torch.from_numpy(vector["la_rotflip_in"])
    for (turns, axis, x, y), padded in zip(
        vector["la_rotflip_params"], vector["la_rotflip_out_padded"], strict=True
    ):
        found = warp.turn_and_mirror(volume, int(turns), [int(axis)], dims=3)
        np.testing.assert_array_equal(found.numpy(), padded[:x, :y])


def orbit(preset: str) -> set[bytes]:
    patch = torch.arange(16.0).view(1, 1, 4, 4, 1)
    views = Views(patch, patch[:, 0].to(torch.uint8), {})
    drawn = [apply(views, (4, 4, 1), seed=seed, preset=preset) for seed in range(100)]
    assert all(torch.equal(found.images[0, 0], found.labels[0].float()) for found in drawn)
    return {found.images.numpy().tobytes() for found in drawn}


def test_la_draws_all_eight_elements_of_the_square():
    assert len(orbit("la")) == 8


def test_la_official_draws_only_the_four_mirrored_ones():
    plain = torch.arange(16.0).view(4, 4)
    mirrored = {torch.rot90(plain.flip(0), k).contiguous().numpy().tobytes() for k in range(4)}
    assert orbit("la_official") == mirrored


def test_mirrors_are_drawn_per_case_and_per_axis_with_probability_one_half():
    views = make_views(1)
    results = [apply(views, seed=seed, preset="flip").images for seed in range(200)]
    for axis in (2, 3, 4):
        others = [other for other in (2, 3, 4) if other != axis]
        projection = views.images.sum(others)  # shows the mirror along this axis alone
        same = sum(torch.allclose(result.sum(others), projection, atol=1e-4) for result in results)
        assert 70 < same < 130


def test_convention_the_default_presets_never_exchange_left_and_right():
    assert AugmentConfig().preset == "light"
    for preset in ("light", "default"):
        config = AugmentConfig(preset=preset)
        assert config.mirror_axes == ()
        assert not config.quarter_turns
        assert max(abs(config.rotation_degrees.low), config.rotation_degrees.high) < 90


# resampling


def scipy_affine(
    volume: np.ndarray, matrix: np.ndarray, shift: np.ndarray, order: int, outside: float
) -> np.ndarray:
    middle = (np.array(volume.shape) - 1) / 2
    return ndimage.affine_transform(
        volume, matrix, middle - matrix @ middle + shift, order=order, mode="grid-constant", cval=outside
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_an_affine_change_agrees_with_scipy(dims):
    views = make_views(1, (13, 16, 11)[:dims], modalities=1)
    generator = torch.Generator().manual_seed(3)
    matrix = torch.eye(dims) + 0.2 * torch.randn(1, dims, dims, generator=generator)
    shift = torch.tensor([[1.3, -2.1, 0.4]])[:, :dims]
    size = views.labels.shape[1:]
    grid = warp.sampling_grid(matrix, shift, size, size, device=torch.device("cpu"))
    image, labels = warp.resample(views.images, grid), warp.resample_labels(views.labels, grid)

    numbers = matrix[0].double().numpy(), shift[0].double().numpy()
    expected = scipy_affine(views.images[0, 0].double().numpy(), *numbers, order=1, outside=0)
    np.testing.assert_allclose(image[0, 0].numpy(), expected, atol=1e-4)
    expected = scipy_affine(views.labels[0].numpy(), *numbers, order=0, outside=IGNORE)
    assert (labels[0].numpy() == expected).mean() > 0.999  # rounding at exact halves may differ


def test_a_rotation_is_rigid_in_mm_whatever_the_voxels():
    """Turning by 90 degrees about z with voxels of 1 x 2 mm: two voxels along x become one along y."""
    views = make_views(1, (16, 16, 4), modalities=1)
    found = apply(views, (16, 16, 4), spacing=(1, 2, 1), rotation_degrees=always(90))
    turned = np.array([[0, 2, 0], [-0.5, 0, 0], [0, 0, 1.0]])  # diag(1/s) R(-90) diag(s)
    expected = scipy_affine(views.images[0, 0].double().numpy(), turned, np.zeros(3), order=1, outside=0)
    np.testing.assert_allclose(found.images[0, 0].numpy(), expected, atol=1e-4)


def test_convention_a_positive_rotation_turns_x_towards_y():
    image = torch.zeros(1, 1, 9, 9, 3)
    image[0, 0, 7, 4] = 1  # on the x axis
    found = apply(Views(image, image[:, 0].byte(), {}), (9, 9, 3), rotation_degrees=always(90)).images
    assert found[0, 0, 4, 7].tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_a_scale_above_1_enlarges():
    image = torch.zeros(1, 1, *CUBE)
    image[:, :, 6:10, 6:10, 6:10] = 1
    found = apply(Views(image, image[:, 0].byte(), {}), scale=always(2.0))
    assert found.labels.sum() == 8**3
    assert found.images.sum() == pytest.approx(8**3, rel=0.02)


def test_labels_and_targets_move_with_the_image():
    """A smooth ball: after any change of geometry the label is where the image is bright."""
    axes = torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij")
    distance = 7 - torch.stack([axis - centre for axis, centre in zip(axes, (10, 12, 13), strict=True)]).norm(
        dim=0
    )
    views = Views(distance[None, None].repeat(4, 1, 1, 1, 1), (distance > 0).byte().repeat(4, 1, 1, 1), {})
    views = views._replace(targets={"distance": views.images.clone()})
    found = apply(
        views,
        (24, 24, 24),
        rotation_degrees=always(-40, 40),
        tilt_degrees=always(-20, 20),
        scale=always(0.8, 1.2),
        shear=always(-0.1, 0.1),
        shift=always(-0.1, 0.1),
        elastic=always(0.2, 0.3),
        elastic_grid=8,
        mirror_axes=(0, 1, 2),
        quarter_turns=True,
    )
    known = found.labels != IGNORE
    clear = known & (found.images[:, 0].abs() > 1)  # half a voxel diagonal from the surface
    assert ((found.images[:, 0] > 0) == (found.labels == 1))[clear].all()
    assert clear.float().mean() > 0.5
    inside = known & (found.images[:, 0] > 0)
    torch.testing.assert_close(found.targets["distance"][:, 0][inside], found.images[:, 0][inside])
    assert not torch.equal(found.labels, views.labels)


def test_convention_what_comes_from_beyond_the_patch_is_0_and_ignore():
    views = make_views(1)
    views.images.add_(10)
    found = apply(views, shift=always(0.25))  # in parts of the patch: 4 of 16 voxels
    assert (found.labels[:, :4, :4, :4] == IGNORE).all()
    assert (found.images[:, :, :4, :4, :4] == 0).all()
    torch.testing.assert_close(found.images[:, :, 4:, 4:, 4:], views.images[:, :, :-4, :-4, :-4])
    assert torch.equal(found.labels[:, 4:, 4:, 4:], views.labels[:, :-4, :-4, :-4])
    border = views.targets["distance"][:, :, :1, :1, :1]
    assert (found.targets["distance"][:, :, :4, :4, :4] == border).all()


def test_a_margin_fills_the_corners_and_is_cut_off():
    config = AugmentConfig(preset="none", margin=0.25, rotation_degrees=always(45))
    assert config.read_size((16, 16, 8)) == (24, 24, 12)
    assert config.read_size((16, 16, 1)) == (24, 24, 1)
    views = make_views(2, (24, 24, 24))
    found = apply(views, margin=0.25, rotation_degrees=always(45))
    assert found.labels.shape == (2, 16, 16, 16)
    assert (found.labels != IGNORE).all()
    untouched = apply(views, margin=0.25)
    assert torch.equal(untouched.images, views.images[:, :, 4:20, 4:20, 4:20])
    assert torch.equal(untouched.labels, views.labels[:, 4:20, 4:20, 4:20])


def test_bending_reproduces_straight_displacements_and_never_folds():
    size, spacing = (20, 17, 9), 4
    points = warp.control_points(size, spacing)
    place = torch.arange(points[0], dtype=torch.float32)[None, None, :, None, None].expand(1, 1, *points)
    field = warp.bend(place, size, spacing)  # control point 1 lies on voxel 0
    torch.testing.assert_close(field[0, 0, :, 3, 5], 1 + torch.arange(20.0) / spacing)
    random = (torch.rand(1, 3, *points, generator=Generator().manual_seed(0)) * 2 - 1) * 0.39 * spacing
    field = warp.bend(random, size, spacing)
    assert field.abs().max() <= random.abs().max()
    slopes = [torch.gradient(field[0], dim=axis)[0] for axis in (1, 2, 3)]
    jacobian = torch.stack(slopes, dim=-1).movedim(0, -2) + torch.eye(3)
    assert torch.linalg.det(jacobian).min() > 0


# intensities


def smooth_image(seed: int = 0, size: tuple[int, ...] = (20, 18, 16)) -> Tensor:
    noise = np.random.default_rng(seed).normal(size=size)
    return torch.from_numpy(ndimage.gaussian_filter(noise, 2))[None].float() * 10 + 1


def test_brightness_and_contrast_by_hand():
    image = torch.tensor([[0.0, 1.0, 2.0, 5.0]]).view(1, 2, 2)
    intensity.change_brightness(image, 1.5)
    assert image.flatten().tolist() == [0, 1.5, 3, 7.5]
    intensity.change_contrast(image, 2.0)  # mean 3: -3, 0, 3, 12, clipped to the range 0..7.5
    assert image.flatten().tolist() == [0, 0, 3, 7.5]


def test_gamma_keeps_mean_and_deviation_and_the_order_of_voxels():
    image = smooth_image()
    before = image.clone()
    intensity.change_gamma(image, 1.4)
    assert image.mean().item() == pytest.approx(before.mean().item(), abs=1e-4)
    assert image.std().item() == pytest.approx(before.std().item(), rel=1e-4)
    assert torch.equal(image.flatten().argsort(), before.flatten().argsort())
    assert (image - before).abs().max() > 0.1


def test_each_modality_is_changed_by_itself():
    both = torch.cat([smooth_image(0), 100 + 5 * smooth_image(1)])
    alone = both[1:].clone()
    for change in (intensity.change_contrast, intensity.change_gamma, intensity.blur):
        change(both, 1.2)
        change(alone, 1.2)
        torch.testing.assert_close(both[1:], alone)


def test_blur_agrees_with_scipy():
    image = smooth_image()
    expected = ndimage.gaussian_filter(image[0].double().numpy(), 0.9, mode="nearest", radius=3)
    intensity.blur(image, 0.9)
    np.testing.assert_allclose(image[0].numpy(), expected, atol=1e-5)


def test_low_resolution_keeps_constants_and_removes_detail():
    image = torch.full((1, 12, 12, 12), 3.0)
    intensity.lower_resolution(image, 0.5)
    assert (image == 3).all()
    noise = torch.randn(1, 16, 16, generator=Generator().manual_seed(0))
    before = noise.clone()
    intensity.lower_resolution(noise, 0.5)
    assert noise.std() < 0.9 * before.std()


def test_noise_has_the_deviation_that_was_drawn():
    views = Views(torch.zeros(1, 1, 32, 32, 32), torch.zeros(1, 32, 32, 32, dtype=torch.uint8), {})
    found = apply(views, (32, 32, 32), noise=always(0.3)).images
    assert found.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs(found.mean().item()) < 0.01


def test_constant_images_stay_finite():
    for preset in PRESETS:
        settings = {"noise": always(0.0), "gamma": always(0.7, 1.5), "contrast": always(2.0)}
        views = Views(torch.full((2, 1, 16, 16, 16), 2.0), torch.zeros(2, 16, 16, 16, dtype=torch.uint8), {})
        size = AugmentConfig(preset=preset).read_size(CUBE)
        views = Views(torch.full((2, 1, *size), 2.0), torch.zeros(2, *size, dtype=torch.uint8), {})
        assert apply(views, preset=preset, **settings).images.isfinite().all()


# the whole


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("patch_size", [CUBE, (16, 16, 1)])
def test_every_preset_is_determined_by_the_generator(preset, patch_size):
    dims = 2 if patch_size[2] == 1 else 3
    views = make_views(4, AugmentConfig(preset=preset).read_size(patch_size)[:dims])
    once, again = (apply(views, patch_size, preset=preset, seed=5) for _ in range(2))
    assert_same(once, again)
    assert once.images.shape == (4, 2, *patch_size[:dims])
    assert once.labels.dtype == torch.uint8
    if preset != "none":
        assert any(
            not torch.equal(apply(views, patch_size, preset=preset, seed=s).images, once.images)
            for s in range(9)
        )


def test_none_changes_nothing():
    assert_same(apply(make_views()), make_views())


def test_patches_come_to_the_range_from_0_to_1_by_their_own_voxels_of_the_scan():
    views = make_views()
    valid = torch.ones_like(views.labels, dtype=torch.bool)
    valid[0, 12:] = False
    views.images[0, :, 12:] = 50.0
    views.images[1, 0] = 7.0  # a constant patch
    found = apply(views._replace(valid=valid), unit_range=True).images
    for case in range(3):
        for one, was in zip(found[case], views.images[case], strict=True):
            inside = was[valid[case]]
            expected = (inside - inside.min()) / (inside.max() - inside.min() + 1e-8)
            torch.testing.assert_close(one[valid[case]], expected)
    assert (found[0, :, 12:] == 0).all()
    assert (found[1, 0] == 0).all()
    torch.testing.assert_close(apply(views, unit_range=True).images.amax((2, 3, 4))[2], torch.ones(2))


def test_the_weak_view_has_the_range_of_the_patch_too():
    views = make_views()
    config = AugmentConfig(preset="none", unit_range=True, brightness=always(3.0))
    found = augment(
        copy_of(views),
        config,
        Generator().manual_seed(0),
        patch_size=CUBE,
        spacing_mm=torch.ones(3, 3),
        weak_view=True,
    )
    assert found.weak is not None
    torch.testing.assert_close(found.weak, apply(views, unit_range=True).images)
    torch.testing.assert_close(found.images, 3 * found.weak)


def test_a_case_that_chance_leaves_out_is_not_touched():
    """Whether case 0 is changed is independent of the others: with p = 0.5 some are untouched, bit by bit."""
    views = make_views(8)
    found = apply(views, rotation_degrees=Chance(0.5, 5, 10), brightness=Chance(0.5, 1.1, 1.2))
    untouched = [torch.equal(a, b) for a, b in zip(found.images, views.images, strict=True)]
    assert 0 < sum(untouched) < 8
    for row, same in enumerate(untouched):
        if same:
            assert torch.equal(found.labels[row], views.labels[row])


def test_chance_draws_from_its_range_with_its_probability():
    drawn = Chance(0.3, 2.0, 5.0).draw(10_000, Generator().manual_seed(0), otherwise=math.nan)
    hit = drawn[~drawn.isnan()]
    assert len(hit) / 10_000 == pytest.approx(0.3, abs=0.02)
    assert 2 <= hit.min() < 2.01
    assert 4.99 < hit.max() <= 5


def test_a_setting_replaces_that_of_the_preset_and_the_rest_stays():
    table = {"preset": "default", "mirror_axes": [1], "noise": {"probability": 0.5, "low": 0.0, "high": 1.0}}
    config = build_settings(AugmentConfig, table, "[augment]")
    assert config.mirror_axes == (1,)
    assert config.noise == Chance(0.5, 0.0, 1.0)
    assert config.scale == PRESETS["default"]["scale"]


def test_resolved_settings_are_plain_values_that_give_the_same_settings():
    config = AugmentConfig(preset="default", margin=0.1)
    assert build_settings(AugmentConfig, json.loads(json.dumps(asdict(config))), "[augment]") == config


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"preset": "strongest"}, "preset"),
        ({"mirror_axis": [0]}, "did you mean 'mirror_axes'"),
        ({"mirror_axes": [0, 0]}, "twice"),
        ({"mirror_axes": [3]}, "mirror_axes"),
        ({"preset": "none", "mirror_once": True}, "needs augment.mirror_axes"),
        ({"noise": {"probability": 0.5}}, "noise.low"),
        ({"noise": {"probability": 2.0, "low": 0.0, "high": 1.0}}, "noise.probability"),
        ({"noise": {"probability": 0.5, "low": 2.0, "high": 1.0}}, "low is larger than high"),
        ({"scale": {"probability": 0.5, "low": 0.0, "high": 1.0}}, "scale must be larger than 0"),
        ({"margin": -0.1}, "margin"),
    ],
)
def test_impossible_settings_are_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        build_settings(AugmentConfig, table, "[augment]")


def test_quarter_turns_need_square_patches():
    AugmentConfig(preset="la").check((112, 112, 80))
    with pytest.raises(ConfigError, match="90 degrees"):
        AugmentConfig(preset="la").check((112, 96, 80))
    with pytest.raises(ConfigError, match="on_side"):
        AugmentConfig(preset="none", on_side=0.1).check((112, 96, 1))


def test_so_many_patches_lie_on_one_side_or_the_other():
    views = make_views(count=400)
    turned = apply(views, on_side=0.25)
    kinds = [
        [k for k in range(4) if torch.equal(torch.rot90(before, k, (1, 2)), after)]  # along x and y
        for before, after in zip(views.images, turned.images, strict=True)
    ]
    counts = [sum(kind == [k] for kind in kinds) for k in range(4)]
    assert sum(counts) == 400
    assert counts[2] == 0
    # Binomial: five standard deviations on either side.
    assert abs(counts[0] - 300) < 5 * 75**0.5
    assert min(counts[1], counts[3]) > 50 - 5 * 44**0.5


# left and right

KIDNEYS = LabelSpace(("background", "left kidney", "liver", "right kidney"))
MIRRORS = {"preset": "none", "mirror_axes": (0, 1)}


def test_mirrored_patches_get_the_labels_of_the_other_side_and_others_keep_theirs():
    views = make_views(count=8)
    config = AugmentConfig(**MIRRORS, sides="swap")
    plain, swapped = (
        augment(
            copy_of(views),
            config,
            Generator().manual_seed(1),
            patch_size=CUBE,
            spacing_mm=torch.ones(8, 3),
            other_side=other_side,
        )
        for other_side in (None, config.swapped_classes(KIDNEYS))
    )
    assert 0 < len(swapped.swapped) < 8
    assert plain.swapped == ()
    for row in range(8):
        mirrored = torch.equal(plain.images[row].flip(1), views.images[row]) or torch.equal(
            plain.images[row].flip(1, 2), views.images[row]
        )
        assert mirrored == (row in swapped.swapped)
        expected = plain.labels[row].clone()
        if mirrored:
            expected[plain.labels[row] == 1] = 3
            expected[plain.labels[row] == 3] = 1
        assert torch.equal(swapped.labels[row], expected)


def test_ignored_voxels_stay_ignored_when_labels_are_swapped():
    views = Views(torch.zeros(4, 1, *CUBE), torch.full((4, *CUBE), IGNORE, dtype=torch.uint8), {})
    config = AugmentConfig(preset="none", mirror_axes=(0,), mirror_once=True, sides="swap")
    generator = Generator().manual_seed(0)
    found = augment(
        views, config, generator, patch_size=CUBE, spacing_mm=torch.ones(4, 3), other_side=(0, 3, 2, 1)
    )
    assert found.swapped == (0, 1, 2, 3)
    assert bool((found.labels == IGNORE).all())


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "flip"},
        {"preset": "la"},
        {"preset": "la_official"},
        {"preset": "none", "quarter_turns": True},
        {"preset": "none", "on_side": 0.2},
    ],
)
def test_what_exchanges_sides_is_refused_with_the_choice(settings):
    with pytest.raises(ConfigError) as caught:
        AugmentConfig(**settings).check_sides(KIDNEYS)
    for words in ("left kidney, right kidney", "without 0", "augment.sides = 'swap'", "'keep'"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "space"),
    [
        ({"preset": "default"}, KIDNEYS),
        ({"preset": "none", "mirror_axes": (1, 2)}, KIDNEYS),
        ({**MIRRORS, "sides": "swap"}, KIDNEYS),
        ({"preset": "la", "sides": "keep"}, KIDNEYS),
        ({"preset": "la"}, LabelSpace(("background", "left ventricle", "right ventricle"))),
    ],
)
def test_what_leaves_sides_right_or_is_asked_for_is_allowed(settings, space):
    AugmentConfig(**settings).check_sides(space)


@pytest.mark.parametrize(
    ("settings", "names", "why"),
    [
        (MIRRORS, ("background", "left kidney", "liver"), "'left kidney' has no partner"),
        ({"preset": "la"}, KIDNEYS.names, "after a quarter turn"),
    ],
)
def test_sides_that_cannot_be_swapped_are_refused(settings, names, why):
    with pytest.raises(ConfigError, match=why):
        AugmentConfig(**settings, sides="swap").check_sides(LabelSpace(names))


def test_the_weak_view_is_moved_like_the_image_and_keeps_its_intensities():
    views, spacing = make_views(), torch.ones(3, 3)
    moved_only = AugmentConfig(preset="none", rotation_degrees=always(10, 40), margin=0.0)
    changed_too = AugmentConfig(
        preset="none", rotation_degrees=always(10, 40), gamma=always(0.5, 0.6), margin=0.0
    )
    kinds = {"patch_size": CUBE, "spacing_mm": spacing}
    expected = augment(copy_of(views), moved_only, torch.Generator().manual_seed(2), **kinds)
    found = augment(copy_of(views), changed_too, torch.Generator().manual_seed(2), **kinds, weak_view=True)
    assert found.weak is not None
    assert torch.equal(found.weak, expected.images)
    assert not torch.equal(found.images, expected.images)
    assert expected.weak is None


@pytest.mark.parametrize(
    "settings",
    [
        {"rotation_degrees": always(30)},
        {"scale": always(0.6)},
        {"shift": always(0.3)},
        {"elastic": always(0.3)},
        {"mirror_axes": (0, 2), "quarter_turns": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_mask_of_the_scan_moves_as_the_labels_do(settings):
    """Everything is labelled here, so what is no padding is what has a label; also where a turn leaves the patch."""
    views = make_views()
    views.labels[..., 12:] = IGNORE
    found = apply(views._replace(valid=views.labels != IGNORE), **settings)
    assert found.valid is not None
    assert found.valid.equal(found.labels != IGNORE)
    assert not found.valid.all()
