"""What one arm of a comparison achieved and cost, next to the arms that it must be measured against.

An arm is compared only within what it shares: by seed, with SGD, SAM and the split control of the same bit
width and target, and with full-precision SAM.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from qat_vsam.report.arm import Arm
from qat_vsam.report.costs import Cost, cost_of
from qat_vsam.report.exports import known_mean, summarise_exports
from qat_vsam.report.gains import with_established_gains
from qat_vsam.report.names import FLOAT, precision_label, without_precision
from qat_vsam.report.results import Results
from qat_vsam.report.roles import method_of, with_roles
from qat_vsam.report.statistics import Estimate, mean_interval, paired_difference, share_kept

# the order of the rows inside a precision: what costs nothing first, SAM last
_RANK = ("float_reference", "post_training", "sgd", "split_sgd", "vsam", "other", "sam")


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
    frame = with_roles(results.runs, results.roles)
    arms = [_summarise_arm(results, frame, name) for name in frame["arm"].unique()]
    arms += _untrained_rows(frame, {(arm.group, arm.role) for arm in arms})
    return with_established_gains(sorted(arms, key=_order))


def accuracy_by_seed(rows: pd.DataFrame) -> dict[int, float]:
    """Test accuracy in % of each seed."""
    pairs = zip(rows["seed"], rows["test_accuracy"], strict=True)
    return {int(seed): 100 * float(value) for seed, value in pairs}


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
    sgd = frame[frame["arm"] == peers.names["sgd"]] if "sgd" in peers.names else None
    cost = cost_of(rows, sgd, results.bench) if trained else Cost()
    packed, floats = known_mean(rows["packed_bytes"]), known_mean(rows["float_bytes"])
    return Arm(
        name=name,
        label=str(first["label"]),
        method=method_of(name, str(first["precision"])),
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
        share=_share(peers, own, name, "sgd") if trained else None,
        share_over_split=_share(peers, own, name, "split") if trained and peers.split is not None else None,
        cost=cost.step,
        run_cost=cost.run,
        time_ratio=cost.step_time,
        run_time=cost.run_time,
        time_source=cost.source,
        train_seconds=cost.seconds,
        packed_bytes=packed,
        size_ratio=packed / floats if packed is not None and floats else None,
        exports=summarise_exports(results.exports[results.exports["arm"] == name]),
    )


def _share(peers: _Peers, own: dict[int, float], name: str, control: str) -> Estimate | None:
    """The share of SAM's gain over the control that an arm keeps; for the two of them it is a matter of words."""
    base = getattr(peers, control)
    if base is None or peers.sam is None:
        if name in (peers.names.get("sgd"), peers.names.get("sam")):
            return None
        return Estimate(None, note="no SAM of the same bits" if peers.sam is None else "no SGD of the same bits")
    if name in (peers.names["sam"], peers.names[control]):
        return Estimate(float(name == peers.names["sam"]), n=len(own), note="by definition")
    return share_kept(own, base, peers.sam)


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
