"""Model builders with their normalisation constants, and checkpoints that execute nothing."""

from qat_vsam.models.checkpoint import load_checkpoint, read_tensors
from qat_vsam.models.model_info import ModelInfo
from qat_vsam.models.registry import build_model, is_trusted, list_models, model_info
from qat_vsam.models.transformer import TensorTransformer
from qat_vsam.models.user_function import check_options, import_function, is_user_function

__all__ = [
    "ModelInfo",
    "TensorTransformer",
    "build_model",
    "check_options",
    "import_function",
    "is_trusted",
    "is_user_function",
    "list_models",
    "load_checkpoint",
    "model_info",
    "read_tensors",
]
