"""Write an artifact, load it again in its own runtime, and let it pass only if it computes the same.

Beside the artifact PATH lie PATH.proof.json (figures, versions, hashes) and PATH.proof.safetensors (some
inputs and the model's logits), so that `verify(PATH)` needs nothing else.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from qat_vsam.errors import InputError, did_you_mean, explain
from qat_vsam.export.artifact import (
    Artifact,
    compare,
    load_onnx_artifact,
    load_packed_artifact,
    load_qonnx_artifact,
    rounding_noise,
)
from qat_vsam.export.evidence import encode, side_files
from qat_vsam.export.files import commit, staged, write
from qat_vsam.export.onnx_graph import build_onnx
from qat_vsam.export.packed import to_packed
from qat_vsam.export.proof import Proof, generate_inputs
from qat_vsam.export.qonnx import build_qonnx
from qat_vsam.export.runtime import DISABLED_OPTIMIZERS_KEY, SESSION_CONFIG
from qat_vsam.quant import list_targets
from qat_vsam.quant.backends.brevitas import is_brevitas

FORMATS = ("onnx", "packed", "qonnx")
MINIMUM_INPUTS = 1000
_QONNX_BATCH = 50


def export(
    model: nn.Module,
    path: str | Path,
    format: Literal["onnx", "packed", "qonnx"] = "onnx",
    *,
    sample: Tensor,
    builder: Mapping[str, Any] | None = None,
    check_inputs: Tensor | None = None,
    target: str | None = None,
    minimum_inputs: int = MINIMUM_INPUTS,
) -> Proof:
    """Export a model and prove that the export computes the same thing.

    The file appears under its name only after the proof has passed.

    Args:
        model: prepared and calibrated, or float; one tensor in, one out. It is copied to the CPU and put in
            evaluation mode there; the model itself is not touched.
        path: file to write; a `.onnx` or `.safetensors` ending tells people what it is.
        format: "onnx" (QuantizeLinear / DequantizeLinear graph), "packed" (integer codes, true size) or "qonnx"
            (Quant nodes, for FPGA compilers, by brevitas' exporter; the only one for a model of brevitas' layers).
        sample: a batch of real inputs, shape (N, ...), floating point or integers.
        builder: {"name": ..., "options": {...}}, from which a packed file can rebuild its model; None takes
            `model.builder`. Without one, `verify` and `load_packed` need the architecture as `model=`.
        check_inputs: real inputs to compare on, shape (M, ...); None takes `sample`.
        target: "onnxruntime" keeps the biases of quantized layers inside of them, which is faster there, if the
            file passes its proof although onnxruntime then rounds them; otherwise they are added behind the layers.
            No other runtime is run; the notes of the proof say so.
        minimum_inputs: fewer inputs are filled up to this number by `generate_inputs`, and the proof says so.

    Raises:
        ExportMismatch: the artifact computes something else; the message names the worst layer. The file is
            not written, and an older one of that name stays.
        InputError: the model cannot be exported in this format, or an argument is wrong.
        CheckpointError: the file cannot be written.

    Example:
        >>> import tempfile, qat_vsam as qv
        >>> model, x = qv.build_model("digits_cnn", seed=0), torch.rand(32, 1, 8, 8)
        >>> summary = qv.prepare(model, qv.QuantSpec.preset("w4a8"))
        >>> qv.calibrate(model, [x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     proof = qv.export(model, f"{folder}/model.safetensors", format="packed", sample=x)
        ...     again = qv.verify(f"{folder}/model.safetensors")
        >>> proof.inputs, proof.weight_codes_equal, again.passed
        (1000, True, True)
    """
    for key, value, choices in (("format", format, FORMATS), ("target", target or "simulated", list_targets())):
        if value not in choices:
            advice = did_you_mean(str(value), choices)
            raise InputError(explain(key, repr(value), "one of " + ", ".join(choices), advice))
    if format != "qonnx" and is_brevitas(model):
        raise InputError(explain("format", repr(format), "'qonnx' for brevitas' layers", "pass format='qonnx'"))
    path = Path(path)
    inputs, generated = _check_inputs(sample, check_inputs, minimum_inputs)
    reference = copy.deepcopy(model).cpu().eval()
    record, samples = side_files(path)
    with contextlib.ExitStack() as stack:
        temporary = {file: stack.enter_context(staged(file)) for file in (record, samples, path)}
        for artifact in _write_candidates(reference, temporary[path], format, inputs, builder, target):
            comparison = compare(reference, artifact, inputs)
            figures = comparison.figures()
            if not figures["passed"] and figures["weight_codes_equal"] is not False:
                figures = comparison.figures(rounding_noise(reference, inputs, comparison.logits))
            if figures["passed"]:
                break
        data = temporary[path].read_bytes()
        proof = Proof(
            format=format,
            runtime=artifact.runtime.name,
            runtime_version=artifact.runtime.version,
            generated_inputs=generated,
            bytes=len(data),
            disabled_optimizers=artifact.runtime.disabled_optimizers,
            notes=tuple(_notes(artifact, inputs, generated, figures, target)),
            **figures,
        )
        proof.raise_if_failed(str(path))
        for file, content in encode(path, data, proof, inputs, comparison.logits).items():
            write(temporary[file], content)
        # the record goes first and comes last: an artifact beside another's record cannot be
        record.unlink(missing_ok=True)
        for file in (samples, path, record):
            commit(temporary[file], file)
    return proof


def _write_candidates(
    model: nn.Module,
    place: Path,
    format: str,
    inputs: Tensor,
    builder: Mapping[str, Any] | None,
    target: str | None,
) -> Iterator[Artifact]:
    """Write and load the artifact, for each way to run it that may pass, the fastest first."""
    if format == "packed":
        write(place, to_packed(model, builder))
        yield load_packed_artifact(place, model)
        return
    if format == "qonnx":
        write(place, build_qonnx(model, inputs[:_QONNX_BATCH]))
        yield load_qonnx_artifact(place)
        return
    for biases_apart in (False, True) if target == "onnxruntime" else (True,):
        graph = build_onnx(model, inputs[:2], biases_apart)
        onnx.helper.set_model_props(graph, {DISABLED_OPTIMIZERS_KEY: ""})
        write(place, graph.SerializeToString())
        yield load_onnx_artifact(place)


def _check_inputs(sample: Tensor, check_inputs: Tensor | None, minimum: int) -> tuple[Tensor, int]:
    given = sample if check_inputs is None else check_inputs
    usable = isinstance(given, Tensor) and not given.is_complex() and given.dtype != torch.bool
    if not usable or given.dim() < 1 or len(given) < 1:
        got = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
        rule = "a batch of inputs (N, ...), floating point or integers"
        raise InputError(explain("sample", got, rule, "pass a batch of real data"))
    missing = max(0, minimum - len(given))
    given = given.detach().cpu()
    return torch.cat([given, generate_inputs(given, missing)]) if missing else given, missing


def _notes(
    artifact: Artifact,
    inputs: Tensor,
    generated: int,
    figures: Mapping[str, Any],
    target: str | None,
) -> Iterator[str]:
    if target not in (None, "simulated", artifact.runtime.name):
        yield f"proven in {artifact.runtime.name}; the target {target} was not run"
    if generated:
        yield f"{generated} of the {len(inputs)} inputs are mixtures of the given ones, with noise"
    spread = figures["logit_spread"]
    if (noise := figures["rounding_noise"]) is not None:
        yield (
            f"in float64 the model's own logits differ by {noise.mean:.2g} on average and "
            f"{noise.largest:.2g} at most, at spread {spread:.2g}: twice that is granted"
        )
    if artifact.runtime.format != "onnx" or figures["activation_codes_equal"] is None:
        return
    entries = ", ".join(f"{key}={value}" for key, value in SESSION_CONFIG.items())
    yield f"the session sets {entries}, without which x86 processors that lack VNNI saturate 8-bit products"
