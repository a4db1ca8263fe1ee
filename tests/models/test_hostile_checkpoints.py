from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qat_vsam.errors import CheckpointError
from qat_vsam.models import build_model, load_checkpoint


class Calls:
    """Pickles to the instruction `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


class Stateful:
    """Pickles to an instruction that runs `__setstate__`."""

    def __getstate__(self) -> dict:
        return {"a": 1}

    def __setstate__(self, state: dict) -> None:
        raise AssertionError("executed")


def _bomb_in_a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(50_000_000))


def _script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates what an attacker may still use
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def _tar_of_pickle(path: Path, canary: Path) -> None:
    with tarfile.open(path, "w") as archive:
        payload = pickle.dumps(Calls(os.system, f"touch {canary}"))
        for name in ("sys_info", "pickle", "storages", "tensors"):
            record = tarfile.TarInfo(name)
            record.size = len(payload)
            archive.addfile(record, io.BytesIO(payload))


def _huge_storage(path: Path) -> None:
    """A legacy file of a few bytes that claims a tensor of 2^60 numbers."""
    torch.save({"w": torch.zeros(77)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"KM", b"\x8a\x08" + struct.pack("<q", 2**60), 1))


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "system call": lambda p, c: torch.save(Calls(os.system, f"touch {c}"), p),
    "system call in a legacy file": lambda p, c: torch.save(
        Calls(os.system, f"touch {c}"), p, _use_new_zipfile_serialization=False
    ),
    "system call among weights": lambda p, c: torch.save(
        {"state_dict": {"conv1.weight": torch.zeros(1), "x": Calls(os.system, f"touch {c}")}}, p
    ),
    "exec": lambda p, c: torch.save(Calls(exec, f"open({str(c)!r}, 'w')"), p),
    "eval as a key": lambda p, c: torch.save({Calls(eval, f"open({str(c)!r}, 'w')"): 1}, p),
    "process": lambda p, c: torch.save(Calls(subprocess.Popen, ["touch", str(c)]), p),
    "open for writing": lambda p, c: torch.save(Calls(open, str(c), "w"), p),
    "whole module": lambda p, c: torch.save(nn.Linear(2, 2), p),
    "setstate": lambda p, c: torch.save(Stateful(), p),
    "bare pickle": lambda p, c: p.write_bytes(pickle.dumps(Calls(os.system, f"touch {c}"))) and None,
    "protocol 0": lambda p, c: p.write_bytes(f"cos\nsystem\n(S'touch {c}'\ntR.".encode()) and None,
    "inst opcode": lambda p, c: p.write_bytes(f"(S'touch {c}'\nios\nsystem\n.".encode()) and None,
    "tar": _tar_of_pickle,
    "script archive": lambda p, c: _script(p),
    "zip bomb": lambda p, c: _bomb_in_a_zip(p),
    "claim of a huge tensor": lambda p, c: _huge_storage(p),
    "empty file": lambda p, c: p.write_bytes(b"") and None,
    "text": lambda p, c: p.write_bytes(b"<html>404</html>") and None,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
def test_a_malicious_file_is_refused_and_executes_nothing(kind: str, tmp_path: Path) -> None:
    file, canary = tmp_path / "net.pt", tmp_path / "canary"
    KINDS[kind](file, canary)
    model = build_model("digits_cnn", width=2)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, file)
    assert not canary.exists()
    assert str(file) in str(caught.value)
    assert "unexpected" not in str(caught.value), "the file was read and only then found not to fit"
    assert "\n" not in str(caught.value)


def test_the_refusal_names_the_forbidden_function(tmp_path: Path) -> None:
    torch.save(Calls(os.system, "true"), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"a pickle that calls \w+\.system, refused"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "net.pt")


def test_a_safetensors_header_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(CheckpointError, match=r"net\.safetensors"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "net.safetensors")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_broken_bytes_load_or_are_a_checkpoint_error(kind: str, tmp_path: Path) -> None:
    model = build_model("digits_cnn", width=2, seed=0)
    file = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pt")
    if kind == "safetensors":
        save_file(model.state_dict(), file)
    else:
        torch.save(model.state_dict(), file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        for content in (bytes(flipped), whole[: chance.randrange(len(whole))]):
            file.write_bytes(content)
            try:
                load_checkpoint(model, file)
            except CheckpointError as error:
                refused += str(file) in str(error)
    assert refused >= 40
