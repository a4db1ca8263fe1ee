"""Attention with projections that are called computes what PyTorch's does, and takes quantizers as any layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import qat_vsam as qv
from qat_vsam.errors import InputError
from qat_vsam.export import integer_model, load_packed
from qat_vsam.quant import QuantSpec, calibrate, prepare, quant_layers, set_quantizers_enabled
from qat_vsam.quant.attention import CalledAttention


class Block(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head((x + y).mean(1))


def quantized(bits: str = "w8a8", **options) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Block(**options).eval(), torch.randn(16, 5, 8)
    ours = copy.deepcopy(model)
    prepare(ours, QuantSpec.preset(bits))
    calibrate(ours, [x])
    return model, ours, x


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "case", ["self", "cross", "keys are values", "unbatched", "masked", "padded", "both", "per head", "no bias"]
)
def test_called_projections_compute_what_the_attention_computes(case, need_weights, batch_first):
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=case != "no bias")
    called = CalledAttention.from_float(attention)
    calls = []
    called.in_proj.register_forward_hook(lambda *_: calls.append(1))  # somebody watches, so the layers are called
    q, k, v = (torch.randn(5, 5, 8, requires_grad=True) for _ in range(3))
    inputs = {"cross": (q, k, v), "keys are values": (q, k, k)}.get(case, (q, q, q))
    if case == "unbatched":
        row = torch.randn(5, 8, requires_grad=True)
        inputs = (row, row, row)
    options = {"need_weights": need_weights}
    if case in ("masked", "both"):
        options |= {"attn_mask": torch.ones(5, 5).triu(1).bool(), "is_causal": True}
    if case in ("padded", "both"):
        options["key_padding_mask"] = torch.tensor([[False] * 4 + [True]] * 5)
    if case == "per head":
        options |= {"attn_mask": torch.randn(10, 5, 5), "average_attn_weights": False}
    results = []
    for module in (attention, called):
        y, weights = module(*inputs, **options)
        y.square().sum().backward()
        gradients = [inputs[0].grad.clone(), *(p.grad.clone() for p in attention.parameters())]
        for tensor in (*inputs, *attention.parameters()):
            tensor.grad = None
        results.append((y, weights, gradients))
    (y, weights, gradients), (ours, our_weights, our_gradients) = results
    assert len(calls) == (3 if case in ("cross", "keys are values") else 1)
    torch.testing.assert_close(ours, y)
    assert (our_weights is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(our_weights, weights)
    torch.testing.assert_close(our_gradients, gradients)


def test_parameters_stay_the_same_objects_and_a_float_checkpoint_loads():
    attention = nn.MultiheadAttention(8, 2)
    called = CalledAttention.from_float(attention)
    assert {id(p) for p in called.parameters()} == {id(p) for p in attention.parameters()}
    other = nn.MultiheadAttention(8, 2)
    called.load_state_dict(other.state_dict())
    assert torch.equal(called.in_proj.weight, other.in_proj_weight)
    called.load_state_dict(copy.deepcopy(called).state_dict())


def test_attention_in_a_model_is_quantized_and_off_it_is_the_float_model_bit_for_bit():
    model, ours, x = quantized()
    names = [name for name, _ in quant_layers(ours)]
    assert names == ["stem", "attention.out_proj", "attention.in_proj", "head"] or set(names) == {
        "stem",
        "attention.in_proj",
        "attention.out_proj",
        "head",
    }
    assert not torch.equal(ours(x), model(x))
    torch.testing.assert_close(ours(x), model(x), rtol=0.1, atol=0.1)
    set_quantizers_enabled(ours, False)
    assert torch.equal(ours(x), model(x))
    with torch.no_grad():  # PyTorch's fast path
        assert torch.equal(ours(x), model(x))
    assert torch.equal(ours.train()(x), model.train()(x))


def test_quantized_attention_learns_and_exports(tmp_path):
    model, ours, x = quantized("w4a8")
    ours.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.parameters())
    ours.eval()
    integers = integer_model(ours)
    torch.testing.assert_close(integers(x), ours(x), rtol=1e-3, atol=1e-4)
    qv.export(ours, tmp_path / "model.safetensors", format="packed", sample=x)
    assert torch.equal(load_packed(tmp_path / "model.safetensors", model)(x), integers(x))
    proof = qv.export(ours, tmp_path / "model.onnx", format="onnx", sample=x)
    assert proof.argmax_agreement == 1


def test_a_failed_preparation_leaves_the_attention_as_it_was():
    model = Block()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(InputError):
        prepare(model, QuantSpec.preset("w8a8"))
    assert type(model.attention) is nn.MultiheadAttention


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"add_bias_kv": True}, "appends to its keys"),
        ({"add_zero_attn": True}, "appends"),
        ({"kdim": 4, "vdim": 4}, "a width of their own"),
    ],
)
def test_attention_that_stays_in_float_says_why(options, reason):
    summary = prepare(Block(**options), QuantSpec.preset("w8a8"))
    skipped = {row.name: row.skipped for row in summary.skipped}
    assert reason in skipped["attention"]
    assert "reads its weights" in skipped["attention.out_proj"]


def test_causal_without_a_mask_is_one_clear_line():
    _, ours, x = quantized()
    with pytest.raises(InputError, match="is_causal: got True without attn_mask"):
        ours.attention(x, x, x, is_causal=True)
