"""Promises about roles: a recipe may say them, and step times are taken to the arm that is SGD by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qat_vsam import config
from qat_vsam.recipes import bench_arms


@pytest.mark.parametrize(
    ("roles", "reference"), [({}, "w4a4-sgd"), ({"w4a4-a-sgd": "sgd"}, "w4a4-a-sgd"), ({"w4a4-sgd": "other"}, None)]
)
def test_step_times_are_taken_to_the_sgd_by_name_or_by_role(
    roles: dict[str, str], reference: str | None, small_recipe: Callable[..., config.Recipe]
) -> None:
    arms = {arm: small_recipe(optimizer={"name": "sgd"}) for arm in ("w4a4-a-sgd", "w4a4-sgd", "w4a4-sgd-ema")}
    section = config.BenchSection(repeats=3, steps=1)
    rows = bench_arms(arms, section, roles=roles)["rows"]
    assert {row["reference_arm"] for row in rows} == {reference}
    assert all((row["ratio_to_sgd"] is None) is (reference is None) for row in rows)


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
