"""CAML against the official code's arrays, and the rules that partly labelled cases add."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import SMALL_NETS, make_batch, make_method
from labelwise.methods import find_method
from labelwise.methods.base import NetFactory
from labelwise.methods.caml.attention import CrossSampleAttention
from labelwise.methods.caml.correlation import correlation_loss, log_profile
from labelwise.methods.caml.method import most_certain
from labelwise.nets.parts import SegmentationNet
from labelwise.types import IGNORE, Batch, Progress

# Similarities are computed in float32: the rounding of their sums, tenfold.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OFFICIAL = Progress(2999, 15000)  # iteration 3000, counted from 1
FEW = {"memory_per_case": 64, "max_rows": 4000}
EVERYTHING = torch.ones(32, dtype=torch.bool)


class Replay(nn.Module):
    """A part of a network that returns what it was given."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _):
        return self.output


def replayed(logits):
    """A network with the given logits, and features of noise."""
    features = [torch.randn(len(logits), 4, *logits.shape[2:])]
    return SegmentationNet(Replay(None), Replay(features), Replay(logits))


def tensors(arrays, *names):
    return tuple(torch.from_numpy(arrays[name]) for name in names)


def official_correlation(arrays, **settings):
    """The loss at the official rows, and the features it depends on."""
    features = [each.requires_grad_() for each in tensors(arrays, "feat_v", "feat_a")]
    rows = torch.from_numpy(arrays["row_index"])
    columns = torch.from_numpy(arrays["memory"]).flatten(0, 1)
    profiles = [log_profile(each[rows], columns, EVERYTHING) for each in features]
    return correlation_loss(*profiles, torch.ones(24, dtype=torch.bool), **settings), features, profiles


def test_rows_are_the_official_ones(golden):
    arrays = golden("caml")
    certainty, classes = tensors(arrays, "prob_v", "label_v")
    index, valid = most_certain(certainty, classes.long(), torch.ones(50, dtype=torch.bool), 2, 12)
    assert index.flatten().tolist() == arrays["row_index"].tolist()
    assert valid.all()


def test_the_correlation_agrees_with_the_official_code(golden):
    arrays = golden("caml")
    loss, features, profiles = official_correlation(arrays)
    for profile, name in zip(profiles, ("corr_v", "corr_a"), strict=True):
        torch.testing.assert_close(profile.exp(), torch.from_numpy(arrays[name]), **CLOSE)
    assert loss.item() == pytest.approx(float(arrays["loss_o"]), rel=1e-5)
    for gradient, name in zip(torch.autograd.grad(loss, features), ("v", "a"), strict=True):
        torch.testing.assert_close(gradient, torch.from_numpy(arrays[f"grad_feat_{name}"]), **CLOSE)


def test_the_exact_logarithm_and_a_detached_target_can_be_had(golden):
    arrays = golden("caml")
    exact, _, _ = official_correlation(arrays, floor=0.0)
    assert exact.item() == pytest.approx(float(arrays["loss_o_no_eps"]), rel=1e-5)
    loss, features, _ = official_correlation(arrays, detach_target=True)
    first, second = torch.autograd.grad(loss, features, allow_unused=True)
    torch.testing.assert_close(first, torch.from_numpy(arrays["grad_feat_v_stopgrad_a"]), **CLOSE)
    assert second is None


def test_a_class_without_memory_takes_no_share(golden):
    arrays = golden("caml")
    rows = torch.from_numpy(arrays["feat_v"])[torch.from_numpy(arrays["row_index"])]
    columns = torch.from_numpy(arrays["memory"]).flatten(0, 1)
    profile = log_profile(rows, columns, torch.arange(32) >= 16)
    assert profile.isfinite().all()
    assert (profile[:, :16].exp() == 0).all()
    expected = torch.from_numpy(arrays["corr_v_only_class1_memory"])
    torch.testing.assert_close(profile[:, 16:].exp(), expected, **CLOSE)


def test_equal_features_cost_the_entropy_of_the_profile():
    rows, columns = torch.randn(5, 8), torch.randn(32, 8)
    profile = log_profile(rows, columns, EVERYTHING, temperature=2.0)
    loss = correlation_loss(profile, profile, torch.arange(5) < 3, floor=0.0)
    torch.testing.assert_close(loss, -(profile.exp() * profile)[:3].sum(dim=1).mean())


def test_no_row_and_no_column_cost_nothing():
    rows = torch.randn(5, 8, requires_grad=True)
    profile = log_profile(rows, torch.randn(32, 8), ~EVERYTHING)
    loss = correlation_loss(profile, profile, torch.zeros(5, dtype=torch.bool), floor=0.0)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, rows)[0].abs().max() == 0


def attention_of(arrays, part):
    """The attention with official weights in one of its layers; the other layer is left out."""
    attention = CrossSampleAttention(8, heads=int(arrays["attn_heads"]), dropout=0.0)
    layer = nn.TransformerEncoderLayer(8, 4, 32, 0.0, batch_first=True)
    prefix = f"{part}_"
    weights = {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(prefix) and name != f"{part}_out"
    }
    layer.load_state_dict(weights)
    attention.within, attention.across = (layer, nn.Identity()) if part == "intra" else (nn.Identity(), layer)
    return attention


@pytest.mark.parametrize("part", ["intra", "inter"])
def test_the_attention_agrees_with_the_official_code(golden, part):
    arrays = golden("caml")
    features, expected = tensors(arrays, "attn_in", f"{part}_out")
    torch.testing.assert_close(attention_of(arrays, part)(features), expected, **CLOSE)


def test_the_attention_is_the_identity_in_evaluation_and_follows_the_order_of_the_batch():
    attention, features = CrossSampleAttention(8, dropout=0.0), torch.randn(3, 8, 2, 3, 4)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(attention(features)[order], attention(features[order]))
    assert attention.eval()(features) is features


def test_large_features_attend_within_slabs():
    slabs = CrossSampleAttention(8, dropout=0.0, positions=4)
    features = torch.randn(2, 8, 4, 4)
    changed = features.clone()
    changed[:, :, 3] += 1
    difference = (slabs(features) - slabs(changed)).abs().amax(dim=(0, 1, 3))
    assert (difference[:3] == 0).all()
    assert difference[3] > 0


def test_the_other_terms_and_the_total_agree_with_the_official_code(golden):
    arrays = golden("caml")
    method = make_method("caml", settings={"use_ce": False})
    logits, labels = tensors(arrays, "logits_va", "label")
    method.network, method.auxiliary = replayed(logits[0]), replayed(logits[1])
    labels = labels.long()
    labels[2:] = IGNORE
    annotated = torch.zeros(4, 2, dtype=torch.bool)
    annotated[:2] = True
    batch = Batch(torch.zeros(4, 1, *labels.shape[1:]), labels, annotated)
    method.remember = method.correlation = lambda *_: torch.from_numpy(arrays["loss_o"])
    terms = method(batch, OFFICIAL)
    assert terms["supervised"].item() == pytest.approx(0.5 * float(arrays["loss_s"]), rel=1e-5)
    assert terms["consistency"].item() == pytest.approx(
        float(arrays["lambda_c"] * arrays["loss_c"]), rel=1e-5
    )
    assert terms["correlation"].item() == pytest.approx(
        float(arrays["lambda_o"] * arrays["loss_o"]), rel=1e-5
    )
    assert sum(terms.values()).item() == pytest.approx(float(arrays["loss_total_with_o"]), rel=1e-5)


def outputs_saying(labels):
    """Logits of two networks that are certain of these classes."""
    logits = nn.functional.one_hot(labels, 4).movedim(-1, 1).float() * 9
    return logits, logits.clone()


def test_with_the_weights_of_acdc_the_distance_counts_a_twentieth_and_the_correlation_a_tenth():
    """Four classes: 1.0 * half the sum is 20 times 0.1 * the mean. The supervised term is the Dice alone."""
    preset = find_method("caml").presets["acdc"]
    logits = torch.randn(2, 2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    batch, end = make_batch("full", "none", dims=2), Progress(99_999, 100_000)
    found = []
    assert preset["correlation_weight"] == preset["consistency_weight"] / 20
    for settings in ({}, preset, {"use_ce": False}):
        method = make_method("caml", dims=2, settings={**FEW, **settings})
        method.network, method.auxiliary = replayed(logits[0]), replayed(logits[1])
        torch.manual_seed(0)
        method(batch, end)  # fills the memory
        found.append(method(batch, end))
    usual, acdc, without_ce = found
    torch.testing.assert_close(20 * acdc["consistency"], usual["consistency"])
    assert acdc["correlation"] > 0
    torch.testing.assert_close(10 * acdc["correlation"], usual["correlation"])
    torch.testing.assert_close(acdc["supervised"], without_ce["supervised"])
    assert acdc["supervised"] < usual["supervised"]


def test_rows_are_open_voxels_of_unlabelled_cases_where_both_agree():
    method = make_method("caml", settings={"rows_per_class": 4000, "max_rows": 16000})
    batch = make_batch("full", "partial", "none", size=16)  # liver is annotated in the second case
    truth = make_batch("full", "full", "full", size=16).labels
    first, second = outputs_saying(truth)
    second[2, :, :8] = second[2, :, :8].roll(1, dims=0)  # another class in half of the last case
    rows = method.choose_rows((first, second), batch)
    agree = rows.agree.view(3, 16, 16, 16)
    assert not agree[0].any()
    assert (agree[1] == (batch.labels[1] == 0)).all()
    assert not agree[2, :8].any()
    assert agree[2, 8:].all()
    chosen = rows.voxel[rows.valid]
    assert rows.agree[chosen].all()
    assert len(set(chosen.tolist())) == len(chosen)
    assert rows.valid.view(4, -1).sum(dim=1).tolist()[1] == 0, (
        "liver is known, or cut away from the last case"
    )


def test_what_labels_exclude_cannot_be_what_networks_agree_on():
    method = make_method("caml", settings={"rows_per_class": 100})
    batch = make_batch("partial", size=16)
    liver = outputs_saying(torch.ones(1, 16, 16, 16, dtype=torch.int64))
    rows = method.choose_rows(liver, batch)
    assert rows.valid.view(4, -1).sum(dim=1)[1] == 0


def test_the_memory_holds_what_is_certain_and_right():
    method = make_method("caml", settings={"memory_per_case": 64})
    batch = make_batch("full", "partial", "none", size=16)
    truth = make_batch("full", "full", "full", size=16).labels
    wrong = truth.clone()
    wrong[0][truth[0] == 2] = 0  # one network misses the spleen of the first case
    features = tuple(torch.randn(3, 4, 16, 16, 16) for _ in range(2))
    first, _ = outputs_saying(truth)
    method.remember((first, outputs_saying(wrong)[0]), features, batch)
    sizes = [(truth[0] == number).sum().item() for number in range(4)]
    counts = method.memory.counts
    assert counts[0].tolist() == [sizes[0], sizes[1], 0, sizes[3]]
    assert counts[1].tolist() == [0, sizes[1], 0, 0], (
        "the background of a partly annotated case is not certain"
    )
    assert counts[2].sum() == 0


def test_remembered_vectors_are_the_mean_projection_at_right_voxels():
    method = make_method("caml", settings={"memory_per_case": 4})
    batch = make_batch("full", size=16)
    features = tuple(torch.randn(1, 4, 16, 16, 16) for _ in range(2))
    method.remember(outputs_saying(batch.labels), features, batch)
    spleen = (batch.labels[0] == 2).flatten()
    projected = [
        embedding.projection(maps[0].flatten(1).T[spleen])
        for embedding, maps in zip(method.embeddings, features, strict=True)
    ]
    candidates = torch.stack(projected).mean(dim=0)
    nearest = (method.memory.vectors[0, 2].unsqueeze(1) - candidates).abs().amax(dim=2).min(dim=1)
    assert nearest.values.max() < 1e-5
    assert len(set(nearest.indices.tolist())) == 4


def test_without_labels_the_memory_is_read_and_not_written():
    method = make_method("caml", settings=FEW)
    method(make_batch("full", "none", size=16), OFFICIAL)
    before = method.memory.written.clone()
    assert before.tolist() == [1] + [0] * 15
    method(make_batch("none", "none", size=16), OFFICIAL)
    assert torch.equal(method.memory.written, before)


def test_complete_batches_have_no_correlation():
    term = make_method("caml")(make_batch("full", "full", size=16), OFFICIAL)["correlation"]
    assert term.item() == 0
    assert term.requires_grad


def test_heads_on_all_voxels_give_nearly_the_same():
    terms = []
    for heads_on in ("selected", "all"):
        method = make_method("caml", seed=1, settings=FEW | {"heads_on": heads_on, "rows_per_class": 40000})
        torch.manual_seed(0)
        terms.append(method(make_batch("full", "none", size=16), OFFICIAL)["correlation"].item())
    assert terms[0] == pytest.approx(terms[1], rel=0.2)


def test_the_networks_have_the_published_number_of_parameters():
    nets = NetFactory("vnet", {}, dims=3, in_channels=1, num_classes=2)
    kind = find_method("caml")
    method = kind(nets, kind.Config(memory_per_case=1))
    assert sum(p.numel() for p in method.parameters()) == 20_128_836
    assert sum(p.numel() for p in method.predictor().parameters()) == 9_448_866


@pytest.mark.parametrize("net", ["unet", "film_unet", "pipofan", "plseg_unet", "ltuda_unet", "dodnet_unet"])
def test_other_networks_work_too(net):
    nets = NetFactory(net, SMALL_NETS[net], dims=2, in_channels=1, num_classes=4)
    kind = find_method("caml")
    terms = kind(nets, kind.Config(memory_per_case=64, max_rows=400))(
        make_batch("full", "none", dims=2), OFFICIAL
    )
    torch.stack(list(terms.values())).sum().backward()
