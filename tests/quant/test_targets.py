"""What a target cannot run is refused, with the nearest that it can; what it leaves no choice about is settled."""

from __future__ import annotations

import copy
import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qat_vsam.errors import ConfigError
from qat_vsam.quant import (
    LayerRule,
    QuantSpec,
    TensorSpec,
    calibrate,
    describe_targets,
    list_methods,
    list_targets,
    prepare,
    quant_layers,
)
from qat_vsam.quant.targets import TARGETS
from qat_vsam.quant.tensor_spec import GRANULARITIES
from qat_vsam.sections import QuantSection

INT8 = TensorSpec(8, True, "per_channel")
INT4 = TensorSpec(4, True, "per_channel")
UNSIGNED = TensorSpec(8, False, "per_channel")
BALANCED = TensorSpec(4, True, "per_channel", balanced=True)
INPUT = TensorSpec(8)
OFFSET = TensorSpec(8, method="lsq_plus")
GROUPS = TensorSpec(4, True, "per_group", group_size=4)

# target, weight, input -> the value that is refused, and the nearest
REFUSED = [
    ("onnxruntime", TensorSpec(1, True), INPUT, "weight.bits: got 1", "w2a8"),
    ("onnxruntime", INT4, TensorSpec(1), "activation.bits: got 1", "w4a2"),
    ("onnxruntime", UNSIGNED, None, "weight.signed: got False", "w8 (weight.signed=True)"),
    ("openvino", TensorSpec(1, True), INPUT, "weight.bits: got 1", "w2a8"),
    ("openvino", INT4, TensorSpec(4), "activation.bits: got 4", "w4a8"),
    ("openvino", UNSIGNED, INPUT, "weight.signed: got False", "w8a8 (weight.signed=True)"),
    ("litert", INT4.with_bits(3), INPUT, "weight.bits: got 3", "w4a8"),
    ("litert", INT4.with_bits(6), INPUT, "weight.bits: got 6", "w8a8"),
    ("litert", INT4, TensorSpec(4), "activation.bits: got 4", "w4a8"),
    ("litert", UNSIGNED, INPUT, "weight.signed: got False", "w8a8 (weight.signed=True)"),
    ("litert", BALANCED, INPUT, "weight.balanced: got True", "w4a8 (weight.balanced=False)"),
    ("executorch-xnnpack", INT8.with_bits(7), INPUT, "weight.bits: got 7", "w8a8"),
    ("executorch-xnnpack", INT8, TensorSpec(6), "activation.bits: got 6", "w8a8"),
    ("executorch-xnnpack", UNSIGNED, INPUT, "weight.signed: got False", "w8a8 (weight.signed=True)"),
    ("executorch-xnnpack", BALANCED, INPUT, "weight.balanced: got True", "w4a8 (weight.balanced=False)"),
    (
        "litert",
        GROUPS,
        INPUT,
        "weight.granularity: got per_group",
        "w4a8 (weight.granularity=per_channel)",
    ),
    ("tensorrt", GROUPS, INPUT, "weight.bits: got 4", "w8a8 (weight.granularity=per_channel)"),
    (
        "qonnx",
        GROUPS,
        INPUT,
        "weight.granularity: got per_group",
        "w4a8 (weight.granularity=per_channel)",
    ),
    (
        "executorch-xnnpack",
        TensorSpec(4, True),
        INPUT,
        "weight.granularity: got per_tensor",
        "w4a8 (weight.granularity=per_channel)",
    ),
    ("executorch-xnnpack", INT4.with_bits(3), None, "weight.bits: got 3", "w4"),
    ("tensorrt", INT4, INPUT, "weight.bits: got 4", "w8a8"),
    ("tensorrt", INT8, TensorSpec(4), "activation.bits: got 4", "w8a8"),
    ("tensorrt", INT8, None, "activation: got float", "w8a8"),
    ("tensorrt", INT8, TensorSpec(8, False), "activation.signed: got False", "w8a8 (activation.signed=True)"),
    ("tensorrt", INT8, OFFSET, "activation.method: got lsq_plus", "w8a8 (activation.method=lsq)"),
    ("tensorrt", UNSIGNED, INPUT, "weight.signed: got False", "w8a8 (weight.signed=True)"),
    ("tensorrt", BALANCED.with_bits(7), INPUT, "weight.bits: got 7", "w8a8 (weight.balanced=False)"),
    ("qonnx", BALANCED, INPUT, "weight.balanced: got True", "w4a8 (weight.balanced=False)"),
    ("qonnx", TensorSpec(1, False), INPUT, "weight.bits: got 1", "w2a8"),
    ("qonnx", INT4, TensorSpec(1, False), "activation.bits: got 1", "w4a2"),
]


@pytest.mark.parametrize(("target", "weight", "activation", "refused", "nearest"), REFUSED)
def test_a_spec_that_no_layer_could_run_is_refused_and_the_nearest_is_taken(
    target: str, weight: TensorSpec, activation: TensorSpec | None, refused: str, nearest: str
) -> None:
    spec = QuantSpec(weight, activation)
    with pytest.raises(ConfigError) as error:
        QuantSpec(weight, activation, target=target)
    assert str(error.value).startswith(f"{refused}; expected what target {target} runs (")
    assert str(error.value).endswith(f"; the nearest that it can run is {nearest}")
    taken = spec.nearest(target)
    assert (taken.target, taken.name) == (target, nearest.split()[0])


def test_every_target_but_the_papers_convention_refuses_something() -> None:
    assert {target for target, *_ in REFUSED} == set(list_targets()) - {"simulated"}


@st.composite
def tensor_specs(draw: st.DrawFn, weight: bool) -> TensorSpec:
    methods = [method for method in list_methods() if weight or method != "dorefa"]
    options = {
        "signed": draw(st.sampled_from([True, False, None])),
        "granularity": draw(st.sampled_from(GRANULARITIES)) if weight else "per_tensor",
        "method": draw(st.sampled_from(methods)),
        "narrow": draw(st.booleans()),
        "balanced": weight and draw(st.booleans()),
    }
    try:
        return TensorSpec(draw(st.integers(1, 8)), **options)
    except ConfigError:  # a combination that is none
        return TensorSpec(draw(st.integers(1, 8)), granularity=options["granularity"])


@given(
    weight=tensor_specs(True),
    activation=st.none() | tensor_specs(False),
    edge=st.none() | st.integers(1, 8),
    other=st.none() | tensor_specs(True),
    target=st.sampled_from(list_targets()),
)
def test_a_spec_is_taken_or_its_nearest_is(weight, activation, edge, other, target) -> None:
    rules = (LayerRule("a", other, None if other is None else activation),)
    spec = QuantSpec(weight, activation, edge, overrides=rules)
    nearest = spec.nearest(target)
    assert nearest.nearest(target) == nearest
    assert QuantSpec.from_dict(nearest.to_dict()) == nearest
    try:
        taken = dataclasses.replace(spec, target=target)
    except ConfigError:
        assert nearest.nearest("simulated") != spec.nearest("simulated")
    else:
        assert taken == nearest


@given(weight=tensor_specs(True), activation=st.none() | tensor_specs(False), edge=st.none() | st.integers(1, 8))
def test_the_papers_convention_takes_everything_as_it_is(weight, activation, edge) -> None:
    spec = QuantSpec(weight, activation, edge)
    assert (spec.weight, spec.activation) == (weight, activation)
    assert spec.nearest("simulated") == spec


def test_the_first_and_last_layer_get_a_width_that_the_target_runs() -> None:
    with pytest.raises(
        ConfigError, match=r"first_last_bits: got 6; .* target litert runs; the nearest it can run is 8"
    ):
        QuantSpec.preset("w8a8", target="litert", first_last_bits=6)
    with pytest.raises(ConfigError, match=r"first_last_bits: got 6; .*; the nearest it can run is 8"):
        QuantSpec.preset("w8", target="litert", first_last_bits=6)  # 4 is as near, and narrower
    with pytest.raises(ConfigError, match=r"first_last_bits: got 1; .*; the nearest it can run is 2"):
        QuantSpec.preset("w4a4", target="onnxruntime", first_last_bits=1)
    assert QuantSpec.preset("w4a4", first_last_bits=2).nearest("litert").first_last_bits == 8


def network() -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_layer_that_the_target_cannot_run_is_named_and_the_model_is_left_alone() -> None:
    model = network()
    before = copy.deepcopy(model)
    with pytest.raises(ConfigError) as error:
        prepare(model, QuantSpec.preset("w4a8", target="executorch-xnnpack"))
    assert str(error.value).startswith("2: got Conv2d at w4a8; expected what target executorch-xnnpack runs (")
    assert str(error.value).endswith("; override it with w8a8, or keep it in float")
    assert [type(layer) for layer in model] == [type(layer) for layer in before]
    rule = [LayerRule.preset("2", "w8a8")]
    summary = prepare(model, QuantSpec.preset("w4a8", target="executorch-xnnpack", overrides=rule))
    assert {row.name: row.weight_bits for row in summary.quantized} == {"0": 8, "2": 8, "5": 4, "7": 8}


def single(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU())


# target, layer, weight and input -> what is asked for, what is advised
LAYERS = [
    ("litert", nn.Conv1d(4, 4, 3), INT8, INPUT, "Conv1d at w8a8", "keep it in float"),
    ("litert", nn.Conv3d(4, 4, 3), INT8, INPUT, "Conv3d at w8a8", "keep it in float"),
    ("litert", nn.ConvTranspose2d(4, 4, 3), INT4, INPUT, "ConvTranspose2d at w4a8", "override it with w8a8"),
    ("litert", nn.Linear(4, 4), TensorSpec(2, True), None, "Linear at w2", "override it with w4"),
    ("litert", nn.Embedding(4, 4), INT8.with_bits(2), None, "", ""),
    ("litert", nn.Conv2d(4, 4, 3, groups=4), INT4, INPUT, "", ""),
    ("executorch-xnnpack", nn.Conv3d(4, 4, 3), INT8, INPUT, "Conv3d at w8a8", "keep it in float"),
    ("executorch-xnnpack", nn.Conv1d(4, 4, 3), INT8, INPUT, "", ""),
    ("executorch-xnnpack", nn.Linear(4, 4), INT8, None, "Linear at w8", "override it with w8a8"),
    ("executorch-xnnpack", nn.ConvTranspose2d(4, 4, 3), INT8, INPUT, "", ""),
    ("executorch-xnnpack", nn.ConvTranspose2d(4, 4, 3, groups=2), TensorSpec(8), INPUT, "", ""),
    (
        "executorch-xnnpack",
        nn.ConvTranspose2d(4, 4, 3, groups=2),
        INT8,
        INPUT,
        "ConvTranspose2d at w8a8, weight.granularity per_channel",
        "override it with w8a8 (weight.granularity=per_tensor), or",
    ),
    ("executorch-xnnpack", nn.Embedding(4, 4), INT4, INPUT, "", ""),
    ("executorch-xnnpack", nn.Linear(4, 4), GROUPS, INPUT, "", ""),
    ("tensorrt", nn.Linear(4, 4), GROUPS, None, "", ""),
    ("tensorrt", nn.Conv2d(4, 4, 1), GROUPS, None, "Conv2d at w4, weight.granularity per_group", "with w8a8 ("),
    ("onnxruntime", nn.Conv2d(4, 4, 1), GROUPS, INPUT, "", ""),
    ("tensorrt", nn.Embedding(4, 4), INT8, INPUT, "Embedding at w8", "keep it in float"),
    ("tensorrt", nn.Conv1d(4, 4, 3), INT8, INPUT, "Conv1d at w8a8", "keep it in float"),
    ("tensorrt", nn.ConvTranspose3d(4, 4, 3), INT8, INPUT, "", ""),
    ("onnxruntime", nn.Embedding(4, 4), INT8, INPUT, "", ""),
    ("qonnx", nn.ConvTranspose1d(4, 4, 3), INT4, TensorSpec(4), "", ""),
]


@pytest.mark.parametrize(("target", "layer", "weight", "activation", "asked", "advice"), LAYERS)
def test_layers_are_held_against_the_kernels_for_their_kind(
    target: str, layer: nn.Module, weight: TensorSpec, activation: TensorSpec | None, asked: str, advice: str
) -> None:
    # the default has to be something that the target runs somewhere, so that the layer's own rule is what decides
    rule = LayerRule("0", weight, activation)
    spec = QuantSpec.preset("w8a8", target=target, overrides=[rule])
    model = single(layer)
    if not asked:
        assert len(prepare(model, spec).quantized) == 1
        return
    with pytest.raises(ConfigError) as error:
        prepare(model, spec)
    assert str(error.value).startswith(f"0: got {asked}; expected what target {target} runs (")
    assert advice in str(error.value)
    assert model[0] is layer


def test_several_refused_layers_are_counted() -> None:
    model = nn.Sequential(*(nn.Conv1d(2, 2, 1) for _ in range(3)))
    with pytest.raises(ConfigError, match=r"^0: got Conv1d at w8a8; .*keep it in float \(and 2 more layers\)$"):
        prepare(model, QuantSpec.preset("w8a8", target="tensorrt"))


@pytest.mark.parametrize(("target", "signs"), [("tensorrt", [True] * 4), ("litert", [True, False, False, False])])
def test_calibration_keeps_to_signed_inputs_where_the_target_has_no_others(target: str, signs: list[bool]) -> None:
    model = network()
    prepare(model, QuantSpec.preset("w8a8", target=target))
    calibrate(model, [torch.randn(4, 3, 6, 6)])
    assert [layer.input_quantizer.signed for _, layer in quant_layers(model)] == signs


@pytest.mark.parametrize(("target", "lowest"), [("litert", -127), ("executorch-xnnpack", -127), ("tensorrt", -128)])
def test_weights_of_8_bits_leave_out_the_code_that_the_target_does_not_take(target: str, lowest: int) -> None:
    model = network()
    prepare(model, QuantSpec.preset("w8a8", target=target))
    assert {layer.weight_quantizer.q_min for _, layer in quant_layers(model)} == {lowest}


def test_weights_of_4_bits_keep_all_codes_between_8_bit_layers_that_do_not() -> None:
    model = network()
    prepare(model, QuantSpec.preset("w4a8", target="litert"))
    assert [layer.weight_quantizer.q_min for _, layer in quant_layers(model)] == [-127, -8, -8, -127]


def test_one_bit_inputs_of_qonnx_are_signs() -> None:
    assert QuantSpec.preset("w1a1", target="qonnx").activation.signed is True
    assert QuantSpec.preset("w2a2", target="qonnx").activation.signed is None


def test_every_kernel_names_its_source_and_every_line_says_what_is_exported() -> None:
    for name, target in TARGETS.items():
        assert all(kernel.source for kernel in target.kernels)
        assert name == "simulated" or all("https://" in kernel.source for kernel in target.kernels)
        assert target.bias in ("float", "accumulator")
        line = describe_targets()[name]
        assert line.startswith(target.runs)
        assert line.endswith("nothing exported yet" if target.export is None else f"proven in {target.proof}")


def test_recipes_take_every_target() -> None:
    assert list(get_args(QuantSection.model_fields["target"].annotation)) == list_targets()


def test_an_unknown_target_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"target: got litert8; .*did you mean litert\?"):
        QuantSpec.preset("w8a8").nearest("litert8")
