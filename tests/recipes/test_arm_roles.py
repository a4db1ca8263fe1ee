"""Promises about roles: a recipe may say them, and they change nothing that a run does."""

from __future__ import annotations

from pathlib import Path

from qat_vsam import config


def test_a_role_is_no_part_of_what_a_run_does(tmp_path: Path) -> None:
    text = (
        "name: grid\ntitle: roles\nrecipe: {model: {name: digits_cnn}, data: {name: digits}}\n"
        "arms: {late: {role: sam, optimizer: {name: sam}}, plain: {optimizer: {name: sam}}}\n"
    )
    (tmp_path / "grid.yaml").write_text(text)
    comparison = config.load_comparison(tmp_path / "grid.yaml")
    assert comparison.roles == {"late": "sam"}
    recipes = [comparison.arm(arm, 0).model_dump(exclude={"name", "label"}) for arm in comparison.arms]
    assert recipes[0] == recipes[1]
