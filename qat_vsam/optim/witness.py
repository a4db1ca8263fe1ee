"""Whether the second pass saw that the weights were displaced."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qat_vsam.optim.distributed import shards

if TYPE_CHECKING:
    from qat_vsam.optim.methods import Evaluation

logger = logging.getLogger(__name__)


class Witness:
    """Says, once, that a pass at w + e gave the loss and the gradients of w to the last bit, while e is not 0.

    Something then keeps weights from one pass to the next, or e is too small for the type or the quantizers of the
    weights: the step is the base optimizer's at a higher price. Steps that read numbers anyway are all compared. Of the
    others the first is, on the device, and what came of it is read when there is a look.
    """

    def __init__(self) -> None:
        self._told = False
        self._compared = False
        self._verdict: Tensor | None = None

    def compare(self, first: Evaluation, second: Evaluation, moved: Iterable[Tensor], reads: bool) -> None:
        """Compare the passes of one step over the same rows.

        Args:
            first, second: At w, and at w + e.
            moved: The parameters that were displaced, along their first gradient.
            reads: Whether this step may wait for the device.
        """
        if self._told or (self._compared and not reads):
            return
        # Of sharded gradients each rank looks at its own part: what one rank finds must start no collective there.
        slopes = shards(first.gradients[parameter] for parameter in moved if parameter in first.gradients)
        both = [parameter for parameter in first.gradients if parameter in second.gradients]
        whole = bool(slopes) and len(both) == len(first.gradients)
        before, after = (shards(pass_.gradients[parameter] for parameter in both) for pass_ in (first, second))
        pairs = list(zip(before, after, strict=True))
        if reads:
            self.read()
            if whole and bool(first.loss == second.loss) and all(torch.equal(a, b) for a, b in pairs):
                self._tell(any(bool(slope.any()) for slope in slopes))
            return
        self._compared = True
        if not whole:
            return
        same = [(a == b).all() for a, b in pairs]
        home = same[0].device
        alike = torch.stack([(first.loss == second.loss).to(home), *(flag.to(home) for flag in same)]).all()
        self._verdict = alike & torch.stack([slope.any().to(home) for slope in slopes]).any()

    def read(self) -> None:
        """Read what a comparison on the device came to. Waits for it."""
        verdict, self._verdict = self._verdict, None
        if verdict is not None:
            self._tell(bool(verdict))

    def _tell(self, unseen: bool) -> None:
        if unseen and not self._told:
            self._told = True
            logger.warning(
                "second pass: got the loss and gradients of the first to the last bit; expected others at displaced "
                "weights; look for a cache of weights between the passes, or choose a larger rho"
            )
