"""Datasets as uint8 tensors in memory, and their batches as a pure function of (seed, epoch, step)."""

from qat_vsam.data.batches import Batches, random_crop
from qat_vsam.data.dataset import Dataset, Split, class_balanced_order, with_wrong_labels
from qat_vsam.data.registry import check_source, list_datasets, load_dataset, load_source
from qat_vsam.data.source import Source

__all__ = [
    "Batches",
    "Dataset",
    "Source",
    "Split",
    "check_source",
    "class_balanced_order",
    "list_datasets",
    "load_dataset",
    "load_source",
    "random_crop",
    "with_wrong_labels",
]
