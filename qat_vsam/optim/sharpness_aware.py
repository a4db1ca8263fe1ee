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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from qat_vsam.errors import ConfigError, InputError, did_you_mean, explain
from qat_vsam.optim.gradients import Gradients, global_norm, take
from qat_vsam.optim.methods import Evaluation, Method, Outcome, Rows
from qat_vsam.optim.monitor import Monitor
from qat_vsam.optim.perturbation import Perturbation, Point, build_perturbation
from qat_vsam.optim.psf import PSF
from qat_vsam.optim.schedule import Schedule
from qat_vsam.optim.stillness import RandomState, standing_still
from qat_vsam.optim.wrapper import OptimizerWrapper

logger = logging.getLogger(__name__)

_DROPOUTS = ("keep", "redraw")
_COUNTERS = ("steps", "forwards", "gradient_evaluations", "skipped", "last_share")


class SharpnessAware(OptimizerWrapper):
    r"""A `torch.optim.Optimizer` around another: that makes the step, this one says with which gradient.

    Args:
        params: Parameters or groups, as for any optimizer. A group may carry `role` (a group with one is
            perturbed only if `perturbed_roles` names it) and `rho`.
        base_optimizer: Class of the optimizer that makes the step, built with `base_options`.
        method, schedule, psf: See the modules `methods`, `schedule`, `psf`.
        model: The network. Tells which modules must stand still in the second pass (batch norms, modules with
            `updates_state`) and which layers take a `weight_offset`. Needed only if it has such modules.
        perturbation: "euclidean", "post_quantizer" or a `Perturbation`.
        perturbed_roles: Roles perturbed where groups have roles.
        rho: Radius of the perturbation; groups may override it. Where all are 0 the step is the base
            optimizer's.
        dropout: "keep" draws the same random numbers in both passes, so that h measures curvature and not two
            masks; "redraw" lets the generators run on.
        nonfinite: What a NaN or infinite gradient does. "raise": NonFiniteError before the step is made.
            "skip": the step is left out and counted in `skipped`; costs a host synchronisation each step.
            "ignore": nothing.
        check_every: With "raise", steps between two looks (one synchronisation each). Default: 1 on the
            CPU, where looking costs nothing, 100 elsewhere; saving looks in any case, so a poisoned state
            is never saved.
        base_options: Arguments of the base optimizer (lr, momentum, ...).

    Attributes:
        gradient_evaluations: Gradients taken so far, each weighted by its share of the batch.
        forwards: Closure calls so far.
        steps: Steps so far, `skipped` included.

    Raises:
        InputError: The base optimizer needs a closure of its own, or the perturbation does not fit the model.
        ConfigError: An option is unknown or out of range.
    """

    _copied = (
        "base",
        "model",
        "method",
        "schedule",
        "psf",
        "perturbation",
        "monitor",
        "dropout",
        *_COUNTERS,
    )

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        *,
        method: Method,
        schedule: Schedule,
        psf: PSF,
        model: nn.Module | None = None,
        perturbation: str | Perturbation = "euclidean",
        perturbed_roles: Sequence[str] = ("weight",),
        rho: float = 0.05,
        dropout: str = "keep",
        nonfinite: str = "raise",
        check_every: int | None = None,
        base_options: dict[str, Any],
    ) -> None:
        if not rho >= 0:
            raise ConfigError(explain("rho", rho, "a radius >= 0", "use 0.05"))
        if dropout not in _DROPOUTS:
            advice = did_you_mean(str(dropout), _DROPOUTS)
            raise ConfigError(explain("dropout", repr(dropout), "what to do with random masks", advice))
        super().__init__(params, base_optimizer, base_options, {"rho": rho})
        self.model = model
        self.method = method
        self.schedule = schedule
        self.psf = psf
        self.perturbation = build_perturbation(perturbation, perturbed_roles)
        self.monitor = Monitor(nonfinite, check_every)
        self.dropout = dropout
        self.steps = 0
        self.forwards = 0
        self.gradient_evaluations = 0.0
        self.skipped = 0
        self.last_share = 0.0
        if method.perturbs:
            self.perturbation.check(self.param_groups, model)
        if model is None:
            logger.info("%s without model=: nothing is held still in second passes", type(self).__name__)

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
        if closure is None:
            raise InputError(
                explain(
                    "step()",
                    "no closure",
                    "a function that zeroes the gradients, computes the loss, calls backward and returns it",
                    "pass step(closure): the gradient at displaced weights is computed inside the step",
                )
            )
        rows = Rows.cut(batch_size, self.schedule.share)
        rate = max(float(g["lr"]) for g in self.param_groups) if self.schedule.uses_learning_rate else 1.0
        willing = not self.method.perturbs or any(group["rho"] for group in self.param_groups)
        pays = willing and self.schedule.pays(rows.share, rate)
        passes = Passes(self, closure, batch_size)
        if pays:
            rows.check(closure)
            outcome = self.method(passes, rows)
        else:
            plain = passes.at_weights(None)
            outcome = Outcome(plain.loss, self.psf.added_to(self.state, plain.gradients))
        self._apply(outcome, passes)
        self.steps += 1
        self.forwards += passes.forwards
        self.gradient_evaluations += passes.evaluations
        self.last_share = rows.share if pays and self.method.perturbs else 0.0
        if self.schedule.wants_measurements:
            self._read_measurements()
        self.schedule.advance(self.last_share, rate)
        return outcome.loss

    def statistics(self) -> dict[str, float]:
        """Figures of the last step, as numbers. Beside `state_dict` the only call that waits for the device.

        `gradient_norm` is that of the gradient which the base optimizer got, `psf_norm` |h| of the last
        second gradient (NaN before the first, and where the method has no h), `share` the part of the batch
        that the last step's second gradient was taken on (0: none), `rate` the schedule's present rate of
        payments.
        """
        return {**self.monitor.read_norms(), "share": self.last_share, **self.schedule.statistics()}

    def extra_state(self) -> dict[str, Any]:
        """Counters, the last norms, the age of the PSF (h itself is per parameter) and the schedule's state.

        Raises:
            NonFiniteError: A gradient since the last look was not finite, under the policy "raise".
        """
        self.monitor.check(self.steps)
        self._read_measurements()
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "psf_age": self.psf.age,
            "norms": self.monitor.read_norms(),
            "schedule": self.schedule.state_dict(),
        }

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Take over what `extra_state` gave."""
        self.schedule.load_state_dict(extra["schedule"])
        for name in _COUNTERS:
            setattr(self, name, extra[name])
        self.psf.age = extra["psf_age"]
        self.monitor.load_norms(extra["norms"])

    def _apply(self, outcome: Outcome, passes: Passes) -> None:
        norm = global_norm(list(outcome.gradients.values()))
        if not self.monitor.accepts(norm, self.steps):
            self.skipped += 1
            return
        for parameter in self.parameters():
            parameter.grad = outcome.gradients.get(parameter)
        self.base.step()
        self.monitor.note("gradient_norm", norm)
        if outcome.psf is None:
            self.psf.grow_older()
            return
        self.monitor.note("psf_norm", global_norm(list(outcome.psf.values())))
        if passes.measured_norm is not None:
            self.monitor.measure(self.measured(outcome.psf), passes.measured_norm)
        self.psf.keep(self.state, outcome.psf)

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


class Passes:
    """The evaluations of one step, counted. Weights, and what must stand still, are left as they were."""

    def __init__(self, optimizer: SharpnessAware, closure: Callable[..., Any], batch_size: int | None) -> None:
        self.optimizer = optimizer
        self.closure = closure
        self.batch_size = batch_size
        self.forwards = 0
        self.evaluations = 0.0
        self.measured_norm: Tensor | None = None

    def at_weights(self, rows: slice | None, moves_statistics: bool = True) -> Evaluation:
        """Loss and gradients at w on these rows (None: the whole batch)."""
        with nullcontext() if moves_statistics else standing_still(self.optimizer.model):
            return self._evaluate(rows)

    def ascend(
        self, rows: slice | None, rows_displaced: slice | None, moves_statistics: bool = True
    ) -> tuple[Evaluation, Evaluation]:
        """At w on `rows`, then at w + e on `rows_displaced`, where e lies along the first gradient."""
        optimizer = self.optimizer
        # Masks can only be the same where the rows are.
        keep = optimizer.dropout == "keep" and rows == rows_displaced
        random = RandomState(optimizer.parameters()) if keep else None
        with optimizer.perturbation.points(optimizer.param_groups, optimizer.model) as points:
            offsets = [point.tensor for point in points if point.temporary]
            with nullcontext() if moves_statistics else standing_still(optimizer.model):
                first = self._evaluate(rows, offsets)
            if optimizer.schedule.norm_tensors is not None:
                self.measured_norm = optimizer.measured(first.gradients)
            slopes = first.gradients if not offsets else take(offsets)
            for offset in offsets:
                offset.requires_grad_(False)
            with (
                _displaced(optimizer.perturbation.displacements(points, slopes)),
                standing_still(optimizer.model),
                random.replayed() if random is not None else nullcontext(),
            ):
                second = self._evaluate(rows_displaced)
        return first, second

    def _evaluate(self, rows: slice | None, offsets: Sequence[Tensor] = ()) -> Evaluation:
        for tensor in self.optimizer.parameters():
            tensor.grad = None
        with torch.enable_grad():
            result = self.closure() if rows is None else self.closure(rows)
        self.forwards += 1
        self.evaluations += 1.0 if rows is None or not self.batch_size else _rows_in(rows) / self.batch_size
        loss, weight = result if isinstance(result, tuple) else (result, None)
        if not isinstance(loss, Tensor | float | int):
            raise InputError(explain("closure", f"{loss!r} returned", "the loss", "end the closure with return loss"))
        gradients = take(self.optimizer.parameters())
        return Evaluation(torch.as_tensor(loss).detach(), weight, gradients)


def _rows_in(rows: slice) -> int:
    return int(rows.stop - rows.start)


@contextmanager
def _displaced(displacements: dict[Point, Tensor]) -> Iterator[None]:
    """Within the context the points stand at their value + e; afterwards exactly at their value again."""
    if not displacements:
        yield
        return
    tensors = [point.tensor for point in displacements]
    lasting = [point.tensor for point in displacements if not point.temporary]
    kept = [torch.empty_like(tensor) for tensor in lasting]
    if kept:
        torch._foreach_copy_(kept, lasting)
    try:
        torch._foreach_add_(tensors, list(displacements.values()))
        # e is as large as the weights; the second pass needs that memory.
        displacements.clear()
        yield
    finally:
        if kept:
            torch._foreach_copy_(lasting, kept)
