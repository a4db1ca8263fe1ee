"""What two ranks find out about the optimizers, under torchrun, on the CPU: `distributed_checks.py FOLDER`.

Each function of `CHECKS` runs on both ranks and returns what it found; a rank writes that to FOLDER/RANK.json.
"""

from __future__ import annotations

import copy
import datetime
import functools
import json
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_resume import checkpoints
from distributed_task import (
    MEMBERS,
    QUANTIZED,
    SELECTING,
    STEPS,
    Build,
    Task,
    Wrap,
    quantized_net,
    rank_twin,
    same_on_all_ranks,
    sharded,
    small_net,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qat_vsam.errors import InputError
from qat_vsam.optim import (
    ESAM,
    SAM,
    SAQ,
    VSAM,
    BudgetSchedule,
    During,
    EveryStep,
    GradientNormSchedule,
    MicroBatches,
    Periodic,
    Ramp,
    RandomSteps,
    SplitSGD,
    VarianceSchedule,
)
from qat_vsam.optim.distributed import Ranks


def against_one_process(build: Build, wrap: Wrap, member: type, options: dict[str, Any]) -> dict[str, Any]:
    """How far ranks are from one process on the union of their batches, and whether from one another."""
    ranks, single = Task(build, wrap), Task(build)
    optimizer = ranks.optimizer(member, **options)
    reference = single.optimizer(member, **options, perturbation_sync="off")
    start, equal = single.weights(), True
    for step in range(STEPS):
        if step % 5 == 4:
            with torch.no_grad():
                ranks.model(ranks.x[0])  # an evaluation between steps leaves a sharded network whole
        ranks.step(optimizer)
        single.step(reference)
        equal = equal and same_on_all_ranks(ranks.weights())
    return {
        "distance": float((ranks.weights() - single.weights()).abs().max()),
        "moved": float((single.weights() - start).abs().max()),
        "equal": equal,
        "same cost": optimizer.gradient_evaluations == reference.gradient_evaluations,
        "same norms": statistics_distance(optimizer, reference) < 1e-6,
    }


def statistics_distance(optimizer: Any, reference: Any) -> float:
    pairs = zip(optimizer.statistics().values(), reference.statistics().values(), strict=True)
    return max((abs(a - b) for a, b in pairs if a == a or b == b), default=0.0)


def global_ddp() -> dict[str, Any]:
    members = {**MEMBERS, **SELECTING}
    return {name: against_one_process(small_net, DistributedDataParallel, *entry) for name, entry in members.items()}


def global_quantized() -> dict[str, Any]:
    wrap = DistributedDataParallel
    return {name: against_one_process(quantized_net, wrap, *entry) for name, entry in QUANTIZED.items()}


def global_fsdp() -> dict[str, Any]:
    names = ("vsam-rise", "vsam-paper", "asam", "looksam", "ae-sam", "fsam", "msam")
    found = {name: against_one_process(small_net, sharded, *MEMBERS[name]) for name in names}
    found |= {"esam": against_one_process(small_net, sharded, *SELECTING["esam"])}
    names = ("euclidean", "step-size")
    return found | {f"w4a4 {name}": against_one_process(quantized_net, sharded, *QUANTIZED[name]) for name in names}


def shards_come_back() -> dict[str, bool]:
    """At a learning rate of zero, bit for bit."""
    found = {}
    for name in ("sam", "vsam-budget", "asam"):
        member, options = MEMBERS[name]
        task = Task(small_net, sharded)
        optimizer, before = task.optimizer(member, **options, lr=0.0), task.weights()
        for _ in range(4):
            task.step(optimizer)
        found[name] = torch.equal(task.weights(), before) and optimizer.gradient_evaluations > 4
    return found


def copies() -> dict[str, bool]:
    """A copy of a network and its optimizer goes on as they do, and with the same ranks."""
    task = Task(small_net, DistributedDataParallel)
    optimizer = task.optimizer(VSAM, gradient_budget=1.5, perturbation_sync="per_rank")
    task.step(optimizer)
    twin, copied = copy.deepcopy((task, optimizer))
    for _ in range(3):
        task.step(optimizer)
        twin.step(copied)
    return {"equal": torch.equal(task.weights(), twin.weights()) and same_on_all_ranks(twin.weights())}


def micro_batches() -> dict[str, float]:
    """How far a run on micro-batches, whose gradients travel once a pass, is from one on whole batches."""
    found = {}
    for sync in ("global", "per_rank"):
        for name in ("euclidean", "post_quantizer"):
            options = {"perturbation_sync": sync, "perturbation": name}
            pieces, at_once = (Task(quantized_net, DistributedDataParallel) for _ in range(2))
            first, second = (task.optimizer(VSAM, **options) for task in (pieces, at_once))
            for turn in range(6):
                batches = list(zip(pieces.x[turn].split(2), pieces.y[turn].split(2), strict=True))
                loss = lambda batch, task=pieces: nn.functional.cross_entropy(task.model(batch[0]), batch[1])  # noqa: E731
                closure = MicroBatches(first, batches, loss, no_sync=pieces.model.no_sync)
                first.step(closure, batch_size=len(closure))
                at_once.step(second)
            found[f"{sync} {name}"] = float((pieces.weights() - at_once.weights()).abs().max())
    return found


def bucket_views() -> dict[str, Any]:
    """Gradients that are views of buckets, also of buckets of one gradient."""
    wrap = functools.partial(DistributedDataParallel, gradient_as_bucket_view=True)
    return {
        build.__name__: against_one_process(build, wrap, VSAM, {"gradient_budget": 1.5})
        for build in (small_net, one_weight)
    }


def one_weight() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3, bias=False)).double()


def per_rank() -> dict[str, Any]:
    """Each member along its ranks' own gradients: against `rank_twin` where there is one, else only against global."""
    found = {}
    twins = {"sam": SAM, "vsam-budget": VSAM}
    members = {**MEMBERS, "esam": (ESAM, {}), **{f"w4a4 {name}": QUANTIZED[name] for name in ("step-size", "saq")}}
    for name, (member, options) in members.items():
        build = quantized_net if name.startswith("w4a4") else small_net
        own, shared = (Task(build, DistributedDataParallel) for _ in range(2))
        optimizer = own.optimizer(member, **options, perturbation_sync="per_rank")
        reference = shared.optimizer(member, **options)
        equal = True
        for _ in range(STEPS):
            own.step(optimizer)
            shared.step(reference)
            state = [t for p in optimizer.parameters() for t in optimizer.state[p].values() if isinstance(t, Tensor)]
            equal = equal and same_on_all_ranks(torch.cat([own.weights(), *(t.flatten() for t in state)]))
        found[name] = {
            "from global": float((own.weights() - shared.weights()).abs().max()),
            "equal": equal,
            "same decisions": same_on_all_ranks([optimizer.gradient_evaluations, optimizer.extra_state()["schedule"]]),
        }
        if name in twins:
            found[name]["from twin"] = float((own.weights() - rank_twin(reused=name == "vsam-budget")).abs().max())
    return found


def uneven_batches() -> dict[str, Any]:
    """Rank 1 has a smaller batch now and then, down to one row that cannot be cut."""
    found = {}
    members = {
        "part": (VSAM, {"gradient_budget": 1.25}),
        "ascend-part": (VSAM, {"method": "ascend_part"}),
        "split": (SplitSGD, {"rate": 1.0}),
        "esam": (ESAM, {}),
        "per-rank part": (VSAM, {"gradient_budget": 1.25, "perturbation_sync": "per_rank"}),
    }
    for name, (member, options) in members.items():
        task = Task(small_net, DistributedDataParallel)
        optimizer = task.optimizer(member, **options)
        equal, decisions = True, []
        for step in range(STEPS):
            task.step(optimizer, size=[8, 8, 5, 3, 1][step % 5] if dist.get_rank() else 8)
            equal = equal and same_on_all_ranks(task.weights())
            decisions.append([task.calls, optimizer.last_share, optimizer.schedule.state_dict()])
        found[name] = {"equal": equal, "same decisions": same_on_all_ranks(decisions)}
    return found


def decisions() -> dict[str, Any]:
    """10,000 steps of every schedule, on ranks whose generators differ."""
    random.seed(dist.get_rank())
    torch.manual_seed(dist.get_rank())
    inputs = random.Random(0)
    rates = [inputs.random() for _ in range(10_000)]
    norms = [inputs.lognormvariate(0, 1) for _ in range(10_000)]
    schedules = {
        "every step": EveryStep(0.5),
        "budget": BudgetSchedule(1.15, 0.25),
        "budget by learning rate": BudgetSchedule(1.15, 0.25, spend="learning_rate"),
        "budget early": BudgetSchedule(1.15, 0.5, spend="early", total_steps=10_000),
        "variance": VarianceSchedule(warmup_steps=100),
        "gradient norm": GradientNormSchedule(total_steps=10_000),
        "periodic": Periodic(5),
        "random": RandomSteps(0.3, seed=3),
        "random count": RandomSteps(count=2000, total_steps=10_000),
        "ramp": Ramp(0.02, 0.8, total_steps=10_000),
        "during": During(0.2, 0.7, total_steps=10_000),
    }
    found = {}
    for name, schedule in schedules.items():
        paid = []
        for rate, norm in zip(rates, norms, strict=True):
            paid.append(schedule.pays(schedule.share, rate, norm))
            if paid[-1]:
                schedule.measure(rate, norm)
            schedule.advance(schedule.share * paid[-1], rate, norm)
        found[name] = {"equal": same_on_all_ranks(paid), "some": sum(paid)}
    return found


def refusals() -> dict[str, str]:
    """The message for each thing that cannot be."""
    finds_unused = functools.partial(DistributedDataParallel, find_unused_parameters=True)
    ddp, unused = (Task(small_net, wrap) for wrap in (DistributedDataParallel, finds_unused))
    shards, quantized = Task(small_net, sharded), Task(small_net, sharded)
    quantized.plain.get_submodule("2").weight_offset = None
    late = ddp.optimizer(SAM, model=ddp.plain, perturbation_sync="off")
    late.ranks = Ranks()
    tries = {
        "unwrapped": lambda: ddp.optimizer(SAM, model=ddp.plain),
        "no model": lambda: ddp.optimizer(SAM, model=None),
        "wrapped too late": lambda: ddp.step(late),
        "unused parameters": lambda: unused.optimizer(SAM, perturbation_sync="per_rank"),
        "per rank in shards": lambda: shards.optimizer(SAM, perturbation_sync="per_rank"),
        "offsets in shards": lambda: SAQ(quantized.plain.parameters(), torch.optim.SGD, model=quantized.model, lr=0.1),
        "shards and whole": lambda: SAM([*shards.plain.parameters(), *ddp.plain.parameters()], torch.optim.SGD, lr=0.1),
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "accepted"
        except InputError as error:
            found[name] = str(error)
    return found


def overflow() -> dict[str, Any]:
    return {sync: overflow_on_one_rank(sync) for sync in ("global", "per_rank")}


def overflow_on_one_rank(sync: str) -> dict[str, Any]:
    """Under a GradScaler, a first gradient that is infinite on one rank, in a parameter that is not displaced."""
    task, passes, scales = Task(small_net, DistributedDataParallel), 0, []
    *displaced, last = task.plain.parameters()
    groups = [{"params": displaced, "role": "weight"}, {"params": [last], "role": "bias"}]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    options: dict[str, Any] = {"lr": 0.1, "perturbation_sync": sync, "grad_scaler": scaler}
    optimizer = SAM(groups, torch.optim.SGD, model=task.model, **options)
    last.register_hook(lambda gradient: gradient * (float("inf") if (passes, dist.get_rank()) == (1, 1) else 1.0))

    def closure() -> Tensor:
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        loss = task.model(task.x[0]).square().mean()
        scaler.scale(loss).backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        scaler.update()
        scales.append(scaler.get_scale())
    return {"equal": same_on_all_ranks(task.weights()), "scales": scales, "skipped": optimizer.skipped}


CHECKS = (
    global_ddp,
    global_quantized,
    global_fsdp,
    shards_come_back,
    copies,
    micro_batches,
    bucket_views,
    per_rank,
    uneven_batches,
    overflow,
    decisions,
    refusals,
)


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    findings = {}
    for name, check in {**{c.__name__: c for c in CHECKS}, "checkpoints": lambda: checkpoints(folder)}.items():
        try:
            findings[name] = check()
        except Exception:
            findings[name] = {"failed": traceback.format_exc()}
            break
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(findings))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
