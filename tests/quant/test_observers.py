"""Calibration by torchao's observers: the step sizes are theirs, and what they cannot say is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from qat_vsam.errors import ConfigError, InputError, MissingDependencyError
from qat_vsam.quant import LSQQuantizer, QuantSpec, TensorSpec, calibrate, make_quantizer, prepare, quant_layers

pytest.importorskip("torchao", reason="torchao is not installed")

from torchao.quantization import MappingType, PerAxis, PerTensor
from torchao.quantization.observer import (
    AffineQuantizedFixedQParamObserver,
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMSEObserver,
)

ASYMMETRIC, CLIPS, KEEPS = MappingType.ASYMMETRIC, MappingType.SYMMETRIC, MappingType.SYMMETRIC_NO_CLIPPING_ERR


def network(bits: str = "w4a8", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=2)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 16, 4))
    prepare(model, QuantSpec.preset(bits, **options))
    return model


def batches(n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) * (1 + index) for index in range(n)]


def inputs(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """What each layer of the float model reads."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name, _ in quant_layers(model)}
    bare = copy.deepcopy(model)
    for name, layer in quant_layers(bare):
        layer.weight_quantizer.enabled = layer.input_quantizer.enabled = False
        layer.register_forward_pre_hook(lambda module, args, name=name: seen[name].append(args[0].detach()))
    with torch.no_grad():
        for x in batches():
            bare(x)
    return seen


def scale_of(observer: Any, *tensors: torch.Tensor) -> torch.Tensor:
    for x in tensors:
        observer(x)
    return observer.calculate_qparams()[0]


def minmax(q_min: int, q_max: int) -> AffineQuantizedMinMaxObserver:
    mapping = KEEPS if q_min < 0 else ASYMMETRIC
    return AffineQuantizedMinMaxObserver(mapping, torch.int32, PerTensor(), q_min, q_max)


@pytest.mark.parametrize("options", [{"method": "torchao-minmax"}, {"observer": minmax}])
@pytest.mark.parametrize("bits", ["w4a8", "w2a3"])
def test_step_sizes_of_inputs_are_the_minmax_observers_scales(options: dict[str, Any], bits: str) -> None:
    model = network(bits)
    calibrate(model, batches(), **options)
    quantizers = {name: layer.input_quantizer for name, layer in quant_layers(model)}
    assert [q.signed for q in quantizers.values()] == [True, False, True, True]
    for name, values in inputs(model).items():
        own = quantizers[name]
        assert torch.equal(own.step(), scale_of(minmax(own.q_min, own.q_max), *values))


def test_step_sizes_of_inputs_are_the_mse_observers_scales_for_all_batches_at_once() -> None:
    model = network("w4a4", first_last_bits=4)
    calibrate(model, batches(), method="torchao-mse")
    for name, values in inputs(model).items():
        own, x = dict(quant_layers(model))[name].input_quantizer, torch.cat(values)
        observer = AffineQuantizedMSEObserver(KEEPS, torch.int32, PerTensor(), own.q_min or -own.q_max, own.q_max)
        assert torch.equal(own.step(), scale_of(observer, x))
        # it is the best of torchao's hundred for our grid, unsigned ones included
        own.enabled = True
        error = (own(x) - x).square().mean()
        for factor in (0.98, 1.02):
            other = make_quantizer(own.spec, "activation")
            other.set_step(own.step().detach() * factor, signed=own.signed)
            assert error <= (other(x) - x).square().mean() * 1.01
        assert own.step() < scale_of(minmax(own.q_min, own.q_max), x)


@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("observer", [AffineQuantizedMinMaxObserver, AffineQuantizedMSEObserver])
def test_step_sizes_of_weights_are_the_observers_scales_for_each_row(observer: Any, group_size: int | None) -> None:
    name = "torchao-mse" if observer is AffineQuantizedMSEObserver else "torchao-minmax"
    named, given = (network(group_size=group_size) for _ in range(2))
    calibrate(named, batches(), method=name)
    calibrate(given, batches(), weight_observer=partial(observer, KEEPS, torch.int32, PerAxis(0)))
    for model in (named, given):
        for _, layer in quant_layers(model):
            own = layer.weight_quantizer
            rows = layer.weight.detach().reshape(len(own.step()), -1)
            assert torch.equal(
                own.step(), scale_of(observer(KEEPS, torch.int32, PerAxis(0), own.q_min, own.q_max), rows)
            )
    assert dict(quant_layers(named))["2"].weight_quantizer.step().numel() == (8 if group_size is None else 16)


def test_one_scale_for_a_weight_and_rows_of_transposed_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 2, 1))
    spec = QuantSpec(TensorSpec(4, True, "per_channel"), None, first_last_bits=4)
    prepare(model, spec)
    calibrate(model, [torch.randn(2, 4, 3, 3)], method="torchao-minmax")
    rows = model[0].weight.detach().transpose(0, 1).flatten(1)
    expected = scale_of(AffineQuantizedMinMaxObserver(KEEPS, torch.int32, PerAxis(0), -8, 7), rows)
    assert torch.equal(model[0].weight_quantizer.step(), expected)
    whole = nn.Sequential(nn.Linear(8, 8))
    prepare(whole, QuantSpec(TensorSpec(4, True, "per_tensor"), None, first_last_bits=4))
    for options in ({"weight_observer": minmax}, {"method": "torchao-minmax"}):
        calibrate(whole, [torch.randn(2, 8)], **options)
        assert torch.equal(whole[0].weight_quantizer.step(), scale_of(minmax(-8, 7), whole[0].weight))
        whole[0].initialise_weight_quantizer()


@pytest.mark.parametrize("method", ["lsq", "pact", "minmax", "percentile", "mse"])
def test_every_method_starts_from_the_observers_scale(method: str) -> None:
    model = network(method=method)
    calibrate(model, batches(), observer=minmax)
    for name, values in inputs(model).items():
        own = dict(quant_layers(model))[name].input_quantizer
        expected = scale_of(minmax(own.q_min, own.q_max), *values)
        # pact keeps Qp s
        torch.testing.assert_close(own.step(), expected, rtol=2e-7 if method == "pact" else 0, atol=0)


def test_an_offset_is_learned_from_the_observers_zero_point() -> None:
    model = network("w4a4", method="lsq_plus")
    calibrate(model, batches(), method="torchao-minmax")
    zero_points = []
    for name, values in inputs(model).items():
        own = dict(quant_layers(model))[name].input_quantizer
        observer = AffineQuantizedMinMaxObserver(ASYMMETRIC, torch.int32, PerTensor(), 0, own.q_max)
        assert torch.equal(own.step(), scale_of(observer, *values))
        zero_points.append(int(own.zero_point))
        assert zero_points[-1] == observer.calculate_qparams()[1].item()
    assert zero_points[1] == 0
    assert zero_points[0] > 0
    assert zero_points[2] > 0


def test_what_was_not_asked_for_stays_as_it_is_without_observers() -> None:
    ours, inputs_only, weights_only = (network() for _ in range(3))
    calibrate(ours, batches())
    calibrate(inputs_only, batches(), observer=minmax)
    calibrate(
        weights_only, batches(), weight_observer=partial(AffineQuantizedMinMaxObserver, KEEPS, torch.int32, PerAxis(0))
    )
    triples = zip(quant_layers(ours), quant_layers(inputs_only), quant_layers(weights_only), strict=True)
    for (_, own), (_, first), (_, second) in triples:
        assert torch.equal(own.weight_quantizer.step(), first.weight_quantizer.step())
        assert torch.equal(own.input_quantizer.step(), second.input_quantizer.step())
        assert own.input_quantizer.signed == second.input_quantizer.signed
        assert not torch.equal(own.input_quantizer.step(), first.input_quantizer.step())
        assert not torch.equal(own.weight_quantizer.step(), second.weight_quantizer.step())


def test_an_unsigned_grid_clips_what_is_negative_before_it_is_observed() -> None:
    for method in ("torchao-minmax", "torchao-mse"):
        steps = []
        for x in (torch.tensor([[-9.0, 0.2, 1.0, 3.0]]), torch.tensor([[0.0, 0.2, 1.0, 3.0]])):
            model = nn.Sequential(nn.Linear(4, 2))
            prepare(model, QuantSpec(TensorSpec(4, True), TensorSpec(4, False), first_last_bits=4))
            calibrate(model, [x], method=method)
            steps.append(model[0].input_quantizer.step().item())
        assert steps[0] == steps[1] <= 0.2 + 1e-6


def test_scales_of_bfloat16_values_are_not_rounded_to_bfloat16() -> None:
    model = nn.Sequential(nn.Linear(4, 2)).bfloat16()
    prepare(model, QuantSpec.preset("w4a4", first_last_bits=4))
    calibrate(model, [torch.tensor([[0.0, 0.5, 1.0, 2.0]], dtype=torch.bfloat16)], method="torchao-minmax")
    assert torch.equal(model[0].input_quantizer.step(), torch.tensor(2.0) / 15)


def test_float64_models_are_calibrated() -> None:
    model = network().double()
    for _, layer in quant_layers(model):
        layer.weight_quantizer.double()
    calibrate(model, [x.double() for x in batches()], method="torchao-mse")
    assert all(layer.input_quantizer.step() > 0 for _, layer in quant_layers(model))


def test_a_channel_of_zeros_has_the_mean_of_the_others() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[3] = 0
    calibrate(model, batches(), method="torchao-minmax")
    step = model[2].weight_quantizer.step()
    others = torch.cat([step[:3], step[4:]])
    torch.testing.assert_close(step[3], others.mean())
    zeros = nn.Sequential(nn.Linear(4, 2))
    prepare(zeros, QuantSpec.preset("w4a4"))
    calibrate(zeros, [torch.zeros(2, 4)], method="torchao-mse")
    assert zeros[0].input_quantizer.step() == 1


def test_a_fixed_observer_fixes_the_step_size() -> None:
    model = network()
    fixed = partial(AffineQuantizedFixedQParamObserver, CLIPS, torch.int32, PerTensor(), scale=torch.tensor([0.125]))
    calibrate(model, batches(), observer=fixed)
    assert [layer.input_quantizer.step().item() for _, layer in quant_layers(model)] == [0.125] * 4
    assert [layer.input_quantizer.signed for _, layer in quant_layers(model)] == [True, False, True, True]


def observer(mapping: MappingType, granularity: Any, dtype: torch.dtype = torch.int32) -> Callable[[int, int], Any]:
    return partial(AffineQuantizedMinMaxObserver, mapping, dtype, granularity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observer": observer(ASYMMETRIC, PerTensor())}, r"0\.input: zero point: got .*; expected 0 on the symmetric"),
        ({"observer": observer(KEEPS, PerTensor())}, r"2\.input: zero point: got 128"),
        ({"observer": observer(KEEPS, PerAxis(1))}, r"0\.input: scale: got 3 in all; expected 1; .*PerTensor"),
        (
            {"observer": observer(KEEPS, PerTensor(), torch.int8)},
            r"2\.input: observer: got .*out of bound.*torch\.int32",
        ),
        (
            {"weight_observer": observer(KEEPS, PerTensor())},
            r"0\.weight: scale: got 1 in all; expected 8; .*PerAxis\(0",
        ),
        ({"weight_observer": observer(ASYMMETRIC, PerAxis(0))}, r"0\.weight: zero point: got \["),
        ({"observer": lambda q_min, q_max: None}, r"0\.input: observer: got a failure"),
        (
            {
                "observer": partial(
                    AffineQuantizedFixedQParamObserver, CLIPS, torch.int32, PerTensor(), scale=-torch.ones(1)
                )
            },
            r"0\.input: scale: got \[-1\.0\]; expected positive numbers",
        ),
    ],
)
def test_answers_without_a_meaning_are_refused_and_change_nothing(options: dict[str, Any], message: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        calibrate(model, batches(), **options)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("spec", "method", "message"),
    [
        ({"method": "minmax"}, "torchao-mse", r"0\.weight: method: got minmax; expected a method that keeps its step"),
        ({"method": "pact", "first_last_bits": 4}, "torchao-minmax", r"0\.weight: method: got dorefa"),
        ({"balanced": True}, "torchao-minmax", r"2\.weight: balanced: got True"),
        ({"bits": "w1a8"}, "torchao-minmax", r"2\.weight: bits: got 1"),
        ({"method": "lsq_plus"}, "torchao-mse", r"0\.input: method: got lsq_plus; expected a symmetric grid"),
        ({}, "torchao-mean", r"method: got torchao-mean; expected one of mse, lsq, torchao-minmax, torchao-mse"),
    ],
)
def test_grids_that_no_observer_knows_are_refused(spec: dict[str, Any], method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate(network(**spec), batches(), method=method)


def test_one_bit_inputs_are_observed_where_they_are_unsigned() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    prepare(model, QuantSpec(TensorSpec(4, True), TensorSpec(1), first_last_bits=1))
    with pytest.raises(InputError, match=r"0\.input: bits: got 1, signed; expected 2 bits or more"):
        calibrate(model, [torch.randn(2, 4)], observer=minmax)
    calibrate(model, [torch.rand(2, 4) + 1], observer=minmax)
    assert not model[0].input_quantizer.signed


class WithAuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.head(x) + self.auxiliary(2 * x) if self.training else self.head(x)


def test_layers_that_run_in_training_only_are_observed_too() -> None:
    torch.manual_seed(0)
    model, x = WithAuxiliaryHead(), torch.randn(8, 4)
    values = 2 * model.body(x).detach()
    prepare(model, QuantSpec.preset("w4a4"))
    calibrate(model, [x], method="torchao-minmax")
    own = model.auxiliary.input_quantizer
    assert torch.equal(own.step(), scale_of(minmax(own.q_min, own.q_max), values))


def test_an_observer_is_made_for_the_codes_of_a_narrow_grid() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    prepare(model, QuantSpec(TensorSpec(4, True, "per_channel", narrow=True), None, first_last_bits=4))
    calibrate(model, [torch.randn(2, 8)], method="torchao-minmax")
    assert torch.equal(model[0].weight_quantizer.step(), model[0].weight.detach().abs().amax(1) / 7)


def test_an_observer_that_is_given_goes_before_that_of_the_name() -> None:
    given, named = network(), network()
    fixed = partial(AffineQuantizedFixedQParamObserver, CLIPS, torch.int32, PerTensor(), scale=torch.tensor([0.125]))
    calibrate(given, batches(), method="torchao-mse", observer=fixed)
    calibrate(named, batches(), method="torchao-mse")
    for (_, one), (_, other) in zip(quant_layers(given), quant_layers(named), strict=True):
        assert one.input_quantizer.step() == 0.125
        assert torch.equal(one.weight_quantizer.step(), other.weight_quantizer.step())


@pytest.mark.parametrize("zero_point", [-1.0, 2.5, 256.0])
def test_a_zero_point_that_is_no_code_is_refused(zero_point: float) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor(0.1), torch.tensor(zero_point)

    with pytest.raises(InputError, match=r"0\.input: zero point: got .*; expected a code of 0 to 255"):
        calibrate(network(method="lsq_plus"), batches(), observer=lambda q_min, q_max: Odd())


def test_an_observer_in_the_place_of_a_factory_is_refused() -> None:
    for key in ("observer", "weight_observer"):
        with pytest.raises(ConfigError, match=rf"{key}: got AffineQuantizedMinMaxObserver; expected a function"):
            calibrate(network(), batches(), **{key: minmax(-8, 7)})


def test_a_missing_torchao_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qat_vsam.quant.backends.torchao_observers", None)
    monkeypatch.delattr("qat_vsam.quant.backends.torchao_observers", raising=False)
    message = r"calibration: got torchao-mse without torchao; expected an installed torchao; pip install torchao"
    with pytest.raises(MissingDependencyError, match=message):
        calibrate(network(), batches(), method="torchao-mse")


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (torch.tensor([0.5]), {}, r"step: got \(1,\), smallest 0\.5; expected positive numbers of shape \(\)"),
        (torch.tensor(0.0), {}, r"step: got \(\), smallest 0"),
        (torch.tensor(float("inf")), {}, r"step: got \(\), smallest inf"),
        (
            torch.tensor(0.5),
            {"zero_point": 3},
            r"zero_point: got 3; expected 0 on a symmetric grid; use method lsq_plus",
        ),
    ],
)
def test_a_step_size_set_by_hand_must_have_a_meaning(step: torch.Tensor, options: dict[str, Any], message: str) -> None:
    quantizer = LSQQuantizer(TensorSpec(4), "activation")
    with pytest.raises(InputError, match=message):
        quantizer.set_step(step, **options)
    assert not quantizer.initialised
