"""An artifact that computes something else never gets its name; one that was changed is never verified."""

import errno
import json
import os

import pytest
import torch
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import CheckpointError, ExportMismatch, InputError
from qat_vsam.export import Proof, generate_inputs, read_proof
from qat_vsam.export.proof import Comparison, Noise


class Drifting(nn.Module):
    """Its second layer sees another input at each call, so that no export can equal it.

    The third layer then sees another input, too, but only because of the second.
    """

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Drifting.calls += 1
        x = torch.relu(self.first(x)) * (1 + 0.5 * (Drifting.calls % 3))
        return self.third(torch.relu(self.second(x)))


@pytest.fixture
def drifting() -> tuple[nn.Module, torch.Tensor]:
    model, inputs = Drifting(), torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    qv.prepare(model, qv.QuantSpec.preset("w4a8"))
    qv.calibrate(model, [inputs])
    return model, inputs


@pytest.mark.parametrize("format", ["onnx", "packed"])
def test_a_mismatch_names_the_worst_layer_and_leaves_no_file(format: str, drifting, tmp_path) -> None:
    model, inputs = drifting
    with pytest.raises(ExportMismatch, match=r"look at layer second \(\d+\.\d+% of its inputs equal\)"):
        qv.export(model, tmp_path / "model", format=format, sample=inputs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["onnx", "packed"])
def test_verify_needs_only_the_side_files(format: str, tmp_path, x) -> None:
    model = qv.build_model("digits_cnn", seed=0)
    inputs = torch.rand(40, 1, 8, 8)
    qv.prepare(model, qv.QuantSpec.preset("w4a4"))
    qv.calibrate(model, [inputs])
    path = tmp_path / "model"
    proof = qv.export(model, path, format=format, sample=inputs, minimum_inputs=0)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model",
        "model.proof.json",
        "model.proof.safetensors",
    ]
    assert read_proof(path) == proof == Proof.from_dict(json.loads(json.dumps(proof.to_dict())))
    again = qv.verify(path)
    assert again.passed
    assert again.inputs == 32
    assert again.logit_spread == pytest.approx(proof.logit_spread, rel=0.2)


@pytest.mark.parametrize("suffix", ["", ".proof.json", ".proof.safetensors"])
def test_a_changed_or_missing_file_is_refused(suffix: str, tmp_path, quantize, x) -> None:
    model, path = quantize("w4a4"), tmp_path / "model.safetensors"
    qv.export(model, path, format="packed", sample=x, minimum_inputs=0)
    file = tmp_path / f"model.safetensors{suffix}"
    data = bytearray(file.read_bytes())
    for place in range(0, len(data), max(1, len(data) // 25)):
        broken = data.copy()
        broken[place] ^= 4
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            qv.verify(path, model)
    file.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        qv.verify(path, model)


def test_an_artifact_of_another_model_is_refused(tmp_path, quantize, x) -> None:
    for seed in (0, 1):
        path = tmp_path / str(seed)
        qv.export(quantize("w4a4", seed=seed), path, format="packed", sample=x, minimum_inputs=0)
    os.replace(tmp_path / "1", tmp_path / "0")
    with pytest.raises(CheckpointError, match="another file than the one proven"):
        qv.verify(tmp_path / "0", quantize(None))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_fails_leaves_one_clear_error_and_no_file(number, call, tmp_path, quantize, x, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    if call == "write":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match=f"model.safetensors: got {os.strerror(number)}"):
        qv.export(quantize("w4a4"), path, format="packed", sample=x, minimum_inputs=0)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path, quantize, x) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        qv.export(quantize("w4a4"), tmp_path / "no" / "model", format="packed", sample=x, minimum_inputs=0)


def test_a_failed_export_keeps_the_older_artifact_whole(drifting, tmp_path, quantize, x) -> None:
    path = tmp_path / "model"
    qv.export(quantize("w4a4"), path, format="packed", sample=x, minimum_inputs=0)
    model, inputs = drifting
    with pytest.raises(ExportMismatch):
        qv.export(model, path, format="packed", sample=inputs)
    assert qv.verify(path, quantize(None)).passed


@pytest.mark.parametrize("sample", [torch.zeros(4, 3, dtype=torch.bool), torch.zeros(0, 3), [1.0]])
def test_a_sample_that_is_no_batch_of_floats_is_refused(sample, tmp_path) -> None:
    with pytest.raises(InputError, match="sample: got"):
        qv.export(nn.Linear(3, 2), tmp_path / "model", sample=sample)


def test_an_unknown_format_gets_a_suggestion(tmp_path) -> None:
    with pytest.raises(InputError, match="did you mean onnx"):
        qv.export(nn.Linear(3, 2), tmp_path / "model", format="onx", sample=torch.zeros(2, 3))


def figures(reference: torch.Tensor, candidate: torch.Tensor) -> dict:
    comparison = Comparison()
    comparison.add_logits(reference, candidate)
    return comparison.figures()


def test_thresholds() -> None:
    logits = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0))
    spread = figures(logits, logits)["logit_spread"]
    assert spread == pytest.approx(1.0, rel=0.05)
    assert figures(logits, logits)["passed"]
    shift = torch.full_like(logits, spread)
    assert figures(logits, logits + 0.99e-3 * shift)["passed"]
    assert not figures(logits, logits + 1.01e-3 * shift)["passed"]
    assert not figures(logits, logits + float("nan"))["passed"]
    flipped = logits.clone()
    flipped[:3, logits[:3].argmin(1)] = logits.max() + 1
    assert figures(logits, flipped)["argmax_agreement"] == 1997 / 2000
    assert not figures(logits, flipped)["passed"]


def test_twice_the_rounding_noise_is_granted_and_no_more() -> None:
    logits = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0))
    comparison = Comparison()
    comparison.add_logits(logits, logits + 0.01)
    assert not comparison.figures()["passed"]
    assert comparison.figures(Noise(mean=0.005, largest=0.1))["passed"]
    assert not comparison.figures(Noise(mean=0.004, largest=0.1))["passed"]


def test_argmax_is_judged_where_rounding_cannot_decide_it() -> None:
    logits = torch.zeros(1000, 2)
    logits[:, 0] = 1.0
    logits[:10, 0] = 0.01  # these are decided by a hair
    other = logits.clone()
    other[:10, 1] = 0.02
    comparison = Comparison()
    comparison.add_logits(logits, other)
    assert comparison.figures()["argmax_agreement"] == 0.99
    assert not comparison.figures(Noise(mean=1.0, largest=0.001))["passed"]
    assert comparison.figures(Noise(mean=1.0, largest=0.006))["passed"]


def test_one_wrong_weight_code_fails_and_names_its_layer() -> None:
    logits = torch.randn(10, 3)
    comparison = Comparison(weight_mismatches=["layer1.conv"])
    comparison.add_logits(logits, logits)
    assert not comparison.figures()["passed"]
    assert comparison.figures()["worst_layer"] == "layer1.conv (its weight codes differ)"


def test_codes_are_weighed_over_all_layers() -> None:
    logits = torch.randn(10, 3)
    for wrong, passes in ((9, True), (11, False)):
        comparison = Comparison()
        comparison.add_logits(logits, logits)
        codes = torch.zeros(8000, dtype=torch.uint8)
        other = codes.clone()
        other[:wrong] = 1
        comparison.add_layer("a", codes, other)
        comparison.add_layer("b", codes[:2000], codes[:2000])
        assert comparison.figures()["passed"] is passes
        assert comparison.figures()["activation_codes_equal"] == 1 - wrong / 10_000
        assert comparison.figures()["worst_layer"].startswith("a (")


def test_generated_inputs_stay_within_the_range_and_repeat() -> None:
    given = torch.rand(5, 3, 4, 4) * 3 - 1
    made = generate_inputs(given, 50)
    assert torch.equal(made, generate_inputs(given, 50))
    assert made.min() >= given.min()
    assert made.max() <= given.max()
    assert made.std() > 0.5 * given.std()


def test_generated_integers_are_those_of_the_given_inputs_place_by_place() -> None:
    given = torch.tensor([[1, 20, 300], [4, 50, 600], [7, 80, 900]])
    made = generate_inputs(given, 200)
    assert made.dtype == given.dtype
    for place in range(3):
        assert set(made[:, place].tolist()) == set(given[:, place].tolist())
    assert len({tuple(row) for row in made.tolist()}) > 9
