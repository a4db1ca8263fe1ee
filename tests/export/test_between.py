"""Quantizers between layers travel with the export, and the proof compares their codes as those of any layer."""

import json
from collections import Counter

import onnx
import pytest
import safetensors
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import CheckpointError, ExportMismatch
from qat_vsam.export import integer_model, load
from qat_vsam.export.integer_layers import IntegerTensor
from qat_vsam.quant import operations_between
from qat_vsam.quant.borders import borders


class Joined(nn.Module):
    """Two additions, one in place, a concatenation, a mean and a max pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
        self.one, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.add, self.left, self.right = nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1)
        self.last, self.mix, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.stem(x)))
        y = self.norm(self.one(x))
        y += x
        y = self.add(y)
        y = torch.cat([self.left(y), self.right(y)], 1)
        y = F.relu(self.last(y) + self.mix(y))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def joined(bits: str, x: torch.Tensor, policy: str = "quantized") -> nn.Module:
    model = Joined()
    qv.prepare(model, qv.QuantSpec.preset(bits, residual_adds=policy), sample=x[:2])
    qv.calibrate(model, [x])
    return model.eval()


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w3a2"])
@pytest.mark.parametrize("format", ["packed", "onnx"])
def test_the_export_computes_the_same(format: str, bits: str, tmp_path, x) -> None:
    model, path = joined(bits, x), tmp_path / "model"
    assert [(row.kind, bool(row.skipped)) for row in operations_between(model, x)] == [
        ("add", False),
        ("concat", False),
        ("add", False),
        ("average_pool", True),  # what the second addition becomes is made and read in one forward
    ]
    proof = qv.export(model, path, format=format, sample=x, minimum_inputs=64)
    assert proof.passed
    assert proof.activation_codes_equal >= 0.999
    assert qv.verify(path, model=Joined()).passed


def test_the_graph_quantizes_each_tensor_once_and_adds_what_it_dequantized(tmp_path, x) -> None:
    for bits in ("w8a8", "w4a4"):
        path = tmp_path / f"{bits}.onnx"
        qv.export(joined(bits, x), path, sample=x, minimum_inputs=0)
        graph = onnx.load(path).graph
        makers = {output: node for node in graph.node for output in node.output}
        biases = {each.name for each in graph.initializer}
        for node in graph.node:
            if node.op_type in ("Add", "Concat") and not biases & set(node.input):
                assert {makers[name].op_type for name in node.input} == {"DequantizeLinear"}
        for node in graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in makers:
                # only the concatenation's result, which lies on the grid of its parts, is written down again
                assert makers[node.input[0]].op_type != "DequantizeLinear"
        named = {node.name for node in graph.node if "quantizer_" in node.name}
        assert named == {border.name for border, _ in borders(joined(bits, x))}


def test_one_scale_holds_for_all_that_a_concatenation_joins(tmp_path, x) -> None:
    path = tmp_path / "model.onnx"
    qv.export(joined("w4a4", x), path, sample=x, minimum_inputs=0)
    graph = onnx.load(path).graph
    scales = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    (concat,) = [node for node in graph.node if node.op_type == "Concat"]
    assert len({scales[name] for name in concat.input}) == 1


def test_the_integer_model_holds_codes_between_layers(x) -> None:
    model = joined("w4a4", x)
    integers = integer_model(model)
    tensors = {border.name: tensor for border, tensor in borders(integers)}
    assert set(tensors) == {border.name for border, _ in borders(model)}
    assert all(isinstance(tensor, IntegerTensor) for tensor in tensors.values())
    assert tensors["left.quantizer_after"] is tensors["right.quantizer_after"]
    torch.testing.assert_close(integers(x), model(x), rtol=1e-4, atol=1e-4)
    qv.quant.set_quantizers_enabled(model, False)
    torch.testing.assert_close(integer_model(model)(x), model(x))


@pytest.mark.parametrize("format", ["packed", "onnx"])
def test_a_wrong_scale_between_layers_fails(format: str, tmp_path, x, monkeypatch) -> None:
    model, path = joined("w4a4", x), tmp_path / "model"
    original = IntegerTensor.__init__

    def changed(self, scale, grid) -> None:
        original(self, scale * (1.1 if grid.highest == 7 else 1), grid)

    monkeypatch.setattr(IntegerTensor, "__init__", changed)
    with pytest.raises(ExportMismatch, match=r"8\d\.\d+% equal codes"):
        qv.export(model, path, format=format, sample=x, minimum_inputs=64)
    assert not path.exists()


def test_a_packed_file_says_where_tensors_are_quantized_and_needs_that_model(tmp_path, x) -> None:
    model, path = joined("w4a4", x), tmp_path / "model.safetensors"
    qv.export(model, path, format="packed", sample=x, minimum_inputs=0)
    with safetensors.safe_open(path, "pt") as file:
        rows = json.loads(file.metadata()["content"])["tensors"]
    assert Counter(row["side"] for row in rows.values())["after"] >= 4
    assert rows["norm.quantizer_after"]["copies"]
    expected = model(x)
    for architecture in (Joined(), joined("w4a4", x)):
        torch.testing.assert_close(load(path, model=architecture)(x), expected, rtol=1e-4, atol=1e-4)
    other = Joined()
    other.normal, other.norm = other.norm, nn.Identity()
    del other.pool
    with pytest.raises(CheckpointError):
        load(path, model=other)


def test_sizes_count_each_scale_between_layers_once(x) -> None:
    from qat_vsam.evaluate import model_size

    with_policy, without = joined("w4a4", x), joined("w4a4", x, "float")
    count = {
        model: len({module for module in model.modules() if isinstance(module, qv.quant.Quantizer)})
        for model in (with_policy, without)
    }
    more = count[with_policy] - count[without]
    assert more >= 3
    assert model_size(with_policy).packed_bytes - model_size(without).packed_bytes == 4 * more
