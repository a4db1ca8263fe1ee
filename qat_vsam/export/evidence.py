"""The side files of an artifact, and `verify`, which needs nothing but them.

PATH.proof.json           figures, versions, SHA-256 of the artifact and of the samples; and of itself
PATH.proof.safetensors    `inputs` and `logits`: a few inputs, and what the model answered before the export
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from qat_vsam.errors import CheckpointError, explain
from qat_vsam.export.files import read_bytes, sha256
from qat_vsam.export.proof import Comparison, Proof
from qat_vsam.export.runtime import load_runtime

VERSION = 1
MAX_SAMPLES = 32
MAX_SAMPLE_BYTES = 2 * 2**20


def side_files(path: Path) -> tuple[Path, Path]:
    """(PATH.proof.json, PATH.proof.safetensors)."""
    return path.with_name(path.name + ".proof.json"), path.with_name(path.name + ".proof.safetensors")


def encode(path: Path, data: bytes, proof: Proof, inputs: Tensor, logits: Tensor) -> dict[Path, bytes]:
    """The side files: the first inputs, up to 32 or 2 MiB of them but at least two, and the record."""
    record, samples = side_files(path)
    each = inputs[0].numel() * inputs.element_size()
    count = min(len(inputs), MAX_SAMPLES, max(2, MAX_SAMPLE_BYTES // max(each, 1)))
    tensors = {"inputs": inputs[:count].contiguous(), "logits": logits[:count].contiguous()}
    stored = safetensors.torch.save(tensors)
    content = {
        "version": VERSION,
        "artifact": {"name": path.name, "sha256": sha256(data)},
        "samples": {"count": count, "sha256": sha256(stored)},
        "versions": {
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            proof.runtime: proof.runtime_version,
        },
        "proof": proof.to_dict(),
    }
    content["sha256"] = _digest(content)
    return {samples: stored, record: (json.dumps(content, indent=2) + "\n").encode()}


def verify(path: str | Path, model: nn.Module | None = None, *, trust_builder: bool = False) -> Proof:
    """Check an artifact against its side files: hashes first, then its logits for the stored inputs.

    Args:
        path: the artifact; its side files lie beside it.
        model, trust_builder: for packed files, see `load_packed`.

    Returns:
        The figures of this run. Codes are not compared again, so their fields are None; `read_proof` gives
        those of the export.

    Raises:
        CheckpointError: a file is missing, broken, or not the one that was proven.
        ExportMismatch: the runtime of today computes something else.
        InputError: a packed file does not say how to build its model.

    Example:
        >>> import tempfile, qat_vsam as qv
        >>> model, x = qv.build_model("digits_cnn", seed=0), torch.rand(8, 1, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     proof = qv.export(model, f"{folder}/model.onnx", sample=x)
        ...     verify(f"{folder}/model.onnx").passed
        True
    """
    path = Path(path)
    content = _read(path)
    data = read_bytes(path)
    if sha256(data) != content["artifact"]["sha256"]:
        raise CheckpointError(
            explain(str(path), "another file than the one proven", "the exported file, unchanged", "export again")
        )
    inputs, logits = _read_samples(path, content["samples"]["sha256"])
    runtime = load_runtime(path, model=model, trust_builder=trust_builder)
    comparison = Comparison()
    comparison.add_logits(logits, runtime(inputs))
    noise = Proof.from_dict(content["proof"]).rounding_noise
    proof = Proof(
        format=runtime.format,
        runtime=runtime.name,
        runtime_version=runtime.version,
        generated_inputs=0,
        bytes=len(data),
        disabled_optimizers=runtime.disabled_optimizers,
        notes=(f"compared on the {len(inputs)} inputs stored at the export",),
        **comparison.figures(noise, typical=True),
    )
    proof.raise_if_failed(str(path))
    return proof


def read_proof(path: str | Path) -> Proof:
    """The proof that was written at the export of an artifact.

    Raises:
        CheckpointError: it is missing or broken.
    """
    return Proof.from_dict(_read(Path(path))["proof"])


def _read(path: Path) -> dict[str, Any]:
    record = side_files(path)[0]
    try:
        content: dict[str, Any] = json.loads(read_bytes(record))
        digest = content.pop("sha256")
        unchanged = digest == _digest(content) and content["version"] == VERSION
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(record, f"an unreadable file ({error})") from error
    if not unchanged:
        raise _broken(record, "content that its checksum does not fit")
    return content


def _read_samples(path: Path, digest: str) -> tuple[Tensor, Tensor]:
    file = side_files(path)[1]
    data = read_bytes(file)
    if sha256(data) != digest:
        raise _broken(file, "content that its checksum does not fit")
    tensors = safetensors.torch.load(data)
    return tensors["inputs"], tensors["logits"]


def _broken(file: Path, got: str) -> CheckpointError:
    return CheckpointError(explain(str(file), got, "the file written at the export", "export again"))


def _digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())
