"""What a recipe's optimizer is written out to: complete, stable, and the very optimizer that runs."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qat_vsam import config
from qat_vsam.config import OptimizerSection, Recipe
from qat_vsam.errors import ConfigError
from qat_vsam.optim import FAMILY, SharpnessAware, options_of
from qat_vsam.quant import QuantSpec, calibrate, param_groups, prepare
from qat_vsam.recipes.optimizers import (
    build_optimizer,
    describe_optimizer,
    evaluations_per_step,
    in_miniature,
    list_optimizers,
    resolve_optimizer,
)

STEPS_PER_EPOCH, EPOCHS, BATCH = 4, 8, 12
BASE: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "model": {"name": "digits_cnn", "options": {"width": 4}},
    "data": {"name": "digits", "train_size": 100, "batch_size": 20},
    "quant": {"bits": "w4a4"},
    "train": {"epochs": EPOCHS},
}
NEEDED: dict[str, dict[str, Any]] = {"random_count_sam": {"fraction": 0.3}}
MEMBERS = {name: NEEDED.get(name, {}) for name in FAMILY}


def recipe_of(optimizer: dict[str, Any], **changes: Any) -> Recipe:
    return config.recipe_from(config.merge(BASE, {"optimizer": optimizer, **changes}))


def network(quantized: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    if quantized:
        prepare(model, QuantSpec.preset("w4a4"))
        calibrate(model, [torch.randn(64, 5)])
    return model


def as_it_ran(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer straight from the options as written, and what a run adds to them."""
    section = recipe.optimizer
    groups = param_groups(model, weight_decay=section.weight_decay)
    for group in groups:
        if group.get("role") == "step_size":
            group["lr"] = section.lr * section.step_size_lr_factor
    base: dict[str, Any] = {"lr": section.lr}
    if section.base == "sgd":
        momentum = 0.9 if section.momentum is None else section.momentum
        base |= {"momentum": momentum, "nesterov": bool(section.nesterov)}
    kind = torch.optim.SGD if section.base == "sgd" else torch.optim.AdamW
    if section.name == "sgd":
        return kind(groups, **base)
    given = section.options
    run = {"total_steps": STEPS_PER_EPOCH * recipe.train.epochs, "seed": recipe.seed}
    run["warmup_steps"] = round(given.pop("warmup_epochs", 3) * STEPS_PER_EPOCH)
    if section.name == "vsam" and given.get("spend") != "early":
        del run["total_steps"]
    taken = inspect.signature(FAMILY[section.name]).parameters
    return FAMILY[section.name](groups, kind, model=model, **base, **{k: run[k] for k in run if k in taken} | given)


def printed(recipe: Recipe) -> Recipe:
    """The recipe again, from its resolved options as they stand in a result."""
    section = resolve_optimizer(recipe.optimizer, recipe.seed)
    text = json.dumps(section.model_dump(mode="json", exclude={"name"}), allow_nan=False)
    content = json.loads(recipe.model_dump_json(exclude={"optimizer"}))
    return config.recipe_from(content | {"optimizer": {"name": section.name, **json.loads(text)}})


def parts_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    parts = {"class": type(optimizer), "defaults": optimizer.defaults, "groups": groups}
    if isinstance(optimizer, SharpnessAware):
        places = ("place", "scale", "direction", "radius")
        components = {name: getattr(optimizer.perturbation, name) for name in places} | {
            name: getattr(optimizer, name) for name in ("method", "schedule", "psf", "monitor", "ranks")
        }
        parts |= {name: (type(part), repr(vars(part))) for name, part in components.items()}
        parts |= {"roles": optimizer.perturbation.roles, "base": type(optimizer.base)}
        parts |= {"dropout": optimizer.dropout, "max_grad_norm": optimizer.max_grad_norm}
    return parts


def trained(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """The weights after 30 steps."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, BATCH, 5, generator=generator), torch.randint(0, 3, (5, BATCH), generator=generator)
    rows_too = getattr(getattr(optimizer, "method", None), "needs_row_losses", False)
    for turn in range(30):

        def closure(rows: Any = slice(None), backward: bool = True, turn: int = turn) -> Any:
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(x[turn % 5][rows]), y[turn % 5][rows], reduction="none")
            if backward:
                losses.mean().backward()
            return (losses.mean(), losses.detach()) if rows_too else losses.mean()

        optimizer.step(closure, **({"batch_size": BATCH} if isinstance(optimizer, SharpnessAware) else {}))
    return [value.detach().clone() for value in model.state_dict().values()]


def assert_the_printed_options_rebuild_it(recipe: Recipe) -> None:
    models = [network(recipe.quant is not None) for _ in range(3)]
    ran = as_it_ran(recipe, models[0])
    unresolved = build_optimizer(recipe, models[1], STEPS_PER_EPOCH)
    rebuilt = build_optimizer(printed(recipe), models[2], STEPS_PER_EPOCH)
    assert parts_of(ran) == parts_of(unresolved) == parts_of(rebuilt)
    assert describe_optimizer(ran) == describe_optimizer(rebuilt)
    start = [value.clone() for value in models[0].state_dict().values()]
    first, *others = (trained(model, o) for model, o in zip(models, (ran, unresolved, rebuilt), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(start, first, strict=True))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def shipped_arms() -> Iterator[Any]:
    """Every kind of optimizer in the shipped comparisons, once."""
    seen = set()
    for name, path in sorted(config.shipped_configs().items()):
        content = config.read_recipe_file(path)
        if not name.startswith(("optimizers/", "where-sam-pays/", "digits")) or not config.is_comparison(content):
            continue
        comparison = config.load_comparison(path)
        for arm in comparison.arms:
            recipe = comparison.arm(arm, 3)
            same = {"lr", "weight_decay", "step_size_lr_factor"}
            key = (recipe.optimizer.model_dump_json(exclude=same), recipe.quant is None)
            if recipe.train.epochs and key not in seen:
                seen.add(key)
                yield pytest.param(recipe, id=f"{name}-{arm}")


ARMS = list(shipped_arms())


def test_there_are_twenty_arms_and_more_of_all_kinds() -> None:
    assert len(ARMS) >= 20
    assert {"sgd", "sam", "vsam", "vsam_paper", "split_sgd"} <= {param.values[0].optimizer.name for param in ARMS}


@pytest.mark.parametrize("recipe", ARMS)
def test_printed_options_rebuild_the_optimizer_of_a_shipped_arm(recipe: Recipe) -> None:
    assert_the_printed_options_rebuild_it(recipe)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("name", list_optimizers())
def test_printed_options_rebuild_every_member(name: str, base: str) -> None:
    options = {} if name == "sgd" else MEMBERS[name]
    assert_the_printed_options_rebuild_it(recipe_of({"name": name, "base": base, "lr": 0.02, **options}))


SECTIONS = [{"name": "sgd"}, *({"name": name, **options} for name, options in MEMBERS.items())]
VARIED: list[dict[str, Any]] = [
    {"name": "vsam", "interval": 3, "share": 0.5, "reuse": 0.7, "psf_dtype": "bfloat16"},
    {"name": "vsam", "spend": "early", "share": 0.5},
    {"name": "vsam", "method": "interval", "interval": 4},
    {"name": "vsam", "method": "ascend_part", "gradient_budget": 1.25, "largest_rise": None},
    {"name": "vsam", "perturbation": "loss_increase", "largest_rise": None, "perturbed_roles": ["weight", "bias"]},
    {"name": "vsam_paper", "warmup_epochs": 0.5, "gains": [0.5, 0.01], "window": 10, "seed": 9},
    {"name": "vsam_paper", "warmup_steps": 7, "bias": "log", "reuse": 0},
    {"name": "le_sam", "total_steps": None, "largest": 0.1},
    {"name": "sam", "nonfinite": "ignore", "max_grad_norm": 0.5, "dropout": "redraw"},
    {"name": "random_count_sam", "count": 5, "seed": 2},
]


@pytest.mark.parametrize("optimizer", VARIED, ids=str)
def test_printed_options_rebuild_what_was_chosen(optimizer: dict[str, Any]) -> None:
    assert_the_printed_options_rebuild_it(recipe_of({"lr": 0.05, "nesterov": True, **optimizer}))


@pytest.mark.parametrize(
    "optimizer", [*({"name": n, **o} for n, o in MEMBERS.items()), {"name": "sgd"}, *VARIED], ids=str
)
def test_a_resolved_section_is_complete_and_resolves_to_itself(optimizer: dict[str, Any]) -> None:
    section = OptimizerSection.model_validate(optimizer)
    resolved = resolve_optimizer(section)
    assert resolve_optimizer(resolved) == resolved
    seeded = resolve_optimizer(section, seed=3)
    assert resolve_optimizer(seeded) == seeded == resolve_optimizer(resolved, seed=3)
    assert {key: resolved.model_dump()[key] for key in optimizer} == optimizer
    if section.name == "sgd":
        assert resolved.options == {}
        return
    of_the_run = {"total_steps", "warmup_steps", "seed"}
    expected = set(options_of(FAMILY[section.name])) - {"model", "uniform", "grad_scaler"} - of_the_run
    if section.name == "vsam_paper" and "warmup_steps" not in optimizer:
        expected.add("warmup_epochs")
    assert set(resolved.options) == expected | (set(optimizer) & of_the_run)
    assert json.loads(json.dumps(resolved.model_dump(mode="json"))) == resolved.model_dump()


def test_what_follows_from_other_options_is_written_as_a_number() -> None:
    options = resolve_optimizer(OptimizerSection(name="vsam", gradient_budget=1.5)).options  # type: ignore[call-arg]
    assert (options["share"], options["gradient_budget"], options["perturbed_roles"]) == (0.5, 1.5, ["weight"])
    options = resolve_optimizer(OptimizerSection(name="vsam", interval=5)).options  # type: ignore[call-arg]
    assert (options["share"], options["gradient_budget"], options["nonfinite"]) == (0.25, 1.05, "raise")
    resolved = resolve_optimizer(OptimizerSection(name="vsam_paper"))
    assert resolved.options["warmup_epochs"] == 3.0
    assert (resolved.momentum, resolved.nesterov) == (0.9, False)
    adamw = resolve_optimizer(OptimizerSection(name="sam", base="adamw"))
    assert (adamw.momentum, adamw.nesterov) == (None, None)


REFUSED = {
    "old-schedule": ({"name": "vsam", "schedule": "variance"}, "optimizer.schedule", "optimizer.name=vsam_paper"),
    "old-budget": ({"name": "vsam", "schedule": "budget"}, "optimizer.schedule", "leave it out"),
    "constant-of-the-paper": ({"name": "vsam", "window": 20}, "optimizer.window", "optimizer.name=vsam_paper"),
    "old-train-size": ({"name": "vsam", "train_size": 300}, "optimizer.train_size", "an option of vsam"),
    "misspelt": ({"name": "vsam", "gradient_bugdet": 1.2}, "optimizer.gradient_bugdet", "did you mean gradient_budget"),
    "warm-up-twice": (
        {"name": "vsam_paper", "warmup_steps": 3, "warmup_epochs": 1.0},
        "optimizer.warmup_epochs",
        "beside warmup_steps=3",
    ),
    "warm-up-below-zero": ({"name": "vsam_paper", "warmup_epochs": -1}, "optimizer.warmup_epochs", "a number >= 0"),
    "settled": ({"name": "asam", "perturbation": "euclidean"}, "optimizer.perturbation", "asam is made of one"),
    "radius-of-the-control": ({"name": "split_sgd", "rho": 0.1}, "optimizer.rho", "leave it out"),
    "options-of-sgd": ({"name": "sgd", "rho": 0.1}, "optimizer.rho", "an option of sgd"),
    "momentum-of-adamw": ({"name": "sam", "base": "adamw", "momentum": 0.9}, "optimizer.momentum", "momentum=null"),
    "nesterov-of-adamw": ({"name": "sgd", "base": "adamw", "nesterov": True}, "optimizer.nesterov", "nesterov=null"),
    "twice-and-not-alike": ({"name": "vsam", "interval": 3, "gradient_budget": 1.5}, "gradient_budget", "give one"),
    "wrong-kind": ({"name": "vsam", "interval": "often"}, "optimizer vsam", "values of the right kind"),
}


@pytest.mark.parametrize(("optimizer", "key", "advice"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_line(optimizer: dict[str, Any], key: str, advice: str) -> None:
    with pytest.raises(ConfigError) as told:
        resolve_optimizer(OptimizerSection.model_validate(optimizer))
    assert str(told.value).startswith(f"{key}: got ")
    assert advice in str(told.value)
    assert "\n" not in str(told.value)


def derived(optimizer: dict[str, Any], **changes: Any) -> dict[str, Any]:
    recipe = recipe_of(optimizer, **changes)
    built = build_optimizer(recipe, network(recipe.quant is not None), STEPS_PER_EPOCH)
    found = describe_optimizer(built, STEPS_PER_EPOCH * EPOCHS)
    json.dumps(found, allow_nan=False)
    return found


def test_what_an_optimizer_derived_is_told_in_plain_values() -> None:
    found = derived({"name": "vsam", "lr": 0.1, "rho": 0.2, "step_size_lr_factor": 0.1, "weight_decay": 1e-3})
    groups = {group["role"]: group for group in found.pop("groups")}
    assert found == {
        "class": "VSAM",
        "method": "Part",
        "schedule": {
            "class": "BudgetSchedule",
            "share": 0.25,
            "gradient_budget": 1.15,
            "total_steps": None,
            "spend": "evenly",
            "uses_learning_rate": False,
        },
        "share": 0.25,
        "perturbation": {
            "place": {"class": "AtWeights"},
            "scale": {"class": "Unit"},
            "direction": {"class": "Direction"},
            "radius": {"class": "LossBound", "largest_rise": 0.35},
            "roles": ["weight"],
        },
        "psf_reuse": 0.0,
        "total_steps": 32,
        "warmup_steps": None,
        "evaluations_per_step": [1.0 + (1.15 - 1) / 0.25 * 0.25] * 2,
    }
    assert groups["weight"] == {"role": "weight", "parameters": 66, "lr": 0.1, "weight_decay": 1e-3, "rho": 0.2}
    assert groups["step_size"]["lr"] == pytest.approx(0.01)
    assert {role: group["rho"] for role, group in groups.items() if role != "weight"} == dict.fromkeys(
        set(groups) - {"weight"}
    )


def test_what_others_derived_is_told_too() -> None:
    paper = derived({"name": "vsam_paper"})
    assert (paper["class"], paper["warmup_steps"], paper["psf_reuse"]) == ("VSAMPaper", 12, 0.7)
    assert paper["schedule"]["seed"] == 5
    assert derived({"name": "vsam_paper", "warmup_epochs": 0.5})["warmup_steps"] == 2
    assert derived({"name": "vsam", "spend": "early", "share": 0.5})["schedule"]["total_steps"] == 32
    assert derived({"name": "looksam"})["psf_reuse"] == 0.7
    assert derived({"name": "esam"})["share"] == 0.5
    assert derived({"name": "esam"})["perturbation"]["direction"] == {"class": "RandomTensors", "beta": 0.5, "seed": 5}
    assert derived({"name": "msam"})["share"] is None
    split = derived({"name": "split_sgd", "share": 0.5})
    assert (split["share"], split["perturbation"], split["evaluations_per_step"]) == (0.5, None, [1.0, 1.0])
    assert {group["rho"] for group in split["groups"]} == {None}
    for base, kind in (("sgd", "SGD"), ("adamw", "AdamW")):
        plain = derived({"name": "sgd", "base": base}, quant=None)
        assert (plain["class"], plain["schedule"], plain["evaluations_per_step"]) == (kind, None, [1.0, 1.0])
        assert sum(group["parameters"] for group in plain["groups"]) == 91


def test_the_rate_at_the_start_is_told_after_the_run_too() -> None:
    recipe = recipe_of({"name": "sam", "lr": 0.1})
    model = network(True)
    optimizer = build_optimizer(recipe, model, STEPS_PER_EPOCH)
    before = describe_optimizer(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    trained(model, optimizer)
    for _ in range(4):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] < 1e-9
    assert describe_optimizer(optimizer) == before


def test_a_miniature_leaves_the_warm_up_out_and_spends_early_within_its_length() -> None:
    early = in_miniature(OptimizerSection(name="vsam", spend="early", share=0.5), 6)  # type: ignore[call-arg]
    assert early.options["total_steps"] == 6
    assert "total_steps" not in in_miniature(OptimizerSection(name="vsam"), 6).options
    paper = in_miniature(resolve_optimizer(OptimizerSection(name="vsam_paper")), 6)
    assert resolve_optimizer(paper).options["warmup_steps"] == 0


def test_what_a_plan_declares_is_what_the_optimizer_declares() -> None:
    for name, options in MEMBERS.items():
        recipe = recipe_of({"name": name, **options})
        built = build_optimizer(recipe, network(True), STEPS_PER_EPOCH)
        assert isinstance(built, SharpnessAware)
        assert evaluations_per_step(recipe, STEPS_PER_EPOCH) == built.declared_cost()
    assert math.isclose(evaluations_per_step(recipe_of({"name": "vsam"}), 4)[1], 1.15)
    assert evaluations_per_step(recipe_of({"name": "sgd"}), 4) == (1.0, 1.0)
