"""Promises of the torchao backend: its `quantize_` works with ours, codes are equal, the rest is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from qat_vsam import SAM, VSAM, ConfigError, InputError, LayerRule, QuantSpec, TensorSpec, calibrate, param_groups
from qat_vsam.models import build_model
from qat_vsam.quant import QuantConv2d, QuantLinear, prepare, quant_layers, set_quantizers_enabled

pytest.importorskip("torchao", reason="torchao is not installed")

from torchao.quantization import (
    FqnToConfig,
    Int8DynamicActivationIntxWeightConfig,
    PerAxis,
    quantize_,
)
from torchao.quantization.qat import QATConfig

from qat_vsam.quant.backends.torchao import QatVsamConfig, to_torchao


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def convnet() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, padding=1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def whole(module: nn.Module, name: str) -> bool:
    return name == ""


def test_quantize_with_its_own_filter_prepares_every_linear_layer_alike() -> None:
    model = mlp()
    quantize_(model, QatVsamConfig(QuantSpec.preset("w4a8")))
    bits = [(layer.weight_quantizer.bits, layer.input_quantizer.bits) for _, layer in quant_layers(model)]
    assert bits == [(4, 8)] * 3


def test_quantize_of_the_whole_model_is_prepare_with_first_and_last_layer_and_names() -> None:
    spec = QuantSpec.preset("w4a8", keep=("2",))
    ours, theirs = mlp(), mlp()
    prepare(ours, spec)
    quantize_(theirs, QatVsamConfig(spec), filter_fn=whole)
    assert [type(module) for module in theirs] == [type(module) for module in ours]
    assert [layer.weight_quantizer.bits for _, layer in quant_layers(theirs)] == [8, 8]


def test_names_of_torchao_choose_layers_and_their_bits() -> None:
    model = convnet()
    eight, four = QatVsamConfig(QuantSpec.preset("w8a8")), QatVsamConfig(QuantSpec.preset("w4a4"))
    quantize_(model, FqnToConfig({"0": eight, "re:[36]": four}), filter_fn=None)
    found = {name: (type(layer), layer.weight_quantizer.bits) for name, layer in quant_layers(model)}
    assert found == {"0": (QuantConv2d, 8), "3": (QuantConv2d, 4), "6": (QuantLinear, 4)}


def test_a_spec_with_names_is_refused_where_names_are_not_known() -> None:
    spec = QuantSpec.preset("w4", overrides=[LayerRule.preset("2", "w8")])
    with pytest.raises(ConfigError, match="filter_fn"):
        quantize_(mlp(), QatVsamConfig(spec))


@pytest.mark.parametrize("bad", [{"step": "train"}, {"spec": None}, {"inputs": "int4"}])
def test_impossible_configs_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        QatVsamConfig(**{"spec": QuantSpec.preset("w4")} | bad)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("narrow", [False, True])
def test_codes_and_values_are_ours_bit_for_bit(bits: int, granularity: Any, narrow: bool) -> None:
    model = convnet()
    prepare(model, QuantSpec(TensorSpec(bits, True, granularity, narrow=narrow), None, first_last_bits=bits))
    x = torch.randn(4, 3, 8, 8)
    expected = {name: (layer.weight_codes(), layer.quantized_weight().detach()) for name, layer in quant_layers(model)}
    answer = model(x).detach()
    to_torchao(model)
    for name, (codes, weight) in expected.items():
        tensor = model.get_submodule(name).weight
        assert type(model.get_submodule(name)) in (nn.Conv2d, nn.Linear)
        assert torch.equal(tensor.qdata, codes)
        assert torch.equal(tensor.dequantize(), weight)
    torch.testing.assert_close(model(x), answer)


def test_groups_of_a_linear_layer_are_blocks_and_those_of_a_convolution_are_refused() -> None:
    spec = QuantSpec(TensorSpec(4, True, "per_group", group_size=4), None, first_last_bits=None)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 2))
    prepare(model, spec)
    expected = dict(quant_layers(model))["1"].quantized_weight().detach()
    weight = to_torchao(model)[1].weight
    assert tuple(weight.block_size) == (1, 4)
    assert torch.equal(weight.dequantize(), expected)
    wide = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(8, 4, 1), nn.Linear(4, 2))
    prepare(wide, spec)
    with pytest.raises(InputError, match=r"1\.weight: got int4 per group of 4.*expected groups along one axis"):
        to_torchao(wide)


def test_quantizers_between_layers_are_refused() -> None:
    model, x = build_model("cifar_resnet20", seed=0), torch.randn(2, 3, 32, 32)
    prepare(model, QuantSpec.preset("w4a8", residual_adds="quantized"), sample=x)
    with pytest.raises(InputError, match=r"quantizer_.*: got a quantizer between layers; expected none for torchao"):
        to_torchao(model, inputs="float")


def test_embeddings_and_bfloat16_are_carried() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)).bfloat16()
    prepare(model, QuantSpec.preset("w4"))
    x = torch.tensor([[1, 2, 9]])
    expected, weight = model(x).detach(), model[0].quantized_weight().detach()  # type: ignore[operator, union-attr]
    to_torchao(model)
    assert torch.equal(model[0].weight.dequantize(), weight)  # type: ignore[operator, union-attr]
    assert torch.equal(model(x), expected)


def test_a_converted_model_saves_and_loads(tmp_path: Any) -> None:
    model = mlp()
    prepare(model, QuantSpec.preset("w4"))
    to_torchao(model)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    again = mlp()
    again.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True), assign=True)
    x = torch.randn(3, 16)
    assert torch.equal(again(x), model(x))


def test_static_steps_of_inputs_are_refused_until_it_is_said_what_becomes_of_them() -> None:
    model = mlp()
    prepare(model, QuantSpec.preset("w4a8"))
    calibrate(model, [torch.randn(64, 16)])
    x = torch.randn(64, 16)
    trained = model(x).detach()
    with pytest.raises(InputError, match=r"0\.input.*inputs=\"float\""):
        to_torchao(model)
    assert all(isinstance(layer, QuantLinear) for _, layer in quant_layers(model))
    dynamic = to_torchao(copy.deepcopy(model), inputs="int8_per_token")
    for _, layer in quant_layers(model):
        assert layer.input_quantizer is not None
        layer.input_quantizer.enabled = False
    weights_only = model(x).detach()
    to_torchao(model, inputs="float")
    torch.testing.assert_close(model(x), weights_only)
    assert not torch.equal(dynamic(x), weights_only)
    assert (dynamic(x) - trained).abs().mean() < 0.05 * trained.std()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TensorSpec(3, True, "per_channel", balanced=True), "balanced"),
        (TensorSpec(1, True, "per_channel"), "sign"),
        (TensorSpec(3, True, "per_channel", method="dorefa"), "dorefa"),
        (TensorSpec(4, False, "per_channel"), "uint4"),
    ],
)
def test_grids_that_its_tensors_do_not_have_are_refused_by_name(spec: TensorSpec, said: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    prepare(model, QuantSpec(spec, None, first_last_bits=None))
    with pytest.raises(InputError, match=rf"1\.weight: got .*{said}"):
        to_torchao(model)


def test_layers_that_its_tensors_do_not_compute_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Linear(4, 4))
    prepare(model, QuantSpec.preset("w4"))
    with pytest.raises(InputError, match="0: got QuantConv1d"):
        to_torchao(model)
    with pytest.raises(InputError, match="no quantized layer"):
        to_torchao(mlp())


def learn(model: nn.Module, optimizer: Any, steps: int = 30) -> tuple[float, float]:
    """Loss of the first and of the last step on one batch that a small network can fit."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 16, generator=generator)
    y = x[:, :4].argmax(1)

    def closure(rows: slice = slice(None)) -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure, batch_size=64)) for _ in range(steps)]
    return losses[0], losses[-1]


@pytest.mark.parametrize("member", [SAM, VSAM])
def test_a_model_under_torchaos_own_training_is_trained_by_our_optimizers(member: Any) -> None:
    model, base = mlp(), Int8DynamicActivationIntxWeightConfig(torch.int4, PerAxis(0))
    quantize_(model, QATConfig(base, step="prepare"))
    groups = param_groups(model, weight_decay=1e-4)
    assert [(group["role"], len(group["params"])) for group in groups] == [("weight", 3), ("bias", 3)]
    first, last = learn(model, member(groups, torch.optim.SGD, model=model, lr=0.1, momentum=0.9, rho=0.05))
    assert last < 0.5 * first
    x = torch.randn(8, 16)
    trained = model.eval()(x).detach()
    quantize_(model, QATConfig(base, step="convert"))
    assert (model(x) - trained).abs().mean() < 1e-3 * trained.std()


def test_steps_that_torchao_learns_are_in_the_group_of_step_sizes_and_do_not_decay() -> None:
    from torchao.quantization.qat import IntxFakeQuantizeConfig, initialize_fake_quantizers

    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao calls it a prototype
        weight = IntxFakeQuantizeConfig(torch.int4, group_size=16, is_dynamic=False, range_learning=True)
        quantize_(model, QATConfig(weight_config=weight, step="prepare"))
        initialize_fake_quantizers(model, (torch.randn(2, 16),))
    groups = {group["role"]: group for group in param_groups(model, weight_decay=1e-4)}
    assert len(groups["step_size"]["params"]) == 3
    assert groups["step_size"]["weight_decay"] == 0
    before = [step.detach().clone() for step in groups["step_size"]["params"]]
    first, last = learn(model, SAM(list(groups.values()), torch.optim.SGD, model=model, lr=0.02, rho=0.05))
    assert last < first
    assert not any(torch.equal(a, b) for a, b in zip(before, groups["step_size"]["params"], strict=True))


def test_switching_quantizers_off_leaves_weights_on_the_grid_after_conversion() -> None:
    model = mlp()
    prepare(model, QuantSpec.preset("w4"))
    expected = model[0].weight_codes()  # type: ignore[operator, union-attr]
    set_quantizers_enabled(model, False)
    to_torchao(model)
    assert torch.equal(model[0].weight.qdata, expected)  # type: ignore[union-attr]
