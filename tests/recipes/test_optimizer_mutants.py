"""The tests of resolved optimizers can fail: each of these mistakes, made in a copy of the package, is seen by them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mutants import Mutant, each, each_file

FILE = "recipes/test_resolved_optimizers.py"
REBUILT = "rebuild_what_was_chosen or rebuild_every_member"


def in_recipes(old: str, new: str, tests: str) -> Mutant:
    return Mutant([("recipes/optimizers", old, new)], FILE, tests)


MUTANTS = {
    "budget-not-derived": Mutant(
        [("optim/options", "return member.derive(options)", "return options")],
        FILE,
        "test_what_follows_from_other_options",
    ),
    "own-options-alone": Mutant(
        [("optim/options", "return _keywords(member) | {", "return _keywords(member) or {")],
        FILE,
        "test_what_cannot_be_is_refused or resolves_to_itself or rebuild_what_was_chosen",
    ),
    "seed-of-the-signature": in_recipes(
        '("total_steps", "warmup_steps", "seed")', '("total_steps", "warmup_steps")', "resolves_to_itself"
    ),
    "length-always": in_recipes('section.options.get("spend") == "early"', "True", REBUILT),
    "length-never": in_recipes('return section.name != "sgd" and', "return False and", REBUILT),
    "warm-up-of-one-epoch": in_recipes("WARMUP_EPOCHS = 3.0", "WARMUP_EPOCHS = 1.0", REBUILT),
    "warm-up-twice-allowed": in_recipes(
        "if epochs is not None and steps is not None:", "if False:", "test_what_cannot_be_is_refused"
    ),
    "momentum-of-adamw-allowed": in_recipes(
        'if section.base == "adamw" else ()', "if False else ()", "test_what_cannot_be_is_refused"
    ),
    "rate-at-the-end": in_recipes('group.get("initial_lr", group["lr"])', 'group["lr"]', "test_the_rate_at_the_start"),
    "radius-of-all-groups": in_recipes("if displaced else None", "if True else None", "test_what_an_optimizer_derived"),
    "step-sizes-at-the-whole-rate": in_recipes(
        "section.lr * section.step_size_lr_factor", "section.lr", "test_what_an_optimizer_derived"
    ),
}


@each(MUTANTS, quick=("budget-not-derived",))
def test_a_mutant_is_killed(assert_killed: Callable[..., None], mutant: Mutant) -> None:
    assert_killed(*mutant)


@pytest.mark.nightly
@each_file(MUTANTS)
def test_the_same_tests_pass_where_nothing_was_changed(
    run_on_a_copy: Callable[..., tuple[int, str]], file: str, expression: str
) -> None:
    status, output = run_on_a_copy([], file, expression)
    assert status == 0, output
