"""Promises of `validate` on a comparison: it says what a hostile reader would miss, and nothing where all is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]

FLOAT: dict[str, Any] = {"float32-sgd": {}, "float32-sam": {"optimizer": {"name": "sam"}}}
QUANTIZED: dict[str, Any] = {"w4a4-sgd": {"quant": {"bits": "w4a4"}}}


def advice(command_line: Call, folder: Path, arms: dict[str, Any], seeds: int = 3) -> list[str]:
    """The lines after the plan."""
    recipe = {"model": {"name": "digits_cnn"}, "data": {"name": "digits"}, "optimizer": {"name": "sgd"}}
    path = folder / "g.yaml"
    path.write_text(json.dumps({"name": "g", "title": "t", "seeds": seeds, "recipe": recipe, "arms": arms}))
    code, out, err = command_line("validate", path)
    assert code == 0, err
    lines = out.splitlines()
    (end,) = [number for number, line in enumerate(lines) if line.startswith("gradients  ")]
    return lines[end + 1 :]


def arm(**optimizer: object) -> dict[str, Any]:
    return {"quant": {"bits": "w4a4"}, "optimizer": optimizer}


def test_a_whole_comparison_gets_no_advice(command_line: Call, tmp_path: Path) -> None:
    controlled = {"w4a4-vsam": arm(name="vsam"), "w4a4-split": arm(name="split_sgd")}
    assert advice(command_line, tmp_path, FLOAT | QUANTIZED | controlled) == []
    assert advice(command_line, tmp_path, {"float32-asam": {"optimizer": {"name": "asam"}}}) == []


def test_quantized_arms_alone_are_told_to_take_float32_beside_them(command_line: Call, tmp_path: Path) -> None:
    sgd, sam = advice(command_line, tmp_path, QUANTIZED)
    assert "w4a4 without float32 SGD" in sgd
    assert "w4a4 without float32 SAM" in sam
    (only,) = advice(command_line, tmp_path, QUANTIZED | {"float32-sgd": {}})
    assert "float32 SAM" in only
    # SAM in the last epochs alone is no SAM to be measured against
    late = {"float32-sgd": {}, "float32-sam-late": {"optimizer": {"name": "late_sam"}}}
    assert len(advice(command_line, tmp_path, QUANTIZED | late)) == 1


def test_too_few_seeds_are_told(command_line: Call, tmp_path: Path) -> None:
    (line,) = advice(command_line, tmp_path, FLOAT, seeds=2)
    assert line.startswith("seeds: got 2; expected 3 or more")


@pytest.mark.parametrize(
    ("method", "control", "right"),
    [
        ({}, {"rate": 1.0}, "rate=0.6 and optimizer.share=0.25"),
        ({"interval": 3, "share": 0.5}, {"share": 0.5}, "optimizer.share=0.5"),
        ({"interval": 3, "share": 0.5}, {"share": 0.5, "rate": 0.3333333333333333}, None),
        ({}, {"share": 0.5}, "optimizer.share=0.25"),
        ({"gradient_budget": 1.2}, {"rate": 0.8}, None),
        ({"method": "interval"}, {"rate": 1.0}, None),
    ],
)
def test_a_control_that_splits_otherwise_than_the_method_is_told_what_to_write(
    command_line: Call, tmp_path: Path, method: dict[str, Any], control: dict[str, Any], right: str | None
) -> None:
    arms = {"w4a4-vsam": arm(name="vsam", **method), "w4a4-split": arm(name="split_sgd", **control)}
    lines = advice(command_line, tmp_path, FLOAT | QUANTIZED | arms)
    assert len(lines) == (right is not None)
    if right is not None:
        assert lines[0].startswith("arms.w4a4-split: got a control that splits at")
        assert right in lines[0]
