"""Batch norms, observers, dropout masks and random numbers: as after one pass a step."""

import math

import pytest
import torch
from torch import nn

from qat_vsam.optim import VSAM


def test_batch_norm_moves_once_a_step(problem, kind):
    task = problem(batch_norm=True)
    optimizer = kind.build(task)
    for step in range(1, 21):
        task.step(optimizer)
        assert int(task.model[1].num_batches_tracked) == step
    assert task.model[1].track_running_stats


@pytest.mark.parametrize(("share", "rows"), [(0.25, slice(3, None)), (0.75, slice(0, 9))])
def test_running_statistics_come_from_the_larger_part_at_w(problem, share, rows):
    task = problem(batch_norm=True)
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, share=share, gradient_budget=1 + share, lr=0.1)
    expected = 0.1 * task.model[0](task.x[0][rows]).mean(0).detach()
    task.step(optimizer)
    torch.testing.assert_close(task.model[1].running_mean, expected)


def test_statistics_of_batch_norm_survive_a_second_pass_that_overflows(problem, build):
    task = problem(batch_norm=True)
    optimizer = build(task, "sam", nonfinite="skip")
    passes = 0

    def closure():
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(task.model(task.x[0] * (math.inf if passes == 2 else 1.0)), task.y[0])
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (passes, optimizer.skipped, int(task.model[1].num_batches_tracked)) == (2, 1, 1)
    assert torch.isfinite(task.model[1].running_mean).all()
    assert torch.isfinite(task.model[1].running_var).all()


def test_observers_see_one_pass_a_step(problem, kind):
    task = problem(watched=True)
    optimizer = kind.build(task)
    for _ in range(12):
        task.step(optimizer)
    assert task.model[-1].count == 12


def test_an_observer_that_was_switched_off_stays_off(problem, build):
    task = problem(watched=True)
    watcher = task.model[-1]
    watcher.updates_state = False
    optimizer = build(task, "sam")
    task.step(optimizer)
    assert watcher.count == 0
    assert watcher.updates_state is False


@pytest.mark.parametrize(("dropout", "same"), [("keep", True), ("redraw", False)])
def test_dropout_masks_are_kept_or_redrawn(problem, build, dropout, same):
    task = problem(dropout=0.5)
    masks = []
    task.model[2].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    optimizer = build(task, "sam", dropout=dropout)
    for _ in range(2):
        task.step(optimizer)
    assert torch.equal(masks[0], masks[1]) is same
    assert not torch.equal(masks[0], masks[2])


def test_a_kept_mask_costs_no_random_numbers(problem, build):
    task, plain = problem(dropout=0.5), problem(dropout=0.5)
    torch.manual_seed(5)
    task.step(build(task, "sam"))
    after_sam = torch.rand(1)
    torch.manual_seed(5)
    plain.step(torch.optim.SGD(plain.weights, lr=0.1))
    assert torch.equal(after_sam, torch.rand(1))


def test_random_numbers_after_a_step_do_not_depend_on_what_its_second_pass_drew(problem, build):
    task = problem()
    optimizer = build(task, "sam")
    drawn = [3, 1]

    def closure():
        optimizer.zero_grad()
        loss = task.loss() + 0 * torch.rand(drawn.pop(0)).sum()
        loss.backward()
        return loss

    torch.manual_seed(5)
    optimizer.step(closure)
    after_step = torch.rand(1)
    torch.manual_seed(5)
    torch.rand(3)
    assert torch.equal(after_step, torch.rand(1))
