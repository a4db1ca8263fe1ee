r"""The optimizer around a base optimizer: the one place where weights leave their value and come back.

    g   = gradient at w                          closure
    g_s = gradient at w + e(g)                   closure again, all else standing still; then w back, by copy
    base optimizer steps with a mixture of g, g_s and the PSF h = g_s - g

When a step takes a second gradient is the schedule's business, on which rows the method's, along which e the
perturbation's, and what is kept of it the PSF's. The named optimizers in `family` are compositions of these
four.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from qat_vsam.errors import ConfigError, did_you_mean, explain
from qat_vsam.optim.composition import USUAL_DROPOUT, USUAL_PERTURBATION, refuse_idle_options, refuse_radius
from qat_vsam.optim.directions import forget
from qat_vsam.optim.distributed import Ranks
from qat_vsam.optim.gradients import Gradients, global_norm
from qat_vsam.optim.loss_scale import LossScale, policy, refuse_step_of_a_scaler, scales
from qat_vsam.optim.methods import Method, Outcome, Part
from qat_vsam.optim.monitor import Monitor
from qat_vsam.optim.passes import StepPasses
from qat_vsam.optim.perturbation import Perturbation, build_perturbation
from qat_vsam.optim.points import BehindQuantizer
from qat_vsam.optim.psf import PSF
from qat_vsam.optim.radii import KEY, KEY_BESIDE_ANOTHER, radius_of
from qat_vsam.optim.rows import Rows
from qat_vsam.optim.schedule import EveryStep, Schedule
from qat_vsam.optim.without_closure import step_without_closure
from qat_vsam.optim.witness import Witness
from qat_vsam.optim.wrapper import OptimizerWrapper

logger = logging.getLogger(__name__)

_DROPOUTS = ("keep", "redraw")
_COUNTERS = ("steps", "forwards", "gradient_evaluations", "skipped", "stopped", "last_share")


class SharpnessAware(OptimizerWrapper):
    r"""A `torch.optim.Optimizer` around another: that makes the step, this one says with which gradient.

    The named members of the family take all of these options too.

    Args:
        params: Parameters or groups, as for any optimizer. A group may carry `role` (a group with one is
            perturbed only if `perturbed_roles` names it) and `rho`; beside a base optimizer whose groups have a
            `rho` of their own (Adadelta) that is `perturbation_rho`.
        base_optimizer: Class of the optimizer that makes the step, built with `base_options`.
        method, schedule, psf: See the modules `methods`, `schedule`, `psf`; by default SAM's.
        model: The network. Tells which modules must stand still in the second pass (batch norms, modules with
            `updates_state`) and which layers take a `weight_offset`. Needed only if it has such modules.
        perturbation: A name of `perturbation.PERTURBATIONS` ("euclidean", "adaptive", "step_size",
            "post_quantizer", "friendly", "norm_only", "loss_increase") or a `Perturbation`.
        perturbed_roles: Roles perturbed where groups have roles, whatever the perturbation's own are; None for
            these, most often weights.
        rho: Radius of the perturbation; groups may override it. Where all are 0 the step is the base
            optimizer's. Where the base optimizer maximizes, e goes down the gradient.
        dropout: "keep" draws the same random numbers in both passes, so that h measures curvature and not two
            masks; "redraw" lets the generators run on.
        nonfinite: What a NaN or infinite gradient does. "raise", which None means: NonFiniteError before the step
            is made. "skip": the step is left out and counted in `skipped`; costs a host synchronisation each step.
            "stop": that step and all later ones are left out, and `stopped` is True. "ignore": nothing.
        check_every: With "raise", steps between two looks (one synchronisation each). Default: 1 on the
            CPU, where looking costs nothing, 100 elsewhere; saving looks in any case, so a poisoned state
            is never saved.
        grad_scaler: The `torch.amp.GradScaler` that the closure scales its loss with. Gradients are unscaled
            after each pass, and a step with an infinite one in any pass is skipped: no other `nonfinite` goes with it.
            `update()` stays with the caller, and so does the scaler's own state_dict. Costs a host
            synchronisation each step, as it does in plain training.
        perturbation_sync: With several ranks, "global" (e along the gradient of all) or "per_rank" (each along
            its own); `model` is then the wrapped network. See the module `distributed`.
        max_grad_norm: The gradient that the step is made with is scaled down to this norm if it is larger.
        **base_options: Arguments of the base optimizer (lr, momentum, ...).

    Attributes:
        gradient_evaluations: Gradients taken so far, each weighted by its share of the batch.
        forwards: Closure calls so far.
        steps: Steps so far, `skipped` included.
        skipped: Steps left out because a gradient was not finite.
        stopped: Whether all further steps are left out.

    Raises:
        InputError: The base optimizer needs a closure of its own, or the perturbation does not fit the model.
        ConfigError: An option is unknown, out of range, or without effect beside the others.
    """

    # options above that the composition of a member leaves no choice about
    settles: ClassVar[tuple[str, ...]] = ()
    _copied = (
        "base",
        "model",
        "method",
        "schedule",
        "psf",
        "perturbation",
        "monitor",
        "witness",
        "dropout",
        "loss_scale",
        "ranks",
        "max_grad_norm",
        *_COUNTERS,
    )
    # GradScaler.step then hands its scale over instead of stepping on scaled gradients, so that it can be refused.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        method: Method | None = None,
        schedule: Schedule | None = None,
        psf: PSF | None = None,
        model: nn.Module | None = None,
        perturbation: str | Perturbation = USUAL_PERTURBATION,
        perturbed_roles: Sequence[str] | None = None,
        rho: float = 0.05,
        dropout: str = USUAL_DROPOUT,
        nonfinite: str | None = None,
        check_every: int | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        perturbation_sync: str = "global",
        max_grad_norm: float | None = None,
        **base_options: Any,
    ) -> None:
        if not rho >= 0:
            raise ConfigError(explain("rho", rho, "a radius >= 0", "use 0.05"))
        if dropout not in _DROPOUTS:
            advice = did_you_mean(str(dropout), _DROPOUTS)
            raise ConfigError(explain("dropout", repr(dropout), "what to do with random masks", advice))
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(explain("max_grad_norm", max_grad_norm, "a norm > 0", "use 1.0, or None for no limit"))
        method, schedule, psf = method or Part(), schedule or EveryStep(), psf or PSF(gamma=0)
        refuse_idle_options(method, schedule, psf, perturbation, perturbed_roles, dropout)
        super().__init__(params, base_optimizer, base_options, {KEY: rho}, {KEY: KEY_BESIDE_ANOTHER})
        self.model = model
        self.method = method
        self.schedule = schedule
        self.psf = psf
        self.perturbation = build_perturbation(perturbation, perturbed_roles)
        self.monitor = Monitor(policy(nonfinite, grad_scaler), check_every)
        self.witness = Witness()
        self.dropout = dropout
        self.loss_scale = LossScale(grad_scaler) if scales(grad_scaler) else None
        self.ranks = Ranks(perturbation_sync)
        self.max_grad_norm = max_grad_norm
        self.steps = 0
        self.forwards = 0
        self.gradient_evaluations = 0.0
        self.skipped = 0
        self.stopped = False
        self.last_share = 0.0
        self._gradient_hooks: OrderedDict[int, Callable[[Optimizer], None]] = OrderedDict()
        for group in self.param_groups:
            refuse_radius(group, self._radius_key, rho, self.displaces(group))
        if self.method.perturbs:
            self.perturbation.check(self.param_groups, model)
        self._meet_ranks()
        if model is None:
            logger.info("%s without model=: nothing is held still in second passes", type(self).__name__)

    @classmethod
    def derive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of the class, those of its own that follow from others in place of None; see `write_out`."""
        return dict(options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for any optimizer."""
        if "perturbation" in self.__dict__:
            refuse_radius(param_group, self._radius_key, radius_of(self.defaults), self.displaces(param_group))
        super().add_param_group(param_group)

    def register_gradient_hook(self, hook: Callable[[Optimizer], None]) -> RemovableHandle:
        """Have `hook(optimizer)` called before each step, when `.grad` holds the gradients it is made with.

        This is the place to clip, to log or to change them. Clipping by `max_grad_norm` comes before. As with
        torch's own hooks of optimizers, a copy or a pickle of the optimizer has none.

        Returns:
            A handle whose `remove()` takes the hook off.
        """
        handle = RemovableHandle(self._gradient_hooks)
        self._gradient_hooks[handle.id] = hook
        return handle

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[..., Any] | None = None, batch_size: int | None = None
    ) -> Tensor:
        """One step.

        Args:
            closure: Zeroes the gradients, computes the mean loss, calls backward, returns the loss, or
                (loss, weight) where rows do not weigh alike. Called once or more. With `batch_size` it must
                take `rows`, a slice of the batch; called without, it means the whole batch.
            batch_size: Rows of the batch. Without it each second gradient is taken on the whole batch.

        Returns:
            The loss of the whole batch at w (0-dim, detached).

        Raises:
            InputError: No closure, or one that does not fit.
            NonFiniteError: By the policy `nonfinite`.
        """
        refuse_step_of_a_scaler(self)
        if closure is None:
            return step_without_closure(self)
        self._meet_ranks()
        if not self.steps:
            forget(self.state)
        smallest = getattr(closure, "smallest_part", 2)
        size = batch_size if self.method.cuts else None
        rows = Rows.cut(size, self.schedule.share, smallest, self.ranks.several)
        rate = self._schedule_rate()
        willing = not self.method.perturbs or any(radius_of(group) for group in self.param_groups)
        passes = StepPasses(self, closure, batch_size)
        if willing and not self.stopped and self.schedule.pays(rows.share, rate):
            rows.check(closure)
            outcome = self.method(passes, rows)
        else:
            plain = passes.plain()
            outcome = Outcome(plain.loss, plain.gradients)
        paid = self.method.cost_of_payment(rows.share) if self.ranks.several and outcome.paid else outcome.paid
        self._apply(outcome, passes)
        self.steps += 1
        self.forwards += passes.forwards
        self.gradient_evaluations += passes.evaluations
        self.last_share = paid
        if self.schedule.wants_measurements:
            self._read_measurements()
        self.schedule.advance(paid, rate, passes.gradient_norm)
        return outcome.loss

    def declared_cost(self) -> tuple[float, float]:
        """Least and most gradient evaluations a step, on average over a run. Differ where the training decides."""
        cost = self.method.cost_of_payment(self.schedule.share)
        least, most = self.schedule.declared_rate()
        return 1 + least * cost, 1 + most * cost

    def displaces(self, group: Mapping[str, Any]) -> bool:
        """Whether the parameters of a group are displaced at all."""
        return self.method.perturbs and self.perturbation.moves(group)

    def pays_at(self, gradient_norm: float | None) -> bool:
        """Whether a schedule that looks at the gradient pays, given its norm."""
        return self.schedule.pays(self.schedule.share, self._schedule_rate(), gradient_norm)

    def statistics(self) -> dict[str, float]:
        """Figures of the last step, as numbers. Beside `state_dict` the only call that waits for the device.

        `gradient_norm` is that of the gradient of the step before clipping, `psf_norm` |h| of the last
        second gradient (NaN before the first, and where the method has no h), `share` the part of the batch
        that the last step's second gradient was taken on (0: none), `rate` the schedule's present rate of
        payments.
        """
        self.witness.read()
        return {**self.monitor.read_norms(), "share": self.last_share, **self.schedule.statistics()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._gradient_hooks = OrderedDict()

    def extra_state(self) -> dict[str, Any]:
        """Counters, the last norms, the age of the PSF (h itself is per parameter) and the schedule's state.

        Raises:
            NonFiniteError: A gradient since the last look was not finite, under the policy "raise".
        """
        self.monitor.check(self.steps)
        self.witness.read()
        self._read_measurements()
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "psf_age": self.psf.age,
            "norms": self.monitor.read_norms(),
            "schedule": self.schedule.state_dict(),
        }

    def check_extra_state(self, extra: dict[str, Any]) -> None:
        """Raise CheckpointError if the state is of another schedule."""
        self.schedule.check_state(extra["schedule"])

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Take over what `extra_state` gave."""
        self.schedule.load_state_dict(extra["schedule"])
        for name in _COUNTERS:
            setattr(self, name, extra[name])
        self.psf.age = extra["psf_age"]
        self.psf.restore_dtype(self.state)
        self.monitor.load_norms(extra["norms"])

    def _schedule_rate(self) -> float:
        """The learning rate for the schedule; any number where it does not matter, for reading one may wait."""
        return max(float(g["lr"]) for g in self.param_groups) if self.schedule.uses_learning_rate else 1.0

    @property
    def _radius_key(self) -> str:
        return KEY_BESIDE_ANOTHER if KEY_BESIDE_ANOTHER in self.defaults else KEY

    def _meet_ranks(self) -> None:
        offsets = self.method.perturbs and isinstance(self.perturbation.place, BehindQuantizer)
        self.ranks.meet(self.model, list(self.parameters()), offsets)
        self.ranks.gather_again()

    def _apply(self, outcome: Outcome, passes: StepPasses) -> None:
        gradients = outcome.gradients
        if not outcome.paid and self.method.perturbs:
            gradients = self.psf.added_to(self.state, gradients)
        norm = global_norm(list(gradients.values()))
        accepted = self._accepts(norm, passes)
        if self.stopped or not accepted:
            self.skipped += 1
            self.stopped = self.stopped or self.monitor.nonfinite == "stop"
            return
        for parameter in self.parameters():
            parameter.grad = gradients.get(parameter)
        prepared = None if outcome.psf is None else self._prepare_psf(outcome, passes)
        self._finish_gradients(norm)
        direction = self.perturbation.direction
        memory = direction.next_memory(self.state, passes.slopes if direction.remembers == "slopes" else gradients)
        self.base.step()
        self.monitor.note("gradient_norm", norm)
        # After the base's step only, and not for parameters that it was given no gradient of: optimizers take a
        # state that is not empty for one of their own.
        direction.keep(self.state, {p: kept for p, kept in memory.items() if p in gradients})
        for parameter in memory:
            if parameter.grad is memory[parameter]:
                parameter.grad = None
        if prepared is None:
            self.psf.grow_older()
        else:
            self.psf.keep(self.state, prepared)
        if self.method.uses_first:
            self.psf.begin(self.state, gradients)

    def _accepts(self, norm: Tensor, passes: StepPasses) -> bool:
        if self.loss_scale is None:
            return self.monitor.accepts(norm, self.steps)
        if self.ranks.apart:
            # An overflow of one rank's own first gradient is everybody's.
            self.ranks.average(passes.norms)
        return self.loss_scale.accepts([*passes.norms, norm])

    def _prepare_psf(self, outcome: Outcome, passes: StepPasses) -> Gradients:
        psf = {p: h for p, h in (outcome.psf or {}).items() if p in outcome.gradients}
        self.monitor.note("psf_norm", global_norm(list(psf.values())))
        if passes.measured_norm is not None:
            self.monitor.measure(self.measured(psf), passes.measured_norm)
        return self.psf.prepare(psf, outcome.gradients)

    def _finish_gradients(self, norm: Tensor) -> None:
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(list(self.parameters()), self.max_grad_norm, norm)
        for hook in self._gradient_hooks.values():
            hook(self)

    def measured(self, gradients: Gradients) -> Tensor:
        """The norm over the schedule's last tensors: in model order, of role weight where there are roles."""
        has_roles = any("role" in group for group in self.param_groups)
        own = {p for g in self.param_groups if not has_roles or g.get("role") == "weight" for p in g["params"]}
        ordered: Iterable[Tensor] = self.parameters() if self.model is None else self.model.parameters()
        last = [parameter for parameter in ordered if parameter in own][-(self.schedule.norm_tensors or 0) :]
        return global_norm([gradients[parameter] for parameter in last if parameter in gradients])

    def _read_measurements(self) -> None:
        for psf_norm, gradient_norm in self.monitor.read_measurements():
            self.schedule.measure(psf_norm, gradient_norm)
