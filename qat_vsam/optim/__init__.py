"""Sharpness-aware optimizers. Imports torch and the exceptions only, and can be used without the rest."""

from qat_vsam.optim.accumulation import MicroBatches
from qat_vsam.optim.budget_schedule import BudgetSchedule
from qat_vsam.optim.directions import Direction, Friendly, Momentum, PreviousGradient, RandomTensors
from qat_vsam.optim.family import (
    AESAM,
    ASAM,
    ESAM,
    FAMILY,
    FSAM,
    LESAM,
    MSAM,
    S2SAM,
    SAM,
    SAMON,
    SAQ,
    VSAM,
    AELookSAM,
    LateSAM,
    LookSAM,
    PeriodicSAM,
    RampSAM,
    RandomCountSAM,
    RandomSAM,
    SplitSGD,
    VSAMPaper,
)
from qat_vsam.optim.gradient_schedule import GradientNormSchedule
from qat_vsam.optim.methods import AscendPart, Lookahead, Method, Part, Selected, Split
from qat_vsam.optim.options import REQUIRED, describe, options_of, write_out
from qat_vsam.optim.perturbation import Perturbation
from qat_vsam.optim.points import AtNorms, AtWeights, BehindQuantizer
from qat_vsam.optim.psf import PSF, OrthogonalPSF
from qat_vsam.optim.radii import FixedRadius, LossBound, LossIncrease
from qat_vsam.optim.scales import Adaptive, StepSize, Unit
from qat_vsam.optim.schedule import EveryStep, Schedule
from qat_vsam.optim.sharpness_aware import SharpnessAware
from qat_vsam.optim.step_schedules import During, Periodic, Ramp, RandomSteps
from qat_vsam.optim.variance_schedule import VarianceSchedule

__all__ = [
    "AESAM",
    "ASAM",
    "ESAM",
    "FAMILY",
    "FSAM",
    "LESAM",
    "MSAM",
    "PSF",
    "REQUIRED",
    "S2SAM",
    "SAM",
    "SAMON",
    "SAQ",
    "VSAM",
    "AELookSAM",
    "Adaptive",
    "AscendPart",
    "AtNorms",
    "AtWeights",
    "BehindQuantizer",
    "BudgetSchedule",
    "Direction",
    "During",
    "EveryStep",
    "FixedRadius",
    "Friendly",
    "GradientNormSchedule",
    "LateSAM",
    "LookSAM",
    "Lookahead",
    "LossBound",
    "LossIncrease",
    "Method",
    "MicroBatches",
    "Momentum",
    "OrthogonalPSF",
    "Part",
    "Periodic",
    "PeriodicSAM",
    "Perturbation",
    "PreviousGradient",
    "Ramp",
    "RampSAM",
    "RandomCountSAM",
    "RandomSAM",
    "RandomSteps",
    "RandomTensors",
    "Schedule",
    "Selected",
    "SharpnessAware",
    "Split",
    "SplitSGD",
    "StepSize",
    "Unit",
    "VSAMPaper",
    "VarianceSchedule",
    "describe",
    "options_of",
    "write_out",
]
