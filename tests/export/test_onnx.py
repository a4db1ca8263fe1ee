"""The ONNX graph holds integers, has its batch norms folded, takes any batch, and equals the model."""

import copy

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import CheckpointError, InputError
from qat_vsam.export import integer_model, load_runtime, predict
from qat_vsam.quant import quant_layers


def operators(path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("bits", ["w8a8", "w1a2", "w2a1", "w4", None])
def test_it_computes_what_the_model_computes(bits, tmp_path, quantize, x) -> None:
    model, path = quantize(bits), tmp_path / "model.onnx"
    proof = qv.export(model, path, sample=x)
    assert proof.argmax_agreement >= 0.999
    assert proof.mean_logit_difference <= 1e-3 * proof.logit_spread
    assert proof.weight_codes_equal is (True if bits else None)
    if bits in ("w4", None):
        assert proof.activation_codes_equal is None
    else:
        assert proof.activation_codes_equal >= 0.999
    reference = model(x)
    assert (predict(path, x) - reference).abs().mean() <= 1e-3 * reference.std(dim=0).mean()


def test_the_proof_tells_what_was_compared(exported, x) -> None:
    assert (exported.proof.inputs, exported.proof.generated_inputs) == (1000, 936)
    assert any("936 of the 1000 inputs are mixtures" in note for note in exported.proof.notes)
    assert "activation codes" in str(exported.proof)
    assert qv.verify(exported.path).passed


def test_weights_are_8_bit_integers_and_batch_norms_are_folded(exported) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in operators(exported.path)
    codes = {each.name: each for each in model.graph.initializer if each.name.endswith("weight_codes")}
    assert set(codes) == {f"{name}.weight_codes" for name, _ in quant_layers(exported.model)}
    assert {each.data_type for each in codes.values()} == {onnx.TensorProto.INT8}
    for node in model.graph.node:
        if node.op_type == "Clip":
            (source,) = [n for n in model.graph.node if node.input[0] in n.output]
            assert source.op_type == "QuantizeLinear"


def test_negative_gammas_flip_codes_also_the_most_negative_one(tmp_path, quantize, x) -> None:
    """4 bits: -8 becomes +8, which the 8-bit carrier holds. 8 bits: -128 has no opposite, the norm stays."""
    for bits, kept in (("w4a8", 0), ("w8a8", 1)):
        model, path = quantize(bits), tmp_path / f"{bits}.onnx"
        with torch.no_grad():
            model.depthwise_norm.weight.abs_()
            channel = int(model.wide_norm.weight.argmin())
            model.wide.weight[channel, 0, 0, 0] = -1e3
            model.wide_norm.weight[channel] = -1.0
        assert model.wide.weight_codes()[channel].min() == (-8 if kept == 0 else -128)
        assert qv.export(model, path, sample=x).weight_codes_equal
        assert operators(path).count("BatchNormalization") == kept
        stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
        codes = stored["wide.weight_codes"][channel]
        assert (codes.max() == 8) if kept == 0 else (codes.min() == -128)


def test_a_gamma_of_zero_switches_its_channel_off(tmp_path, quantize, x) -> None:
    model, path = quantize("w4a4"), tmp_path / "model.onnx"
    with torch.no_grad():
        model.wide_norm.weight[3] = 0.0
    assert qv.export(model, path, sample=x).passed


def test_a_norm_behind_a_shared_or_reused_result_is_still_right(tmp_path, x) -> None:
    class Reuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)  # its result is used twice: nothing to fold here
            z = self.second(self.conv(self.first(y)))  # the same layer again, with a norm of its own
            return (y + z).mean((2, 3))

    model, path = Reuse(), tmp_path / "model.onnx"
    nn.init.normal_(model.first.running_mean)
    nn.init.constant_(model.second.weight, -0.5)
    qv.prepare(model, qv.QuantSpec.preset("w4a4", first_last_bits=4))
    qv.calibrate(model, [x])
    assert qv.export(model, path, sample=x).passed
    assert operators(path).count("BatchNormalization") == 1


def test_a_norm_with_a_large_epsilon_is_folded_with_it(tmp_path, x) -> None:
    body = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.5), nn.ReLU(), nn.Conv2d(6, 4, 6), nn.Flatten()
    model, path = nn.Sequential(*body), tmp_path / "model.onnx"
    qv.prepare(model, qv.QuantSpec.preset("w4a4", first_last_bits=4))
    qv.calibrate(model, [x])
    assert qv.export(model, path, sample=x, minimum_inputs=0).passed
    assert "BatchNormalization" not in operators(path)


def test_a_linear_layer_takes_its_norm_too_and_any_leading_shape(tmp_path) -> None:
    flat = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.constant_(flat[1].weight, -2.0)
    inputs = torch.randn(32, 6)
    qv.prepare(flat, qv.QuantSpec.preset("w4a4", first_last_bits=4))
    qv.calibrate(flat, [inputs])
    assert qv.export(flat, tmp_path / "flat.onnx", sample=inputs).passed
    assert "BatchNormalization" not in operators(tmp_path / "flat.onnx")
    tokens = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    inputs = torch.randn(32, 5, 6)
    qv.prepare(tokens, qv.QuantSpec.preset("w4a4"))
    qv.calibrate(tokens, [inputs])
    proof = qv.export(tokens, tmp_path / "tokens.onnx", sample=inputs)
    assert proof.weight_codes_equal
    assert proof.activation_codes_equal >= 0.999


def test_a_tensor_with_two_consumers_is_quantized_once(tmp_path, x) -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.left, self.right, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            return self.head((self.left(x) + self.right(x)).mean((2, 3)))

    model, path = Fork(), tmp_path / "model.onnx"
    qv.prepare(model, qv.QuantSpec.preset("w4a4"), sample=x[:2])
    qv.calibrate(model, [x])
    assert len(list(quant_layers(model))) == 4
    assert qv.export(model, path, sample=x, minimum_inputs=0).passed
    assert operators(path).count("QuantizeLinear") == 3


def test_large_8_bit_weights_do_not_saturate(tmp_path) -> None:
    """x86 kernels without VNNI add pairs of products in 16 bits unless told otherwise."""
    model = nn.Sequential(nn.Conv2d(32, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False), nn.Flatten())
    nn.init.uniform_(model[0].weight, 0.9, 1.0)
    inputs = torch.rand(32, 32, 4, 4) + 1
    qv.prepare(model, qv.QuantSpec.preset("w8a8", method="minmax"))
    qv.calibrate(model, [inputs])
    assert model[0].weight_codes().min() > 100
    assert qv.export(model, tmp_path / "model.onnx", sample=inputs).activation_codes_equal >= 0.999


def test_the_batch_axis_is_free_and_threads_do_not_matter(exported, x) -> None:
    runtime = load_runtime(exported.path, threads=1)
    for rows in (1, 3, 64):
        assert runtime(x[:rows]).shape == (rows, 5)
    torch.testing.assert_close(runtime(x), integer_model(exported.model)(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=3), nn.Flatten(), nn.Linear(96, 4)], (3, 8, 8)),
        ([nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(6, 4, 2), nn.Flatten()], (3, 4, 4)),
        ([nn.Conv1d(3, 6, 3), nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 4)], (3, 8)),
    ],
)
def test_a_session_without_any_option_computes_the_same(tmp_path, layers, shape) -> None:
    """onnxruntime rounds the biases of quantized layers to the grid of their sums."""
    torch.manual_seed(0)
    model = nn.Sequential(*copy.deepcopy(layers))
    for layer in model:
        if getattr(layer, "bias", None) is not None:
            nn.init.normal_(layer.bias)
    inputs = torch.randn(64, *shape)
    qv.prepare(model, qv.QuantSpec.preset("w4a4", first_last_bits=4), sample=inputs[:2])
    qv.calibrate(model, [inputs])
    assert qv.export(model, tmp_path / "model.onnx", sample=inputs, minimum_inputs=0).passed
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": inputs.numpy()})
    expected = integer_model(model)(inputs)
    assert (torch.from_numpy(logits) - expected).abs().mean() < 1e-3 * expected.std()


def test_target_onnxruntime_keeps_every_optimizer_where_that_passes(tmp_path) -> None:
    model, inputs = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4)), torch.randn(64, 6)
    qv.prepare(model, qv.QuantSpec.preset("w8a8", target="onnxruntime"))
    qv.calibrate(model, [inputs])
    proof = qv.export(model, tmp_path / "model.onnx", sample=inputs, target="onnxruntime")
    assert proof.passed
    # a Gemm with its bias inside is no sum of a product and a bias
    assert "Add" not in operators(tmp_path / "model.onnx")


def test_nothing_is_printed(tmp_path, quantize, x, capfd) -> None:
    capfd.readouterr()  # what plugins print before a test
    qv.export(quantize("w4a4"), tmp_path / "model.onnx", sample=x, minimum_inputs=0)
    assert capfd.readouterr() == ("", "")


def test_a_forward_that_cannot_be_traced_is_one_clear_error(tmp_path, x, capfd) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    capfd.readouterr()  # what plugins print before a test
    with pytest.raises(InputError, match="model: got a forward that cannot be traced"):
        qv.export(Branch(), tmp_path / "model.onnx", sample=x)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_broken_graph_and_inputs_of_another_shape_are_clear_errors(exported, tmp_path, x) -> None:
    with pytest.raises(InputError, match="x: got"):
        predict(exported.path, x[:, :2])
    with pytest.raises(InputError, match="threads: got 0"):
        load_runtime(exported.path, threads=0)
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        predict(path, x)
