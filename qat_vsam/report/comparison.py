"""What a report takes from the comparison.yaml that stands beside the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from qat_vsam.errors import ConfigError, InputError
from qat_vsam.recipe_file import read_recipe_file
from qat_vsam.report.schema import Amount, Count, check

COMPARISON = "comparison.yaml"


class TuneRecord(BaseModel):
    """What was tried for each arm."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    grids: dict[str, dict[str, Any]] = {}


class ComparisonFile(BaseModel):
    """The keys of a comparison that its report shows or rests on; the recipes' room knows all of them.

    Attributes:
        margin: in points, within which an arm counts as equivalent to SAM; None: a fifth of SAM's gain.
        fitted: whether a default was fitted on this study's tasks; None where the file does not say.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = ""
    title: str = ""
    description: str = ""
    question: str = ""
    margin: Amount | None = None
    fitted: bool | None = None
    notes: tuple[str, ...] = ()
    command: str = ""
    seeds: Count | None = None
    arms: dict[str, dict[str, Any]] = {}
    tune: TuneRecord | None = None

    @property
    def roles(self) -> dict[str, str]:
        """Arm -> role, of the arms that say it."""
        return {arm: str(change["role"]) for arm, change in self.arms.items() if change.get("role") is not None}

    @property
    def differing(self) -> dict[str, frozenset[str]]:
        """ "model" and "data" -> the arms whose recipe gives them one of their own."""
        tried = [key for grid in (self.tune.grids.values() if self.tune else ()) for key in grid]
        return {
            section: frozenset(
                arm
                for arm, change in self.arms.items()
                if section in change or any(key.startswith(f"{section}.") for key in tried)
            )
            for section in ("model", "data")
        }


def read_comparison(roots: Sequence[Path]) -> ComparisonFile:
    """The comparison of the study in these folders; of several, the first one's words and the arms of all.

    Raises:
        InputError: a file is broken.
    """
    found = [_read(root / COMPARISON) for root in roots if (root / COMPARISON).is_file()]
    if not found:
        return ComparisonFile()
    arms = {arm: change for comparison in reversed(found) for arm, change in comparison.arms.items()}
    return found[0] if len(found) == 1 else found[0].model_copy(update={"arms": arms, "seeds": None})


def _read(path: Path) -> ComparisonFile:
    try:
        content = read_recipe_file(path)
    except ConfigError as error:
        raise InputError(str(error)) from error
    return check(content, ComparisonFile, str(path))
