"""Trains on one of two ranks until rank 1 is killed in the middle of a step: `distributed_survivor.py FOLDER RANK`."""

from __future__ import annotations

import datetime
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist
from distributed_task import Task, small_net
from torch.nn.parallel import DistributedDataParallel

from qat_vsam.optim import SAM


def main(folder: Path, rank: int) -> None:
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=20))
    task = Task(small_net, DistributedDataParallel)
    optimizer = task.optimizer(SAM)
    for step in range(1000):
        if rank == 1 and step == 3:
            task.model.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        task.step(optimizer)
        (folder / f"{rank}.steps").write_text(str(optimizer.steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
