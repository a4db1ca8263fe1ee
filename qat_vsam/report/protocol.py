"""How the numbers were made, and what they cannot say: the protocol and the caveats of a report."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd

from qat_vsam.report.arm import Arm
from qat_vsam.report.results import Results
from qat_vsam.report.roles import reference_notes, with_roles


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
    lines += [("Versions", ", ".join(f"{k} {v}" for k, v in sorted(_versions(results).items())))]
    machine = [
        f"{key} {results.environment[key]}" if key == "threads" else str(results.environment[key])
        for key in ("processor", "device", "threads", "platform")
        if results.environment.get(key) not in (None, "")
    ]
    if machine:
        lines.append(("Machine", ", ".join(machine)))
    if results.bench is not None:
        parts = ["steps of all arms in turn, in one process"]
        if results.bench.threads is not None:
            parts.append(f"{results.bench.threads} thread" + ("" if results.bench.threads == 1 else "s"))
        if results.bench.repeats is not None:
            parts.append(f"medians of {results.bench.repeats}")
        lines.append(("Step times", ", ".join(parts)))
    commands = [text for text in dict.fromkeys(runs["command"].dropna()) if text]
    command = command or (commands[0] if len(commands) == 1 else "")
    if command:
        lines.append(("Repeat with", command))
    return [(heading, line) for heading, line in lines if line]


def option_lines(results: Results, arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """The optimizer's options of each arm, as `key value` pairs."""
    lines = []
    for arm in arms:
        options = results.options.get(arm.name) or {}
        if options:
            lines.append((arm.label, ", ".join(f"{key} {_plain(value)}" for key, value in sorted(options.items()))))
    return lines


def caveats(results: Results, arms: Sequence[Arm], notes: Sequence[str]) -> list[str]:
    """The user's own notes first, then what the data itself calls for."""
    runs = results.runs
    lines = list(notes)
    seeds = {len(arm.seeds) for arm in arms}
    if max(seeds) == 1:
        lines.append("One seed per arm: the differences are single observations and carry no interval.")
    else:
        lines.append(
            "Intervals are 95 %, Student's t over seeds; differences and shares are paired by seed (shares "
            "by Fieller's method). They cover the choice of seed, not of another dataset, net or radius rho."
        )
        if min(seeds) != max(seeds):
            lines.append("Arms have different numbers of seeds; each difference uses the seeds that both arms have.")
    lines += _families(arms)
    images = pd.to_numeric(runs["test_images"]).dropna()
    if not images.empty:
        lines.append(f"One test image is {100 / images.max():.2g} points of accuracy.")
    lines.append(
        "Gradient evaluations are a count, not a time: small tensors and extra passes cost more than their share."
    )
    if any(arm.role == "split_sgd" for arm in arms):
        lines.append(
            "A method that splits the batch also splits batch norm's batch, which alone changes accuracy: "
            "its own merit is its difference to the split control."
        )
    if any(arm.time_source == "training" for arm in arms):
        lines.append(
            "Time ratios marked “from training” are medians over seeds of the runs' own clocks, at different moments "
            "and under different load; `qat-vsam bench` measures them in turn."
        )
    if "simulated" in set(runs["target"].dropna()):
        lines.append(
            "Target “simulated”: accuracies are of the fake-quantized model; what the export itself reaches "
            "stands in its own table."
        )
    lines += reference_notes(with_roles(runs, results.roles))
    lines += _mixed_options(runs)
    if results.unfinished:
        names = ", ".join(results.unfinished[:8]) + (" ..." if len(results.unfinished) > 8 else "")
        lines.append(f"{len(results.unfinished)} runs are not finished and not counted: {names}.")
    return lines


def _families(arms: Sequence[Arm]) -> list[str]:
    tested = [arm for arm in arms if arm.p_holm is not None]
    if not tested:
        return []
    sam = sum(arm.role == "sam" for arm in tested)
    parts = [f"{sam} of SAM's own gain"] if sam else []
    parts += [f"{len(tested) - sam} of the other arms"] if len(tested) > sam else []
    lines = [f"p-values against SGD are two-sided and Holm-corrected within their family: {', '.join(parts)}."]
    if any(arm.share is not None for arm in arms):
        lines.append(
            "A share of SAM's gain is shown only where that gain is itself significant after the correction; elsewhere "
            "the difference to the control stands in its place."
        )
    return lines


def _mixed_options(runs: pd.DataFrame) -> list[str]:
    lines = []
    for arm, rows in runs.groupby("arm", sort=True):
        # the schedule's own generator is seeded by the run
        variants = {
            json.dumps({k: v for k, v in json.loads(text).items() if k != "seed"}, sort_keys=True)
            for text in rows["optimizer_options"]
        }
        if len(variants) > 1:
            lines.append(f"The seeds of arm {arm} were trained with {len(variants)} different sets of options.")
    return lines


def _versions(results: Results) -> dict[str, str]:
    inside = results.environment.get("versions")
    found = {str(k): str(v) for k, v in inside.items()} if isinstance(inside, dict) else {}
    if results.environment.get("python"):
        found["python"] = str(results.environment["python"])
    return {**found, **results.versions}


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
