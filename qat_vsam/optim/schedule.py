r"""When to pay for a second gradient, and on how much of the batch. Pure Python: numbers, no tensors.

    each step:   pays = schedule.pays(cost, learning_rate)       decides, changes nothing
                 ... the step ...
                 schedule.advance(cost or 0, learning_rate)      the step is done

A step that fails between the two has changed nothing, so it can be tried again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from qat_vsam.errors import CheckpointError, ConfigError, explain


class Schedule(ABC):
    """Base of all schedules.

    Attributes:
        share: The share of the batch that a second gradient is asked for.
        uses_learning_rate: Whether `learning_rate` matters; if not, any number may be passed.
        norm_tensors: Over how many of the last parameter tensors the norms are taken that `measure` wants;
            None if the schedule measures nothing.
        looks_at_gradient: Whether it decides by the gradient at w. Then that is taken first, and its norm read,
            which waits for the device at each step.
    """

    share: float = 1.0
    uses_learning_rate: bool = False
    norm_tensors: int | None = None
    looks_at_gradient: bool = False
    _state: tuple[str, ...] = ()

    @abstractmethod
    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        """Whether this step takes a second gradient.

        Args:
            cost: What it would cost, in gradients of the whole batch: the true share of the part.
            learning_rate: The current one.
            gradient_norm: |g| at w, if the schedule looks at it.
        """

    @abstractmethod
    def advance(self, paid: float, learning_rate: float, gradient_norm: float | None = None) -> None:
        """Close the step, which paid `paid` (0: no second gradient); the rest as for `pays`."""

    @property
    def wants_measurements(self) -> bool:
        """Whether `advance` needs, now, the measurements that have not been handed over yet."""
        return False

    def measure(self, psf_norm: float, gradient_norm: float) -> None:  # noqa: B027 - most measure nothing
        """Take note of |h| and |g| at a step that paid; in the order of the steps, late or not."""

    def declared_rate(self) -> tuple[float, float]:
        """Least and most second gradients a step, on average over a run. Differ where the training decides."""
        return 0.0, 1.0

    @abstractmethod
    def statistics(self) -> dict[str, float]:
        """Figures for the metrics: at least `rate`, the share of the steps that pay at present."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, copied."""
        return {key: list(value) if isinstance(value := getattr(self, key), list) else value for key in self._state}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if the state is not one of this kind of schedule."""
        if set(state) != set(self._state):
            raise CheckpointError(
                explain(
                    "schedule",
                    f"the keys {sorted(state)}",
                    f"the keys {sorted(self._state)} of {type(self).__name__}",
                    "load it into an optimizer of the class that saved it",
                )
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError if the state is not one of this kind of schedule."""
        self.check_state(state)
        for key, value in state.items():
            setattr(self, key, list(value) if isinstance(value, list) else value)


class CountingSchedule(Schedule):
    """Base of those that count the steps and the payments.

    Args:
        share: Of the batch, that a second gradient is taken on.
    """

    _state: tuple[str, ...] = ("step", "payments")

    def __init__(self, share: float = 1.0) -> None:
        self.share = check_share(share)
        self.step = 0
        self.payments = 0

    def advance(self, paid: float, learning_rate: float, gradient_norm: float | None = None) -> None:
        self.step += 1
        self.payments += 1 if paid else 0

    def statistics(self) -> dict[str, float]:
        return {"rate": self.payments / self.step if self.step else 0.0}


class EveryStep(Schedule):
    """A second gradient at each step, on a given share of the batch.

    Example:
        >>> EveryStep().pays(1.0, 0.1)
        True
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = check_share(share)

    def pays(self, cost: float, learning_rate: float, gradient_norm: float | None = None) -> bool:
        return True

    def advance(self, paid: float, learning_rate: float, gradient_norm: float | None = None) -> None:
        pass

    def declared_rate(self) -> tuple[float, float]:
        return 1.0, 1.0

    def statistics(self) -> dict[str, float]:
        return {"rate": 1.0}


def check_share(share: float) -> float:
    """The share, if it is in (0, 1]; ConfigError otherwise."""
    if not 0 < share <= 1:
        raise ConfigError(explain("share", share, "a share of the batch in (0, 1]", "use 0.5, or 1 for all of it"))
    return share


def check_total_steps(total_steps: int) -> int:
    """The length of a run, if there is one; ConfigError otherwise."""
    if total_steps < 1:
        raise ConfigError(explain("total_steps", total_steps, "the steps of the run", "pass total_steps="))
    return total_steps
