"""Exports, and the proof that each computes what the model computes.

The package itself can be called: `qat_vsam.export(model, path, sample=x)` is `qat_vsam.export.export(...)`,
so that the room and its main function can share one public name.
"""

import sys
from types import ModuleType
from typing import Any

from qat_vsam.export.evidence import read_proof, verify
from qat_vsam.export.exporter import export
from qat_vsam.export.integer import integer_model
from qat_vsam.export.integer_layers import IntegerConv, IntegerConvTranspose, IntegerEmbedding, IntegerLinear
from qat_vsam.export.packed import load_packed
from qat_vsam.export.proof import Proof, generate_inputs
from qat_vsam.export.runtime import load_runtime, predict
from qat_vsam.export.runtime_base import Runtime

load = load_runtime

__all__ = [
    "IntegerConv",
    "IntegerConvTranspose",
    "IntegerEmbedding",
    "IntegerLinear",
    "Proof",
    "Runtime",
    "export",
    "generate_inputs",
    "integer_model",
    "load",
    "load_packed",
    "load_runtime",
    "predict",
    "read_proof",
    "verify",
]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Proof:
        return export(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
