"""What the numbers say, in plain sentences: no more than the intervals allow, also when SAM did not pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qat_vsam.report import formats
from qat_vsam.report.arm import Arm
from qat_vsam.report.formats import TIMES, interval, p_text, share, signed
from qat_vsam.report.names import FLOAT
from qat_vsam.report.statistics import CONFIDENCE

# beyond so many methods of one precision the tables tell more than a sentence for each
_MOST_TOLD = 6


@dataclass(frozen=True)
class Tile:
    """A figure that stands out at the head of the page."""

    value: str
    caption: str
    detail: str


@dataclass(frozen=True)
class Findings:
    """The headline, the sentences below it, and the tiles."""

    headline: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]


def find(arms: Sequence[Arm]) -> Findings:
    """Reads the findings off the rows of the table.

    The headline is about the group of the fewest bits that has SGD, SAM and a vSAM arm, and about the first
    vSAM arm in it (never about the best one, which would be chosen on the test set).
    """
    group = _main_group(arms)
    main = _main_arm(group)
    sam = _role(group, "sam")
    sentences = _failed_exports(arms)
    for name in dict.fromkeys(arm.group for arm in arms):
        members = [arm for arm in arms if arm.group == name]
        sentences += [s for s in (_gain(members), *_kept(members)) if s]
    if main is not None and main.precision != FLOAT and _told(main.to_float_sam):
        sentences.append(_against_float(main))
    sentences += _proven_exports(arms)
    headline = _headline(group, main, sam)
    return Findings(headline, tuple(s for s in sentences if s != headline), _tiles(main, sam))


def _main_group(arms: Sequence[Arm]) -> list[Arm]:
    names = list(dict.fromkeys(arm.group for arm in arms))
    groups = [[arm for arm in arms if arm.group == name] for name in names]

    def worth(members: Sequence[Arm]) -> int:
        roles = {arm.role for arm in members}
        return len(roles & {"sgd", "sam"}) * 2 + len(roles & {"vsam", "other"})

    best = max(worth(members) for members in groups)
    return [members for members in groups if worth(members) == best][-1]


def _main_arm(group: Sequence[Arm]) -> Arm | None:
    candidates = [arm for arm in group if arm.role == "vsam"] or [arm for arm in group if arm.role == "other"]
    return next((arm for arm in candidates if arm.method == "vsam"), candidates[0] if candidates else None)


def _role(group: Sequence[Arm], role: str) -> Arm | None:
    return next((arm for arm in group if arm.role == role), None)


def _told(estimate: object) -> bool:
    return getattr(estimate, "low", None) is not None


def _headline(group: Sequence[Arm], main: Arm | None, sam: Arm | None) -> str:
    gain = sam.to_sgd if sam else None
    if sam is not None and gain is not None and gain.low is not None and sam.sgd_word != "better":
        return _gain(group)
    if main is not None and main.share is not None and main.share.value is not None:
        kept = share(main.share.value)
        ends = interval(main.share, digits=0, plus=False, scale=100)[1:-1].replace(", ", " to ")
        if main.share.value <= 0:
            kept = f"nothing ({kept})"
        return f"{main.label} keeps {kept} of SAM's gain over SGD (95 % interval {ends}), {_price(main)}."
    best = main or sam or group[-1]
    seeds = "one seed" if len(best.seeds) == 1 else f"{len(best.seeds)} seeds"
    against = ""
    if best.to_sgd is not None and best.to_sgd.value is not None:
        against = f", {signed(best.to_sgd.value)} points against SGD of the same bits"
        against += f" {interval(best.to_sgd)}" if _told(best.to_sgd) else ""
    accuracy = "unknown" if best.accuracy.value is None else f"{best.accuracy.value:.2f} %"
    return f"{best.label} reaches {accuracy} test accuracy over {seeds}{against}."


def _price(arm: Arm) -> str:
    cost = "at unknown cost" if arm.gradients is None else f"at {arm.gradients:.2f} gradient evaluations a step"
    time = None if arm.step_time is None else arm.step_time.value
    return cost if time is None else f"{cost} and {time:.2f} times float32 SGD's time"


def _gain(group: Sequence[Arm]) -> str:
    sam = _role(group, "sam")
    if sam is None or sam.to_sgd is None or sam.to_sgd.value is None:
        return ""
    gain, where = sam.to_sgd, sam.group
    if gain.low is None:
        points = signed(sam.to_sgd.value)
        return f"At {where} SAM differs from SGD by {points} points ({interval(gain)})."
    numbers = f"{signed(sam.to_sgd.value)} points {interval(gain)}"
    if sam.sgd_word == "better":
        return f"At {where} SAM gains {numbers} over SGD ({gain.n} seeds), {_price(sam)}."
    if gain.below_zero:
        return f"SAM did harm at {where}: {numbers} against SGD, {_price(sam)}."
    if gain.above_zero and sam.p_sgd is not None:
        corrected = p_text(sam.p_sgd)
        return f"SAM's gain at {where} is not established: {numbers} over SGD, {corrected} corrected, {_price(sam)}."
    return f"SAM did not pay at {where}: {numbers} over SGD, which cannot be told from zero, {_price(sam)}."


def _kept(group: Sequence[Arm]) -> list[str]:
    others = [arm for arm in group if arm.role == "other"]
    told = [arm for arm in group if arm.role == "vsam"]
    if len(others) <= _MOST_TOLD:
        return [_distance(arm) for arm in [*told, *others]]
    return [*map(_distance, told), _crowd(others)]


def _distance(arm: Arm) -> str:
    parts = []
    if arm.to_sam is not None and arm.to_sam.value is not None and _told(arm.to_sam):
        parts.append(f"{signed(arm.to_sam.value)} points {interval(arm.to_sam)} to SAM")
    if arm.to_split is not None and arm.to_split.value is not None and _told(arm.to_split):
        parts.append(f"{signed(arm.to_split.value)} {interval(arm.to_split)} to the split control")
    return f"{arm.label}: {' and '.join(parts)}." if parts else ""


def _crowd(arms: Sequence[Arm]) -> str:
    """One sentence for many methods: which of them differ from SGD after the correction."""
    certain = [arm for arm in arms if arm.p_sgd is not None and arm.p_sgd < 1 - CONFIDENCE]
    above = [arm.method_label for arm in certain if arm.to_sgd is not None and (arm.to_sgd.value or 0) > 0]
    below = [arm.method_label for arm in certain if arm.method_label not in above]
    parts = []
    for side, names in (("above", above), ("below", below)):
        count = f"{len(names)} stand {side} SGD after the correction ({', '.join(names)})"
        parts.append(count if names else f"none stands {side} SGD")
    return f"Of {len(arms)} other methods at {arms[0].group} {' and '.join(parts)}."


def _against_float(arm: Arm) -> str:
    difference = arm.to_float_sam
    if difference is None or difference.value is None:
        return ""
    size = "" if arm.size_ratio is None else f", with {arm.size_ratio:.2f} of the float model's size"
    return (
        f"Against full-precision SAM {arm.label} stands at {signed(difference.value)} points "
        f"{interval(difference)}{size}."
    )


def _failed_exports(arms: Sequence[Arm]) -> list[str]:
    failed = [f"{arm.label} ({export.format})" for arm in arms for export in arm.exports if export.passed is False]
    return [f"Exports that do NOT compute what was trained: {', '.join(failed)}."] if failed else []


def _proven_exports(arms: Sequence[Arm]) -> list[str]:
    exports = [export for arm in arms for export in arm.exports]
    proven = sum(export.n for export in exports if export.passed)
    if not proven or any(export.passed is False for export in exports):
        return []
    known = [export.agreement for export in exports if export.agreement is not None]
    least = f": argmax agreement {formats.agreement(min(known))} or more" if known else ""
    least = least.replace("100 % or more", "100 %")
    files = "The one export" if proven == 1 else f"All {proven} exports"
    verb = "was" if proven == 1 else "were"
    return [f"{files} {verb} reloaded in the target runtime and proven equal{least}."]


def _tiles(main: Arm | None, sam: Arm | None) -> tuple[Tile, ...]:
    if main is None:
        return ()
    tiles = []
    if main.share is not None and main.share.value is not None:
        ends = interval(main.share, digits=0, plus=False, scale=100)
        tiles.append(Tile(share(main.share.value), "of SAM's gain kept", f"95 % {ends}"))
    elif main.accuracy.value is not None:
        tiles.append(Tile(f"{main.accuracy.value:.2f} %", "test accuracy", interval(main.accuracy, plus=False)))
    if main.gradients is not None:
        beside = f"SAM {sam.gradients:.2f}, SGD 1.00" if sam and sam.gradients is not None else "SGD 1.00"
        tiles.append(Tile(f"{main.gradients:.2f}", "gradient evaluations a step", beside))
    if main.step_time is not None and main.step_time.value is not None:
        tiles.append(Tile(f"{main.step_time.value:.2f} {TIMES}", "the time of a float32 SGD step", "interleaved bench"))
    if main.size_ratio is not None:
        tiles.append(Tile(f"{main.size_ratio:.2f}", "of the float model's size", main.group))
    return tuple(tiles)
