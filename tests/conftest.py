"""What all tests share: one thread of torch, since exactness is promised for a given number of threads."""

from __future__ import annotations

import os

# inherited by the processes that tests start
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
