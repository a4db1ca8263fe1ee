"""qat-vsam: quantization-aware training with sharpness-aware optimizers that cost little more than SGD.

The public names, re-exported one by one. They are loaded when first used, so that `import qat_vsam` is quick
and touches neither torchao nor brevitas nor onnx.

Example:
    >>> import torch, qat_vsam as qv
    >>> model = qv.build_model("digits_cnn", seed=0)
    >>> summary = qv.prepare(model, qv.QuantSpec.preset("w4a4"))
    >>> qv.calibrate(model, [torch.rand(16, 1, 8, 8)])
    >>> model(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat_vsam.data import Batches as Batches
    from qat_vsam.data import Dataset as Dataset
    from qat_vsam.data import Split as Split
    from qat_vsam.data import load_dataset as load_dataset
    from qat_vsam.errors import CheckpointError as CheckpointError
    from qat_vsam.errors import ConfigError as ConfigError
    from qat_vsam.errors import DataError as DataError
    from qat_vsam.errors import ExportMismatch as ExportMismatch
    from qat_vsam.errors import InputError as InputError
    from qat_vsam.errors import MissingDependencyError as MissingDependencyError
    from qat_vsam.errors import NonFiniteError as NonFiniteError
    from qat_vsam.errors import QatVsamError as QatVsamError
    from qat_vsam.errors import RunFolderError as RunFolderError
    from qat_vsam.evaluate import evaluate as evaluate
    from qat_vsam.export import export as export
    from qat_vsam.export import load as load
    from qat_vsam.export import verify as verify
    from qat_vsam.models import build_model as build_model
    from qat_vsam.models import load_checkpoint as load_checkpoint
    from qat_vsam.optim import AESAM as AESAM
    from qat_vsam.optim import ASAM as ASAM
    from qat_vsam.optim import ESAM as ESAM
    from qat_vsam.optim import FSAM as FSAM
    from qat_vsam.optim import LESAM as LESAM
    from qat_vsam.optim import MSAM as MSAM
    from qat_vsam.optim import S2SAM as S2SAM
    from qat_vsam.optim import SAM as SAM
    from qat_vsam.optim import SAMON as SAMON
    from qat_vsam.optim import SAQ as SAQ
    from qat_vsam.optim import VSAM as VSAM
    from qat_vsam.optim import AELookSAM as AELookSAM
    from qat_vsam.optim import LateSAM as LateSAM
    from qat_vsam.optim import LookSAM as LookSAM
    from qat_vsam.optim import MicroBatches as MicroBatches
    from qat_vsam.optim import PeriodicSAM as PeriodicSAM
    from qat_vsam.optim import RampSAM as RampSAM
    from qat_vsam.optim import RandomCountSAM as RandomCountSAM
    from qat_vsam.optim import RandomSAM as RandomSAM
    from qat_vsam.optim import SharpnessAware as SharpnessAware
    from qat_vsam.optim import SplitSGD as SplitSGD
    from qat_vsam.optim import VSAMPaper as VSAMPaper
    from qat_vsam.quant import LayerRule as LayerRule
    from qat_vsam.quant import QuantSpec as QuantSpec
    from qat_vsam.quant import Structure as Structure
    from qat_vsam.quant import Summary as Summary
    from qat_vsam.quant import TensorSpec as TensorSpec
    from qat_vsam.quant import analyse as analyse
    from qat_vsam.quant import calibrate as calibrate
    from qat_vsam.quant import correct_bias as correct_bias
    from qat_vsam.quant import freeze_batch_norm as freeze_batch_norm
    from qat_vsam.quant import operations_between as operations_between
    from qat_vsam.quant import param_groups as param_groups
    from qat_vsam.quant import prepare as prepare
    from qat_vsam.quant import reestimate_batch_norm as reestimate_batch_norm
    from qat_vsam.recipes import compare as compare
    from qat_vsam.recipes import quantize as quantize
    from qat_vsam.recipes import run_recipe as run_recipe
    from qat_vsam.train import fit as fit

__version__ = "0.1.0"

# public name -> (room, name there)
_PUBLIC = {
    "Batches": ("data", "Batches"),
    "CheckpointError": ("errors", "CheckpointError"),
    "ConfigError": ("errors", "ConfigError"),
    "DataError": ("errors", "DataError"),
    "Dataset": ("data", "Dataset"),
    "ExportMismatch": ("errors", "ExportMismatch"),
    "InputError": ("errors", "InputError"),
    "MissingDependencyError": ("errors", "MissingDependencyError"),
    "NonFiniteError": ("errors", "NonFiniteError"),
    "QatVsamError": ("errors", "QatVsamError"),
    "LayerRule": ("quant", "LayerRule"),
    "QuantSpec": ("quant", "QuantSpec"),
    "RunFolderError": ("errors", "RunFolderError"),
    "SAM": ("optim", "SAM"),
    "Split": ("data", "Split"),
    "AESAM": ("optim", "AESAM"),
    "ASAM": ("optim", "ASAM"),
    "ESAM": ("optim", "ESAM"),
    "FSAM": ("optim", "FSAM"),
    "LESAM": ("optim", "LESAM"),
    "MSAM": ("optim", "MSAM"),
    "MicroBatches": ("optim", "MicroBatches"),
    "S2SAM": ("optim", "S2SAM"),
    "SAMON": ("optim", "SAMON"),
    "SAQ": ("optim", "SAQ"),
    "AELookSAM": ("optim", "AELookSAM"),
    "LateSAM": ("optim", "LateSAM"),
    "LookSAM": ("optim", "LookSAM"),
    "PeriodicSAM": ("optim", "PeriodicSAM"),
    "RampSAM": ("optim", "RampSAM"),
    "RandomCountSAM": ("optim", "RandomCountSAM"),
    "RandomSAM": ("optim", "RandomSAM"),
    "SharpnessAware": ("optim", "SharpnessAware"),
    "SplitSGD": ("optim", "SplitSGD"),
    "Structure": ("quant", "Structure"),
    "Summary": ("quant", "Summary"),
    "TensorSpec": ("quant", "TensorSpec"),
    "VSAM": ("optim", "VSAM"),
    "VSAMPaper": ("optim", "VSAMPaper"),
    "build_model": ("models", "build_model"),
    "analyse": ("quant", "analyse"),
    "calibrate": ("quant", "calibrate"),
    "compare": ("recipes", "compare"),
    "correct_bias": ("quant", "correct_bias"),
    "evaluate": ("evaluate", None),
    "export": ("export", None),
    "fit": ("train", "fit"),
    "freeze_batch_norm": ("quant", "freeze_batch_norm"),
    "load": ("export", "load"),
    "load_checkpoint": ("models", "load_checkpoint"),
    "load_dataset": ("data", "load_dataset"),
    "operations_between": ("quant", "operations_between"),
    "param_groups": ("quant", "param_groups"),
    "prepare": ("quant", "prepare"),
    "quantize": ("recipes", "quantize"),
    "reestimate_batch_norm": ("quant", "reestimate_batch_norm"),
    "run_recipe": ("recipes", "run_recipe"),
    "verify": ("export", "verify"),
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qat_vsam' has no attribute {name!r}")
    room, attribute = _PUBLIC[name]
    module = importlib.import_module(f"qat_vsam.{room}")
    # the rooms `evaluate` and `export` are callable modules: room and public function share one name
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
