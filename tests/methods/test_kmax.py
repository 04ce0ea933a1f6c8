"""The k-means transformer decoder: its layer against the official one, the k-means step by hand, and its symmetries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from labelwise.methods.dkuxnet.decoder import (
    KMaxDecoder,
    KMaxLayer,
    MaskHead,
    QueryAttention,
    assignment,
    cosine_to_pixels,
    gather,
)

# Name of a unit (convolution, norm) here and in the arrays.
UNITS = {
    "pixel_in": "p_in",
    "query_in": "q_in",
    "value": "p_value",
    "mask_head.key": "kernel",
    "attention.project": "qkv",
}
# Name of a single layer here and in the arrays.
LAYERS = {
    "mask_head.embedding.0": "embed_dw_conv",
    "mask_head.embedding.1": "embed_dw_norm",
    "mask_head.embedding.3": "embed1_conv",
    "mask_head.embedding.4": "embed1_norm",
    "mask_head.embedding.6": "embed2_conv",
    "mask_head.embedding.7": "embed2_norm",
    "mask_head.norm": "mask_norm",
    "update.0": "km_norm",
    "update.1": "km_proj_conv",
    "update.2": "km_proj_norm",
    "attention.similarity_norm": "attn_sim_norm",
    "attention.out.0": "attn_out_norm",
    "attention.out.2": "attn_proj_conv",
    "attention.out.3": "attn_proj_norm",
    "perceptron.0": "ffn1_conv",
    "perceptron.1": "ffn1_norm",
    "perceptron.3": "ffn2_conv",
    "perceptron.4": "ffn2_norm",
}


def fill(layer: nn.Module, arrays: dict) -> None:
    """Every weight of the layer from the array of its name; batch statistics stay as they are."""
    names = dict(LAYERS)
    for mine, theirs in UNITS.items():
        names |= {f"{mine}.0": f"{theirs}_conv", f"{mine}.1": f"{theirs}_norm"}
    for name, parameter in layer.named_parameters():
        owner, _, kind = name.rpartition(".")
        values = torch.from_numpy(arrays.pop(f"kmax_w_{names[owner]}_{kind}"))
        parameter.data.copy_(values.view_as(parameter))


def double(array) -> Tensor:
    return torch.from_numpy(array)


def test_a_layer_and_its_gradients_agree_with_the_official_one(golden):
    arrays = golden("dkuxnet")
    layer = KMaxLayer(3, 6, 8, norm="batch", heads=2, expansion=2)
    fill(layer, arrays)
    unused = {name for name in arrays if name.startswith("kmax_w_") and "_cls_" not in name}
    assert unused == set()

    pixels = double(arrays["kmax_pixel"]).requires_grad_()
    queries = double(arrays["kmax_query"]).requires_grad_()
    queries_out, masks = layer(pixels, queries)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(queries_out, double(arrays["kmax_query_out"]), **close)
    torch.testing.assert_close(masks, double(arrays["kmax_mask_logits"]), **close)
    loss = (queries_out * double(arrays["kmax_rq"])).sum() + (masks * double(arrays["kmax_rm"])).sum()
    dpixels, dqueries = torch.autograd.grad(loss, (pixels, queries))
    torch.testing.assert_close(dpixels, double(arrays["kmax_dpixel"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dqueries, double(arrays["kmax_dquery"]), rtol=1e-4, atol=1e-4)


def test_the_k_means_step_agrees_with_the_reference(golden):
    arrays = golden("dkuxnet")
    raw = cosine_to_pixels(double(arrays["km_kernel"]), double(arrays["km_pixel"]))
    torch.testing.assert_close(raw, double(arrays["km_logit_raw"]))
    scale, shift, epsilon = arrays["km_bn"]
    masks = (raw - raw.mean()) / (raw.var(unbiased=False) + epsilon).sqrt() * scale + shift
    torch.testing.assert_close(masks, double(arrays["km_logit"]))
    assigned = assignment(masks)
    torch.testing.assert_close(assigned.argmax(dim=1).int(), double(arrays["km_assign"]))
    torch.testing.assert_close(assigned.sum(dim=2), double(arrays["km_count"]))
    for kind in ("sum", "mean"):
        found = gather(double(arrays["km_value"]), assigned, kind)
        torch.testing.assert_close(found, double(arrays[f"km_update_{kind}"]))
        moved = double(arrays["km_centre"]) + found
        torch.testing.assert_close(moved, double(arrays[f"km_centre_new_{kind}"]))


def test_the_gradient_of_the_step_reaches_the_values_only(golden):
    arrays = golden("dkuxnet")
    values = double(arrays["km_value"]).requires_grad_()
    masks = double(arrays["km_logit"]).requires_grad_()
    loss = (gather(values, assignment(masks), "sum") * double(arrays["km_r"])).sum()
    dvalues, dmasks = torch.autograd.grad(loss, (values, masks), allow_unused=True)
    torch.testing.assert_close(dvalues, double(arrays["km_dvalue"]))
    assert dmasks is None


def test_a_query_without_a_voxel_gathers_nothing():
    masks = torch.tensor(
        [[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]
    )  # 2 queries, 3 voxels: all are nearest to the first
    values = torch.tensor([[[1.0, 2.0, 6.0]]])
    assert gather(values, assignment(masks), "sum").tolist() == [[[9.0, 0.0]]]
    assert gather(values, assignment(masks), "mean").tolist() == [[[3.0, 0.0]]]


def test_the_assignment_ignores_what_all_queries_of_a_voxel_share():
    masks = torch.randn(2, 5, 7)
    shifted = masks + 10 * torch.randn(2, 1, 7)
    torch.testing.assert_close(assignment(shifted), assignment(masks))


def test_similarities_are_float32_and_finite_for_a_voxel_without_features():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = cosine_to_pixels(torch.randn(1, 4, 3).bfloat16(), torch.zeros(1, 4, 5).bfloat16())
    assert similarity.dtype == torch.float32
    assert similarity.abs().max() == 0


def decoder(dims: int = 3, **settings: object) -> KMaxDecoder:
    torch.manual_seed(0)
    network = KMaxDecoder(dims, (12, 6), 3, **{"queries": 5, "width": 16, "layers": 2, **settings})
    return network.double()  # what is equal must not differ by the rounding of one processor


def maps(dims: int = 3, cases: int = 2) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(channels: int, size: int) -> Tensor:
        return torch.randn(cases, channels, *[size] * dims, generator=generator, dtype=torch.float64)

    return [draw(12, 2), draw(6, 4)], draw(3, 8)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("update", ["sum", "mean"])
def test_every_layer_gives_masks_of_the_size_of_its_map(dims: int, norm: str, update: str):
    clusters = decoder(dims, norm=norm, update=update)(*maps(dims))
    assert clusters.queries.shape == (2, 16, 5)
    assert clusters.masks.shape == (2, 5, *[8] * dims)
    assert [mask.shape[2] for mask in clusters.layers] == [2, 2, 4, 4]


def awake(module: nn.Module) -> nn.Module:
    """With every scale away from 0, so that nothing is silent."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return module


def test_permuted_queries_give_permuted_masks():
    network = awake(decoder())
    before = network(*maps())
    order = torch.tensor([3, 0, 4, 1, 2])
    network.centres.data = network.centres.data[:, order]
    after = network(*maps())
    torch.testing.assert_close(after.masks, before.masks[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.queries, before.queries[:, :, order], rtol=1e-4, atol=1e-4)


def test_with_group_norm_a_case_gives_the_same_in_any_company():
    network = awake(decoder())
    scales, embedding = maps()
    alone = network([scale[:1] for scale in scales], embedding[:1])
    torch.testing.assert_close(network(scales, embedding).masks[:1], alone.masks, rtol=1e-4, atol=1e-5)


def test_a_new_layer_leaves_the_queries_alone_but_for_two_activations():
    layer = KMaxLayer(3, 6, 16)
    queries = torch.randn(2, 16, 5)
    after, _ = layer(torch.randn(2, 6, 4, 4, 4), queries)
    gelu = nn.functional.gelu
    torch.testing.assert_close(after, gelu(gelu(queries)))


def test_the_parts_have_the_published_widths():
    layer = KMaxLayer(3, 384, 256)
    assert isinstance(layer.attention, QueryAttention)
    assert layer.attention.sizes == (128, 128, 256)
    assert layer.attention.heads == 8
    assert layer.perceptron[0].out_channels == 2048
    assert isinstance(layer.mask_head, MaskHead)
    assert layer.mask_head.key[0].out_channels == 128


def test_half_precision_gives_nearly_the_same_masks():
    torch.manual_seed(0)
    head = MaskHead(3, 6, 16, "group")
    queries, pixels = torch.randn(2, 16, 5), torch.randn(2, 6, 4, 4, 4)
    exact = head(queries, pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(queries, pixels)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.05 * exact.std()
