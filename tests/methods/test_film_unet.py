"""The conditioned U-Net and its conditioning network: golden values, and what a condition may and may not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labelwise.errors import ConfigError
from labelwise.methods.conemos.conditioned import ConditionedNet, FilmGenerator
from labelwise.methods.conemos.network import FilmUNet, FilmUNetSettings, Modulation, modulate
from labelwise.nets.factory import NetFactory

# The generator computes in float32, over 64 and 27 * 4 products: their rounding, tenfold.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def factory(dims: int = 3, **settings: object) -> NetFactory:
    return NetFactory(
        "film_unet", {"width": 4, "depth": 3, **settings}, dims=dims, in_channels=1, num_classes=4
    )


def conditioned(dims: int = 3, layers: int | None = None, chunk: int = 4, **settings: object):
    torch.manual_seed(0)
    nets = factory(dims, **settings)
    decoder = nets.decoder()
    network = ConditionedNet(
        nets.encoder(), decoder, nets.head(4, 1), 3, conditioned_layers=layers, structure_chunk=chunk
    )
    nn.init.normal_(network.film.projections.weight, std=0.1)  # conditions that one can see
    return network


def images(dims: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, *[16] * dims, generator=torch.Generator().manual_seed(1))


def tensors(arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def generator_of(channels, weight, bias) -> FilmGenerator:
    """Projections with given weights, of a description that is given too."""
    generator = FilmGenerator(64, channels)
    generator.description = nn.Identity()
    generator.projections.load_state_dict({"weight": weight, "bias": bias})
    return generator


def test_a_film_layer_agrees_with_the_golden_values_and_gradients(golden):
    given = tensors(golden("conemos"))
    generator = generator_of([6], given["film_weight"], given["film_bias"])
    x, z = given["film_x"].requires_grad_(), given["film_z"].requires_grad_()
    y = modulate(x, generator(z)[0])
    torch.testing.assert_close(y, given["film_y"], **CLOSE)
    y.square().mean().backward()
    torch.testing.assert_close(x.grad, given["film_grad_x"], **CLOSE)
    torch.testing.assert_close(z.grad, given["film_grad_z"], **CLOSE)
    torch.testing.assert_close(generator.projections.weight.grad, given["film_grad_weight"], **CLOSE)


def test_the_conditioning_perceptron_agrees_with_the_golden_values(golden):
    given = tensors(golden("conemos"))
    generator = FilmGenerator(16, [1])
    linear = [layer for layer in generator.description if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(linear):
        layer.load_state_dict({"weight": given[f"mlp_w{number}"], "bias": given[f"mlp_b{number}"]})
    torch.testing.assert_close(generator.description(given["mlp_onehot"]), given["mlp_out"], **CLOSE)


def test_two_conditioned_units_agree_with_the_golden_values(golden):
    given = tensors(golden("conemos"))
    blueprint = FilmUNet(FilmUNetSettings(width=4, depth=2, norm="batch"), dims=3, in_channels=2)
    stage = blueprint.encoder().stages[0].eval()
    for number, (convolution, norm, _) in enumerate(stage.units, start=1):
        convolution.load_state_dict(
            {"weight": given[f"block_conv{number}_w"], "bias": given[f"block_conv{number}_b"]}
        )
        parts = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        norm.load_state_dict(
            {key: given[f"block_bn{number}_{name}"] for key, name in parts.items()}, strict=False
        )
    weight, bias = (torch.cat([given[f"block_film{i}_{part}"] for i in (1, 2)]) for part in "wb")
    film = generator_of([4, 4], weight, bias)(given["block_z"])
    torch.testing.assert_close(stage(given["block_x"], iter(film)), given["block_y"], **CLOSE)


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    nets = NetFactory(
        "film_unet", {"norm": "batch", "upsampling": "trilinear"}, dims=3, in_channels=1, num_classes=17
    )
    network = ConditionedNet(nets.encoder(), nets.decoder(), nets.head(16, 1), num_structures=16)
    projections = sum(parameter.numel() for parameter in network.film.projections.parameters())
    head = 2 * 65  # the published count knows no FiLM after the head
    assert projections - head == 91_520
    assert sum(parameter.numel() for parameter in network.parameters()) - head == 1_431_793
    assert sum(parameter.numel() for parameter in nets.network(1).parameters()) == 1_326_705


@pytest.mark.parametrize("dims", [2, 3])
def test_gamma_and_beta_of_zero_leave_the_unconditioned_network(dims: int):
    network = conditioned(dims)
    nn.init.zeros_(network.film.projections.weight)
    plain = network.head(network.decoder(network.encoder(images(dims)))[-1])
    for structure in range(3):
        logits = network.answer(images(dims), torch.tensor([0, 1]), torch.tensor([structure, structure]))
        torch.testing.assert_close(logits, plain)


def test_the_structure_that_is_asked_for_changes_the_answer():
    network = conditioned()
    logits = network.answer(images(), torch.tensor([0, 0]), torch.tensor([0, 2]))
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("layers", [None, 5])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_of_pairs_gives_what_the_pairs_give_one_by_one(dims: int, layers: int | None):
    network = conditioned(dims, layers)
    cases, structures = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([2, 0, 1, 0, 2])
    together = network.answer(images(dims), cases, structures)
    for number in range(len(cases)):
        alone = network.answer(images(dims), cases[number, None], structures[number, None])
        torch.testing.assert_close(together[number, None], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layers", [None, 5])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_of_structures_give_what_each_structure_gives_alone(chunk: int, layers: int | None):
    network = conditioned(layers=layers, chunk=chunk)
    logits = network(images())
    assert logits.shape == (2, 3, 16, 16, 16)
    for structure in range(3):
        alone = network.answer(images(), torch.tensor([0, 1]), torch.tensor([structure, structure]))
        torch.testing.assert_close(logits[:, structure, None], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("layers", "passes"), [(5, 1), (6, 3), (None, 3)])
def test_the_encoder_is_shared_where_no_condition_reaches_it(layers: int | None, passes: int):
    # 3 scales: 6 units in the encoder, 4 in the decoder, 1 head
    network, images_seen = conditioned(layers=layers, chunk=1), []
    network.encoder.register_forward_hook(lambda module, args, output: images_seen.append(len(args[0])))
    network(images())
    assert images_seen == [2] * passes


def test_only_the_last_layers_are_conditioned():
    network = conditioned(layers=2)
    assert network.film.channels == (4, 1)
    assert [m is None for m in network._modulations(torch.tensor([0]))] == [True] * 9 + [False] * 2


@pytest.mark.parametrize("layers", [0, 12])
def test_more_conditioned_layers_than_there_are_is_refused(layers: int):
    with pytest.raises(ConfigError, match="1 to 11"):
        conditioned(layers=layers)


def test_every_conditioned_layer_reaches_the_answer():
    network = conditioned()
    network.answer(images(), torch.tensor([0, 1]), torch.tensor([0, 1])).square().mean().backward()
    per_row = network.film.projections.weight.grad.abs().sum(dim=1)
    start = 0
    for channels in network.film.channels:
        for part in ("gamma", "beta"):
            assert per_row[start : start + channels].max() > 0, (channels, part)
            start += channels
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear", "nearest"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_norm_and_upsampling_can_be_chosen(dims: int, upsampling: str, norm: str):
    logits = conditioned(dims, norm=norm, upsampling=upsampling)(images(dims))
    assert logits.shape == (2, 3, *[16] * dims)
    assert logits.isfinite().all()


def test_film_keeps_the_precision_and_the_memory_layout_of_the_features():
    features = torch.randn(2, 4, 5, 6, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    modulated = modulate(features, Modulation(torch.zeros(2, 4), torch.zeros(2, 4)))
    assert modulated.dtype == torch.bfloat16
    assert modulated.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(modulated, features)


def test_conditions_are_computed_in_full_precision():
    generator = FilmGenerator(3, [4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (film,) = generator(torch.eye(3))
    assert film.scale.dtype == torch.float32


@pytest.mark.parametrize("depth", [2, 4])
def test_sizes_must_be_divisible_by_as_many_halvings_as_there_are_scales_below_the_first(depth: int):
    nets = NetFactory("film_unet", {"depth": depth}, dims=2, in_channels=1, num_classes=4)
    assert nets.strides == (2 ** (depth - 1),) * 2
