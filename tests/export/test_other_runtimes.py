"""What is exported for targets whose runtime is not run, and the ONNX file in OpenVINO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import qat_vsam as qv
from qat_vsam.quant import LayerRule


def calibrated(bits: str, target: str, **options: object) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.SiLU(), nn.Flatten()]
    model, x = nn.Sequential(*body, nn.Linear(144, 10)), torch.randn(64, 1, 8, 8)
    qv.prepare(model, qv.QuantSpec.preset(bits, target=target, **options))
    qv.calibrate(model, [x])
    return model.eval(), x


@pytest.mark.parametrize(
    ("target", "kind", "runtime"), [("tensorrt", "onnx", "onnxruntime"), ("litert", "packed", "torch")]
)
def test_a_proof_says_that_the_runtime_in_view_was_not_run(
    target: str, kind: str, runtime: str, tmp_path: Path
) -> None:
    model, x = calibrated("w8a8", target)
    proof = qv.export(model, tmp_path / "a", format=kind, sample=x, target=target, minimum_inputs=1)
    assert proof.passed
    assert f"proven in {runtime}; the target {target} was not run" in proof.notes


@pytest.mark.parametrize(("target", "kind"), [("onnxruntime", "onnx"), ("simulated", "packed"), (None, "packed")])
def test_a_proof_in_the_runtime_in_view_says_no_such_thing(target: str | None, kind: str, tmp_path: Path) -> None:
    model, x = calibrated("w8a8", target or "simulated")
    proof = qv.export(model, tmp_path / "a", format=kind, sample=x, target=target, minimum_inputs=1)
    assert not any("was not run" in note for note in proof.notes)


@pytest.mark.parametrize(("bits", "method"), [("w7a8", "lsq_plus"), ("w4a8", "lsq"), ("w4", "lsq")])
def test_openvino_computes_the_same_from_the_onnx_file(bits: str, method: str, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    # weights of 8 bits, which the first and the last layer have by default, would saturate without VNNI
    everywhere = [LayerRule.preset("re:.*", bits, method=method)]
    model, x = calibrated(bits, "openvino", overrides=everywhere, method=method)
    qv.export(model, tmp_path / "a.onnx", sample=x, target="openvino", minimum_inputs=1)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(tmp_path / "a.onnx"), "CPU", options)
    logits, expected = torch.from_numpy(compiled(x.numpy())[0].copy()), model(x).detach()
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert (logits - expected).abs().mean() <= 1e-3 * expected.std(0).mean()
