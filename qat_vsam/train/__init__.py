"""Training: the loop, the run folder, checkpoints and the cost ledger."""

from qat_vsam.train.checkpoint import CheckpointFolder, read_checkpoint, write_checkpoint
from qat_vsam.train.distill import DISTILLATION_LOSSES, TeacherBatches, kl_divergence
from qat_vsam.train.environment import describe_environment, fused_calls
from qat_vsam.train.files import write_atomic
from qat_vsam.train.ledger import CostLedger
from qat_vsam.train.loop import EpochBatches, FitResult, fit, training_step
from qat_vsam.train.recorder import Progress
from qat_vsam.train.run_folder import RunFolder, load_trained
from qat_vsam.train.signals import Interrupted

__all__ = [
    "DISTILLATION_LOSSES",
    "CheckpointFolder",
    "CostLedger",
    "EpochBatches",
    "FitResult",
    "Interrupted",
    "Progress",
    "RunFolder",
    "TeacherBatches",
    "describe_environment",
    "fit",
    "fused_calls",
    "kl_divergence",
    "load_trained",
    "read_checkpoint",
    "training_step",
    "write_atomic",
    "write_checkpoint",
]
