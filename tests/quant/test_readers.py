"""Attention that multiplies by its layers' weights itself is made to call them, and so its layers are quantized."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torchvision.models import swin_transformer as swin

import qat_vsam as qv
from qat_vsam.quant import QuantLinear, QuantSpec, calibrate, prepare, set_quantizers_enabled

ATTENTION = ("features.1.0.attn.qkv", "features.1.0.attn.proj")


def small_swin(version=1):
    torch.manual_seed(0)
    blocks = {1: {}, 2: {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}}[version]
    model = swin.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=5, dropout=0.2, **blocks).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # they begin at zero, which would hide what becomes of them
            nn.init.normal_(parameter)
    return model


def prepared(version=1, bits="w4a8", **options):
    model, x = small_swin(version), torch.randn(4, 3, 32, 32)
    summary = prepare(model, QuantSpec.preset(bits, **options))
    calibrate(model, [x])
    return model, x, summary


@pytest.mark.parametrize("version", [1, 2])
def test_with_quantizers_off_nothing_is_changed_in_either_mode(version):
    model, x = small_swin(version), torch.randn(4, 3, 32, 32)

    def answers():
        torch.manual_seed(1)
        return [model.train(training)(x) for training in (False, True)]

    expected = answers()
    summary = prepare(model, QuantSpec.preset("w4a8"))
    assert set(ATTENTION) <= {row.name for row in summary.quantized}
    assert not any("reads" in row.skipped for row in summary)
    set_quantizers_enabled(model, False)
    assert all(torch.equal(*pair) for pair in zip(answers(), expected, strict=True))


@pytest.mark.parametrize("version", [1, 2])
def test_the_layers_are_called_once_with_the_bias_that_the_attention_makes(version):
    model, x, _ = prepared(version)
    seen = []
    for name in ATTENTION:
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda layer, inputs, y: seen.append((layer.bias, layer)))
    model(x)
    assert [type(layer) for _, layer in seen] == [QuantLinear, QuantLinear]
    bias = seen[0][0].detach()
    own = model.get_submodule(ATTENTION[0])._parameters["bias"].detach()
    third = len(own) // 3
    expected = own.clone()
    if version == 2:  # its keys have no bias
        expected[third : 2 * third] = 0
    assert torch.equal(bias, expected)
    assert "bias" not in model.get_submodule(ATTENTION[0]).__dict__


def test_attention_that_stays_in_float_computes_as_before():
    model, _, summary = prepared(keep=["re:.*attn"])
    reasons = {row.name: row.skipped for row in summary.skipped}
    assert reasons[ATTENTION[0]] == "keep: re:.*attn"
    attention = model.features[1][0].attn
    y = torch.randn(1, 8, 8, 16)
    assert torch.equal(attention(y), small_swin().features[1][0].attn(y))


def test_gradients_reach_every_weight_and_copies_compute_the_same():
    model, x, _ = prepared()
    expected = model(x)
    expected.square().sum().backward()
    for name in ATTENTION:
        assert model.get_submodule(name).weight.grad.abs().sum() > 0
        assert model.get_submodule(name).weight_quantizer.step_size.grad.abs().sum() > 0
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    assert isinstance(model.features[1][0].attn, swin.ShiftedWindowAttention)
    fresh = small_swin()
    prepare(fresh, QuantSpec.preset("w4a8"))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), expected)


def test_a_failure_puts_the_attention_back():
    model = small_swin()
    nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(qv.InputError, match="NaN"):
        prepare(model, QuantSpec.preset("w4a8"))
    assert type(model.features[1][0].attn) is swin.ShiftedWindowAttention


@pytest.mark.parametrize("form", ["packed", "onnx"])
def test_exports_are_proven(form, tmp_path):
    model, x, _ = prepared()
    proof = qv.export(model, tmp_path / "model", format=form, sample=x, minimum_inputs=64)
    assert proof.passed
    assert proof.weight_codes_equal
    assert proof.activation_codes_equal > 0.999


def test_a_packed_file_is_rebuilt_into_the_architecture(tmp_path):
    model, x, _ = prepared(version=2)
    qv.export(model, tmp_path / "model", format="packed", sample=x, minimum_inputs=16)
    from qat_vsam.export import load_packed

    torch.testing.assert_close(load_packed(tmp_path / "model", small_swin(2))(x), model(x))
