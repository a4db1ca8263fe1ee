"""What `prepare` did: one row for each layer, quantized or not, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
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
class Summary:
    """All layers with parameters, in module order; prints as a table.

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
        columns = [max(len(line[i]) for line in table) for i in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, columns, strict=True)).rstrip() for line in table
        ]
        return "\n".join([f"{self.spec}: {len(self.quantized)} of {len(self.rows)} layers quantized", *lines])
