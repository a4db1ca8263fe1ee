"""Kill processes that do nothing but save, and look at what each leaves behind.

Writes one line of JSON: how many were killed, how many of them inside a save, and what was wrong.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
from pathlib import Path

import torch

from qat_vsam.train import CheckpointFolder


def save_forever(folder: CheckpointFolder, saved: int) -> None:
    step = 0
    while True:
        step += 1
        folder.save(0, step, {"step": step, "weight": torch.full((200_000,), float(step))})
        os.write(saved, b".")


def main(root: Path, count: int) -> None:
    torch.set_num_threads(1)
    draw = random.Random(0)
    inside, wrong = 0, []
    for number in range(count):
        folder = CheckpointFolder(root / str(number))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            save_forever(folder, writer)
        os.close(writer)
        os.read(reader, 1)
        select.select([], [], [], draw.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        finished = 1 + len(os.read(reader, 1 << 16))
        os.close(reader)
        inside += any(path.suffix == ".tmp" or len(folder.paths()) > 2 for path in folder.path.iterdir())
        state = folder.newest(set_aside=True)
        whole = state is not None and bool((state["weight"] == state["step"]).all())
        if not whole or state["step"] < finished:
            wrong.append(number)
        if any(path.suffix in (".tmp", ".broken") for path in folder.path.iterdir()):
            wrong.append(number)
    json.dump({"killed": count, "inside": inside, "wrong": wrong}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
