"""What a step promises: its cost, its loss, its rows, and the optimizers that it is equal to."""

import logging

import pytest
import torch
from problem import BATCH
from torch import nn

from qat_vsam.errors import ConfigError, InputError
from qat_vsam.optim import SAM, VSAM, SplitSGD


@pytest.mark.parametrize("batch_size", [BATCH, None])
def test_the_declared_cost_is_what_the_network_does(problem, kind, batch_size):
    task = problem()
    optimizer = kind.build(task)
    for _ in range(60):
        task.step(optimizer, batch_size)
    assert optimizer.gradient_evaluations == pytest.approx(task.passes)
    assert optimizer.forwards == task.forwards
    assert optimizer.steps == 60


def test_the_loss_returned_is_that_of_the_whole_batch_before_the_step(problem, kind):
    task = problem()
    optimizer = kind.build(task)
    for _ in range(8):
        expected = task.loss().detach()
        if kind.options.get("method") == "ascend_part":
            expected = task.loss(slice(0, BATCH // 4)).detach()
        loss = task.step(optimizer)
        torch.testing.assert_close(loss, expected)
        assert not loss.requires_grad


def test_a_budget_of_one_is_the_base_optimizer_bit_for_bit(problem):
    ours, plain = problem(), problem()
    optimizer = VSAM(ours.weights, torch.optim.SGD, model=ours.model, gradient_budget=1.0, lr=0.05, momentum=0.9)
    reference = torch.optim.SGD(plain.weights, lr=0.05, momentum=0.9)
    for _ in range(20):
        ours.step(optimizer)
        plain.step(reference)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, plain.weights, strict=True))


def test_a_budget_of_two_on_the_whole_batch_is_sam(problem):
    ours, reference = problem(), problem()
    options = {"lr": 0.05, "momentum": 0.9, "rho": 0.1}
    whole = {"method": "interval", "gradient_budget": 2.0, "largest_rise": None}
    optimizer = VSAM(ours.weights, torch.optim.SGD, model=ours.model, **whole, **options)
    sam = SAM(reference.weights, torch.optim.SGD, model=reference.model, **options)
    for _ in range(20):
        ours.step(optimizer)
        reference.step(sam)
    assert all(torch.equal(a, b) for a, b in zip(ours.weights, reference.weights, strict=True))


def test_without_batch_norm_the_split_control_is_the_base_optimizer(problem):
    ours, plain = problem(), problem()
    optimizer = SplitSGD(ours.weights, torch.optim.SGD, model=ours.model, rate=1.0, lr=0.05, momentum=0.9)
    reference = torch.optim.SGD(plain.weights, lr=0.05, momentum=0.9)
    for _ in range(30):
        ours.step(optimizer)
        plain.step(reference)
    for a, b in zip(ours.weights, plain.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "control"),
    [
        ({}, {}),
        ({"interval": 3, "share": 0.5}, {"rate": 1 / 3, "share": 0.5}),
        ({"gradient_budget": 1.3, "share": 0.4}, {"rate": 0.75, "share": 0.4}),
        ({"interval": 1}, {"rate": 1.0}),
    ],
)
@pytest.mark.parametrize("batch_sizes", [(BATCH,), (BATCH, BATCH - 1, 3)])
def test_the_split_control_cuts_at_the_steps_at_which_vsam_pays(problem, method, control, batch_sizes):
    ours, theirs = problem(), problem()
    split = SplitSGD(ours.weights, torch.optim.SGD, model=ours.model, lr=0.05, **control)
    vsam = VSAM(theirs.weights, torch.optim.SGD, model=theirs.model, lr=0.05, **method)
    cut, paid = [], []
    for step in range(40):
        size = batch_sizes[step % len(batch_sizes)]
        before = split.forwards, vsam.forwards
        ours.step(split, size)
        theirs.step(vsam, size)
        # the control makes the passes of the payer but for its second gradient
        cut.append(split.forwards - before[0])
        paid.append(vsam.forwards - before[1] - (vsam.last_share > 0))
    assert cut == paid
    assert max(cut) == 2
    assert split.gradient_evaluations == 40


def test_at_a_learning_rate_of_zero_the_weights_come_back_bit_for_bit(problem, paying_kind):
    task = problem(dtype=torch.float32)
    before = task.copies()
    optimizer = paying_kind.build(task, lr=0.0, rho=0.3)
    for _ in range(5):
        task.step(optimizer)
        assert optimizer.statistics()["share"] > 0
    assert all(torch.equal(a, b) for a, b in zip(task.weights, before, strict=True))


def test_rows_are_passed_only_with_a_batch_size(problem, build):
    task = problem()
    optimizer = build(task, "part")

    def closure():
        return task.closure(optimizer)()

    for _ in range(8):
        optimizer.step(closure)
    assert optimizer.gradient_evaluations / optimizer.steps == 1.25
    assert optimizer.forwards == 8 + 2
    optimizer = build(task, "part", gradient_budget=1.5)
    with pytest.raises(InputError, match=r"rows=slice\(None\)"):
        optimizer.step(closure, batch_size=BATCH)


@pytest.mark.parametrize(("batch_size", "share"), [(3, 1.0), (4, 0.5), (5, 0.4), (9, 4 / 9), (1, 1.0)])
def test_the_true_share_enters_the_ledger(problem, batch_size, share):
    task = problem()
    optimizer = VSAM(task.weights, torch.optim.SGD, model=task.model, gradient_budget=1.5, lr=0.1)

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(task.model(task.x[0][:batch_size][rows]), task.y[0][:batch_size][rows])
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure, batch_size=batch_size)
    assert optimizer.statistics()["share"] == pytest.approx(share)


def test_a_closure_may_weigh_its_rows(problem):
    """Masked rows: the mean over the rest, so that the parts count by what is left in them."""
    ours, plain = problem(), problem()
    keep = torch.tensor([1.0] * 3 + [0.0] * 5 + [1.0] * 4, dtype=torch.float64)
    optimizer = SplitSGD(ours.weights, torch.optim.SGD, model=ours.model, share=0.5, rate=1.0, lr=0.1)
    reference = torch.optim.SGD(plain.weights, lr=0.1)

    def closure_of(task, optimizer, weighted):
        def closure(rows=slice(None)):
            optimizer.zero_grad()
            each = nn.functional.cross_entropy(task.model(task.x[0][rows]), task.y[0][rows], reduction="none")
            weight = keep[rows].sum()
            loss = (each * keep[rows]).sum() / weight
            loss.backward()
            return (loss, weight) if weighted else loss

        return closure

    loss = optimizer.step(closure_of(ours, optimizer, True), batch_size=BATCH)
    expected = reference.step(closure_of(plain, reference, False))
    torch.testing.assert_close(loss, expected.detach())
    for a, b in zip(ours.weights, plain.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gradients_of_one_call_are_not_written_into_by_the_next(problem, build):
    """Not even where the closure zeroes in place, or does not zero at all."""
    results = []
    for set_to_none in (True, False, None):
        task = problem()
        optimizer = build(task, "part")

        def closure(rows=slice(None), optimizer=optimizer, task=task, set_to_none=set_to_none):
            if set_to_none is not None:
                optimizer.zero_grad(set_to_none=set_to_none)
            loss = task.loss(rows)
            loss.backward()
            return loss

        for _ in range(10):
            optimizer.step(closure, batch_size=BATCH)
        results.append(task.copies())
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_a_step_without_closure_says_what_to_do(problem, build):
    optimizer = build(problem(), "sam")
    with pytest.raises(InputError, match=r"step\(\): got no closure; .*pass step\(closure\)") as told:
        optimizer.step()
    for trainer in ("Lightning", "accelerate", "accelerator.backward", "Hugging Face Trainer", "training_step"):
        assert trainer in str(told.value)
    assert "\n" not in str(told.value)


def test_wrong_arguments_are_refused_by_name(problem, build):
    task = problem()
    optimizer = build(task, "part")
    with pytest.raises(InputError, match=r"^batch_size: got 0"):
        task.step(optimizer, batch_size=0)
    with pytest.raises(InputError, match=r"^closure: got None returned"):
        optimizer.step(lambda: None)
    embedding = nn.Embedding(3, 2, sparse=True)
    sparse = SAM(embedding.parameters(), torch.optim.SGD, lr=0.1)

    def sparse_closure():
        loss = embedding(torch.tensor([1])).sum()
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"^gradient: got a sparse"):
        sparse.step(sparse_closure)
    with pytest.raises(InputError, match=r"^base_optimizer: got LBFGS"):
        SAM(task.weights, torch.optim.LBFGS)
    for key, options in {
        "method": {"method": "prat"},
        "interval": {"interval": 0, "gradient_budget": None},
        "reuse": {"reuse": 1.5},
        "nonfinite": {"nonfinite": "stpo"},
        "check_every": {"check_every": 0},
        "dropout": {"dropout": "keeep"},
    }.items():
        with pytest.raises(ConfigError, match=f"^{key}: got"):
            build(task, "part", **options)


def test_without_a_model_one_line_is_logged_once(problem, caplog):
    task = problem()
    with caplog.at_level(logging.INFO, "qat_vsam.optim"):
        optimizer = SAM(task.weights, torch.optim.SGD, lr=0.1)
        for _ in range(3):
            task.step(optimizer)
    assert [record.message for record in caplog.records] == [
        "SAM without model=: nothing is held still in second passes"
    ]


@pytest.mark.parametrize(("more", "kept"), [({}, {"momentum_buffer"}), ({"reuse": 0.7}, {"momentum_buffer", "psf"})])
def test_nothing_is_kept_without_reuse_and_one_tensor_per_parameter_with_it(problem, build, more, kept):
    task = problem()
    optimizer = build(task, "part", **more)
    task.step(optimizer)
    task.step(optimizer)
    size = sum(len(state) for state in optimizer.state.values())
    for _ in range(200):
        task.step(optimizer)
    assert all(set(state) == kept for state in optimizer.state.values())
    assert sum(len(state) for state in optimizer.state.values()) == size
    assert not any(vars(w) for w in task.weights)
