"""How the numbers were made, and what they cannot say: the protocol and the caveats of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from qat_vsam.report.arm import Arm
from qat_vsam.report.arms import random_nets
from qat_vsam.report.costs import unit_of
from qat_vsam.report.results import Results
from qat_vsam.report.roles import reference_notes, with_roles
from qat_vsam.report.verdicts import FEWEST_SEEDS


def protocol(results: Results, arms: Sequence[Arm], command: str) -> list[tuple[str, str]]:
    """Pairs of a heading and a line: model, data, seeds, epochs, versions, machine, command."""
    runs = results.runs
    first = runs.iloc[0]
    images = [
        f"{_spread(runs[column])} {what}"
        for column, what in (
            ("train_images", "training images"),
            ("validation_images", "validation"),
            ("test_images", "test"),
        )
        if runs[column].notna().any()
    ]
    trained = runs[runs["kind"] == "trained"]
    lines = [
        ("Model", _join(first["model"], _parameters(runs["parameters"]))),
        ("Data", _join(first["data"], *images)),
        (
            "Runs",
            f"{len(runs)}, in {runs['arm'].nunique()} arms of {_spread(runs.groupby('arm').size())} seeds",
        ),
    ]
    if trained["epochs"].notna().any():
        lines.append(("Epochs", _spread(trained["epochs"])))
    targets = sorted({str(target) for target in runs["target"].dropna()})
    if targets:
        lines.append(("Target", ", ".join(targets)))
    said = results.provenance
    versions = {"qat-vsam": said.packages, **said.versions}
    lines += [
        ("Versions", ", ".join(f"{name} {' and '.join(values)}" for name, values in versions.items() if values)),
        ("Code", "commit " + ", ".join(said.commits) if said.commits else ""),
        ("Machine", "; ".join(said.machines)),
        ("Finished", said.date or ""),
    ]
    if results.bench is not None:
        parts = [f"steps of all arms in turn, in one process, in units of a {results.bench.unit}"]
        if results.bench.unit_ms is not None:
            parts.append(f"which takes {results.bench.unit_ms:.3g} ms")
        if results.bench.threads is not None:
            parts.append(f"{results.bench.threads} thread" + ("" if results.bench.threads == 1 else "s"))
        if results.bench.repeats is not None:
            parts.append(f"medians of {results.bench.repeats} rounds")
        lines.append(("Step times", ", ".join(parts)))
    commands = [text for text in dict.fromkeys(runs["command"].dropna()) if text]
    command = command or (commands[0] if len(commands) == 1 else "")
    if command:
        lines.append(("Repeat with", command))
    return [(heading, line) for heading, line in lines if line]


def option_lines(results: Results, arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """All options of each arm's optimizer as `key value` pairs, and what it derived from them."""
    lines = []
    for arm in arms:
        options = dict(results.options.get(arm.name) or {})
        derived = options.pop("derived", None)
        text = ", ".join(f"{key} {_plain(value)}" for key, value in sorted(options.items()))
        if isinstance(derived, Mapping):
            text += "; which made " + ", ".join(f"{key} {_plain(value)}" for key, value in derived.items())
        if text:
            lines.append((arm.label, text))
    return lines


def warnings(results: Results, arms: Sequence[Arm]) -> list[str]:
    """What a reader must know before anything else; too few seeds come first."""
    lines = []
    trained = [arm for arm in arms if arm.trained]
    most = max((len(arm.seeds) for arm in trained), default=FEWEST_SEEDS)
    if most < FEWEST_SEEDS:
        lines.append(f"{most} seed{'' if most == 1 else 's'}: no difference can be established.")
    elif few := [arm.label for arm in trained if len(arm.seeds) < FEWEST_SEEDS]:
        lines.append(f"Fewer than {FEWEST_SEEDS} seeds, so nothing can be established of: {'; '.join(few)}.")
    failed = [f"{arm.label} ({export.format})" for arm in arms for export in arm.exports if export.passed is False]
    if failed:
        lines.append(f"Exports that do NOT compute what was trained: {'; '.join(failed)}.")
    if results.unfinished:
        names = ", ".join(results.unfinished[:8]) + (" ..." if len(results.unfinished) > 8 else "")
        lines.append(f"{len(results.unfinished)} runs are not finished and not counted: {names}.")
    return lines


def caveats(results: Results, arms: Sequence[Arm], notes: Sequence[str]) -> list[str]:
    """The user's own notes first, then what the data itself calls for."""
    runs = with_roles(results.runs, results.comparison.roles)
    lines = list(notes)
    seeds = {len(arm.seeds) for arm in arms}
    if max(seeds) == 1:
        lines.append("One seed per arm: the differences are single observations and carry no interval.")
    else:
        lines += [
            "Intervals are 95 %, Student's t over seeds; differences and shares are paired by seed (shares "
            "by Fieller's method). Those of an accuracy are cut at 0 and 100 %.",
            coverage(arms),
        ]
        if min(seeds) != max(seeds):
            lines.append("Arms have different numbers of seeds; each difference uses the seeds that both arms have.")
    lines += _claims(arms)
    images = pd.to_numeric(runs["test_images"]).dropna()
    if not images.empty:
        lines.append(f"One test image is {100 / images.max():.2g} points of accuracy.")
    lines.append(
        "Gradient evaluations are a count, not a time: small tensors and extra passes cost more than their share."
    )
    unit = unit_of(runs)
    if unit is not None and unit.note:
        lines.append(unit.note)
    if results.bench is None and any(arm.trained for arm in arms):
        lines.append(
            "No step times: the arms were not timed in turn, and the clocks of the runs themselves are no measure."
        )
    if any(arm.role == "split_sgd" for arm in arms):
        lines.append(
            "A method that splits the batch also splits batch norm's batch, which alone changes accuracy: "
            "its own merit is its difference to the split control."
        )
    if "simulated" in set(runs["target"].dropna()):
        lines.append(
            "Target “simulated”: accuracies are of the fake-quantized model; what the export itself reaches "
            "stands in its own table."
        )
    if random := random_nets(runs):
        lines.append(f"Left out, for they quantize a net that nobody trained: {', '.join(random)}.")
    lines += reference_notes(runs)
    return [*lines, *results.marks]


def coverage(arms: Sequence[Arm]) -> str:
    """Which of the two an interval covers: the choice of the seed, or that of the data as well."""
    trained = [arm for arm in arms if arm.trained]
    if trained and all(arm.draws > 1 for arm in trained):
        return (
            "They cover the choice of seed and the draw of the training data: every seed drew its own. They do not "
            "cover another task or net."
        )
    drawn = [arm.label for arm in trained if arm.draws > 1]
    some = f", but for {'; '.join(drawn)}, whose seeds drew their own" if drawn else ""
    return f"They cover the choice of seed alone: all seeds saw one draw of the data{some}."


def _claims(arms: Sequence[Arm]) -> list[str]:
    if not any(arm.verdict is not None or arm.p_sgd is not None for arm in arms):
        return []
    lines = [
        "Words (better, equivalent, worse) and p-values are corrected over all claims of this page as one family "
        "(Holm), at 5 %. The intervals are not corrected, so one may lie beyond zero where nothing is established."
    ]
    margins = {arm.group: arm.verdict.margin for arm in arms if arm.verdict is not None and arm.verdict.margin}
    if margins:
        told = ", ".join(f"{margin:.2f} points at {group}" for group, margin in margins.items())
        lines.append(f"Equivalent to SAM means: surely within the margin, {told}.")
    if any(arm.share is not None for arm in arms):
        lines.append("A share of SAM's gain is shown only where that gain is itself established.")
    return lines


def _parameters(values: pd.Series) -> str:
    known = pd.to_numeric(values).dropna()
    return "" if known.empty else f"{int(known.max()):,} parameters".replace(",", " ")


def _spread(values: pd.Series) -> str:
    known = pd.to_numeric(values).dropna()
    low, high = known.min(), known.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _join(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _plain(value: object) -> str:
    return (
        f"{value:g}"
        if isinstance(value, float)
        else json.dumps(value)
        if isinstance(value, dict | list)
        else str(value)
    )
