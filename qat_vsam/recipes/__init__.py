"""The three jobs, which join the rooms: quantize a model, run a recipe, compare a grid of arms."""

from qat_vsam.recipes.benchmark import bench_arms
from qat_vsam.recipes.catalogue import catalogue, describe_backends
from qat_vsam.recipes.compare import compare
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.quantize import quantize, quantize_recipe
from qat_vsam.recipes.resolve import resolve
from qat_vsam.recipes.result import read_result
from qat_vsam.recipes.step_times import bench_sizes, bench_steps
from qat_vsam.recipes.train import export_run, load_run, run_recipe

__all__ = [
    "Listener",
    "bench_arms",
    "bench_sizes",
    "bench_steps",
    "catalogue",
    "compare",
    "describe_backends",
    "export_run",
    "load_run",
    "quantize",
    "quantize_recipe",
    "read_result",
    "resolve",
    "run_recipe",
]
