"""What may be claimed of SAM's gain: first that there is one, by a corrected test, and only then what share is kept.

The tests against SGD fall into two families, each corrected by Holm's method: SAM's own gain at each precision, on
which every share rests, and the difference of every other arm. SAM's gain over the split control is a third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from qat_vsam.report.arm import Arm
from qat_vsam.report.statistics import CONFIDENCE, NOT_ESTABLISHED, Estimate, holm


def with_established_gains(arms: Iterable[Arm]) -> list[Arm]:
    """The arms with corrected p-values, and with shares only where SAM's gain is significant.

    Args:
        arms: with raw p-values and with every share that can be computed.
    """
    arms = list(arms)
    against_sgd = _corrected(arms, lambda arm: arm.to_sgd if arm.role == "sam" else None)
    against_split = _corrected(arms, lambda arm: arm.to_split if arm.role == "sam" else None)
    others = _corrected(arms, lambda arm: None if arm.role == "sam" else arm.to_sgd)
    p_values = others | against_sgd
    gain = {arm.group for arm in arms if _is_gain(arm.to_sgd, against_sgd.get(arm.name))}
    beyond = {arm.group for arm in arms if _is_gain(arm.to_split, against_split.get(arm.name))} & gain
    return [
        replace(
            arm,
            p_holm=p_values.get(arm.name),
            share=_shown(arm.share, arm.group in gain),
            share_over_split=_shown(arm.share_over_split, arm.group in beyond),
        )
        for arm in arms
    ]


def gain_established(sam: Arm) -> bool:
    """Whether SAM's gain over SGD is above zero by its corrected test.

    Args:
        sam: the SAM of a precision, from `with_established_gains`.
    """
    return _is_gain(sam.to_sgd, sam.p_holm)


def _corrected(arms: Iterable[Arm], test: Callable[[Arm], Estimate | None]) -> dict[str, float]:
    tested = {arm.name: estimate.p_value for arm in arms if (estimate := test(arm)) is not None}
    known = {name: p for name, p in tested.items() if p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def _is_gain(estimate: Estimate | None, p_value: float | None) -> bool:
    if estimate is None or estimate.value is None or p_value is None:
        return False
    return estimate.value > 0 and p_value < 1 - CONFIDENCE


def _shown(share: Estimate | None, established: bool) -> Estimate | None:
    if share is None or share.value is None or established:
        return share
    return Estimate(None, n=share.n, note=NOT_ESTABLISHED)
