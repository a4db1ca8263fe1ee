"""Which runs may stand in one report, what sets apart those that may, and where they all come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qat_vsam.errors import InputError, explain
from qat_vsam.report.schema import RunRecord

# where each run was read, and what it says
Runs = Sequence[tuple[str, RunRecord]]


@dataclass(frozen=True)
class Provenance:
    """Where the runs of a study come from, each list without repeats and in order.

    Attributes:
        date: the UTC date on which the last run was finished, or None.
        commits: of the code; "+dirty" where it was changed after the commit.
        packages: versions of this package.
        versions: library -> its versions.
        machines: processors, with device and threads.
    """

    date: str | None
    commits: tuple[str, ...]
    packages: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    machines: tuple[str, ...]

    @property
    def marks(self) -> list[str]:
        """Sentences on what differs between runs that a reader would take to be made alike."""
        lines = [
            f"The runs were made under {len(values)} {what}: {'; '.join(values)}."
            for what, values in (
                ("commits of the code", self.commits),
                ("versions of this package", self.packages),
                *((f"versions of {library}", values) for library, values in self.versions.items()),
                ("kinds of machine, and floating-point sums differ between machines", self.machines),
            )
            if len(values) > 1
        ]
        if any(commit.endswith("+dirty") for commit in self.commits):
            lines.append("Some runs were made by code that was changed after the commit that they name (+dirty).")
        return lines


def provenance_of(runs: Runs) -> Provenance:
    """Gathers what the runs say of themselves."""
    said = [record.provenance for _, record in runs]
    libraries = sorted({library for run in said for library in run.versions})
    dates = [run.finished for run in said if run.finished]
    machines = []
    for run in said:
        parts = [run.processor or "", run.device if run.device not in (None, "cpu") else ""]
        parts += [f"{run.threads} thread{'' if run.threads == 1 else 's'}"] if run.threads is not None else []
        parts += [run.amp] if run.amp else []
        machines.append(", ".join(part for part in parts if part) if run.processor else "")
    return Provenance(
        date=max(dates, default=None),
        commits=_unlike(part.strip() for run in said for part in (run.commit or "").split(",")),
        packages=_unlike(run.package or "" for run in said),
        versions={library: _unlike(run.versions.get(library, "") for run in said) for library in libraries},
        machines=_unlike(machines),
    )


def check_comparable(runs: Runs, differing: Mapping[str, frozenset[str]]) -> None:
    """Refuses runs that no table may set side by side.

    Args:
        runs: ordered by arm and seed.
        differing: "model" and "data" -> the arms whose recipe gives them a model or data of their own.

    Raises:
        InputError: an arm has one seed twice, or runs of it that differ in more than the seed; or two arms differ in
            the model or the data though no recipe says so.
    """
    seen: dict[tuple[str, int], str] = {}
    for where, record in runs:
        twin = seen.setdefault((record.arm, record.seed), where)
        if twin != where:
            raise InputError(
                explain(
                    f"seed {record.seed} of arm {record.arm}",
                    f"{twin} and {where}",
                    "one run per arm and seed",
                    "leave one of them out",
                )
            )
    arms: dict[str, list[tuple[str, RunRecord]]] = {}
    for where, record in runs:
        arms.setdefault(record.arm, []).append((where, record))
    for own in arms.values():
        for pair in own[1:]:
            _same(
                own[0], pair, {**_identity(own[0][1]), **_traits(own[0][1])}, {**_identity(pair[1]), **_traits(pair[1])}
            )
    for section in ("model", "data"):
        alike = [own[0] for arm, own in arms.items() if arm not in differing.get(section, frozenset())]
        for pair in alike[1:]:
            first, second = (_section(record, section) for record in (alike[0][1], pair[1]))
            _same(alike[0], pair, first, second)


def between_arms(runs: Runs) -> list[str]:
    """Sentences on what sets arms apart besides their optimizer: epochs, and the images that a seed draws."""
    lines = []
    epochs: dict[float, list[str]] = {}
    for _, record in runs:
        if record.kind == "trained" and record.epochs is not None:
            names = epochs.setdefault(record.epochs, [])
            names += [] if record.arm in names else [record.arm]
    if len(epochs) > 1:
        most = max(epochs, key=lambda count: len(epochs[count]))
        others = "; ".join(f"{count:g} for {', '.join(epochs[count])}" for count in sorted(epochs) if count != most)
        lines.append(f"Arms were trained for different numbers of epochs: {most:g}, but {others}.")
    draws: dict[int, set[int | None]] = {}
    for _, record in runs:
        draws.setdefault(record.seed, set()).add(record.data.seed)
    if any(len(seeds) > 1 for seeds in draws.values()):
        lines.append("Arms of one seed drew different images, so their differences hold the draw of the data as well.")
    return lines


def _identity(record: RunRecord) -> dict[str, object]:
    return {**_section(record, "model"), **_section(record, "data")}


def _section(record: RunRecord, section: str) -> dict[str, object]:
    if section == "model":
        return {"model.name": record.model.name, "model.parameters": record.model.parameters}
    keys = ("name", "options", "train", "validation", "test", "augment", "label_noise")
    return {f"data.{key}": getattr(record.data, key) for key in keys}


def _traits(record: RunRecord) -> dict[str, object]:
    # the schedule's own generator is seeded by the run
    options = {key: value for key, value in record.optimizer_options.items() if key != "seed"}
    return {
        "precision": record.precision,
        "target": record.target,
        "kind": record.kind,
        "optimizer": record.optimizer,
        "optimizer_options": options,
        "epochs": record.epochs,
    }


def _same(
    first: tuple[str, RunRecord], second: tuple[str, RunRecord], a: Mapping[str, object], b: Mapping[str, object]
) -> None:
    for key, value in a.items():
        if value != b[key]:
            raise InputError(
                explain(
                    key,
                    f"{value} in {_named(first)} and {b[key]} in {_named(second)}",
                    "the same in all runs of an arm, and of arms whose recipes do not tell them apart",
                    "write a report for each of them",
                )
            )


def _named(run: tuple[str, RunRecord]) -> str:
    return f"{run[1].arm}/seed-{run[1].seed} ({run[0]})"


def _unlike(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value}))
