"""Second gradients within a budget of gradient evaluations a step. Pure Python."""

from __future__ import annotations

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.optim.schedule import Schedule, check_share

# the part of a run in which "early" and "late" spend
CONCENTRATED = 0.6
SPENDS = ("evenly", "early", "late", "learning_rate")
_BY_LENGTH = ("early", "late")
# Sums of decimal fractions must reach a cost that they equal on paper.
_TOLERANCE = 1e-9


class BudgetSchedule(Schedule):
    r"""Holds the mean cost of a run at a budget b of gradients a step, whatever its length.

    Each step accrues credit; a second gradient is paid for as soon as the credit covers it:

        credit <- credit + (b - 1) f_t;    credit >= cost:  pay,  credit <- credit - cost

    So after n steps at most n b gradients were spent, never more, and less by at most one payment. The
    first step pays only if one step's accrual covers it. f_t shapes the spending:

        evenly          f = 1
        early           f = 1 / 0.6 in the first 0.6 of `total_steps`, then 0: the whole run keeps to b
        late            f = 1 / 0.6 in the last 0.6 of `total_steps`, 0 before
        learning_rate   f = learning rate / largest one seen: below b, the more so the more the rate falls

    Args:
        gradient_budget: b, at least 1 (1: no second gradient) and at most what one payment a step costs.
        share: Share of the batch that a payment asks for.
        total_steps: Steps of the run, for "early" and "late" alone.
        spend: "evenly", "early", "late" or "learning_rate".

    Raises:
        ConfigError: The budget cannot be spent, or an argument is out of range.

    Example:
        >>> schedule = BudgetSchedule(1.25, share=0.5)
        >>> paid = []
        >>> for step in range(6):
        ...     paid.append(schedule.pays(0.5, 0.1))
        ...     schedule.advance(0.5 * paid[-1], 0.1)
        >>> paid
        [False, True, False, True, False, True]
    """

    _state = ("credit", "largest_learning_rate", "step")

    def __init__(
        self,
        gradient_budget: float = 1.25,
        share: float = 0.5,
        *,
        total_steps: int | None = None,
        spend: str = "evenly",
    ) -> None:
        self.share = check_share(share)
        if spend not in SPENDS:
            raise ConfigError(explain("spend", repr(spend), "a way to spend", did_you_mean(str(spend), SPENDS)))
        if spend in _BY_LENGTH and (total_steps is None or total_steps < 1):
            rule = f'the steps of the run for spend="{spend}"'
            raise ConfigError(explain("total_steps", total_steps, rule, "pass total_steps="))
        if spend not in _BY_LENGTH and total_steps is not None:
            rule = f"none with spend={spend!r}, which does not depend on the length of the run"
            raise ConfigError(explain("total_steps", total_steps, rule, 'leave it out, or use spend="early"'))
        largest = 1 + share * (CONCENTRATED if spend in _BY_LENGTH else 1)
        if not 1 <= gradient_budget <= largest + _TOLERANCE:
            raise ConfigError(
                explain(
                    "gradient_budget",
                    gradient_budget,
                    f"gradients a step in [1, {largest:g}], which is what share={share:g} can cost",
                    "raise share or lower the budget",
                )
            )
        self.gradient_budget = gradient_budget
        self.total_steps = total_steps
        self.spend = spend
        self._spending_steps = CONCENTRATED * (total_steps or 0)
        self.uses_learning_rate = spend == "learning_rate"
        self.credit = 0.0
        self.largest_learning_rate = 0.0
        self.step = 0

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        return cost > 0 and self.credit + self._accrual(learning_rate) >= cost - _TOLERANCE

    def advance(self, paid: float, learning_rate: float, gradient_norm: float | None = None) -> None:
        # Credit that could not be spent (a radius of 0 for a while) must not come out as a long burst later.
        self.credit = min(self.credit + self._accrual(learning_rate) - paid, 1.0)
        self.largest_learning_rate = max(self.largest_learning_rate, learning_rate)
        self.step += 1

    def declared_rate(self) -> tuple[float, float]:
        largest = (self.gradient_budget - 1) / self.share
        return (0.0, largest) if self.uses_learning_rate else (largest, largest)

    def statistics(self) -> dict[str, float]:
        return {"rate": self._accrual(self.largest_learning_rate) / self.share, "credit": self.credit}

    def _accrual(self, learning_rate: float) -> float:
        extra = self.gradient_budget - 1
        if self.total_steps is not None:
            # Where spending ends or begins within a step that step counts in part, else a short run would overdraw.
            done = self.step if self.spend == "early" else self.total_steps - 1 - self.step
            return extra / CONCENTRATED * min(max(self._spending_steps - done, 0.0), 1.0)
        if self.spend == "learning_rate":
            largest = max(self.largest_learning_rate, learning_rate)
            return extra * learning_rate / largest if largest > 0 else 0.0
        return extra


class UnpaidBudget(BudgetSchedule):
    """Chooses the steps at which a budget would pay, for a method that takes no second gradient and so pays nothing.

    Example:
        >>> schedule = UnpaidBudget(1.25, share=0.5)
        >>> chosen = []
        >>> for step in range(4):
        ...     chosen.append(schedule.pays(0.5, 0.1))
        ...     schedule.advance(0.0, 0.1)
        >>> chosen
        [False, True, False, True]
    """

    # what the step would cost that pays() was asked about; a step that fails and is tried again asks anew
    _cost = 0.0

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        self._cost = cost
        return super().pays(cost, learning_rate)

    def advance(self, paid: float, learning_rate: float, gradient_norm: float | None = None) -> None:
        super().advance(self._cost if super().pays(self._cost, learning_rate) else 0.0, learning_rate)
