"""An optimizer that drives another one and is, to the outside, a single optimizer with a single state."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.errors import CheckpointError, InputError, explain

EXTRA_STATE = "sharpness_aware"


class OptimizerWrapper(Optimizer):
    """Shares parameter groups and state, the same objects, with a base optimizer.

    So whatever changes a learning rate, zeroes gradients, adds a group, saves or copies one does it to both.

    Args:
        params: Parameters or groups, as for any optimizer.
        base_optimizer: Class of the optimizer that makes the steps.
        base_options: Its arguments.
        defaults: Further keys of a group, with the value that a group without them gets.
        instead: What a further key is called where the base optimizer has one of its name.

    Raises:
        InputError: The base optimizer cannot step without a closure.
    """

    _copied: tuple[str, ...] = ("base",)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        base_options: Mapping[str, Any],
        defaults: Mapping[str, Any],
        instead: Mapping[str, str],
    ) -> None:
        closure = inspect.signature(base_optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            name, rule = base_optimizer.__name__, "an optimizer that steps without a closure"
            raise InputError(explain("base_optimizer", name, rule, "use SGD or AdamW"))
        base = base_optimizer(params, **base_options)
        defaults = {instead[key] if key in base.defaults else key: value for key, value in defaults.items()}
        super().__init__(base.param_groups, {**base.defaults, **defaults})
        self.base = base
        self.param_groups = base.param_groups
        self.state = base.state
        self._own_defaults = tuple(defaults)

    def parameters(self) -> Iterator[Tensor]:
        """All parameters, group by group."""
        for group in self.param_groups:
            yield from group["params"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for any optimizer."""
        if "base" not in self.__dict__:  # called by Optimizer.__init__, on groups that the base has already
            super().add_param_group(param_group)
            return
        for key in self._own_defaults:
            param_group.setdefault(key, self.defaults[key])
        self.base.add_param_group(param_group)

    def extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds beside the base optimizer's state: plain numbers, lists and dicts."""
        return {}

    def check_extra_state(self, extra: dict[str, Any]) -> None:
        """Raise CheckpointError if `extra`, whose keys are as expected, is of an optimizer composed differently."""

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Take over what `extra_state` of another optimizer gave; its keys are as expected."""

    def state_dict(self) -> dict[str, Any]:
        """All of it: the base optimizer's state and groups, and in the first of these the extra state."""
        extra = self.extra_state()
        state: dict[str, Any] = super().state_dict()
        # torch.distributed.checkpoint knows an optimizer's state and groups only, and loses what stands beside.
        state["param_groups"][0][EXTRA_STATE] = extra
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where the saved optimizer stood.

        Raises:
            CheckpointError: The state is not one of an optimizer composed like this one.
        """
        groups = [dict(group) for group in state_dict.get("param_groups", ())]
        found = [group.pop(EXTRA_STATE) for group in groups if EXTRA_STATE in group]
        extra, expected = found[0] if found else None, set(self.extra_state())
        if not isinstance(extra, dict) or set(extra) != expected:
            got = sorted(extra) if isinstance(extra, dict) else "none (the state of a plain optimizer?)"
            do = f"load a state that {type(self).__name__} saved"
            raise CheckpointError(explain(EXTRA_STATE, got, f"the keys {sorted(expected)}", do))
        self.check_extra_state(extra)
        try:
            super().load_state_dict({**state_dict, "param_groups": groups})
        except (KeyError, ValueError) as error:
            do = "build the optimizer from the same model and groups"
            raise CheckpointError(explain("state_dict", error, "the same parameter groups", do)) from error
        self.load_extra_state(extra)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in (*self._copied, "_own_defaults")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})
