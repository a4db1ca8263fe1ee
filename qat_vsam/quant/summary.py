"""What `prepare` did: one row for each layer, quantized or not, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SummaryRow:
    """One layer.

    Attributes:
        name: its name in the model.
        kind: the class that it had before.
        weight_bits, activation_bits: widths; None where the tensor stays in float.
        scheme: grid, granularity and method of weight and input; empty where the layer stays in float.
        skipped: why the layer stays in float; empty where it is quantized.
    """

    name: str
    kind: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    scheme: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class OperationRow:
    """What is computed between the layers.

    Attributes:
        name: of the module in whose forward it stands.
        kind: "add", "concat", "average_pool", or PyTorch's name of another operation.
        skipped: why it stays in float; empty where all that it reads is quantized.
    """

    name: str
    kind: str
    skipped: str = ""


@dataclass(frozen=True)
class Summary:
    """All layers with parameters, in module order; prints as a table.

    Where operations between the layers are quantized as well, `operations` has a row for each of those, too.

    Example:
        >>> conv = SummaryRow("0", "Conv2d", weight_bits=4, scheme="int4")
        >>> norm = SummaryRow("1", "BatchNorm2d", skipped="norm")
        >>> print(Summary("w4", [conv, norm]))
        w4: 1 of 2 layers quantized
        layer  kind         weight  input  scheme
        0      Conv2d       4       float  int4
        1      BatchNorm2d  float   float  in float: norm
    """

    spec: str
    rows: list[SummaryRow] = field(default_factory=list)
    operations: list[OperationRow] = field(default_factory=list)

    def __iter__(self) -> Iterator[SummaryRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def quantized(self) -> list[SummaryRow]:
        """The rows of quantized layers."""
        return [row for row in self.rows if not row.skipped]

    @property
    def skipped(self) -> list[SummaryRow]:
        """The rows of layers that stay in float."""
        return [row for row in self.rows if row.skipped]

    def to_records(self) -> list[dict[str, Any]]:
        """The rows as plain dictionaries."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [("layer", "kind", "weight", "input", "scheme")]
        for row in self.rows:
            widths = ("float" if bits is None else str(bits) for bits in (row.weight_bits, row.activation_bits))
            table.append((row.name, row.kind, *widths, f"in float: {row.skipped}" if row.skipped else row.scheme))
        lines = [f"{self.spec}: {len(self.quantized)} of {len(self.rows)} layers quantized", *aligned(table)]
        if self.operations:
            quantized = [row for row in self.operations if not row.skipped]
            lines.append(f"between them: {len(quantized)} of {len(self.operations)} operations quantized")
            between = [("in", "operation", "inputs")]
            between += [
                (row.name, row.kind, f"in float: {row.skipped}" if row.skipped else "quantized")
                for row in self.operations
            ]
            lines += aligned(between)
        return "\n".join(lines)


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """One line for each row, its cells in columns."""
    columns = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, columns, strict=True)).rstrip() for line in table]
