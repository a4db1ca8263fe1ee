"""Functions outside this package, named in a recipe as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from qat_vsam.errors import InputError, did_you_mean, explain

# prefixes of names that belong to a library's models
MODEL_ZOOS = ("torchvision", "timm", "hf")


def is_user_function(name: str) -> bool:
    """Whether a name has the form `package.module:function`.

    Example:
        >>> is_user_function("my_project.nets:tiny"), is_user_function("torchvision:resnet18")
        (True, False)
    """
    module, colon, function = name.partition(":")
    return bool(colon and module and function) and module not in MODEL_ZOOS


def import_function(name: str, key: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules of the current directory are found too.

    The current directory is appended to `sys.path`, as the last entry: a console script does not have it
    there, and at the end it shadows no installed package.

    Args:
        name: `package.module:function`.
        key: what the name is for, "model" or "data"; errors begin with it.

    Raises:
        InputError: the module cannot be found or fails to import, or has no such function.

    Example:
        >>> import_function("math:sqrt", key="model")(9.0)
        3.0
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        missing = isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "\0")
        reason = "no such module" if missing else f"its import raises {type(error).__name__}: {error}"
        raise InputError(
            explain(
                key,
                f"{name!r} ({reason})",
                "package.module:function with an importable module",
                "install the module, or run from the folder that holds it",
            )
        ) from error
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if function is None or not callable(function):
        callables = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise InputError(
            explain(
                key,
                f"{name!r} ({module_name} has no function {attribute!r})",
                "package.module:function",
                did_you_mean(attribute, callables) if callables else "define the function in that module",
            )
        )
    return function


def check_options(function: Callable[..., Any], options: Mapping[str, Any], key: str) -> None:
    """Refuse options that a function does not take, before the function is called.

    Raises:
        InputError: an unknown option (with the nearest known one), or a required one that is absent.

    Example:
        >>> check_options(lambda width=16: None, {"width": 8}, key="model")
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C without a signature
        return
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if not takes_all and option not in names:
            known = f"one of {', '.join(names)}" if names else "no options"
            advice = did_you_mean(option, names) if names else "remove it"
            raise InputError(explain(f"{key}.{option}", "an unknown option", known, advice))
    required = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in options]
    if required:
        raise InputError(explain(f"{key}.{required[0]}", "nothing", "a value", "set this option"))
