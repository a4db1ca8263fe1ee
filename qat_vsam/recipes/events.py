"""What a job tells whoever watches it; the command line draws it, a library user may listen or not."""

from __future__ import annotations

from qat_vsam.train import Progress


class Listener:
    """Hears a job; this one is silent. Override what you want to hear."""

    def say(self, text: str) -> None:
        """A finding or a change of stage, one line."""

    def progress(self, progress: Progress) -> None:
        """The training moved on by one step."""

    def grid(self, done: int, total: int, name: str) -> None:
        """`done` of `total` runs of a comparison are finished, `name` the last."""
