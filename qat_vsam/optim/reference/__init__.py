"""Slow twins of the optimizers, which the fast ones are tested to equal."""

from qat_vsam.optim.reference.base import ReferenceSAM
from qat_vsam.optim.reference.perturbed import (
    ReferenceASAM,
    ReferenceESAM,
    ReferenceFSAM,
    ReferenceLESAM,
    ReferenceMSAM,
    ReferenceS2SAM,
    ReferenceSAMON,
    ReferenceSAQ,
)
from qat_vsam.optim.reference.scheduled import (
    ReferenceAELookSAM,
    ReferenceAESAM,
    ReferenceLateSAM,
    ReferenceLookSAM,
    ReferencePeriodicSAM,
    ReferenceRampSAM,
    ReferenceRandomCountSAM,
    ReferenceRandomSAM,
    ReferenceSplitSGD,
)
from qat_vsam.optim.reference.vsam import ReferenceVSAM, ReferenceVSAMPaper

__all__ = [
    "ReferenceAELookSAM",
    "ReferenceAESAM",
    "ReferenceASAM",
    "ReferenceESAM",
    "ReferenceFSAM",
    "ReferenceLESAM",
    "ReferenceLateSAM",
    "ReferenceLookSAM",
    "ReferenceMSAM",
    "ReferencePeriodicSAM",
    "ReferenceRampSAM",
    "ReferenceRandomCountSAM",
    "ReferenceRandomSAM",
    "ReferenceS2SAM",
    "ReferenceSAM",
    "ReferenceSAMON",
    "ReferenceSAQ",
    "ReferenceSplitSGD",
    "ReferenceVSAM",
    "ReferenceVSAMPaper",
]
