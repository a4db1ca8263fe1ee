"""Measurements of a model: accuracy, sharpness, size, latency, and step times side by side.

The package itself can be called: `qat_vsam.evaluate(model, batches)` is `accuracy(model, batches)`, so that
the room and its main function can share one public name.
"""

import sys
from types import ModuleType
from typing import Any

from qat_vsam.evaluate.accuracy import Accuracy, accuracy, evaluation_mode
from qat_vsam.evaluate.bench import Timing, interleave, median_ratio
from qat_vsam.evaluate.latency import LatencyResult, latency
from qat_vsam.evaluate.rivals import NativeQuantizer, use_native_operator
from qat_vsam.evaluate.sharpness import Sharpness, sharpness
from qat_vsam.evaluate.size import Size, model_size
from qat_vsam.evaluate.step_workloads import (
    StepWorkload,
    resnet18_workloads,
    resnet20_workloads,
    step_workloads,
)

evaluate = accuracy

__all__ = [
    "Accuracy",
    "LatencyResult",
    "NativeQuantizer",
    "Sharpness",
    "Size",
    "StepWorkload",
    "Timing",
    "accuracy",
    "evaluate",
    "evaluation_mode",
    "interleave",
    "latency",
    "median_ratio",
    "model_size",
    "resnet18_workloads",
    "resnet20_workloads",
    "sharpness",
    "step_workloads",
    "use_native_operator",
]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Accuracy:
        return accuracy(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
