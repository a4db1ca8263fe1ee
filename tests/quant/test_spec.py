"""A spec is plain data, and says at once what cannot be."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qat_vsam.errors import ConfigError
from qat_vsam.quant import QuantSpec, TensorSpec, integer_range, list_methods, list_presets, list_targets


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"),
    [
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
        (8, False, False, (0, 255)),
        (4, False, True, (0, 15)),
        (2, True, False, (-2, 1)),
        (2, True, True, (-1, 1)),
        (1, True, False, (-1, 1)),
        (1, False, False, (0, 1)),
    ],
)
def test_integer_range(bits, signed, narrow, expected):
    assert integer_range(bits, signed, narrow) == expected


@given(
    weight=st.integers(1, 8),
    activation=st.none() | st.integers(1, 8),
    edge=st.none() | st.integers(1, 8),
    method=st.sampled_from(list_methods()),
    narrow=st.booleans(),
)
def test_every_preset_survives_json(weight, activation, edge, method, narrow):
    name = f"w{weight}" + ("" if activation is None else f"a{activation}")
    assume(method not in ("pact", "dorefa") or (weight < 8 and not narrow))
    spec = QuantSpec.preset(name, method=method, first_last_bits=edge, narrow=narrow, keep=["a.b", "re:x.*"])
    assert spec.name == name
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_preset_means_signed_weights_per_channel_and_one_scale_an_activation():
    spec = QuantSpec.preset("w4a8")
    assert spec.weight == TensorSpec(4, signed=True, granularity="per_channel")
    assert spec.activation == TensorSpec(8, signed=None, granularity="per_tensor")
    assert (spec.first_last_bits, spec.keep, spec.target) == (8, (), "simulated")
    assert QuantSpec.preset("W4").activation is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantSpec.preset("w9a4"), "weight bits: got 9; expected an integer in 1..8; choose 8"),
        (lambda: QuantSpec.preset("w0"), "weight bits: got 0; expected an integer in 1..8; choose 1"),
        (lambda: QuantSpec.preset("w4a16"), "activation bits: got 16; expected an integer in 1..8"),
        (lambda: QuantSpec.preset("w4b4"), "preset: got w4b4; .*did you mean w4a4"),
        (lambda: QuantSpec.preset(4), "preset: got 4"),
        (lambda: QuantSpec.preset("w4a4", target="onnxruntme"), "target: .*did you mean onnxruntime"),
        (lambda: QuantSpec.preset("w4a4", method="lqs"), "method: .*did you mean lsq"),
        (lambda: QuantSpec.preset("w4a4", first_last_bits=16), "first_last_bits: got 16"),
        (lambda: TensorSpec(True), "bits: got True"),
        (lambda: TensorSpec(4.0), "bits: got 4.0"),
        (lambda: TensorSpec(4, granularity="per_chanel"), "did you mean per_channel"),
        (lambda: TensorSpec(4, signed="yes"), "signed: got yes"),
        (lambda: TensorSpec(4, narrow="no"), "narrow: got no"),
        (lambda: QuantSpec("w4", None), "weight: got 'w4'; expected a TensorSpec"),
        (lambda: QuantSpec(TensorSpec(4), None, keep="head"), "keep: got 'head'; expected a list"),
        (lambda: QuantSpec(TensorSpec(4), None, keep=(3,)), "keep: "),
        (
            lambda: QuantSpec(TensorSpec(4), TensorSpec(4, granularity="per_channel")),
            "activation.granularity",
        ),
        (lambda: QuantSpec.from_dict({"weight": {"bits": 4}}), "spec.activation: got nothing"),
        (lambda: QuantSpec.from_dict({"weight": {"bit": 4}, "activation": None}), "did you mean bits"),
        (
            lambda: QuantSpec.from_dict({"weight": 4, "activation": None}),
            "spec.weight: got 4; expected a mapping",
        ),
        (lambda: QuantSpec.from_dict({"wieght": {}}), "did you mean weight"),
        (lambda: QuantSpec.from_dict([]), "spec: got "),
    ],
)
def test_what_cannot_be_is_refused_with_advice(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_every_listed_name_works():
    for preset in list_presets():
        assert QuantSpec.preset(preset).name == preset
    for target in list_targets():
        assert QuantSpec.preset("w8a8", target=target).target == target
