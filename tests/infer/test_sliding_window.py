"""Sliding window: golden vectors of the LA benchmark, MONAI as oracle, and what neither of them covers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labelwise.errors import CheckpointError, ConfigError, ResourceError
from labelwise.infer.sliding_window import InferenceConfig, predict_labels, predict_scores
from labelwise.infer.windows import WindowGrid, blending_weight, window_starts
from labelwise.settings import build_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.inferers import sliding_window_inference

GOLDEN = Path(__file__).parent.parent / "golden" / "mean_teacher.npz"
LA_CONFIG: dict[str, Any] = {"stride": (3, 3, 2), "blending": "constant", "precision": "float32"}


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def la_stub(windows: Tensor) -> Tensor:
    """The stand-in network of la-benchmark.md, section 9."""
    centred = windows - windows.mean(dim=(1, 2, 3, 4), keepdim=True)
    logits = 2 * centred + torch.linspace(-1, 1, 8)[:, None, None]
    return torch.cat([torch.zeros_like(logits), logits], dim=1).softmax(dim=1)


def random_network(num_classes: int, modalities: int = 1, dims: int = 3, seed: int = 0) -> nn.Module:
    convolution: Any = nn.Conv3d if dims == 3 else nn.Conv2d
    torch.manual_seed(seed)
    return nn.Sequential(
        convolution(modalities, 8, 3, padding=1),
        nn.ReLU(),
        convolution(8, num_classes, 3, padding=1),
        nn.Softmax(1),
    )


def labels_of(
    predictor: nn.Module, image: Tensor, patch: tuple[int, int, int], **settings: Any
) -> np.ndarray:
    num_classes = settings.pop("num_classes", 2)
    config = InferenceConfig(**{"precision": "float32", **settings})
    return predict_labels(predictor, image, patch, num_classes=num_classes, config=config, device="cpu")


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["a", "b"])
def test_agrees_with_the_official_code_of_the_la_benchmark(name: str, batch_size: int) -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        image, scores, labels = (golden[f"la_sw_{name}_{part}"] for part in ("image", "prob", "label"))
    config = InferenceConfig(**LA_CONFIG, batch_size=batch_size)
    arguments: Any = (Lambda(la_stub), torch.from_numpy(image)[None], (8, 8, 6))
    found = predict_scores(*arguments, num_classes=2, config=config, device="cpu")
    np.testing.assert_allclose(found.numpy(), scores, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        predict_labels(*arguments, num_classes=2, config=config, device="cpu"), labels, strict=True
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("size", "overlap"), [((24, 33, 30), 0.5), ((12, 40, 31), 0.25), ((26, 20, 10), 0.8), ((16, 24, 12), 0.0)]
)
def test_gives_the_labels_of_monai(
    size: tuple[int, int, int], overlap: float, blending: Any, layout: torch.memory_format
) -> None:
    network = random_network(5, modalities=2).to(memory_format=layout)  # type: ignore[call-overload]
    image = torch.randn(2, *size)
    with torch.inference_mode():
        scores = sliding_window_inference(
            image[None], (16, 24, 12), 3, network, overlap=overlap, mode=blending
        )[0]
    found = labels_of(
        network, image, (16, 24, 12), num_classes=5, overlap=overlap, blending=blending, batch_size=3
    )
    two_best = scores.topk(2, dim=0).values
    clear = (two_best[0] - two_best[1] > 1e-5).numpy()
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(found[clear], scores.argmax(dim=0).numpy()[clear])


def test_window_starts_are_regular_and_the_last_window_is_flush_with_the_end() -> None:
    assert window_starts(size=88, patch=80, stride=4) == (0, 4, 8)
    assert window_starts(size=90, patch=80, stride=4) == (0, 4, 8, 10)
    assert window_starts(size=80, patch=80, stride=4) == (0,)


def test_convention_the_gaussian_has_a_deviation_of_an_eighth_of_the_patch() -> None:
    weight = blending_weight((17, 1, 1), "gaussian").flatten()
    assert weight[8] == 1
    assert weight[10] == pytest.approx(np.exp(-0.5 * (2 / (17 / 8)) ** 2))
    assert weight[0] == pytest.approx(1e-3)


def test_sweeps_along_the_axis_that_is_longest_in_patches() -> None:
    assert WindowGrid.of((100, 80, 90), (50, 50, 15), None, 0.5).axis == 2
    assert WindowGrid.of((100, 300, 90), (50, 50, 50), None, 0.5).axis == 1


def test_a_window_of_its_own_is_what_the_network_sees_and_strides_are_measured_by() -> None:
    seen: list[tuple[int, ...]] = []

    def network(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        return torch.cat([-images, images], dim=1)

    image = torch.randn(1, 40, 24, 20)
    found = labels_of(
        Lambda(network),
        image,
        (16, 16, 16),
        num_classes=2,
        overlap=0.0,
        window=(20, 24, 10),
        blending="constant",
    )
    np.testing.assert_array_equal(found, (image[0] > 0).numpy())
    assert seen == [(20, 24, 10)] * 4  # 2 x 1 x 2 windows fill the scan


class LargestTensor(TorchFunctionMode):
    """Remembers the most elements that any tensor had."""

    elements = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_array_is_larger_than_a_slab_however_long_the_scan() -> None:
    network, largest = random_network(9), []
    for length in (32, 96):
        with LargestTensor() as watch:
            labels_of(network, torch.zeros(1, 12, 12, length), (8, 8, 8), num_classes=9)
        largest.append(watch.elements)
    slab, volume = 9 * 12 * 12 * 8, 12 * 12 * 96
    assert largest == [slab, max(slab, volume)]


def test_a_two_dimensional_predictor_sees_slices_in_batches_across_the_volume() -> None:
    network, image, batches = random_network(3, dims=2), torch.randn(1, 16, 16, 10), []
    network.register_forward_pre_hook(lambda _, inputs: batches.append(tuple(inputs[0].shape)))
    found = labels_of(network, image, (16, 16, 1), num_classes=3, batch_size=4)
    assert batches == [(4, 1, 16, 16), (4, 1, 16, 16), (2, 1, 16, 16)]
    with torch.inference_mode():
        slices = network(image.movedim(-1, 0)).argmax(dim=1).movedim(0, -1)
    np.testing.assert_array_equal(found, slices.numpy())


def test_in_plane_windows_of_a_two_dimensional_predictor_blend_like_those_of_monai() -> None:
    network, image = random_network(3, dims=2), torch.randn(1, 30, 21, 5)
    found = labels_of(network, image, (16, 16, 1), num_classes=3, batch_size=3)
    with torch.inference_mode():
        for z in range(5):
            scores = sliding_window_inference(image[None, ..., z], (16, 16), 1, network, 0.5, mode="gaussian")
            np.testing.assert_array_equal(found[..., z], scores.argmax(dim=1)[0].numpy())


def test_mirrored_views_are_averaged_over_all_flips() -> None:
    network, image = random_network(3), torch.randn(1, 8, 8, 8)
    config = InferenceConfig(mirror_axes=(0, 2), precision="float32")
    found = predict_scores(network, image, (8, 8, 8), num_classes=3, config=config, device="cpu")
    with torch.inference_mode():
        views = [network(image[None].flip(flip)).flip(flip) for flip in ([], [2], [4], [2, 4])]
    torch.testing.assert_close(found, torch.stack(views).mean(dim=0)[0])


def test_a_scan_smaller_than_the_patch_keeps_its_shape_and_content() -> None:
    image = torch.randn(1, 5, 3, 20)
    threshold = Lambda(lambda windows: torch.cat([-windows, windows], dim=1))
    np.testing.assert_array_equal(labels_of(threshold, image, (8, 8, 8)), (image[0] > 0).numpy())


def test_convention_of_equal_scores_the_lowest_class_wins() -> None:
    tied = Lambda(
        lambda windows: torch.tensor([0.1, 0.3, 0.3, 0.3]).reshape(1, 4, 1, 1, 1).expand(-1, -1, 4, 4, 4)
    )
    assert (labels_of(tied, torch.zeros(1, 4, 4, 9), (4, 4, 4), num_classes=4) == 1).all()


@pytest.mark.parametrize(("num_classes", "dtype"), [(256, np.uint8), (300, np.uint16)])
def test_labels_take_the_smallest_type_that_holds_every_class(num_classes: int, dtype: Any) -> None:
    last = Lambda(
        lambda w: torch.nn.functional.one_hot(torch.full_like(w[:, 0], num_classes - 1).long()).movedim(-1, 1)
    )
    labels = labels_of(last, torch.zeros(1, 4, 4, 4), (4, 4, 4), num_classes=num_classes)
    assert labels.dtype == dtype
    assert (labels == num_classes - 1).all()


def test_evaluation_mode_is_on_inside_and_what_it_was_outside() -> None:
    dropout, frozen = nn.Dropout(0.5), nn.BatchNorm3d(1).eval()
    seen: list[bool] = []
    score = Lambda(lambda windows: torch.cat([-windows, windows], dim=1))
    score.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    predictor = nn.Sequential(dropout, frozen, score)
    image = torch.randn(1, 6, 6, 6)
    np.testing.assert_array_equal(labels_of(predictor, image, (6, 6, 6)), (image[0] > 0).numpy())
    assert (seen, dropout.training, frozen.training) == ([False], True, False)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_decides_in_what_the_network_computes_but_not_in_what_is_summed(
    precision: Any, dtype: torch.dtype
) -> None:
    network, seen = random_network(3), []
    network[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))  # type: ignore[index]
    config = InferenceConfig(precision=precision)
    scores = predict_scores(
        network, torch.randn(1, 4, 4, 6), (4, 4, 4), num_classes=3, config=config, device="cpu"
    )
    assert set(seen) == {dtype}
    assert scores.dtype == torch.float32


def test_progress_counts_windows() -> None:
    calls: list[tuple[int, int]] = []
    predict_labels(
        random_network(2),
        torch.zeros(1, 4, 4, 10),
        (4, 4, 4),
        num_classes=2,
        config=InferenceConfig(batch_size=3),
        device="cpu",
        progress=lambda task, done, total: calls.append((done, total)),
    )
    assert calls == [(3, 4), (4, 4)]


def test_scores_that_are_not_finite_are_refused() -> None:
    broken = Lambda(lambda windows: torch.full_like(windows, torch.nan).repeat(1, 2, 1, 1, 1))
    with pytest.raises(CheckpointError, match="not finite"):
        labels_of(broken, torch.zeros(1, 4, 4, 4), (4, 4, 4))


def test_scores_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"\(1, 3, 4, 4, 4\)"):
        labels_of(random_network(3), torch.zeros(1, 4, 4, 4), (4, 4, 4), num_classes=2)


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(ConfigError, match="gaps"):
        labels_of(random_network(2), torch.zeros(1, 9, 9, 9), (4, 4, 4), stride=(4, 4, 5))


def gpu_is_full(windows: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nlong advice")


@pytest.mark.parametrize("predict", [gpu_is_full, lambda windows: torch.empty(1 << 50)])
def test_running_out_of_memory_is_explained(predict: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ResourceError, match="lower batch_size"):
        labels_of(Lambda(predict), torch.zeros(1, 4, 4, 4), (4, 4, 4))


def test_other_errors_of_the_network_are_raised_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        labels_of(Lambda(lambda windows: windows.reshape(7)), torch.zeros(1, 4, 4, 4), (4, 4, 4))


def test_settings_are_read_from_a_table_and_unknown_ones_refused() -> None:
    config = build_settings(
        InferenceConfig, {"stride": [18, 18, 4], "postprocess": {"fill_holes": True}}, "[inference]"
    )
    assert config.stride == (18, 18, 4)
    assert config.postprocess.fill_holes
    with pytest.raises(ConfigError, match="did you mean 'overlap'"):
        build_settings(InferenceConfig, {"overlapp": 0.5}, "[inference]")
    with pytest.raises(ConfigError, match="overlap"):
        build_settings(InferenceConfig, {"overlap": 1.0}, "[inference]")
