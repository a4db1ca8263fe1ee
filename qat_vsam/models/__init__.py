"""Model builders with their normalisation constants, and checkpoints that execute nothing."""

from qat_vsam.models.checkpoint import load_checkpoint, read_tensors
from qat_vsam.models.registry import ModelInfo, build_model, list_models, model_info
from qat_vsam.models.user_function import check_options, import_function, is_user_function

__all__ = [
    "ModelInfo",
    "build_model",
    "check_options",
    "import_function",
    "is_user_function",
    "list_models",
    "load_checkpoint",
    "model_info",
    "read_tensors",
]
