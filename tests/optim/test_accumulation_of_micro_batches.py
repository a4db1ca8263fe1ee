"""Micro-batches, replayed in every pass, are the batch that they make together."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional

from qat_vsam.errors import InputError
from qat_vsam.optim import SAM, VSAM, MicroBatches

EVEN = (3, 3, 3, 3)
UNEVEN = (5, 2, 1, 4)
OF_A_PART = [
    {"share": 0.5, "gradient_budget": 1.5},
    {"share": 0.75, "gradient_budget": 1.75},
    {"share": 0.25, "gradient_budget": 1.25},
]


def cut(task, sizes):
    x, y = task.x[task.turn % 8], task.y[task.turn % 8]
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def micro_batches(task, optimizer, sizes=EVEN, **options):
    return MicroBatches(
        optimizer, cut(task, sizes), lambda batch: functional.cross_entropy(task.model(batch[0]), batch[1]), **options
    )


def accumulated_step(task, optimizer, sizes=EVEN, **options):
    closure = micro_batches(task, optimizer, sizes, **options)
    loss = optimizer.step(closure, batch_size=len(closure))
    task.turn += 1
    return loss


def assert_close(ours, other):
    for a, b in zip(ours.weights, other.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN, (12,)], ids=str)
def test_sam_on_micro_batches_is_sam_on_the_batch(problem, sizes):
    ours, whole = problem(), problem()
    options = {"lr": 0.05, "momentum": 0.9, "rho": 0.1}
    optimizer = SAM(ours.weights, torch.optim.SGD, model=ours.model, **options)
    reference = SAM(whole.weights, torch.optim.SGD, model=whole.model, **options)
    for _ in range(30):
        loss = accumulated_step(ours, optimizer, sizes)
        torch.testing.assert_close(loss, whole.step(reference), rtol=0, atol=1e-12)
        assert not loss.requires_grad
    assert_close(ours, whole)
    assert optimizer.gradient_evaluations == 60


@pytest.mark.parametrize("options", OF_A_PART, ids=str)
def test_a_part_of_whole_micro_batches_is_the_part_of_the_batch(problem, options):
    ours, whole = problem(), problem()
    options = {"lr": 0.05, "momentum": 0.9, "rho": 0.1, **options}
    optimizer = VSAM(ours.weights, torch.optim.SGD, model=ours.model, **options)
    reference = VSAM(whole.weights, torch.optim.SGD, model=whole.model, **options)
    for _ in range(30):
        torch.testing.assert_close(accumulated_step(ours, optimizer), whole.step(reference), rtol=0, atol=1e-12)
    assert_close(ours, whole)
    assert optimizer.gradient_evaluations == reference.gradient_evaluations


def test_parts_of_unequal_micro_batches_count_by_their_rows(problem):
    """At radius zero a step that is made in parts is the base optimizer's on the whole batch."""
    ours, plain = problem(), problem()
    optimizer = VSAM(
        ours.weights, torch.optim.SGD, model=ours.model, lr=0.05, share=0.5, gradient_budget=1.5, rho=1e-300
    )
    reference = torch.optim.SGD(plain.weights, lr=0.05)
    for _ in range(10):
        torch.testing.assert_close(accumulated_step(ours, optimizer, UNEVEN), plain.step(reference).detach())
    assert_close(ours, plain)


@pytest.mark.parametrize("options", [None, *OF_A_PART], ids=str)
def test_batch_norm_moves_once_for_each_micro_batch(problem, options):
    ours, plain = problem(batch_norm=True), problem(batch_norm=True)
    member = SAM if options is None else VSAM
    optimizer = member(ours.weights, torch.optim.SGD, model=ours.model, lr=0.0, **(options or {}))
    with torch.no_grad():
        for _ in range(4):
            accumulated_step(ours, optimizer)
            for x, _y in cut(plain, EVEN):
                plain.model(x)
            plain.turn += 1
    for name, buffer in plain.model.named_buffers():
        assert torch.equal(dict(ours.model.named_buffers())[name], buffer)
    assert int(ours.model[1].num_batches_tracked) == 16


@pytest.mark.parametrize("member", [SAM, VSAM])
def test_a_closure_that_loops_by_itself_does_too(problem, member):
    ours, whole = problem(), problem()
    optimizer = member(ours.weights, torch.optim.SGD, model=ours.model, lr=0.05, momentum=0.9)
    reference = member(whole.weights, torch.optim.SGD, model=whole.model, lr=0.05, momentum=0.9)

    def closure():
        optimizer.zero_grad()
        total = 0.0
        for x, y in cut(ours, EVEN):
            loss = functional.cross_entropy(ours.model(x), y) / len(EVEN)
            loss.backward()
            total += loss.detach()
        return total

    for _ in range(10):
        loss = optimizer.step(closure)
        ours.turn += 1
        torch.testing.assert_close(loss, whole.step(reference, batch_size=None), rtol=0, atol=1e-12)
    assert_close(ours, whole)


def test_every_member_takes_micro_batches(any_task, member):
    task = any_task()
    optimizer = member.build(task)
    losses = [float(accumulated_step(task, optimizer)) for _ in range(24)]
    assert sum(losses[16:]) < sum(losses[:8])
    assert optimizer.steps == 24


def test_a_plain_optimizer_steps_on_the_batch_too(problem):
    ours, whole = problem(), problem()
    optimizer, reference = (torch.optim.SGD(task.weights, lr=0.1) for task in (ours, whole))
    for _ in range(5):
        torch.testing.assert_close(
            optimizer.step(micro_batches(ours, optimizer, UNEVEN)), whole.step(reference).detach()
        )
        ours.turn += 1
    assert_close(ours, whole)


def test_the_weight_of_a_micro_batch_can_be_another_than_its_rows(problem):
    task = problem()
    optimizer = torch.optim.SGD(task.weights, lr=0.0)
    closure = micro_batches(task, optimizer, UNEVEN, rows=lambda batch: 1.0)
    each = [functional.cross_entropy(task.model(x), y).detach() for x, y in cut(task, UNEVEN)]
    torch.testing.assert_close(closure(), torch.stack(each).mean())


def test_micro_batches_may_be_mappings_or_tensors():
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    named = MicroBatches(optimizer, [{"x": torch.ones(3)}, {"x": torch.zeros(1)}], lambda b: (weight + b["x"]).mean())
    bare = MicroBatches(optimizer, [torch.ones(3), torch.zeros(1)], lambda b: (weight + b).mean())
    assert float(named()) == float(bare()) == 0.75


def test_a_scaler_and_clipping_go_with_micro_batches(problem):
    ours, whole = problem(), problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    options = {"lr": 0.1, "max_grad_norm": 0.1}
    optimizer = SAM(ours.weights, torch.optim.SGD, grad_scaler=scaler, **options)
    reference = SAM(whole.weights, torch.optim.SGD, **options)
    for _ in range(10):
        accumulated_step(ours, optimizer, backward=lambda loss: scaler.scale(loss).backward())
        scaler.update()
        whole.step(reference)
    assert_close(ours, whole)


def test_all_micro_batches_of_a_pass_but_the_last_are_not_synchronised(problem):
    task = problem()
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, lr=0.1, share=0.5, gradient_budget=1.5)
    inside, seen = [False], []

    @contextmanager
    def no_sync():
        inside[0] = True
        yield
        inside[0] = False

    def backward(loss):
        seen.append(inside[0])
        loss.backward()

    accumulated_step(task, optimizer, no_sync=no_sync, backward=backward)
    assert seen == [True, False] * 3


@pytest.mark.parametrize("sizes", [(), (3, 0)])
def test_empty_batches_are_refused(problem, sizes):
    task = problem()
    batches = [torch.zeros(size, 5) for size in sizes]
    with pytest.raises(InputError, match=r"^batches: got micro-batches of \[.*\] rows"):
        MicroBatches(torch.optim.SGD(task.weights, lr=0.1), batches, lambda batch: batch.sum())
