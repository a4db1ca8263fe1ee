"""What a page and its summary show of a study, in the order in which they show it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import spread
from qat_vsam.report.page.bars import Bars
from qat_vsam.report.page.cells import Cell
from qat_vsam.report.page.columns import Column, page_columns
from qat_vsam.report.page.curves import learning_curves
from qat_vsam.report.page.figure import Figure, by_group
from qat_vsam.report.page.forest import forest
from qat_vsam.report.page.trade_off import trade_off
from qat_vsam.report.page.trials import trials
from qat_vsam.report.study import Study


@dataclass(frozen=True)
class Table:
    """The table of arms.

    Attributes:
        columns: those that have something to say.
        spans: the heads above them: text, how many columns it spans, and whether those are folded.
        groups: of each precision its arms, each with its cells and their columns.
        bars: draws the intervals of accuracy.
    """

    columns: tuple[Column, ...]
    spans: tuple[tuple[str, int, bool], ...]
    groups: tuple[tuple[str, tuple[tuple[Arm, tuple[tuple[Column, Cell], ...]], ...]], ...]
    bars: Bars


def arms_table(arms: Sequence[Arm]) -> Table:
    """All arms, the most accurate of each precision first."""
    columns = page_columns(arms)
    spans = []
    for (span, folded), spanned in groupby(columns, key=lambda column: (column.span, column.folded)):
        spans.append((span, sum(1 + column.bar for column in spanned), folded))
    groups = []
    for name, members in by_group(arms):
        ranked = sorted(members, key=lambda arm: (-round(arm.accuracy.value or 0.0, 9), not arm.best))
        groups.append((name, tuple((arm, _cells(columns, arm)) for arm in ranked)))
    return Table(tuple(columns), tuple(spans), tuple(groups), Bars(arms))


def figures(study: Study) -> list[Figure]:
    """The figures that the data allows, in reading order."""
    drawn = (
        forest(study.arms),
        trade_off(study.arms),
        learning_curves(study.arms, study.epochs),
        trials(study.arms, study.trials, study.fairness),
    )
    return [figure for figure in drawn if figure is not None]


def sample(study: Study) -> str:
    """How many seeds, images and draws of them a study has, and so what its intervals cover.

    Args:
        study: with at least one arm.
    """
    arms = [arm for arm in study.arms if arm.trained] or study.arms
    seeds, draws = [len(arm.seeds) for arm in arms], [arm.draws for arm in arms]
    parts = ["1 seed" if max(seeds) == 1 else f"{spread(seeds)} seeds"]
    runs = study.results.runs
    known = [(what, runs[column].dropna()) for what, column in (("training", "train_images"), ("test", "test_images"))]
    images = " and ".join(f"{spread(counts)} {what}" for what, counts in known if len(counts))
    parts += [f"{images} images"] if images else []
    if max(seeds) == 1:
        parts.append("no intervals")
    elif max(draws) == 1:
        parts.append("one draw of the images, so intervals cover the seed alone")
    else:
        covered = ", so intervals cover seed and draw" if min(draws) > 1 else ""
        parts.append(f"{spread(draws)} draws of the images{covered}")
    return "; ".join(parts)


def standing(study: Study) -> str:
    """Whether VSAM's default was fitted on the study's tasks; "" where nobody says."""
    if study.fitted is None:
        return ""
    return "VSAM's default was tuned on these very tasks" if study.fitted else "VSAM's default never met these tasks"


def split_options(study: Study) -> tuple[str, list[tuple[str, str]]]:
    """The options that all arms share, in one line, and those that differ, with the arms that have them."""
    known = {arm.label: _flat(own) for arm in study.arms if (own := study.results.options.get(arm.name))}
    if not known:
        return "", []
    first = next(iter(known.values()))
    common = {key for key, value in first.items() if all(own.get(key) == value for own in known.values())}
    if len(known) == 1:
        common = set()
    having: dict[str, list[str]] = {}
    for label, own in known.items():
        rest = ", ".join(f"{key} {value}" for key, value in own.items() if key not in common)
        having.setdefault(rest or "nothing else", []).append(label)
    shared = ", ".join(f"{key} {value}" for key, value in first.items() if key in common)
    return shared, [("; ".join(labels), rest) for rest, labels in having.items()]


def _cells(columns: Sequence[Column], arm: Arm) -> tuple[tuple[Column, Cell], ...]:
    return tuple((column, column.form(arm)) for column in columns if column.form is not None)


def _flat(options: Mapping[str, object]) -> dict[str, str]:
    """Options and what an optimizer derived from them, each as words."""
    flat = {key: _plain(value) for key, value in sorted(options.items()) if key != "derived"}
    derived = options.get("derived")
    if isinstance(derived, Mapping):
        flat |= {f"derived {key}": _plain(value) for key, value in derived.items()}
    return flat


def _plain(value: object) -> str:
    """A value in words, whatever is nested in it.

    Example:
        >>> _plain([{"role": "weight", "rho": 0.05}, {"role": "bias", "rho": None}])
        '(role weight, rho 0.05) (role bias, rho none)'
    """
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) + ")"
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value)) if value and isinstance(value[0], Mapping) else json.dumps(value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
