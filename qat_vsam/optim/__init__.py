"""Sharpness-aware optimizers. Imports torch and the exceptions only, and can be used without the rest."""

from qat_vsam.optim.family import SAM, VSAM, SplitSGD
from qat_vsam.optim.methods import AscendPart, Method, Part, Split
from qat_vsam.optim.perturbation import Euclidean, Perturbation, PostQuantizer
from qat_vsam.optim.psf import PSF
from qat_vsam.optim.schedule import BudgetSchedule, EveryStep, Schedule
from qat_vsam.optim.sharpness_aware import SharpnessAware
from qat_vsam.optim.variance_schedule import VarianceSchedule

__all__ = [
    "PSF",
    "SAM",
    "VSAM",
    "AscendPart",
    "BudgetSchedule",
    "Euclidean",
    "EveryStep",
    "Method",
    "Part",
    "Perturbation",
    "PostQuantizer",
    "Schedule",
    "SharpnessAware",
    "Split",
    "SplitSGD",
    "VarianceSchedule",
]
