"""What a finished run folder holds, by sha256: a file that was bent afterwards is refused by every reader.

`manifest.sha256` has the format of `sha256sum -c`. It names the run's own files, its last line itself. Exported files
are left out: each has a proof beside it that knows its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qat_vsam.errors import CheckpointError, explain
from qat_vsam.train.files import translate_errors, write_atomic

MANIFEST = "manifest.sha256"
DELETABLE = "weights.pt"  # large, and of a run that is reported already nobody need keep them
LISTED = (
    "recipe.yaml",
    "result.json",
    "weights.pt",
    "metrics.jsonl",
    "timing.jsonl",
    "environment.json",
    "baseline.json",
    "layers.txt",
)


def write_manifest(folder: Path, result: bytes) -> None:
    """List the files of a run whose result will be these bytes; written before the result is.

    Raises:
        OSError: the disk refused.
    """
    lines = []
    for name in LISTED:
        path = folder / name
        if name == "result.json" or path.is_file():
            data = result if name == "result.json" else path.read_bytes()
            lines.append(f"{_sha256(data)}  {name}\n")
    text = "".join(lines)
    write_atomic(folder / MANIFEST, f"{text}{_sha256(text.encode())}  {MANIFEST}\n".encode())


def check_manifest(folder: Path) -> None:
    """Refuse a finished run one of whose files is not what was written; a run from before there were manifests passes.

    Raises:
        CheckpointError: naming the file.
    """
    path = folder / MANIFEST
    with translate_errors(CheckpointError, path):
        if not path.exists():
            return
        data = path.read_bytes()
    *lines, own = data.splitlines(keepends=True) or [b""]
    if own != f"{_sha256(b''.join(lines))}  {MANIFEST}\n".encode():
        raise _bent(path)
    for line in b"".join(lines).decode().splitlines():
        expected, name = line.split("  ", 1)
        if name == DELETABLE and not (folder / name).exists():
            continue
        with translate_errors(CheckpointError, folder / name):
            found = (folder / name).read_bytes()
        if _sha256(found) != expected:
            raise _bent(folder / name)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with the sha256 of all of them as a last entry, for a file that is read before there is a manifest.

    Example:
        >>> opened(Path("note.json"), json.dumps(sealed({"a": 1})).encode())
        {'a': 1}
    """
    return {**content, "sha256": _seal(content)}


def opened(path: Path, data: bytes, unsealed: Collection[str] = ()) -> dict[str, Any]:
    """What `sealed` took, out of the JSON text of what it gave.

    Args:
        path: for the message.
        data: the text.
        unsealed: keys that a file may have without a seal, because runs that still go on have written such.

    Raises:
        CheckpointError: the file was bent.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise _bent(path) from None
    if not isinstance(content, dict):
        raise _bent(path)
    seal = content.pop("sha256", None)
    if seal != _seal(content) and (seal is not None or not set(content) <= set(unsealed)):
        raise _bent(path)
    return content


def _seal(content: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(content).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bent(path: Path) -> CheckpointError:
    advice = "restore the file, or delete the folder and run the same command again"
    return CheckpointError(explain(str(path), "a file that was changed or cut", "the bytes that the run wrote", advice))
