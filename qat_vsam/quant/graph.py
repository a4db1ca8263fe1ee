"""The structure of a model as plain data: each tensor, what makes it and what reads it, and where tensors join."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from qat_vsam.quant.between import follows_layer, joins_tensors
from qat_vsam.quant.modes import inputs_of
from qat_vsam.quant.summary import aligned
from qat_vsam.quant.trace import ARRANGING, Operation, Trace, Value, trace

# Results that cannot be negative, whatever is read; and operations that keep what they read from becoming negative.
_NON_NEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "_softmax", "abs", "square", "exp")
_KEEPS_SIGN = ("add", "mul", "concat", "average_pool", "clamp", *ARRANGING)


@dataclass(frozen=True)
class TensorRow:
    """One tensor that follows from the model's input.

    Attributes:
        number: of the tensor, in the order in which they are made.
        maker: the module in whose forward it is made and the operation, "#2" standing for that module's second call;
            "input" for the model's input.
        readers: what reads it, likewise.
        non_negative: whether it cannot hold negative values, by construction.
    """

    number: int
    maker: str
    readers: tuple[str, ...]
    non_negative: bool


@dataclass(frozen=True)
class Join:
    """An operation that joins tensors: its place, as in `TensorRow.maker`, and the numbers of what it reads."""

    name: str
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """What one forward pass of a model consists of; prints as a table.

    Attributes:
        tensors: all that follow from the input.
        adds, concatenations, average_pools: where tensors join.
        max_pools: the numbers of the tensors that they read.
        batch_norms: each batch norm that alone reads the result of a layer, with that layer.
    """

    tensors: list[TensorRow]
    adds: list[Join]
    concatenations: list[Join]
    average_pools: list[Join]
    max_pools: list[int]
    batch_norms: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can carry."""
        return asdict(self)

    def __str__(self) -> str:
        table = [("tensor", "made by", "read by", "sign")]
        for row in self.tensors:
            table.append((str(row.number), row.maker, ", ".join(row.readers), ">= 0" if row.non_negative else ""))
        counts: dict[str, Sized] = {
            "residual adds": self.adds,
            "concatenations": self.concatenations,
            "average pools": self.average_pools,
            "max pools": self.max_pools,
            "batch norms behind a layer": self.batch_norms,
        }
        return "\n".join([", ".join(f"{len(each)} {name}" for name, each in counts.items()), *aligned(table)])


def analyse(model: nn.Module, sample: Tensor) -> Structure:
    """The structure of a model, from one forward pass in evaluation mode.

    PyTorch's operations are recorded as they run, so the model needs not be exportable.

    Args:
        model: float or prepared.
        sample: one batch of its input.

    Raises:
        InputError: the sample is no tensor, or holds NaN or infinity.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> print(analyse(model, torch.randn(2, 3, 8, 8)))
        0 residual adds, 0 concatenations, 1 average pools, 0 max pools, 1 batch norms behind a layer
        tensor  made by         read by         sign
        0       input           0
        1       0               1 batch_norm
        2       1 batch_norm    2 relu
        3       2 relu          3 average_pool  >= 0
        4       3 average_pool                  >= 0
    """
    return _structure(trace(model, next(inputs_of([sample], model))))


def _structure(seen: Trace) -> Structure:
    numbers: dict[Value, int] = {}
    for operation in seen.operations:
        for value in (*operation.inputs, *operation.outputs):
            # what a batch norm keeps beside its result is read by nobody
            if value.depends and (value.readers or value is operation.outputs[0]):
                numbers.setdefault(value, len(numbers))
    known: dict[Value, bool] = {}
    rows = []
    for value, number in numbers.items():
        maker = "input" if value.maker is None else _named(value.maker)
        readers = tuple(dict.fromkeys(_named(reader) for reader in value.readers))
        rows.append(TensorRow(number, maker, readers, _non_negative(value, known)))

    def joins(kind: str) -> list[Join]:
        return [
            Join(_named(operation), tuple(numbers[value] for value in operation.inputs if value in numbers))
            for operation in seen.operations
            if operation.kind == kind and joins_tensors(operation)
        ]

    norms = {
        operation.owner: operation.inputs[0].maker.owner
        for operation in seen.operations
        if follows_layer(operation) and operation.inputs[0].maker is not None
    }
    return Structure(
        tensors=rows,
        adds=joins("add"),
        concatenations=joins("concat"),
        average_pools=joins("average_pool"),
        max_pools=[numbers[op.inputs[0]] for op in seen.operations if op.kind == "max_pool" and op.inputs[0].depends],
        batch_norms=norms,
    )


def _named(operation: Operation) -> str:
    call = operation.calls[-1]
    again = f"#{call.number}" if call.number > 1 else ""
    kind = "" if operation.kind == "layer" else operation.kind
    return f"{call.name}{again} {kind}".strip()


def _non_negative(value: Value, known: dict[Value, bool]) -> bool:
    if value not in known:
        maker = value.maker
        known[value] = maker is not None and (
            maker.kind in _NON_NEGATIVE
            or (maker.kind in _KEEPS_SIGN and all(_non_negative(each, known) for each in maker.inputs))
        )
    return known[value]
