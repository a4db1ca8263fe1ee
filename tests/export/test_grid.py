"""The grid that a file holds makes the codes and the values that its quantizer made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qat_vsam.export import IntegerLinear
from qat_vsam.export.grid import Grid
from qat_vsam.quant import Quantizer, TensorSpec, TensorStatistics, make_quantizer


def ready(spec: TensorSpec, x: torch.Tensor) -> Quantizer:
    quantizer = make_quantizer(spec, "activation")
    statistics = TensorStatistics()
    statistics.update(x)
    quantizer.initialise(statistics)
    return quantizer


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("method", ["lsq", "lsq_plus"])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_codes_and_values_are_the_quantizers(bits: int, method: str, shift: float) -> None:
    x = torch.randn(256, generator=torch.Generator().manual_seed(0)) + shift
    quantizer = ready(TensorSpec(bits, method=method), x)
    grid = Grid(**Grid.of(quantizer).to_dict())
    scale = quantizer.scale().detach()
    codes = grid.codes(x, scale)
    assert torch.equal(codes, quantizer.codes(x))
    assert codes.dtype == quantizer.codes(x).dtype
    assert torch.equal(grid.values(codes, scale), quantizer(x))


def test_a_file_names_the_zero_point_only_where_it_is_not_zero() -> None:
    assert Grid(4, -8, 7).to_dict() == {"bits": 4, "lowest": -8, "highest": 7, "stride": 1}
    assert Grid(4, 0, 15, zero_point=3).to_dict() == {
        "bits": 4,
        "lowest": 0,
        "highest": 15,
        "stride": 1,
        "zero_point": 3,
    }


@pytest.mark.parametrize(
    ("grid", "largest", "carrier"),
    [
        (Grid(4, -8, 7), 8, torch.int8),
        (Grid(8, -128, 127), 128, torch.int8),
        (Grid(8, 0, 255), 255, torch.uint8),
        (Grid(8, 0, 255, zero_point=200), 200, torch.uint8),
        (Grid(8, 0, 255, zero_point=50), 205, torch.uint8),
        (Grid(7, 0, 127, zero_point=127), 127, torch.int8),
    ],
)
def test_its_reach_and_the_type_that_holds_it(grid: Grid, largest: int, carrier: torch.dtype) -> None:
    assert grid.largest == largest
    assert grid.carrier == carrier
    ends = torch.tensor([grid.lowest, grid.highest])
    assert torch.equal(ends.to(grid.carrier).long(), ends)


@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_sums_of_codes_are_exact_at_any_zero_point(zero_point: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(100, 128, (4, 4001), generator=generator)
    one, grid = torch.tensor(1.0), Grid(8, 0, 255, zero_point=zero_point)
    layer = IntegerLinear(nn.Linear(4001, 4), codes, one.expand(4), Grid(8, -128, 127), None, one, grid)
    x = torch.randint(-zero_point, 256 - zero_point, (8, 4001), generator=generator)
    x[0], x[1] = -zero_point, 255 - zero_point
    assert torch.equal(layer(x.double()).long(), x @ codes.T)
