"""A checkpoint is whole or refused, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from qat_vsam.errors import CheckpointError
from qat_vsam.train import CheckpointFolder, read_checkpoint, write_checkpoint

STATE = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)},
    "optimizer": {
        "state": {0: {"momentum_buffer": torch.ones(2)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    },
    "epoch": 3,
    "note": None,
}


@pytest.fixture
def path(tmp_path):
    """A whole checkpoint."""
    path = tmp_path / "epoch-0001-step-00000012.pt"
    write_checkpoint(path, STATE)
    return path


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_killed_inside_a_save_the_newest_finished_checkpoint_is_read(count, start_script, tmp_path):
    process = start_script("save_forever.py", tmp_path, count)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    outcome = json.loads(output)
    assert outcome["wrong"] == []
    assert outcome["inside"] > count // 10, "the kills missed the saves"


@pytest.mark.parametrize("suffix", ["", ".sha256"])
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.nightly)])
def test_every_flipped_bit_and_every_cut_is_refused_with_file_and_reason(path, suffix, count):
    victim = path.with_name(path.name + suffix)
    whole, draw = victim.read_bytes(), random.Random(0)
    for attempt in range(count):
        if attempt % 2:
            damaged = whole[: draw.randrange(len(whole))]
        else:
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        victim.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"step-00000012\.pt: got .* do not match"):
            read_checkpoint(path)


def leaves(value, place=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*place, key)
        yield from leaves(child, (*place, key))


def without(value, place):
    copy = value.copy()
    if len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = without(copy[place[0]], place[1:])
    return copy


def rewrite(path, payload):
    """Store `payload` with a hash that is right, as a person who edits a checkpoint would."""
    torch.save(payload, path)
    line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    path.with_name(path.name + ".sha256").write_text(line)


@pytest.mark.parametrize("place", list(leaves(STATE)), ids=lambda place: "/".join(map(str, place)))
def test_dropping_any_entry_is_noticed(path, place):
    payload = torch.load(path, weights_only=True)
    rewrite(path, payload | {"state": without(payload["state"], place)})
    with pytest.raises(CheckpointError, match=f"missing.*{place[-1]}"):
        read_checkpoint(path)


def test_another_layout_or_format_is_refused(path):
    payload = torch.load(path, weights_only=True)
    rewrite(path, without(payload, ("entries",)))
    with pytest.raises(CheckpointError, match="another layout"):
        read_checkpoint(path)
    rewrite(path, payload | {"format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(path)


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_even_with_a_right_hash(path, tmp_path, legacy):
    canary = tmp_path / "canary"
    if legacy:
        path.write_bytes(pickle.dumps(Hostile(canary), protocol=2))
        line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        path.with_name(path.name + ".sha256").write_text(line)
    else:
        rewrite(path, {"format": 1, "entries": [], "state": {"x": Hostile(canary)}})
    with pytest.raises(CheckpointError, match="UnpicklingError"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize("failing", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_one_clear_line_and_the_older_checkpoint_stays(tmp_path, monkeypatch, failing, code):
    folder = CheckpointFolder(tmp_path)
    folder.save(1, 10, STATE)
    refusal = OSError(code, os.strerror(code))

    def refuse(*arguments, **options):
        raise refusal

    class FullFile:
        def __init__(self, path, mode):
            self.file = open_file(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        write = refuse

    open_file = open
    with monkeypatch.context() as disk:
        if failing == "open":
            disk.setattr("builtins.open", refuse)
        elif failing == "write":
            disk.setattr("builtins.open", FullFile)
        else:
            disk.setattr(os, failing, refuse)
        with pytest.raises(CheckpointError, match=errno.errorcode[code]) as refused:
            folder.save(2, 20, STATE)

    assert "\n" not in str(refused.value)
    assert "run the same command again" in str(refused.value)
    assert list(folder.newest()) == list(STATE)
    assert [file.name for file in folder.paths()] == ["epoch-0001-step-00000010.pt"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_missing_checkpoint_names_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt.*ENOENT"):
        read_checkpoint(tmp_path / "nothing.pt")


def test_an_empty_or_missing_folder_holds_no_checkpoint(tmp_path):
    assert CheckpointFolder(tmp_path).newest() is None
    assert CheckpointFolder(tmp_path / "missing").newest(set_aside=True) is None
