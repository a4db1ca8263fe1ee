"""What two ranks find out about checkpoints, as part of `distributed_checks`; and `distributed_resume.py SAVED`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from distributed_task import MEMBERS, WRAPPERS, Task, small_net
from torch import Tensor
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.tensor import DTensor

import qat_vsam.optim.distributed


def checkpoints(folder: Path) -> dict[str, Any]:
    """Saved at some step of a run and loaded into new objects, by the lines that the documentation shows."""
    cases = {
        "ddp": [("vsam-budget", 7), ("vsam-paper", 7), ("looksam", 2), ("fsam", 0), ("s2-sam", 7)],
        "fsdp": [("vsam-rise", 7), ("fsam", 0)],
    }
    return {f"{kind} {name} at {at}": resumed(folder, kind, name, at) for kind in cases for name, at in cases[kind]}


def resumed(folder: Path, kind: str, name: str, at: int) -> dict[str, bool]:
    saving, loading = documented_lines()
    member, options = MEMBERS[name]
    undisturbed, begun, fresh = (Task(small_net, WRAPPERS[kind], seed) for seed in (1, 1, 9))
    reference, first, second = (task.optimizer(member, **options) for task in (undisturbed, begun, fresh))
    names = {**vars(dcp_state), "dcp": dcp, "folder": str(folder / f"{kind}-{name}-{at}")}
    for _ in range(at):
        begun.step(first)
    exec(saving, names | {"model": begun.model, "optimizer": first})
    exec(loading, names | {"model": fresh.model, "optimizer": second})
    for _ in range(9):
        begun.step(first)
        fresh.turn += at if fresh.turn == 0 else 0
        fresh.step(second)
    for _ in range(at + 9):
        undisturbed.step(reference)
    tensors = [t for state in second.state.values() for t in state.values() if isinstance(t, Tensor)]
    return {
        "exact": torch.equal(begun.weights(), fresh.weights()),
        "saving changes nothing": torch.equal(begun.weights(), undisturbed.weights()),
        "same counters and schedule": repr(first.extra_state()) == repr(second.extra_state()),
        "counted": second.steps == at + 9,
        "in shards where the weights are": all(isinstance(t, DTensor) == (kind == "fsdp") for t in tensors),
    }


def documented_lines() -> tuple[str, str]:
    """The two blocks of code under "Checkpoints" in the documentation of the module."""
    _, text = str(qat_vsam.optim.distributed.__doc__).split("Checkpoints:")
    blocks = [block for block in text.split("\n\n") if block.startswith("    ")]
    saving, loading = (textwrap.dedent(block) for block in blocks)
    return saving, loading


def in_one_process(saved: Path) -> float:
    """How far a run that goes on alone from what two ranks saved is from one that was alone from the beginning."""
    name, at = saved.name.split("-", 1)[1].rsplit("-", 1)
    member, options = MEMBERS[name]
    alone, fresh = Task(small_net, seed=1), Task(small_net, seed=9)
    reference, optimizer = (task.optimizer(member, **options) for task in (alone, fresh))
    names = {**vars(dcp_state), "dcp": dcp, "folder": str(saved)}
    exec(documented_lines()[1], names | {"model": fresh.model, "optimizer": optimizer})
    fresh.turn = int(at)
    for _ in range(int(at) + 9):
        alone.step(reference)
    for _ in range(9):
        fresh.step(optimizer)
    return float((alone.weights() - fresh.weights()).abs().max())


if __name__ == "__main__":
    sys.stdout.write(str(in_one_process(Path(sys.argv[1]))))
