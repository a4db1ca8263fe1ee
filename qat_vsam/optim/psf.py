r"""The PSF, h = g_s - g: the projection of the second-order gradient matrix onto the gradient, for reuse.

    after a second gradient:   h <- g_s - g,   i <- 0
    on a step without one:     i <- i + 1;   the step uses   g + gamma^i h   while i <= 6,   else g

To first order h = rho * (Hessian g) / |g|: it changes slowly while training, so an old one, decayed, stands
in for a new one. Reference: arXiv 2403.08821.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

from qat_vsam.errors import ConfigError, explain
from qat_vsam.optim.gradients import Gradients, total

State = MutableMapping[Tensor, Any]
_KEY = "psf"


class PSF:
    """Keeps one h per parameter in the optimizer's state, where it is saved, moved and cast like a momentum.

    Args:
        gamma: Decay per step of age; 0 keeps nothing.
        lifetime: Steps after which h is no longer used.

    Raises:
        ConfigError: gamma outside [0, 1] or a negative lifetime.

    Example:
        >>> import torch
        >>> psf, weight = PSF(gamma=0.5), torch.zeros(1)
        >>> psf.keep({}, {weight: torch.ones(1)})
        >>> psf.weight(), psf.grow_older(), psf.weight()
        (0.5, None, 0.25)
    """

    def __init__(self, gamma: float, lifetime: int = 6) -> None:
        if not 0 <= gamma <= 1:
            raise ConfigError(explain("reuse", gamma, "a decay in [0, 1]", "use 0.7, or 0 for no reuse"))
        if lifetime < 0:
            raise ConfigError(explain("lifetime", lifetime, "a number of steps >= 0", "use 6"))
        self.gamma = gamma
        self.lifetime = lifetime
        self.age: int | None = None

    def keep(self, state: State, psf: Gradients) -> None:
        """Replace the kept h by a new one of age 0. The tensors of `psf` belong to the PSF from here on."""
        if self.gamma == 0:
            return
        for parameter, per_parameter in state.items():
            if parameter not in psf:
                per_parameter.pop(_KEY, None)
        for parameter, h in psf.items():
            state.setdefault(parameter, {})[_KEY] = h
        self.age = 0

    def weight(self) -> float:
        """gamma^i for the next step without a new h, its i-th; 0 if none is kept or it is too old.

        The age is counted in integers: a running product of gammas compared with gamma^6 would round.
        """
        if self.age is None or self.age >= self.lifetime:
            return 0.0
        return self.gamma ** (self.age + 1)

    def grow_older(self) -> None:
        """A step went by without a new h."""
        if self.age is not None:
            self.age += 1

    def added_to(self, state: State, gradients: Gradients) -> Gradients:
        """gradients + weight h on the parameters that have a gradient now, in the same tensors."""
        weight = self.weight()
        if weight == 0.0:
            return gradients
        kept = {p: state[p][_KEY] for p in gradients if _KEY in state.get(p, ())}
        return total(gradients, kept, alpha=weight)
