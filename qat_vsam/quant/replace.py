"""Other modules in the place of some."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put other modules in the place of some, wherever they are registered; in place, but for the root."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a second name
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)
