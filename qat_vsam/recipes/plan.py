"""What a recipe will cost, told without data and without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qat_vsam.config import Comparison, Recipe
from qat_vsam.evaluate import model_size
from qat_vsam.models import build_model
from qat_vsam.quant import prepare
from qat_vsam.recipes import assemble
from qat_vsam.recipes.advice import advice
from qat_vsam.recipes.optimizers import evaluations_per_step

# training images of the datasets whose size is known before they are read, validation included
_KNOWN_SIZES = {"cifar10": 50_000, "cifar100": 50_000}
_DIGITS_DEFAULT = 300


@dataclass(frozen=True)
class Plan:
    """The cost of a run.

    Attributes:
        parameters: of the network.
        float_bytes: of its parameters and buffers in float32.
        packed_bytes: of the low-bit weights, scales and what stays in float.
        steps: of the optimizer, or None where the dataset tells its size only when it is read.
        evaluations_per_step: least and most gradient evaluations a step, weighted by share of the batch.
    """

    parameters: int
    float_bytes: int
    packed_bytes: int
    steps: int | None
    evaluations_per_step: tuple[float, float]

    def lines(self) -> list[str]:
        """As text, a line a fact."""
        low, high = self.evaluations_per_step
        a_step = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        text = [
            f"parameters            {self.parameters:,}",
            f"size                  {self.float_bytes / 1e6:.3f} MB in float32, "
            f"{self.packed_bytes / 1e6:.3f} MB packed",
            f"gradient evaluations  {a_step} a step",
        ]
        if self.steps is not None:
            text.append(f"                      {_range(low * self.steps, high * self.steps)} in {self.steps:,} steps")
        return text


def plan(recipe: Recipe) -> Plan:
    """Build the network, count, and throw it away.

    Raises:
        InputError: a name or option in the recipe is wrong.
    """
    assemble.check_names(recipe)
    model = build_model(recipe.model.name, seed=0, **recipe.model.options)
    before = model_size(model)
    spec = assemble.quant_spec(recipe)
    if spec is not None:
        # where additions are, only data would show; the step sizes of what they read are a few bytes
        prepare(model, replace(spec, residual_adds="float"))
    after = model_size(model)
    steps_per_epoch = _steps_per_epoch(recipe)
    return Plan(
        parameters=before.parameters,
        float_bytes=before.float_bytes,
        packed_bytes=after.packed_bytes,
        steps=None if steps_per_epoch is None else steps_per_epoch * recipe.train.epochs,
        evaluations_per_step=evaluations_per_step(recipe, steps_per_epoch or 1),
    )


def comparison_plan(comparison: Comparison) -> list[str]:
    """What a comparison will cost, as text: each arm's plan, its trials, the sum of all runs, and what is amiss.

    An arm whose settings are chosen by trials is planned with its settings as written.

    Raises:
        InputError: a name or option in an arm is wrong.
    """
    plans = {arm: plan(comparison.arm(arm, 0)) for arm in comparison.arms}
    trials = _trials(comparison)
    text = []
    for arm, own in plans.items():
        seeds = f"[{arm}] x {comparison.seeds} seeds"
        if trials.get(arm):
            seeds += f", after {trials[arm]} runs of trials"
        text += [seeds, *own.lines()]
    runs = {arm: comparison.seeds + trials.get(arm, 0) for arm in plans}
    chosen = sum(trials.values())
    text.append(f"[all] {sum(runs.values()):,} runs" + (f", {chosen:,} of them trials" if chosen else ""))
    if all(own.steps is not None for own in plans.values()):
        low, high = (
            sum(runs[arm] * (own.steps or 0) * own.evaluations_per_step[end] for arm, own in plans.items())
            for end in (0, 1)
        )
        text.append(f"gradients             {_range(low, high)}")
    return text + advice(comparison)


def _trials(comparison: Comparison) -> Mapping[str, int]:
    tune = comparison.tune
    return {} if tune is None else {arm: tune.trials(arm) for arm in tune.grids}


def _range(low: float, high: float) -> str:
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def _steps_per_epoch(recipe: Recipe) -> int | None:
    data = recipe.data
    images = data.train_size
    if images is None and data.name == "digits":
        images = _DIGITS_DEFAULT
    if images is None and data.name in _KNOWN_SIZES:
        images = _KNOWN_SIZES[data.name]
        if data.validation_from == "train":
            images -= images // 10 if data.validation_size is None else data.validation_size
    if images is None:
        return None
    return images // data.batch_size if data.drop_last else -(-images // data.batch_size)
