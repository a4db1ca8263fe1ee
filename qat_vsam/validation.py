"""Turns what a schema finds wrong into the one message form: key, value, rule, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from qat_vsam.errors import ConfigError, did_you_mean, explain

S = TypeVar("S", bound=BaseModel)


def validate(schema: type[S], content: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> S:
    """`content` as a `schema`, or every mistake in it, a line each.

    Args:
        schema: what it should be.
        content: plain values.
        prefix: where `content` stands in the user's file, for the messages.

    Raises:
        ConfigError: naming each key, its value, the rule and what to do.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = [_explain_problem(schema, problem, prefix) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _explain_problem(schema: type[BaseModel], problem: Mapping[str, Any], prefix: tuple[str, ...]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join((*prefix, *location)) or "recipe"
    got = repr(problem["input"])
    got = got if len(got) <= 80 else got[:77] + "..."
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(schema, location[:-1])
        return explain(key, got, "no such key", did_you_mean(location[-1], fields))
    if problem["type"] == "missing":
        return explain(key, "nothing", "a value", f"add {key}")
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        choices = [part.strip(" '") for part in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return explain(key, got, "one of " + ", ".join(choices), did_you_mean(problem["input"], choices))
    rule = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return explain(key, got, rule, "correct it in the recipe or by KEY=VALUE")


def _fields_at(schema: type[BaseModel], location: Iterable[str]) -> list[str]:
    for part in location:
        field = schema.model_fields.get(part)
        if field is None:
            break
        annotations = (field.annotation, *get_args(field.annotation))
        schema = next((a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)), schema)
    return list(schema.model_fields)
