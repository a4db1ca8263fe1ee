"""What the lists of mutants share: how a mutant is written, and how the tests go over a list."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import pytest


class Mutant(NamedTuple):
    """Replacements (module, old, new), and the test file and the expression that select what must see them."""

    edits: list[tuple[str, str, str]]
    file: str
    tests: str


def each(mutants: Mapping[str, Mutant], quick: Collection[str]) -> pytest.MarkDecorator:
    """Parametrizes by `mutant`; all but the quick ones are nightly."""
    marks = {name: [] if name in quick else [pytest.mark.nightly] for name in mutants}
    return pytest.mark.parametrize(
        "mutant", [pytest.param(mutant, id=name, marks=marks[name]) for name, mutant in mutants.items()]
    )


def each_file(mutants: Mapping[str, Mutant]) -> pytest.MarkDecorator:
    """Parametrizes by `file` and the `expression` that selects all tests of the list in it."""

    def selections() -> Iterator[tuple[str, str]]:
        for file in sorted({mutant.file for mutant in mutants.values()}):
            tests = dict.fromkeys(mutant.tests for mutant in mutants.values() if mutant.file == file)
            yield file, " or ".join(f"({expression})" for expression in tests)

    return pytest.mark.parametrize(
        ("file", "expression"), [pytest.param(*found, id=found[0]) for found in selections()]
    )
