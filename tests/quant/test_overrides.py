"""Rules for some layers: the first that names a layer holds, before whatever holds for the others."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from qat_vsam.errors import ConfigError
from qat_vsam.quant import LayerRule, QuantSpec, TensorSpec, calibrate, prepare, quant_layers


def model() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 3, 1), body, nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 2))


def bits(spec: QuantSpec) -> dict[str, tuple[int, int | None] | str]:
    """Layer -> its weight and input bits, or the reason why it is in float."""
    rows = prepare(model(), spec).rows
    return {row.name: row.skipped or (row.weight_bits, row.activation_bits) for row in rows}


def w4a4(**rules: str) -> QuantSpec:
    return QuantSpec.preset("w4a4", overrides=[LayerRule.preset(name, width) for name, width in rules.items()])


def test_a_rule_changes_its_layers_and_no_others():
    before, after = bits(w4a4()), bits(w4a4(**{"1.2": "w2a8"}))
    assert after.pop("1.2") == (2, 8)
    assert before.pop("1.2") == (4, 4)
    assert before == after == {"0": (8, 8), "1.0": (4, 4), "3": (4, 4), "4": (8, 8)}


def test_a_name_stands_for_everything_below_it_and_a_pattern_for_whole_names():
    assert bits(w4a4(**{"1": "w3a3"})) == bits(w4a4()) | {"1.0": (3, 3), "1.2": (3, 3)}
    assert bits(w4a4(**{"re:1\\.[2-9]": "w3a3"})) == bits(w4a4()) | {"1.2": (3, 3)}


def test_the_first_rule_that_matches_wins():
    assert bits(w4a4(**{"1.0": "w2a2", "1": "w3a3"})) == bits(w4a4()) | {"1.0": (2, 2), "1.2": (3, 3)}
    assert bits(w4a4(**{"1": "w3a3", "1.0": "w2a2"})) == bits(w4a4()) | {"1.0": (3, 3), "1.2": (3, 3)}


def test_a_rule_holds_before_keep_and_before_the_policy_of_the_first_and_last_layer():
    rule = [LayerRule.preset("0", "w2a2"), LayerRule.preset("1.0", "w6a6")]
    for policy in (8, None):
        spec = QuantSpec.preset("w4a4", keep=["1"], first_last_bits=policy, overrides=rule)
        found = bits(spec)
        assert found["0"] == (2, 2)
        assert found["1.0"] == (6, 6)
        assert found["1.2"] == "keep: 1"


def test_layers_stay_in_float_or_get_quantized_weights_alone_and_the_summary_says_so():
    found = bits(w4a4(**{"1": "float", "3": "w3"}))
    assert found["1.0"] == found["1.2"] == "override: 1"
    assert found["3"] == (3, None)


def test_readers_of_one_tensor_with_other_bits_have_quantizers_of_their_own():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(4))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.a(x) + self.b(x) + self.c(x))

    net = Two()
    prepare(net, w4a4(b="w4a8"), sample=torch.randn(2, 4))
    calibrate(net, [torch.randn(8, 4)])
    quantizers = {name: layer.input_quantizer for name, layer in quant_layers(net)}
    assert quantizers["a"] is quantizers["c"]
    assert quantizers["b"] is not quantizers["a"]
    assert (quantizers["a"].bits, quantizers["b"].bits) == (4, 8)


def test_a_spec_with_rules_goes_through_json():
    spec = w4a4(**{"re:1\\..*": "w2a8", "3": "float", "4": "w3"})
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: prepare(model(), w4a4(**{"1.3x": "w8a8"})), "overrides: got 1.3x; expected a module of this model"),
        (lambda: prepare(model(), w4a4(**{"re:(": "w8a8"})), "overrides: got re:\\(; expected a regular expression"),
        (lambda: LayerRule("1", None, TensorSpec(4)), "override 1: got an activation alone"),
        (lambda: LayerRule("", TensorSpec(4)), "layers: got ''"),
        (lambda: LayerRule.preset("1", "w9a9"), "w9a9"),
        (
            lambda: LayerRule("1", TensorSpec(4), TensorSpec(4, granularity="per_channel")),
            "override 1: activation.granularity: got per_channel; expected per_tensor",
        ),
        (
            lambda: QuantSpec.preset("w4a4", target="onnxruntime", overrides=[LayerRule.preset("1", "w1a8")]),
            "override 1: weight.bits: got 1; expected what target onnxruntime runs .*; the nearest .* is w2a8",
        ),
        (
            lambda: QuantSpec.preset(
                "w4a4", target="onnxruntime", overrides=[LayerRule("1", TensorSpec(4, signed=False))]
            ),
            "override 1: weight.signed: got False; expected .*; the nearest .* is w4 \\(weight.signed=True\\)",
        ),
        (lambda: QuantSpec.preset("w4a4", overrides=["w8a8"]), "overrides: got .*; expected a list of LayerRule"),
        (
            lambda: QuantSpec.from_dict(w4a4(**{"1": "w2"}).to_dict() | {"overrides": [{"layer": "1"}]}),
            "spec.overrides\\[0\\].layer: got an unknown key; expected a known one; did you mean layers",
        ),
    ],
)
def test_a_wrong_rule_is_one_clear_line(build, message):
    with pytest.raises(ConfigError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
