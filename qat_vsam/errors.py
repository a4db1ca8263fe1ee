"""The exceptions, and the one form in which they speak: `key: got VALUE; expected RULE; do THIS`.

A leaf that every room may import. Each exception derives from `QatVsamError`, so that a caller can catch
them all, and from the builtin that describes it, so that code which knows nothing of this package can too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QatVsamError(Exception):
    """Base of every exception that this package raises on purpose."""


class InputError(QatVsamError, ValueError):
    """The user asked for something that cannot be: the command line leaves with code 2."""


class ConfigError(InputError):
    """A recipe, a spec or an option is wrong."""


class DataError(InputError):
    """A dataset is missing, empty, or not what it says it is."""


class CheckpointError(QatVsamError, RuntimeError):
    """A checkpoint or artifact is missing, broken, unsafe, or belongs to another model."""


class RunFolderError(QatVsamError, RuntimeError):
    """A run folder is in use, belongs to another recipe, or cannot be written."""


class ExportMismatch(QatVsamError, RuntimeError):  # noqa: N818 - the public name says what happened
    """An exported model does not compute what the trained one computes."""


class NonFiniteError(QatVsamError, ArithmeticError):
    """A loss, a gradient or a step size is NaN or infinite and the policy is to raise."""


class MissingDependencyError(QatVsamError, ImportError):
    """An optional package is needed for what was asked."""


def explain(key: str, got: object, expected: str, do: str) -> str:
    """The one-line form of every message to a user.

    Example:
        >>> explain("bits", 9, "an integer in 1..8", "choose bits=8 or keep the layer in float")
        'bits: got 9; expected an integer in 1..8; choose bits=8 or keep the layer in float'
    """
    return f"{key}: got {got}; expected {expected}; {do}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Advice for an unknown name: the nearest choice if one is near, else all of them.

    Example:
        >>> did_you_mean("w4a5", ["w4a4", "w8a8"])
        'did you mean w4a4?'
        >>> did_you_mean("zebra", ["w4a4", "w8a8"])
        'choose one of w4a4, w8a8'
    """
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {near[0]}?" if near else "choose one of " + ", ".join(choices)
