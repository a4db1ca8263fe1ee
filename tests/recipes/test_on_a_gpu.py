"""A recipe with `device: cuda` does the whole job there: train, stop, go on, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qat_vsam import config
from qat_vsam.data import Batches, load_dataset
from qat_vsam.recipes import load_run, run_recipe
from qat_vsam.recipes.events import Listener
from qat_vsam.train import Progress

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ON_GPU = {"device": "cuda", "data": {"augment": "shift"}, "train": {"epochs": 4, "ema": 0.9, "checkpoint_every": 3}}


class Crash(Exception):  # noqa: N818
    """Stands for a crash between two steps."""


class CrashAt(Listener):
    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, event: Progress) -> None:
        if event.kind == "step" and event.step == self.step:
            raise Crash


def test_a_run_on_a_gpu_leaves_proven_exports_and_weights_for_any_machine(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    result = run_recipe(small_recipe(**ON_GPU, export=["packed", "onnx"]), tmp_path)
    assert all(export["proof"]["passed"] for export in result["exports"])
    assert {export["test_accuracy"] for export in result["exports"]} == {result["accuracy"]["test"]}
    kept = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(value.device.type == "cpu" for value in kept.values())
    _, model, loaders = load_run(tmp_path)
    assert all(parameter.is_cuda for parameter in model.parameters())
    assert all(split.split.images.is_cuda for split in (loaders.train, loaders.validation, loaders.test))


def test_a_run_on_a_gpu_that_crashes_ends_in_the_bits_of_an_undisturbed_one(
    tmp_path: Path, small_recipe: Callable[..., config.Recipe]
) -> None:
    recipe = small_recipe(**ON_GPU)
    run_recipe(recipe, tmp_path / "undisturbed")
    for step in (4, 7, 13):
        with pytest.raises(Crash):
            run_recipe(recipe, tmp_path / "crashed", listener=CrashAt(step))
    run_recipe(recipe, tmp_path / "crashed")
    one, other = (torch.load(tmp_path / run / "weights.pt", weights_only=True) for run in ("undisturbed", "crashed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    metrics = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("undisturbed", "crashed")]
    assert metrics[0] == metrics[1]


def test_the_batches_of_a_split_on_a_gpu_are_those_of_the_host() -> None:
    split = load_dataset("digits").train
    options = {"mean": (0.3,), "std": (0.4,), "augment": "crop2_flip", "shuffle": True, "seed": 3}
    host, gpu = Batches(split, 32, **options), Batches(split.to("cuda"), 32, device="cuda", **options)
    for (x, y), (x_gpu, y_gpu) in zip(host.epoch(1), gpu.epoch(1), strict=True):
        assert x_gpu.is_cuda
        assert torch.equal(y, y_gpu.cpu())
        torch.testing.assert_close(x, x_gpu.cpu(), rtol=0, atol=1e-6)
