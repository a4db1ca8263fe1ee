"""Promises of the recipe files: every mistake is one clear line, nothing is executed, nothing blows up."""

from __future__ import annotations

import os
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

from qat_vsam import config
from qat_vsam.errors import ConfigError

MINIMAL = "name: mine\nmodel: {name: digits_cnn}\ndata: {name: digits}\n"
SHIPPED = config.shipped_configs()


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trian.epochs=3", "did you mean train?"),
        ("train.epoch=3", "did you mean epochs?"),
        ("train.epochs=-1", "train.epochs: got -1; expected greater than or equal to 0"),
        ("train.epochs=1.5", "train.epochs: got 1.5; expected a valid integer"),
        ("train.epochs=true", "train.epochs: got True"),
        ("optimizer.name=vsan", "did you mean vsam?"),
        ("optimizer.lr=fast", "optimizer.lr: got 'fast'; expected a valid number"),
        ("optimizer.lr=.nan", "optimizer.lr: got nan"),
        ("name=../elsewhere", "name: got '../elsewhere'"),
        ("model=null", "model: got None"),
        ("quant={}", "quant.bits: got nothing; expected a value; add quant.bits"),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_rule_and_advice(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_recipe(write(tmp_path, MINIMAL), [override])
    assert expected in str(caught.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_recipe(write(tmp_path, MINIMAL), ["train.epochs=x", "seed=-1"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["seed", "train.epochs"]


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    recipe = config.load_recipe(write(tmp_path, MINIMAL + "optimizer: {lr: 1e-3}\n"), ["optimizer.rho=5e-2"])
    assert recipe.optimizer.lr == 0.001
    assert recipe.optimizer.options == {"rho": 0.05}


@pytest.mark.timeout(20)  # an alias bomb would take hours
@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
        "[" * 5000,
        "a: " * 200 + "1",
        "name: one\nname: two",
        "!!python/object/apply:os.system ['touch canary']",
        "name: !unknown x",
        "name: a\0b",
        "x" * 10_000_000,
        "name: [unclosed",
        "- a list",
        "",
    ],
    ids=[
        "aliases",
        "brackets",
        "nesting",
        "duplicate",
        "python-tag",
        "tag",
        "nul",
        "huge",
        "open",
        "list",
        "empty",
    ],
)
def test_hostile_files_are_refused_at_once(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        config.load_recipe(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError):
        config.load_recipe(path)


def test_another_optimizer_does_not_inherit_the_options_of_the_first() -> None:
    base = {"optimizer": {"name": "vsam", "lr": 0.1, "gradient_budget": 1.2}}
    assert config.merge(base, {"optimizer": {"name": "sam"}}) == {"optimizer": {"name": "sam", "lr": 0.1}}


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = config.load_recipe(write(tmp_path, MINIMAL), ["quant.bits=w4a4", "optimizer.rho=0.3"])
    again = config.load_recipe(write(tmp_path, config.dump_yaml(recipe)))
    assert again == recipe
    assert config.fingerprint(again) == config.fingerprint(recipe)
    assert config.fingerprint(recipe) != config.fingerprint(recipe.model_copy(update={"seed": 1}))


def test_a_comparison_may_say_what_it_asks_and_what_counts_as_equal(tmp_path: Path) -> None:
    text = "name: g\ntitle: t\nrecipe: {model: {name: digits_cnn}, data: {name: digits}}\narms: {a: {}}\n"
    plain = config.load_comparison(write(tmp_path, text))
    assert (plain.question, plain.margin, plain.fitted) == ("", None, False)
    asked = config.load_comparison(write(tmp_path, text), ["question=Is it?", "margin=0.3", "fitted=true"])
    assert (asked.question, asked.margin, asked.fitted) == ("Is it?", 0.3, True)
    with pytest.raises(ConfigError, match="margin: got 0"):
        config.load_comparison(write(tmp_path, text), ["margin=0"])


def test_an_arm_that_starts_from_nowhere_is_refused(tmp_path: Path) -> None:
    text = "name: g\ntitle: t\nrecipe: {model: {name: digits_cnn}, data: {name: digits}}\narms:\n  a: {}\n"
    with pytest.raises(ConfigError, match=r"arms\.b\.init_from: got aa; .*did you mean a\?"):
        config.load_comparison(write(tmp_path, text + "  b: {init_from: aa}\n"))


def test_unknown_recipe_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean digits"):
        config.find_config("digit")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert isinstance(load(SHIPPED[name], []), config.Recipe | config.Comparison)


def load(path: Path, overrides: list[str]) -> object:
    comparison = config.is_comparison(config.read_recipe_file(path))
    return (config.load_comparison if comparison else config.load_recipe)(path, overrides)


def mutate(text: str, rng: random.Random) -> str:
    """Delete, insert or replace a few characters or lines."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:place] + text[place + rng.randint(1, 5) :]
        elif kind == 1:
            text = text[:place] + rng.choice(string.printable + "\0é&*!") + text[place:]
        elif kind == 2:
            lines = text.splitlines(keepends=True)
            lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))
            text = "".join(lines)
        else:
            text = text[:place] + str(rng.choice([-1, 0, 1e400, "null", "[]", "{}", "true"])) + text[place + 1 :]
    return text


def check_mutations(count: int, folder: Path) -> int:
    refused = 0
    for number in range(count):
        rng = random.Random(number)
        original = SHIPPED[rng.choice(sorted(SHIPPED))].read_text()
        path = write(folder, mutate(original, rng))
        message = refusal(path)
        refused += message is not None
        assert message is None or message.count("; ") >= 2
    return refused


def refusal(path: Path) -> str | None:
    try:
        load(path, [])
    except ConfigError as error:
        return str(error)
    return None


def test_500_mutated_recipes_give_a_plan_or_a_config_error(tmp_path: Path) -> None:
    assert check_mutations(500, tmp_path) > 100


@pytest.mark.nightly
def test_10000_mutated_recipes_give_a_plan_or_a_config_error(tmp_path: Path) -> None:
    assert check_mutations(10_000, tmp_path) > 2_000


def test_a_typo_of_one_letter_gets_the_right_suggestion(tmp_path: Path) -> None:
    schema = {"train": config.TrainSection, "data": config.DataSection, "quant": config.QuantSection}
    path = write(tmp_path, MINIMAL + "quant: {bits: w4a4}\n")
    right = total = 0
    for section, fields in schema.items():
        for name in fields.model_fields:
            for place in range(1, len(name)):
                typo = name[:place] + "q" + name[place + 1 :]
                with pytest.raises(ConfigError) as caught:
                    config.load_recipe(path, [f"{section}.{typo}=1"])
                right += f"did you mean {name}?" in str(caught.value)
                total += 1
    assert right >= 0.95 * total


def test_shipped_recipes_are_found_in_a_wheel_s_layout(tmp_path: Path) -> None:
    checkout = Path(config.__file__).parents[1]
    site = tmp_path / "site"
    shutil.copytree(checkout / "qat_vsam", site / "qat_vsam", ignore=shutil.ignore_patterns("__pycache__"))
    # what the wheel's force-include does
    shutil.copytree(checkout / "configs", site / "qat_vsam" / "configs")
    script = "from qat_vsam import config; print(config.__file__, *config.shipped_configs())"
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    place, *names = done.stdout.split()
    assert place.startswith(str(site)), done.stderr
    assert names == list(SHIPPED)


def test_a_run_s_key_given_to_a_comparison_is_told_where_it_belongs() -> None:
    path = config.find_config("digits")
    with pytest.raises(ConfigError, match=r"write recipe\.train in place of train"):
        config.load_comparison(path, ["train.epochs=3"])
    assert config.load_comparison(path, ["recipe.train.epochs=3"]).recipe["train"]["epochs"] == 3


def test_keys_that_a_recipe_does_not_use_leave_its_fingerprint() -> None:
    """Runs of months are known by it: a new key must stay out of the recipes that do without."""
    recipe = config.recipe_from(
        {
            "name": "fixed",
            "model": {"name": "digits_cnn", "options": {"width": 4}, "mean": [0.3], "std": [0.375]},
            "data": {"name": "digits", "train_size": 100, "seed": 0},
            "quant": {"bits": "w4a4"},
            "optimizer": {"name": "vsam", "lr": 0.05, "rho": 0.1},
            "train": {"epochs": 2},
            "export": ["packed"],
        }
    )
    assert config.fingerprint(recipe) == "baa86e3b5d3db3e5474ff5a5e0105fedcfcf5e3adaeb33857a79b6ccd612145b"
