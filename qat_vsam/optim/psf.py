r"""The PSF, h = g_s - g: the projection of the second-order gradient matrix onto the gradient, for reuse.

    after a second gradient:   h <- g_s - g,   i <- 0
    on a step without one:     i <- i + 1;   the step uses   g + gamma^i h   while i <= 6,   else g

To first order h = rho * (Hessian g) / |g|: it changes slowly while training, so an old one, decayed, stands
in for a new one. Reference: arXiv 2403.08821.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from qat_vsam.errors import ConfigError, explain
from qat_vsam.optim.gradients import Gradients, difference, dot, global_norm, total

State = MutableMapping[Tensor, Any]
KEY = "psf"
_TINY = 1e-12


class PSF:
    """Keeps one h per parameter in the optimizer's state, where it is saved and moved like a momentum.

    Args:
        gamma: Decay per step of age; 0 keeps nothing.
        lifetime: Steps after which h is no longer used; None for never.
        dtype: What h is kept in; None for the parameter's own. `torch.bfloat16` halves its memory.

    Raises:
        ConfigError: gamma outside [0, 1], a negative lifetime, or a dtype that is not one of floats, or one although
            nothing is kept.

    Example:
        >>> psf, weight = PSF(gamma=0.5), torch.zeros(1)
        >>> psf.keep({}, {weight: torch.ones(1)})
        >>> psf.weight(), psf.grow_older(), psf.weight()
        (0.5, None, 0.25)
    """

    def __init__(self, gamma: float, lifetime: int | None = 6, dtype: torch.dtype | None = None) -> None:
        if not 0 <= gamma <= 1:
            raise ConfigError(explain("reuse", gamma, "a decay in [0, 1]", "use 0.7, or 0 for no reuse"))
        if lifetime is not None and lifetime < 0:
            raise ConfigError(explain("lifetime", lifetime, "a number of steps >= 0", "use 6"))
        if dtype is not None and not dtype.is_floating_point:
            raise ConfigError(explain("psf_dtype", dtype, "a floating point type", "use torch.bfloat16"))
        if dtype is not None and not gamma:
            raise ConfigError(explain("psf_dtype", dtype, "None where no h is kept", "leave it out, or set reuse=0.7"))
        self.gamma = gamma
        self.lifetime = lifetime
        self.dtype = dtype
        self.age: int | None = None

    def prepare(self, psf: Gradients, gradients: Gradients) -> Gradients:
        """What is to be kept of a new h.

        Args:
            psf: h; its tensors are used up.
            gradients: What the step is made with; not changed.
        """
        return psf if self.gamma else {}

    def begin(self, state: State, parameters: Iterable[Tensor]) -> None:
        """Make room for h, zero until there is one: so a state has the same tensors at every step."""
        for parameter in parameters if self.gamma else ():
            if KEY not in state.get(parameter, ()):
                state.setdefault(parameter, {})[KEY] = torch.zeros_like(parameter, dtype=self.dtype)

    def keep(self, state: State, prepared: Gradients) -> None:
        """Replace what is kept by a new one of age 0. The tensors belong to the PSF from here on."""
        if self.gamma == 0:
            return
        for parameter, per_parameter in state.items():
            if parameter not in prepared and KEY in per_parameter:
                per_parameter[KEY].zero_()
        for parameter, h in prepared.items():
            state.setdefault(parameter, {})[KEY] = h if self.dtype is None else h.to(self.dtype)
        self.age = 0

    def restore_dtype(self, state: State) -> None:
        """Undo the cast to the parameter's type that loading a state makes; exact, for it came from there."""
        for per_parameter in state.values():
            if self.dtype is not None and KEY in per_parameter:
                per_parameter[KEY] = per_parameter[KEY].to(self.dtype)

    def weight(self) -> float:
        """gamma^i for the next step without a new h, its i-th; 0 if none is kept or it is too old.

        The age is counted in integers: a running product of gammas compared with gamma^6 would round.
        """
        if self.age is None or (self.lifetime is not None and self.age >= self.lifetime):
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
        return total(gradients, _kept(state, gradients), alpha=weight)


class OrthogonalPSF(PSF):
    r"""LookSAM's: the part of h across the gradient, in proportion to the gradient of the step that uses it.

        h_v = h - (h . g / |g|^2) g;      a step without a new one uses   g' + alpha |g'| h_v / |h_v|

    until the next second gradient, without decay. What is kept is h_v / |h_v|.

    Args:
        alpha: Weight of the reused part; 0 keeps nothing.
        dtype: As for `PSF`.

    Raises:
        ConfigError: alpha is negative.

    Reference: arXiv 2203.02714.
    """

    def __init__(self, alpha: float = 0.7, dtype: torch.dtype | None = None) -> None:
        if not alpha >= 0:
            raise ConfigError(explain("alpha", alpha, "a weight >= 0", "use 0.7"))
        super().__init__(gamma=1.0 if alpha else 0.0, lifetime=None, dtype=dtype)
        self.alpha = alpha

    def prepare(self, psf: Gradients, gradients: Gradients) -> Gradients:
        if not psf:
            return psf
        # g itself is gone, but scalar products of g_s and h in its place would cancel where g is small.
        plain = difference(gradients, psf)
        slope = dot(plain, psf) / (dot(plain, plain) + _TINY**2)
        across = difference(psf, _times(plain, slope))
        torch._foreach_div_(list(across.values()), global_norm(list(across.values())) + _TINY)
        return across

    def added_to(self, state: State, gradients: Gradients) -> Gradients:
        if self.weight() == 0.0 or not gradients:
            return gradients
        scale = self.alpha * global_norm(list(gradients.values()))
        kept = _kept(state, gradients)
        return total(gradients, _times({p: h.to(gradients[p].dtype) for p, h in kept.items()}, scale))


def beyond_rounding(first: Gradients, second: Gradients) -> Gradients:
    r"""What of h is more than the noise of rounding: c h, written into the tensors of `second`, which is used up.

        c = (|g_s|^2 - |g|^2) / |h|^2  in [0, 1],      h = g_s - g

    A displacement moves values across the borders of their quantizers, and each gradient then carries an error n of
    its own, whatever the radius: h = d + n_s - n. Two independent errors of equal size lengthen h by |n_s|^2 + |n|^2
    and leave |g_s|^2 - |g|^2 alone, so c h is h in proportion to what is no error: Wiener's filter, if d is across g.
    A gradient that grows uphill, as it does in a smooth net, has c = 1. At 2 bits a part of 32 images has little else
    than such errors, and without c they are added to the step at full length.

    Args:
        first: g, the gradient at w.
        second: g_s, that of the same rows at w + e.

    Example:
        >>> w = torch.zeros(2)
        >>> g, g_s = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])  # as long as one another, and all else differs
        >>> beyond_rounding({w: g}, {w: g_s})[w].abs()
        tensor([0., 0.])
    """
    before, after = global_norm(list(first.values())), global_norm(list(second.values()))
    psf = total(second, first, alpha=-1.0)
    length = global_norm(list(psf.values()))
    # squares of the lengths would overflow where the lengths do not
    share = (after - before) / (length + _TINY) * ((after + before) / (length + _TINY))
    share = share.clamp(0, 1)
    devices: dict[torch.device, list[Tensor]] = {}
    for h in psf.values():
        devices.setdefault(h.device, []).append(h)
    for device, hs in devices.items():
        torch._foreach_mul_(hs, share.to(device))
    return psf


def floating_point_type(name: torch.dtype | str | None) -> torch.dtype | None:
    """A type from its name, as a recipe gives it ("bfloat16").

    Raises:
        ConfigError: torch has no type of that name.
    """
    if not isinstance(name, str):
        return name
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(explain("psf_dtype", repr(name), "a floating point type of torch", 'use "bfloat16"'))
    return found


def _times(gradients: Gradients, factor: Tensor) -> Gradients:
    return dict(zip(gradients, torch._foreach_mul(list(gradients.values()), factor), strict=True))


def _kept(state: State, gradients: Gradients) -> Gradients:
    return {p: state[p][KEY] for p in gradients if KEY in state.get(p, ())}
