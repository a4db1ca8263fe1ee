"""The named optimizers, each one composition: a method, a schedule, a perturbation, and what is kept of h."""

from qat_vsam.optim.family.controls import LateSAM, PeriodicSAM, RampSAM, RandomCountSAM, SplitSGD
from qat_vsam.optim.family.sam import ASAM, FSAM, LESAM, SAM, SAMON, SAQ
from qat_vsam.optim.family.scheduled import AESAM, ESAM, AELookSAM, LookSAM, RandomSAM
from qat_vsam.optim.family.single import MSAM, S2SAM
from qat_vsam.optim.family.vsam import VSAM
from qat_vsam.optim.family.vsam_paper import VSAMPaper
from qat_vsam.optim.sharpness_aware import SharpnessAware

FAMILY: dict[str, type[SharpnessAware]] = {
    "sam": SAM,
    "vsam": VSAM,
    "vsam_paper": VSAMPaper,
    "asam": ASAM,
    "looksam": LookSAM,
    "ae_sam": AESAM,
    "ae_looksam": AELookSAM,
    "random_sam": RandomSAM,
    "esam": ESAM,
    "fsam": FSAM,
    "msam": MSAM,
    "s2_sam": S2SAM,
    "sam_on": SAMON,
    "le_sam": LESAM,
    "saq": SAQ,
    "split_sgd": SplitSGD,
    "periodic_sam": PeriodicSAM,
    "random_count_sam": RandomCountSAM,
    "ramp_sam": RampSAM,
    "late_sam": LateSAM,
}

__all__ = [
    "AESAM",
    "ASAM",
    "ESAM",
    "FAMILY",
    "FSAM",
    "LESAM",
    "MSAM",
    "S2SAM",
    "SAM",
    "SAMON",
    "SAQ",
    "VSAM",
    "AELookSAM",
    "LateSAM",
    "LookSAM",
    "PeriodicSAM",
    "RampSAM",
    "RandomCountSAM",
    "RandomSAM",
    "SplitSGD",
    "VSAMPaper",
]
