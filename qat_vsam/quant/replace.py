"""Other modules in the place of some, and all of it undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put other modules in the place of some, wherever they are registered; in place, but for the root."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a second name
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


@contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """What modules hold, their children, hooks and attributes, is put back where an exception is raised.

    Values of tensors are not: what is done within must leave them alone.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> try:
        ...     with unchanged_on_failure(model):
        ...         model[0] = nn.ReLU()
        ...         raise MemoryError
        ... except MemoryError:
        ...     model[0]
        Linear(in_features=2, out_features=2, bias=True)
    """
    attributes = {module: dict(module.__dict__) for module in model.modules()}
    # children, parameters and hooks lie in dictionaries, which a module that takes another's place may have too
    held = [
        (value, value.copy())
        for own in attributes.values()
        for name, value in own.items()
        if name.startswith("_") and isinstance(value, dict)
    ]
    try:
        yield
    except BaseException:
        for module, own in attributes.items():
            module.__dict__.clear()
            module.__dict__.update(own)
        for present, before in held:
            present.clear()
            present.update(before)
        raise
