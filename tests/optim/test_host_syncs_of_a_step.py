"""No step waits for the device, but those of the members and options that say so.

On the meta device a tensor has no numbers: whatever wants to read one fails. So it stands in for a device that
the host runs ahead of.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qat_vsam.optim import FAMILY, SAM, VSAM, MicroBatches

# Members that read a number at each step by their nature; their docstrings say so.
READERS = {"ae_sam", "ae_looksam"}
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "allclose"}
COPIES = {"_to_copy", "copy_"}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class SynchronisesError(Exception):
    """Something was called that makes the host wait."""


class NoSynchronisation(TorchDispatchMode):
    """Refuses what reads a number from a tensor, and copies from one device to another."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in READS or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            raise SynchronisesError(name)
        result = func(*args, **(kwargs or {}))
        sources = {a.device for a in args if isinstance(a, torch.Tensor)}
        if name in COPIES and sources != {result.device}:
            raise SynchronisesError(f"{name} from {sources} to {result.device}")
        return result


def on(device, task):
    task.model.to(device)
    task.x, task.y = task.x.to(device), task.y.to(device)
    return task


def built(task, member, **options):
    if member.options.get("schedule") == "variance":
        options["window"] = 50  # reads the measurements of a window at its end
    return member.build(task, **options)


def test_no_step_reads_a_number(any_task, member):
    if member.name in READERS:
        pytest.skip("its schedule decides by the norm of each gradient")
    task = any_task()
    optimizer = built(task, member, check_every=1000, max_grad_norm=0.1)
    with NoSynchronisation():
        for _ in range(30):
            task.step(optimizer)
    assert optimizer.steps == 30


def test_no_step_reads_a_number_or_sends_one_on_a_device(any_task, member):
    if member.name in READERS:
        pytest.skip("its schedule decides by the norm of each gradient")
    task = on("meta", any_task())
    optimizer = built(task, member)
    with NoSynchronisation():
        for _ in range(8):
            task.step(optimizer)
    assert optimizer.steps == 8


@pytest.mark.parametrize(
    "options", [{"nonfinite": "ignore"}, {"max_grad_norm": 1.0}, {"dropout": "redraw"}, {"momentum": 0.9}], ids=str
)
def test_no_option_makes_a_step_read_a_number(any_task, options):
    task = on("meta", any_task())
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, lr=0.1, **options)
    with NoSynchronisation():
        for _ in range(8):
            task.step(optimizer)
    assert optimizer.steps == 8


@pytest.mark.parametrize("name", sorted(READERS))
def test_members_that_decide_by_the_gradient_read_once_a_step(problem, name):
    task = on("meta", problem())
    optimizer = FAMILY[name](task.weights, torch.optim.SGD, model=task.model, lr=0.1, total_steps=10)
    with pytest.raises(SynchronisesError), NoSynchronisation():
        task.step(optimizer)


@pytest.mark.parametrize("nonfinite", ["skip", "stop"])
def test_policies_that_leave_steps_out_read_each_step(problem, nonfinite):
    task = on("meta", problem())
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, nonfinite=nonfinite)
    with pytest.raises(SynchronisesError), NoSynchronisation():
        task.step(optimizer)


@pytest.mark.parametrize(("options", "steps"), [({}, 99), ({"check_every": 5}, 4)])
def test_on_a_device_the_numbers_are_looked_at_now_and_then(problem, options, steps):
    task = on("meta", problem())
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1, **options)
    with NoSynchronisation():
        for _ in range(steps):
            task.step(optimizer)
        with pytest.raises(SynchronisesError):
            task.step(optimizer)


def test_on_the_host_every_step_is_looked_at(problem):
    task = problem()
    optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1)
    with pytest.raises(SynchronisesError), NoSynchronisation():
        task.step(optimizer)


def test_micro_batches_read_nothing_either(problem):
    task = on("meta", problem())
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, lr=0.1)
    batches = list(zip(task.x, task.y, strict=True))
    closure = MicroBatches(optimizer, batches, lambda b: torch.nn.functional.cross_entropy(task.model(b[0]), b[1]))
    with NoSynchronisation():
        for _ in range(4):
            optimizer.step(closure, batch_size=len(closure))
    assert optimizer.steps == 4


@GPU
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_no_step_synchronises_on_a_gpu(any_task, member, base):
    if member.name in READERS:
        pytest.skip("its schedule decides by the norm of each gradient")
    task = on("cuda", any_task(dtype=torch.float32))
    optimizer = built(task, member, base=base, max_grad_norm=1.0)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(30):
            task.step(optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.statistics()["gradient_norm"] > 0
