"""Devices by name, the layout of weights, and convolutions that the CPU gets wrong in bf16."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.devices import (
    SafeConvolutions,
    choose_device,
    choose_devices,
    has_bf16,
    keep_freed_memory,
    use_allowed_cpus,
    use_fast_layout,
)
from labelwise.errors import ResourceError


def test_no_more_threads_compute_than_a_container_allows(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for cpus in (2, 8, 64):
        monkeypatch.setattr("labelwise.devices.available_cpus", lambda cpus=cpus: cpus)
        use_allowed_cpus()
    assert asked == [2]


CONVOLUTIONS = {
    "torch": lambda x, w: torch.conv3d(x, w, None, 1, 1),
    "functional": lambda x, w: F.conv3d(x, w, padding=1),
    "keywords": lambda x, w: F.conv3d(input=x, weight=w, bias=None, padding="same"),
    "channels last": lambda x, w: F.conv3d(x.to(memory_format=torch.channels_last_3d), w, padding=1),
    "one image": lambda x, w: torch.stack([F.conv3d(image, w, padding=1) for image in x]),
    "groups": lambda x, w: F.conv3d(x, w[:, :4], padding=1, groups=2),
    "transposed": lambda x, w: torch.conv_transpose3d(x, w, None, 1, 1),
    "transposed, keywords": lambda x, w: F.conv_transpose3d(input=x, weight=w, padding=1),
}
THIN, THICK = (2, 6, 6), (3, 6, 6)


def tensors(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images and a kernel of three voxels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 8, *size, generator=generator)
    return images, torch.randn(8, 8, 3, 3, 3, generator=generator)


def poison() -> None:
    """Leave NaN in the memory that the allocator hands out next."""
    for power in range(8, 18):
        blocks = [torch.full((2**power,), torch.nan) for _ in range(8)]
        del blocks


def gradient(convolve, images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What a convolution returns, and the gradient of its weights."""
    weight = weight.clone().requires_grad_()
    poison()
    result = convolve(images, weight)
    poison()
    result.float().square().sum().backward()
    return result.detach(), weight.grad


@pytest.mark.parametrize("convolve", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("size", [THIN, (6, 2, 6), (6, 6, 1)])
def test_an_image_thinner_than_the_kernel_is_convolved_in_float32(convolve, size):
    images, weight = tensors(size)
    expected, exact = gradient(convolve, images, weight)
    with SafeConvolutions(), torch.autocast("cpu", dtype=torch.bfloat16):
        result, found = gradient(convolve, images, weight)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("convolve", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_other_images_are_convolved_in_bf16_as_ever(convolve):
    images, weight = tensors(THICK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = convolve(images, weight)
        with SafeConvolutions():
            result = convolve(images, weight)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected)


def test_a_layer_on_a_thin_image_takes_what_a_layer_before_it_gave_in_bf16():
    images, _ = tensors(THIN)
    layers = nn.Sequential(nn.Conv3d(8, 8, 1), nn.ReLU(inplace=True), nn.Conv3d(8, 4, 3, padding=1))
    given: list[torch.dtype] = []
    layers[2].register_forward_pre_hook(lambda _, arguments: given.append(arguments[0].dtype))
    with SafeConvolutions(), torch.autocast("cpu", dtype=torch.bfloat16):
        result = layers(images)
    assert (given, result.dtype) == ([torch.bfloat16], torch.float32)
    torch.testing.assert_close(result, layers(images), rtol=0.05, atol=0.05)


def test_without_autocast_nothing_is_touched():
    images, weight = tensors(THIN)
    with SafeConvolutions():
        assert F.conv3d(images.double(), weight.double(), padding=1).dtype == torch.float64
        assert F.conv3d(images.bfloat16(), weight.bfloat16(), padding=1).dtype == torch.bfloat16


def test_slices_are_not_concerned():
    with SafeConvolutions(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.Conv2d(1, 1, 3, padding=1)(torch.ones(1, 1, 2, 8)).dtype == torch.bfloat16


def test_weights_of_convolutions_lie_channels_last_and_keep_their_values():
    layers = nn.Sequential(
        nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.ConvTranspose3d(3, 2, 2), nn.Conv2d(2, 3, 3)
    )
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    use_fast_layout(layers)
    assert layers[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert layers[2].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert layers[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(before[name], tensor) for name, tensor in layers.state_dict().items())


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_always_there(name):
    assert choose_device(name).type == "cpu"


@pytest.mark.parametrize("name", ["cpu:1", "cpu:", "cpu:x", "cpu:-1", "tpu", "", "cuda:2", "cuda:0:0"])
def test_a_device_that_is_not_there_or_misspelt_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ResourceError, match="--device auto"):
        choose_device(name)


def test_a_gpu_is_taken_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name) for name in ("auto", "cuda", "cuda:1")] == [
        torch.device("cuda"), torch.device("cuda"), torch.device("cuda:1"),
    ]  # fmt: skip


def test_the_cpu_is_taken_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_said_to_be_there_only_where_it_is_native(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert [has_bf16(kind) for kind in ("cpu", "cuda", "mps")] == [native, native, False]


# memory

STEPS = """
import resource, sys, torch
from labelwise.devices import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(30):
    if step == 15:  # the heap has grown to what it needs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64, 2**18).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory as they like")
def test_a_process_that_keeps_its_memory_does_not_ask_for_it_again():
    faults = {
        choice: int(
            subprocess.run(
                [sys.executable, "-c", STEPS, choice], capture_output=True, text=True, check=True
            ).stdout
        )
        for choice in ("keep", "return")
    }
    assert faults["keep"] < faults["return"] / 10


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


def test_a_2d_network_with_instance_norm_keeps_its_channels_first():
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3))
    use_fast_layout(layers)
    assert layers[0].weight.is_contiguous()


def test_all_devices_are_the_gpus_and_a_list_may_name_one_twice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ResourceError, match="there is no GPU here"):
        choose_devices("all")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("all") == ("cuda:0", "cuda:1")
    assert choose_devices("cuda:1, cuda:1,cpu") == ("cuda:1", "cuda:1", "cpu")
    with pytest.raises(ResourceError, match="'cuda:2' is not available"):
        choose_devices("cuda:0,cuda:2")
