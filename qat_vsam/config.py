"""The schema of a recipe file: what a run is, said once, checked before anything starts.

A recipe is a YAML file read by `load_recipe`; a comparison is a recipe plus `arms` and `seeds`, read by
`load_comparison`. Every mistake is a `ConfigError` that names the key, the value, the rule and what to do.
Nothing here imports torch: `qat-vsam ls` and `--help` stay quick.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from qat_vsam.arm_checks import check_arms
from qat_vsam.errors import ConfigError, explain
from qat_vsam.recipe_file import dump_yaml, find_config, fingerprint, read_recipe_file, read_yaml, shipped_configs
from qat_vsam.sections import (
    DataSection,
    ModelSection,
    Name,
    OptimizerSection,
    Positive,
    QuantSection,
    Section,
    TrainSection,
)
from qat_vsam.validation import validate

__all__ = [
    "BenchSection",
    "Comparison",
    "DataSection",
    "ModelSection",
    "OptimizerSection",
    "QuantSection",
    "Recipe",
    "Section",
    "TrainSection",
    "TuneSection",
    "dump_yaml",
    "find_config",
    "fingerprint",
    "is_comparison",
    "load_comparison",
    "load_recipe",
    "merge",
    "parse_overrides",
    "read_recipe_file",
    "read_yaml",
    "recipe_from",
    "shipped_configs",
]


ExportFormat: TypeAlias = Literal["onnx", "packed", "qonnx"]


class Recipe(Section):
    """One run."""

    name: Name
    label: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "cpu"
    threads: Annotated[int, Field(ge=1)] | None = None
    amp: Literal["bf16"] | None = None
    model: ModelSection
    data: DataSection
    quant: QuantSection | None = None
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    export: list[ExportFormat] = Field(default_factory=list)
    init_from: str | None = None

    @property
    def precision(self) -> str:
        """`float32`, or the bits of the quantized network."""
        return self.quant.bits if self.quant else "float32"


class BenchSection(Section):
    """The interleaved timing of the arms: `repeats` rounds, each arm's a run of `steps` training steps.

    Six rounds are the fewest that give the median an interval of 95 %.
    """

    repeats: Annotated[int, Field(ge=6)] = 30
    steps: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=2)] | None = None


class TuneSection(Section):
    """Settings chosen before the final runs: of each arm the one of best mean validation accuracy.

    `seeds` counts the seeds of a trial, which are none of the final runs'. `grids` gives an arm the values to try of
    each dotted key; `same_as` gives an arm what was chosen for another, and under it an arm's own grid is tried:
    learning rate and weight decay for SGD, say, and then a radius for each method that has one.
    """

    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    grids: Annotated[dict[Name, dict[str, Annotated[list[Any], Field(min_length=1)]]], Field(min_length=1)]
    same_as: dict[Name, Name] = Field(default_factory=dict)

    def source(self, arm: str) -> str | None:
        """The arm whose trials decide about `arm`; None where its settings stand as written."""
        source = arm if arm in self.grids else self.same_as.get(arm)
        return source if source in self.grids else None

    def settings(self, arm: str) -> list[dict[str, Any]]:
        """What is tried for an arm that has a grid: the product of its values, by dotted key."""
        grid = self.grids[arm]
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def trials(self, arm: str) -> int:
        """The runs that trying them takes."""
        return len(self.settings(arm)) * self.seeds


class Comparison(Section):
    """A grid: one recipe, changed arm by arm, over the same seeds.

    An arm may say its `role` in the report: `sgd`, `sam` or `split_sgd` make it the one of its precision that the
    others are measured against, `vsam` puts it into the headline, `other` keeps it out of both. Without it the arms
    named PRECISION-sgd, PRECISION-sam and PRECISION-split are the references, whatever else uses those optimizers.

    `question` is the one sentence that the study answers. `margin`, in points of accuracy, is how far from SAM still
    counts as equal; null: a fifth of SAM's gain. `fitted` says that a default was chosen on this study's tasks, so that
    it cannot speak for the default on others. `command` is what repeats it; `compare` writes it down.
    """

    name: Name
    title: str
    description: str = ""
    question: str = ""
    margin: Positive | None = None
    fitted: bool = False
    command: str = ""
    notes: list[str] = Field(default_factory=list)
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    workers: Annotated[int, Field(ge=1)] = 2
    recipe: dict[str, Any]
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    tune: TuneSection | None = None
    bench: BenchSection | None = BenchSection()

    @property
    def roles(self) -> dict[str, str]:
        """Arm -> role, of the arms that say it."""
        return {arm: change["role"] for arm, change in self.arms.items() if change.get("role") is not None}

    def arm(self, arm: str, seed: int, settings: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of one arm and seed; only the first seed is exported.

        Its images are drawn by the same seed, unless the recipe or the arm gives a number for `data.seed`.

        Args:
            arm: its name.
            seed: of the run.
            settings: put over the arm, by dotted key.

        Raises:
            ConfigError: the arm, or a setting, is no recipe.
        """
        change = {key: value for key, value in self.arms[arm].items() if key != "role"}
        for key, value in (settings or {}).items():
            change = merge(change, _nested(key, value))
        merged = merge(self.recipe, change)
        merged |= {"name": f"{self.name}-{arm}", "seed": seed, "label": merged.get("label", arm)}
        data = merged.get("data")
        if isinstance(data, Mapping) and data.get("seed") is None:
            merged["data"] = {**data, "seed": seed}
        if seed > 0:
            merged["export"] = []
        return validate(Recipe, merged, prefix=("arms", arm))


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `change` put over it, mapping by mapping.

    An `optimizer` of another `name` brings its own options: those of the old one do not fit it.

    Example:
        >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if key == "optimizer" and value.get("name", old.get("name")) != old.get("name"):
                old = {k: v for k, v in old.items() if k in OptimizerSection.model_fields}
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["a.b=1e-3"]` as a nested mapping; values are read as YAML scalars or flow collections.

    Example:
        >>> parse_overrides(["optimizer.lr=1e-3", "quant=null"])
        {'optimizer': {'lr': 0.001}, 'quant': None}
    """
    result: dict[str, Any] = {}
    for item in overrides:
        key, separator, text = item.partition("=")
        parts = key.split(".")
        if not separator or not all(parts):
            raise ConfigError(explain("override", repr(item), "KEY=VALUE", "write for example train.epochs=3"))
        value: Any = read_yaml(f"value: {text}", f"override {key}").get("value")
        result = merge(result, _nested(key, value))
    return result


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    content: dict[str, Any] = value
    return content


def is_comparison(content: Mapping[str, Any]) -> bool:
    """Whether a parsed file is a grid of arms rather than one recipe."""
    return "arms" in content


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check one recipe.

    Raises:
        ConfigError: the file or an override is wrong; the message names the key.
    """
    content = merge(read_recipe_file(path), parse_overrides(overrides))
    if is_comparison(content):
        raise ConfigError(explain(str(path), "a comparison (it has arms)", "one recipe", "use `qat-vsam compare`"))
    return validate(Recipe, content)


def load_comparison(path: Path, overrides: Iterable[str] = ()) -> Comparison:
    """Read and check a comparison with all its arms.

    Raises:
        ConfigError: the file, an arm or an override is wrong; the message names the key.
    """
    changes = parse_overrides(overrides)
    content = merge(read_recipe_file(path), changes)
    if not is_comparison(content):
        raise ConfigError(explain(str(path), "one recipe (no arms)", "a comparison", "use `qat-vsam train`"))
    misplaced = [key for key in changes if key in Recipe.model_fields and key not in Comparison.model_fields]
    if misplaced:
        advice = f"write recipe.{misplaced[0]} in place of {misplaced[0]}"
        raise ConfigError(explain(misplaced[0], "a key of one run", "a key of the comparison", advice))
    comparison = validate(Comparison, content)
    check_arms(comparison)
    return comparison


def recipe_from(content: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Check a recipe given as plain values.

    Raises:
        ConfigError: a value or an override is wrong; the message names the key.
    """
    return validate(Recipe, merge(content, parse_overrides(overrides)))
