"""Which arm is the SGD, the SAM and the split control of its precision: by name, or because the recipe says so.

The name decides and not the optimizer, for SGD with averaged weights, or SAM in the last epochs only, are methods to be
compared and no references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from qat_vsam.report.names import FLOAT, precision_label, without_precision

REFERENCES = ("sgd", "sam", "split_sgd")
_BY_NAME = {"sgd": "sgd", "sam": "sam", "split": "split_sgd", "split-sgd": "split_sgd"}


def method_of(arm: str, precision: str) -> str:
    """An arm's name without its bit width, which fixes its colour.

    Example:
        >>> method_of("w4a4-split_sgd", "w4a4")
        'split-sgd'
    """
    return without_precision(arm, precision).lower().replace("_", "-")


def role_of(arm: str, precision: str, optimizer: str | None = None) -> str:
    """The role of a trained arm whose recipe says none.

    Args:
        arm: its name.
        precision: `float32` or bits, as in the name.
        optimizer: its optimizer's name.

    Example:
        >>> role_of("w4a4-sam", "w4a4"), role_of("w4a4-sam-late", "w4a4"), role_of("w4a4-vsam-late", "w4a4", "vsam")
        ('sam', 'other', 'vsam')
    """
    return _BY_NAME.get(method_of(arm, precision), "vsam" if optimizer == "vsam" else "other")


def assign_roles(arms: Sequence[tuple[str, str, str, str | None]], said: Mapping[str, str]) -> list[str]:
    """The role of each of some trained arms.

    Where an arm of a group says that it is a reference, the name of another makes it none.

    Args:
        arms: name, group, precision and optimizer of each; arms of one group are compared with each other.
        said: arm -> role, of the arms whose recipe says it.

    Example:
        >>> arms = [("w4a4-sgd", "W4A4", "w4a4", "sgd"), ("w4a4-nesterov", "W4A4", "w4a4", "sgd")]
        >>> assign_roles(arms, {}), assign_roles(arms, {"w4a4-nesterov": "sgd"})
        (['sgd', 'other'], ['other', 'sgd'])
    """
    taken = {(group, said[arm]) for arm, group, _, _ in arms if arm in said}
    roles = []
    for arm, group, precision, optimizer in arms:
        role = said.get(arm) or role_of(arm, precision, optimizer)
        by_name = arm not in said and role in REFERENCES
        roles.append("other" if by_name and (group, role) in taken else role)
    return roles


def with_roles(runs: pd.DataFrame, said: Mapping[str, str]) -> pd.DataFrame:
    """The runs with the columns `role` and `group`; arms of one group share bit width and target.

    Args:
        runs: `Results.runs`.
        said: arm -> role, of the arms whose recipe says it.
    """
    groups = _groups(runs)
    arms = list(zip(runs["arm"], groups, runs["precision"], runs["optimizer"], strict=True))
    roles = assign_roles(arms, said)
    kinds = [role if kind == "trained" else kind for kind, role in zip(runs["kind"], roles, strict=True)]
    return runs.assign(role=kinds, group=groups)


def reference_notes(runs: pd.DataFrame) -> list[str]:
    """Sentences for the caveats: which arm served as reference where several could have.

    Args:
        runs: with the columns of `with_roles`.
    """
    sentences = []
    for (group, role), rows in runs.groupby(["group", "role"]):
        names = list(dict.fromkeys(rows["arm"]))
        if role in REFERENCES and len(names) > 1:
            sentences.append(f"{group} has {len(names)} arms of the kind {role}; differences are taken to {names[0]}.")
    return sentences


def _groups(runs: pd.DataFrame) -> list[str]:
    targets = {row.target for row in runs.itertuples() if row.precision != FLOAT and row.target}
    names = []
    for row in runs.itertuples():
        name = precision_label(str(row.precision))
        names.append(f"{name} ({row.target})" if len(targets) > 1 and row.precision != FLOAT else name)
    return names
