"""SS-Net against the official code's arrays, and its parts: worst changes, drawn voxels, the memory, the selectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import SPACE, make_batch, make_method
from labelwise.components.batches import draw_from_groups
from labelwise.devices import SafeConvolutions
from labelwise.losses.partial import supervised
from labelwise.methods.base import NetFactory
from labelwise.methods.ss_net.memory_bank import Bank, MemoryBank
from labelwise.methods.ss_net.method import Selectors, SsNet, SsNetConfig, disagreement, weighted_distance
from labelwise.methods.ss_net.virtual_adversary import adversarial_direction, unchanged_statistics, unit_cases
from labelwise.types import IGNORE, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)
STRUCTURES = SPACE.num_classes - 1


def quick_method(**settings):
    """Draws few voxels."""
    return make_method("ss_net", settings={"max_voxels": 400, **settings})


def tensor(array):
    return torch.from_numpy(array)


def official_network(arrays):
    """conv2(tanh(conv1(x))) with the official weights."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 2, 1))
    for layer, name in ((network[0], "conv1"), (network[2], "conv2")):
        layer.weight.data = tensor(arrays[f"vat_{name}_weight"])
        layer.bias.data = tensor(arrays[f"vat_{name}_bias"])
    return network


# smoothness


def test_the_smoothness_and_its_gradients_agree_with_the_official_code(golden, monkeypatch):
    arrays = golden("ssnet")
    method = quick_method(magnitude_mode="l2")
    method.network = official_network(arrays)
    images = tensor(arrays["vat_image"])
    batch = make_batch("full", "none")._replace(
        images=images, labels=torch.full((2, 6, 5, 4), IGNORE), annotated=torch.zeros(2, 2, dtype=torch.bool)
    )
    monkeypatch.setattr(torch, "rand_like", lambda like: tensor(arrays["vat_uniform_noise"]))
    smoothness = method.smoothness(batch)
    torch.testing.assert_close(smoothness, torch.tensor(float(arrays["vat_lds"])), **CLOSE)
    assert all(parameter.grad is None for parameter in method.network.parameters())
    smoothness.backward()
    for layer, name in ((method.network[0], "conv1"), (method.network[2], "conv2")):
        expected = tensor(arrays[f"vat_grad_{name}_weight"])
        torch.testing.assert_close(layer.weight.grad, expected, rtol=2e-5, atol=1e-7)


def test_the_direction_agrees_with_the_official_code(golden):
    arrays = golden("ssnet")
    network, images = official_network(arrays), tensor(arrays["vat_image"])
    clean = network(images).softmax(dim=1).detach()
    torch.testing.assert_close(clean, tensor(arrays["vat_prob_clean"]), **CLOSE)
    start = tensor(arrays["vat_uniform_noise"]) - 0.5
    torch.testing.assert_close(unit_cases(start), tensor(arrays["vat_d0"]), **CLOSE)
    everywhere = torch.ones(2, 6, 5, 4, dtype=torch.bool)
    xi = float(arrays["vat_xi"])

    def distance(change):
        return disagreement(network(images + change), clean, everywhere)

    probe = distance(xi * unit_cases(start))
    torch.testing.assert_close(probe, torch.tensor(float(arrays["vat_probe_loss"])), **CLOSE)
    direction = adversarial_direction(distance, start, probe_length=xi)
    torch.testing.assert_close(direction, tensor(arrays["vat_direction"]), **CLOSE)
    assert not direction.requires_grad
    changed = network(images + float(arrays["vat_eps"]) * direction).softmax(dim=1)
    torch.testing.assert_close(changed, tensor(arrays["vat_prob_adv"]), **CLOSE)


def test_the_worst_direction_of_a_quadratic_form_is_found_by_more_rounds():
    stretch = torch.tensor([1.0, 4.0, 2.0]).view(1, 1, 3)
    start = torch.tensor([1.0, 0.3, 0.5]).view(1, 1, 3)
    direction = adversarial_direction(
        lambda change: (stretch * change.square()).sum(), start, probe_length=0.1, rounds=20
    )
    torch.testing.assert_close(direction.flatten(), torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-3)


def test_the_worst_change_moves_an_answer_more_than_a_random_one():
    method = quick_method()
    images = make_batch("none", "none").images
    everywhere = torch.ones(2, 32, 32, 32, dtype=torch.bool)
    target = method.network(images).softmax(dim=1).detach()

    def distance(change):
        return disagreement(method.network(images + change), target, everywhere)

    torch.manual_seed(0)
    start = torch.randn_like(images)
    worst = adversarial_direction(lambda c: distance(c) * everywhere.numel(), start, probe_length=10)
    assert distance(10 * worst) - distance(0 * worst) > 5 * (
        distance(10 * unit_cases(start)) - distance(0 * worst)
    )


def test_a_zero_gradient_gives_no_direction_and_no_nan():
    start = torch.ones(2, 1, 3)
    direction = adversarial_direction(lambda change: (change * 0).sum(), start, probe_length=1.0)
    assert direction.abs().max() == 0


def test_extra_passes_use_the_statistics_of_their_input_and_keep_no_account():
    norm = nn.BatchNorm3d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    images = torch.randn(2, 2, 3, 3, 3) * 3 + 1
    with unchanged_statistics(norm):
        inside = norm(images)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    torch.testing.assert_close(inside, norm(images))
    assert norm.num_batches_tracked == 1


def test_a_step_counts_every_image_once_in_the_running_statistics():
    method = quick_method()
    method(make_batch("full", "none"), HALFWAY)
    norms = [module for module in method.network.modules() if isinstance(module, nn.BatchNorm3d)]
    assert norms
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}
    assert all(norm.track_running_stats for norm in norms)


def test_the_length_means_the_same_for_patches_of_any_size():
    method = quick_method()
    assert method.length(10.0, torch.zeros(1, 1, 112, 112, 80)) == pytest.approx(10)
    assert method.length(10.0, torch.zeros(1, 1, 56, 56, 40)) == pytest.approx(10 / 8**0.5)
    fixed = quick_method(magnitude_mode="l2")
    assert fixed.length(10.0, torch.zeros(1, 1, 8, 8, 8)) == 10


def test_smoothness_on_open_voxels_leaves_complete_cases_alone():
    method = quick_method(smooth_on="open")
    assert method.smoothness(make_batch("full", "full")) is None
    assert method(make_batch("full", "full"), HALFWAY)["smoothness"].item() == 0
    assert method.smoothness(make_batch("partial", "none")) > 0
    assert quick_method().smoothness(make_batch("full", "full")) > 0


def test_bf16_teaches_every_weight_much_like_float32():
    # Of a network that has learnt a little: at the start, batch norms divide by next to nothing.
    method, batch = quick_method(), make_batch("full", "none")
    optimizer = torch.optim.Adam(method.network.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        supervised(method.network(batch.images), batch.labels, batch.annotated).backward()
        optimizer.step()
    weights = [parameter for parameter in method.network.parameters() if parameter.ndim > 1]
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with SafeConvolutions():
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                smoothness = method.smoothness(batch)
            assert smoothness.dtype == torch.float32
            found = torch.autograd.grad(smoothness, weights)
        assert all(gradient.abs().max() > 0 for gradient in found)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.95


# separation


def test_the_separation_of_a_class_agrees_with_the_official_code(golden):
    arrays = golden("ssnet")
    features = tensor(arrays["cl_features"]).requires_grad_()
    selector = nn.Linear(32, 1)
    selector.weight.data = tensor(arrays["cl_selector1_weight"])
    selector.bias.data = tensor(arrays["cl_selector1_bias"])
    chosen = features[tensor(arrays["cl_labels"]) == 1].unsqueeze(0)
    bank = Bank(tensor(arrays["cl_memory_class1"]).unsqueeze(0), torch.tensor([32]))
    weights = selector(chosen.detach()).sigmoid().squeeze(2)
    loss = weighted_distance(chosen, weights, bank.centres).sum() / 2  # of two classes one has a memory
    torch.testing.assert_close(loss, torch.tensor(float(arrays["cl_loss_official"])), **CLOSE)
    gradients = torch.autograd.grad(loss, (features, selector.weight))
    for gradient, key in zip(
        gradients, ("cl_grad_features_official", "cl_grad_selector1_weight"), strict=True
    ):
        torch.testing.assert_close(gradient, tensor(arrays[key]), **CLOSE)


@pytest.mark.parametrize(("sign", "key"), [(1, "highest"), (-1, "official")])
def test_the_memory_keeps_the_vectors_that_the_official_code_keeps(golden, sign, key):
    arrays = golden("ssnet")
    vectors = tensor(arrays["mem_features"])[tensor(arrays["mem_labels"]) == 1].unsqueeze(0)
    memory = MemoryBank(1, int(arrays["mem_elements"]), 32)
    keys = sign * tensor(arrays["mem_scores_class1"]).unsqueeze(0)
    memory.remember(memory.updated(vectors, keys, torch.ones_like(keys, dtype=torch.bool)))
    torch.testing.assert_close(memory.vectors[0], tensor(arrays[f"mem_kept_class1_{key}"]))
    assert memory.counts.tolist() == [8]


def test_a_class_without_wanted_vectors_keeps_its_memory():
    memory = MemoryBank(2, 4, 3)
    first = torch.rand(2, 6, 3)
    memory.remember(memory.updated(first, torch.rand(2, 6), torch.ones(2, 6, dtype=torch.bool)))
    wanted = torch.zeros(2, 6, dtype=torch.bool)
    wanted[1, 3] = True
    bank = memory.updated(torch.full((2, 6, 3), 7.0), torch.rand(2, 6), wanted)
    torch.testing.assert_close(bank.vectors[0], memory.vectors[0])
    assert bank.counts.tolist() == [4, 1]
    torch.testing.assert_close(bank.vectors[1], torch.tensor([[7.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3]))
    torch.testing.assert_close(bank.centres[1], torch.full((3,), 3**-0.5))


def test_a_memory_with_more_places_than_vectors_has_empty_ones():
    memory = MemoryBank(1, 5, 2)
    bank = memory.updated(torch.ones(1, 3, 2), torch.zeros(1, 3), torch.tensor([[True, True, False]]))
    assert bank.counts.tolist() == [2]
    assert bank.vectors.shape == (1, 5, 2)
    assert bank.vectors[0, 2:].abs().max() == 0


def test_a_small_group_is_drawn_completely_and_once():
    torch.manual_seed(0)
    groups = torch.randint(4, (500,)).short()
    drawn = draw_from_groups(groups, num_groups=3, count=200)
    for number in range(3):
        expected = (groups == number).nonzero().flatten().tolist()
        assert drawn.voxels[number][drawn.filled[number]].tolist() == expected


def test_a_large_group_is_drawn_evenly_and_without_repetition():
    groups = torch.zeros(1000, dtype=torch.int16)
    total = torch.zeros(1000)
    for seed in range(200):
        torch.manual_seed(seed)
        drawn = draw_from_groups(groups, num_groups=2, count=300)
        assert drawn.filled.all(dim=1).tolist() == [True, False]
        assert not drawn.filled[1].any()
        assert drawn.voxels[0].diff().min() > 0
        total.index_add_(0, drawn.voxels[0], torch.ones(300))
    # 60 draws are expected of each voxel; the standard deviation is about 6.
    assert total.min() > 30
    assert total.max() < 100


def test_the_selectors_are_one_small_network_for_each_class():
    torch.manual_seed(0)
    selectors = Selectors(2, 5)
    vectors, filled = torch.randn(2, 9, 5), torch.ones(2, 9, dtype=torch.bool)
    filled[1, 6:] = False
    scores = selectors(vectors, filled)
    for number, count in enumerate((9, 6)):
        hidden = vectors[number, :count] @ selectors.first[number] + selectors.first_bias[number]
        hidden = F.leaky_relu(F.batch_norm(hidden, None, None, training=True), 0.2)
        expected = hidden @ selectors.second[number] + selectors.second_bias[number]
        torch.testing.assert_close(scores[number, :count], expected.squeeze(1), rtol=1e-4, atol=1e-5)


def groups_of(batch, logits, **settings):
    """Voxels drawn for each kind and class, as sets of numbers."""
    drawn = quick_method(**settings).draw(logits, batch)
    return [set(v[f].tolist()) for v, f in zip(drawn.voxels, drawn.filled, strict=True)]


def test_settled_voxels_have_their_label_and_others_a_class_that_is_left_open():
    batch = make_batch("full", "partial", "none", size=16)
    torch.manual_seed(0)
    logits = torch.randn(3, SPACE.num_classes, 16, 16, 16)
    groups = groups_of(batch, logits, max_voxels=3 * 16**3)
    assert sum(map(len, groups)) == 3 * 16**3
    settled, others = groups[: SPACE.num_classes], groups[SPACE.num_classes :]
    labels = batch.labels.flatten()
    for number, voxels in enumerate(settled):
        assert all(labels[voxel] == number for voxel in voxels)
    assert all(voxel >= 16**3 for voxels in others for voxel in voxels), "complete cases are settled"
    liver = 1
    assert all(voxel >= 2 * 16**3 for voxel in others[liver]), "no liver where the partial case denies it"


def test_unsure_voxels_can_be_left_out():
    batch = make_batch("none", size=16)
    logits = torch.zeros(1, SPACE.num_classes, 16, 16, 16)
    logits[:, 1, :8] = 10
    groups = groups_of(batch, logits, max_voxels=16**3, pseudo_threshold=0.9)
    assert [len(group) for group in groups[SPACE.num_classes :]] == [0, 8 * 16 * 16, 0, 0]


def rightly_classified(batch):
    """Logits that are right where there are labels."""
    classes = torch.arange(SPACE.num_classes).view(1, -1, 1, 1, 1)
    return (batch.labels.unsqueeze(1) == classes).float() * 10


def test_the_memory_is_written_after_the_step_and_read_only_without_labels():
    method = quick_method()
    batch = make_batch("full", "none")
    features = torch.randn(2, 4, 32, 32, 32, requires_grad=True)
    loss = method.separation(features, rightly_classified(batch), batch)
    assert loss > 0
    assert method.memory.counts.sum() == 0
    method.after_step(HALFWAY)
    assert method.memory.counts.tolist() == [32] * STRUCTURES
    before = method.memory.vectors.clone()
    method(make_batch("none", "none"), HALFWAY)
    method.after_step(HALFWAY)
    assert torch.equal(method.memory.vectors, before)


def test_nothing_is_remembered_of_structures_that_are_never_recognised():
    method = quick_method()
    batch = make_batch("full", "none")
    logits = torch.zeros(2, SPACE.num_classes, 32, 32, 32)
    logits[:, 0] = 1
    features = torch.randn(2, 4, 32, 32, 32, requires_grad=True)
    loss = method.separation(features, logits, batch)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, features)[0].abs().max() == 0
    method.after_step(HALFWAY)
    assert method.memory.counts.sum() == 0


def test_only_annotated_structures_are_remembered():
    method = quick_method()
    batch = make_batch("partial", "none")
    logits = torch.randn(2, SPACE.num_classes, 32, 32, 32)
    method.separation(torch.randn(2, 4, 32, 32, 32), logits, batch)
    method.after_step(HALFWAY)
    assert method.memory.counts.tolist() == [32, 0, 0]


def test_the_official_divisor_counts_all_classes():
    batch = make_batch("full")
    losses = []
    for divisor in ("present", "classes"):
        method = quick_method(separation_divisor=divisor)
        torch.manual_seed(0)
        losses.append(method.separation(torch.randn(1, 4, 32, 32, 32), rightly_classified(batch), batch))
    torch.testing.assert_close(losses[0] * STRUCTURES, losses[1] * SPACE.num_classes)


# the whole


def test_the_weight_is_that_of_the_steps_that_are_done(golden):
    arrays = golden("ssnet")
    method = quick_method()
    progress = Progress(int(arrays["iteration"]) - 1, 15_000)
    assert method.config.weight(progress) == pytest.approx(float(arrays["cons_weight"]), rel=1e-6)
    assert method.config.separation_weight == float(arrays["weight_cl"])
    assert method.config.weight(Progress(5_999, 15_000)) == 1


def test_a_cross_entropy_can_be_added():
    batch = make_batch("full")
    with_it, without = (
        quick_method(cross_entropy_weight=weight)(batch, HALFWAY)["supervised"] for weight in (1.0, 0.0)
    )
    assert with_it > without


def test_the_published_network_has_the_published_number_of_parameters():
    nets = NetFactory("vnet", {}, dims=3, in_channels=1, num_classes=2)
    method = SsNet(nets, SsNetConfig())
    selector = 32 * 32 + 32 + 2 * 32 + 32 + 1
    count = sum(parameter.numel() for parameter in method.parameters())
    assert count == 9_453_859
    assert count + 3 * selector == 9_457_318, "two of the memory and one of the background are never trained"
