"""Watching the numbers of a run without waiting for the device: norms stay tensors until they are read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qat_vsam.errors import ConfigError, NonFiniteError, did_you_mean, explain

POLICIES = ("raise", "skip", "stop", "ignore")


class Monitor:
    """Keeps the last norms, the measurements nobody has read yet, and whether a gradient was not finite.

    Args:
        nonfinite: "raise", "skip", "stop" or "ignore".
        check_every: With "raise", steps between two looks; None: 1 on the CPU, 100 elsewhere.

    Example:
        >>> monitor = Monitor("skip")
        >>> monitor.accepts(torch.tensor(float("nan")), step=0)
        False
    """

    def __init__(self, nonfinite: str = "raise", check_every: int | None = None) -> None:
        if nonfinite not in POLICIES:
            advice = did_you_mean(str(nonfinite), POLICIES)
            raise ConfigError(explain("nonfinite", repr(nonfinite), "a policy", advice))
        if check_every is not None and check_every < 1:
            raise ConfigError(explain("check_every", check_every, "a number of steps >= 1", "use 1"))
        if check_every is not None and nonfinite != "raise":
            rule = f"none with nonfinite={nonfinite!r}, which looks at each step or never"
            raise ConfigError(explain("check_every", check_every, rule, 'leave it out, or use nonfinite="raise"'))
        self.nonfinite = nonfinite
        self.check_every = check_every
        self._flag: Tensor | None = None
        self._norms: dict[str, Tensor | float] = {"gradient_norm": math.nan, "psf_norm": math.nan}
        self._unread: list[Tensor] = []

    def accepts(self, gradient_norm: Tensor, step: int) -> bool:
        """Whether the step may be made with a gradient of this norm.

        Raises:
            NonFiniteError: The policy is to raise and this step looks.
        """
        if self.nonfinite == "ignore":
            return True
        finite = torch.isfinite(gradient_norm)
        if self.nonfinite in ("skip", "stop"):
            return bool(finite)
        self._flag = ~finite if self._flag is None else self._flag.to(finite.device) | ~finite
        if self.looks(step, finite.device):
            self.check(step)
        return True

    def looks(self, step: int, device: torch.device) -> bool:
        """Whether this step reads a number from the device in any case."""
        if self.nonfinite != "raise":
            return self.nonfinite != "ignore"
        return (step + 1) % (self.check_every or (1 if device.type == "cpu" else 100)) == 0

    def check(self, step: int) -> None:
        """Raise NonFiniteError if a gradient since the last look was not finite. Waits for the device."""
        flag, self._flag = self._flag, None
        if flag is not None and bool(flag):
            raise NonFiniteError(
                explain(
                    "gradient",
                    f"NaN or infinity at step {step} or since the last check",
                    "finite numbers",
                    'go back to a checkpoint and lower lr or rho; nonfinite="skip" leaves such steps out',
                )
            )

    def note(self, name: str, norm: Tensor) -> None:
        """Remember the latest value of a norm."""
        self._norms[name] = norm

    def measure(self, psf_norm: Tensor, gradient_norm: Tensor) -> None:
        """Put a pair of norms aside, to be read later."""
        self._unread.append(torch.stack([psf_norm, gradient_norm.to(psf_norm)]))

    def read_measurements(self) -> list[tuple[float, float]]:
        """The pairs put aside since the last call, oldest first. Waits for the device, once."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        return [(psf_norm, gradient_norm) for psf_norm, gradient_norm in torch.stack(unread).tolist()]

    def read_norms(self) -> dict[str, float]:
        """The last norms as numbers, NaN where there is none yet. Waits for the device."""
        return {name: float(norm) for name, norm in self._norms.items()}

    def load_norms(self, norms: dict[str, Any]) -> None:
        """Go on from the norms, and without the unread measurements and the flag, of another run."""
        self._norms = dict(norms)
        self._unread = []
        self._flag = None
