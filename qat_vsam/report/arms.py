"""What one arm of a comparison achieved and cost, next to the arms that it must be measured against.

An arm is compared only within what it shares: by seed, with SGD, SAM and the split control of the same bit
width and target, and with full-precision SAM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd

from qat_vsam.report.exports import Export, known_mean, summarise_exports
from qat_vsam.report.names import FLOAT, precision_label, without_precision
from qat_vsam.report.results import Results
from qat_vsam.report.statistics import Estimate, holm, mean_interval, paired_difference, share_kept

# the order of the rows inside a precision: what costs nothing first, SAM last
_RANK = ("float_reference", "post_training", "sgd", "split_sgd", "vsam", "other", "sam")


@dataclass(frozen=True)
class Arm:
    """One row of the table. Accuracies and differences are in %, points and shares as fractions.

    Attributes:
        name, label: as the recipe calls it.
        method: the name without its bit width, e.g. "vsam-variance": it fixes the colour.
        method_label: the label without its bit width.
        group: arms of one group share bit width and target.
        role: one of "float_reference", "post_training", "sgd", "split_sgd", "vsam", "sam", "other".
        accuracy: test accuracy over seeds.
        to_float_sam, to_sam, to_sgd, to_split: paired differences; None where there is no such arm.
        p_holm: p-value of `to_sgd`, corrected over all arms that have one.
        share: share of SAM's gain kept; None where the question does not arise.
        cost: gradient evaluations a step; None for an arm that was not trained.
        time_ratio: time of a step in steps of SGD of the same group.
        time_source: "bench" (interleaved) or "training" (from the runs' own clocks).
    """

    name: str
    label: str
    method: str
    method_label: str
    precision: str
    group: str
    role: str
    seeds: tuple[int, ...]
    accuracy: Estimate
    to_float_sam: Estimate | None = None
    to_sam: Estimate | None = None
    to_sgd: Estimate | None = None
    to_split: Estimate | None = None
    p_holm: float | None = None
    share: Estimate | None = None
    cost: float | None = None
    time_ratio: float | None = None
    time_source: str | None = None
    train_seconds: float | None = None
    packed_bytes: float | None = None
    size_ratio: float | None = None
    exports: tuple[Export, ...] = ()


@dataclass(frozen=True)
class _Peers:
    """Test accuracy in % by seed of the arms that a group is measured against."""

    sgd: dict[int, float] | None
    sam: dict[int, float] | None
    split: dict[int, float] | None
    float_sam: dict[int, float] | None
    names: dict[str, str]


def summarise(results: Results) -> list[Arm]:
    """One Arm per row of the table: float first, then the quantized groups; untrained rows first in each.

    Rows for the float net before training and for after-training quantization alone are added from what the
    trained runs noted of them, where the comparison has no arm of its own for it.
    """
    frame = _with_roles(results.runs)
    arms = [_summarise_arm(results, frame, name) for name in frame["arm"].unique()]
    arms += _untrained_rows(frame, {(arm.group, arm.role) for arm in arms})
    return _with_corrected_p_values(sorted(arms, key=_order))


def peer_choices(results: Results) -> list[str]:
    """Sentences for the caveats: which arm served as reference where several could have."""
    sentences = []
    for (group, role), rows in _with_roles(results.runs).groupby(["group", "role"]):
        names = list(dict.fromkeys(rows["arm"]))
        if role in ("sgd", "sam", "split_sgd") and len(names) > 1:
            sentences.append(f"{group} has {len(names)} arms of the kind {role}; differences are taken to {names[0]}.")
    return sentences


def accuracy_by_seed(rows: pd.DataFrame) -> dict[int, float]:
    """Test accuracy in % of each seed."""
    pairs = zip(rows["seed"], rows["test_accuracy"], strict=True)
    return {int(seed): 100 * float(value) for seed, value in pairs}


def _with_roles(runs: pd.DataFrame) -> pd.DataFrame:
    roles = [_role(row.kind, row.optimizer) for row in runs.itertuples()]
    return runs.assign(role=roles, group=_groups(runs))


def _role(kind: str, optimizer: str | None) -> str:
    if kind != "trained":
        return kind
    return optimizer if optimizer in _RANK else "other"


def _groups(runs: pd.DataFrame) -> list[str]:
    targets = {row.target for row in runs.itertuples() if row.precision != FLOAT and row.target}
    names = []
    for row in runs.itertuples():
        name = precision_label(row.precision)
        names.append(f"{name} ({row.target})" if len(targets) > 1 and row.precision != FLOAT else name)
    return names


def _order(arm: Arm) -> tuple[object, ...]:
    bits = [int(number) for number in re.findall(r"\d+", arm.precision)]
    # float first, then from many bits to few
    return (
        arm.precision != FLOAT,
        [-b for b in bits],
        arm.group,
        _RANK.index(arm.role),
        arm.cost or 0.0,
        arm.name,
    )


def _peers(frame: pd.DataFrame, group: str) -> _Peers:
    def first(role: str, rows: pd.DataFrame) -> tuple[str, dict[int, float]] | None:
        rows = rows[rows["role"] == role]
        if rows.empty:
            return None
        name = rows["arm"].iloc[0]
        return str(name), accuracy_by_seed(rows[rows["arm"] == name])

    own = frame[frame["group"] == group]
    found = {
        "sgd": first("sgd", own),
        "sam": first("sam", own),
        "split": first("split_sgd", own),
        "float_sam": first("sam", frame[frame["precision"] == FLOAT]),
    }
    values = {key: pair[1] if pair else None for key, pair in found.items()}
    return _Peers(**values, names={key: pair[0] for key, pair in found.items() if pair})


def _summarise_arm(results: Results, frame: pd.DataFrame, name: str) -> Arm:
    rows = frame[frame["arm"] == name]
    first = rows.iloc[0]
    peers = _peers(frame, str(first["group"]))
    own = accuracy_by_seed(rows)

    def difference(peer: str, values: dict[int, float] | None) -> Estimate | None:
        return None if values is None or peers.names[peer] == name else paired_difference(own, values)

    trained = first["kind"] == "trained"
    share = None
    if trained and first["role"] not in ("sgd", "sam"):
        if peers.sgd is not None and peers.sam is not None:
            share = share_kept(own, peers.sgd, peers.sam)
        else:
            share = Estimate(None, note="no SAM of the same bits" if peers.sam is None else "no SGD of the same bits")
    ratio, source = _time_ratio(results, frame, rows, peers.names.get("sgd")) if trained else (None, None)
    packed, floats = known_mean(rows["packed_bytes"]), known_mean(rows["float_bytes"])
    return Arm(
        name=name,
        label=str(first["label"]),
        method=without_precision(name, str(first["precision"])).lower().replace("_", "-"),
        method_label=without_precision(str(first["label"]), str(first["precision"])),
        precision=str(first["precision"]),
        group=str(first["group"]),
        role=str(first["role"]),
        seeds=tuple(sorted(own)),
        accuracy=mean_interval([own[seed] for seed in sorted(own)]),
        to_float_sam=difference("float_sam", peers.float_sam),
        to_sam=difference("sam", peers.sam),
        to_sgd=difference("sgd", peers.sgd) if trained else None,
        to_split=difference("split", peers.split) if trained else None,
        share=share,
        cost=_cost(rows) if trained else None,
        time_ratio=ratio,
        time_source=source,
        train_seconds=known_mean(rows["train_seconds"]) if trained else None,
        packed_bytes=packed,
        size_ratio=packed / floats if packed is not None and floats else None,
        exports=summarise_exports(results.exports[results.exports["arm"] == name]),
    )


def _cost(rows: pd.DataFrame) -> float | None:
    measured = known_mean(rows["gradient_evaluations_per_step"])
    if measured is not None:
        return measured
    total, steps = known_mean(rows["gradient_evaluations"]), known_mean(rows["steps"])
    return total / steps if total is not None and steps else None


def _time_ratio(
    results: Results, frame: pd.DataFrame, rows: pd.DataFrame, sgd: str | None
) -> tuple[float | None, str | None]:
    name = rows["arm"].iloc[0]
    for row in results.bench.rows if results.bench else ():
        if row.arm == name and row.ratio_to_sgd is not None:
            return row.ratio_to_sgd, "bench"
    if sgd is None:
        return None, None
    own, reference = _step_seconds(rows), _step_seconds(frame[frame["arm"] == sgd])
    return (own / reference, "training") if own is not None and reference else (None, None)


def _step_seconds(rows: pd.DataFrame) -> float | None:
    seconds = pd.to_numeric(rows["train_seconds"]) / pd.to_numeric(rows["steps"]).where(lambda steps: steps > 0)
    return None if seconds.dropna().empty else float(seconds.median())


def _untrained_rows(frame: pd.DataFrame, present: set[tuple[str, str]]) -> list[Arm]:
    rows: list[Arm] = []
    known = frame[frame["float_before"].notna()]
    if ((frame["kind"] == "trained") & (frame["precision"] == FLOAT)).any():
        # a net that is quantized after this comparison's own float training stands there already
        known = known[known["kind"] == "trained"]
    if not known.empty and not any(role == "float_reference" for _, role in present):
        rows.append(_untrained(known, "float_before", FLOAT, precision_label(FLOAT), "float_reference"))
    known = frame[frame["calibrated"].notna() & (frame["kind"] == "trained") & (frame["precision"] != FLOAT)]
    for group, members in known.groupby("group", sort=True):
        if (group, "post_training") not in present:
            rows.append(
                _untrained(members, "calibrated", str(members["precision"].iloc[0]), str(group), "post_training")
            )
    return rows


_UNTRAINED = {
    "float_reference": ("float-before", "before training"),
    "post_training": ("post-training", "after-training quantization"),
}


def _untrained(rows: pd.DataFrame, column: str, precision: str, group: str, role: str) -> Arm:
    # arms of one seed start from the same net, so their notes agree up to the order of sums
    by_seed = rows.groupby("seed")[column].mean()
    method, label = _UNTRAINED[role]
    return Arm(
        name=f"{precision}-{method}",
        label=f"{group} {label}",
        method=method,
        method_label=label,
        precision=precision,
        group=group,
        role=role,
        seeds=tuple(int(seed) for seed in by_seed.index),
        accuracy=mean_interval([100 * float(value) for value in by_seed]),
    )


def _with_corrected_p_values(arms: Iterable[Arm]) -> list[Arm]:
    arms = list(arms)
    tested = [i for i, arm in enumerate(arms) if arm.to_sgd is not None and arm.to_sgd.p_value is not None]
    corrected = holm([arms[i].to_sgd.p_value for i in tested])  # type: ignore[union-attr, misc]
    for index, p_value in zip(tested, corrected, strict=True):
        arms[index] = replace(arms[index], p_holm=p_value)
    return arms
