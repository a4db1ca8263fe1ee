"""A training that is stopped anywhere and started again ends in the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys

import pytest
import torch

from qat_vsam.errors import CheckpointError
from qat_vsam.train import CheckpointFolder, Interrupted, RunFolder, fit, recorder

CASES = {
    "sgd-fp32": ("sgd", None, False, 5),
    "sam-bf16": ("sam", "bf16", False, 23),
    "vsam-budget-fp32": ("vsam-budget", None, False, 36),
    "vsam-paper-bf16": ("vsam-paper", "bf16", False, 49),
    "vsam-budget-w4a4": ("vsam-budget", None, True, 64),
    "sam-ema-w4a4": ("sam-ema", None, True, 41),
}
EPOCHS, STEPS_PER_EPOCH = 12, 6  # of `digits_run.train`


@pytest.fixture(scope="module")
def undisturbed(digits_run, tmp_path_factory):
    """The folder of the undisturbed run of a case, trained once in this process."""
    folders = {}

    def get(optimizer, amp, quantized, epochs=EPOCHS):
        case = (optimizer, amp, quantized, epochs)
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp("undisturbed")
            digits_run.train(folders[case], optimizer, amp, quantized, epochs)
        return folders[case]

    return get


@pytest.fixture(scope="module")
def server(start_script):
    """A process that starts trainings, see `digits_server.py`."""
    return start_script("digits_server.py", stdin=subprocess.PIPE)


@pytest.fixture
def kill_at(server, steps_logged):
    """Kill a run's process once its log shows a step; whether the kill came before the run's end."""

    def kill(step, folder, *arguments):
        server.stdin.write(json.dumps([str(folder), *arguments]) + "\n")
        server.stdin.flush()
        process = int(server.stdout.readline())
        ended = wait_for(
            lambda: steps_logged(folder) >= step, lambda: bool(select.select([server.stdout], [], [], 0)[0])
        )
        if not ended:
            os.kill(process, signal.SIGKILL)
        code = int(server.stdout.readline())
        assert code in (0, -signal.SIGKILL), "the run failed by itself"
        return code != 0 and steps_logged(folder) < EPOCHS * STEPS_PER_EPOCH

    return kill


def wait_for(reached, ended):
    """Look again and again until one of the two is true; whether it was the second."""
    while not reached():
        if ended():
            return True
        select.select([], [], [], 0.002)
    return False


@pytest.mark.parametrize("name", CASES)
def test_killed_at_a_step_the_same_command_ends_in_the_same_bits(
    name, digits_run, undisturbed, kill_at, assert_same_end, tmp_path
):
    optimizer, amp, quantized, step = CASES[name]
    folders = (tmp_path / str(attempt) for attempt in range(20))
    folder = next(folder for folder in folders if kill_at(step, folder, optimizer, amp, quantized))

    result = digits_run.train(folder, optimizer, amp, quantized)

    assert result.resumed_from is not None
    assert result.resumed_from >= step - 4
    assert_same_end(folder, undisturbed(optimizer, amp, quantized))


def test_sigterm_ends_the_process_with_143_and_the_run_goes_on_exactly(
    start_script, steps_logged, digits_run, undisturbed, assert_same_end, tmp_path
):
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        process = start_script("digits_run.py", folder)
        wait_for(lambda: steps_logged(folder) >= 9, lambda: process.poll() is not None)  # noqa: B023
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
        if process.returncode != 0:  # else it was done before the signal came
            break
    assert process.returncode == 143, errors
    assert list((folder / "checkpoints").glob("*.pt"))

    digits_run.train(folder)

    assert_same_end(folder, undisturbed("sgd", None, False))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [1, 6, 9, 18])
def test_a_signal_writes_a_checkpoint_after_the_step_under_way(
    signum, code, step, digits_run, undisturbed, assert_same_end, tmp_path
):
    def send(progress):
        if progress.kind == "step" and progress.step == step:
            signal.raise_signal(signum)

    with pytest.raises(Interrupted, match=signum.name) as stopped:
        digits_run.train(tmp_path, epochs=3, on_event=send)

    assert stopped.value.exit_code == code
    assert digits_run.train(tmp_path, epochs=3).resumed_from == step
    assert_same_end(tmp_path, undisturbed("sgd", None, False, 3))


def test_a_signal_at_any_line_between_two_steps_leaves_a_checkpoint(digits_run, tmp_path):
    def train(folder, at=None):
        """Train for an epoch; a signal comes when the recorder first reaches line `at`. Returns its lines that ran."""
        lines = []

        def trace(frame, event, argument):
            if frame.f_code.co_filename != recorder.__file__ or frame.f_code.co_name.startswith("__"):
                return None
            if event == "line" and frame.f_lineno not in lines:
                lines.append(frame.f_lineno)
                if frame.f_lineno == at:
                    signal.raise_signal(signal.SIGTERM)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            digits_run.train(folder, epochs=1)
        finally:
            sys.settrace(before)
        return lines

    lines = train(tmp_path / "undisturbed")
    assert len(lines) > 20
    for line in lines:
        folder = tmp_path / str(line)
        with pytest.raises(Interrupted):
            train(folder, line)
        assert CheckpointFolder(folder / "checkpoints").newest() is not None, f"line {line}"


def test_the_handlers_from_before_are_put_back(digits_run, tmp_path):
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    digits_run.train(tmp_path, epochs=1)
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_second_interrupt_does_not_wait_for_the_step(digits_run, tmp_path):
    def interrupt_twice(progress):
        if progress.kind == "step" and progress.step == 2:
            signal.raise_signal(signal.SIGINT)
            # two signals that arrive before Python has looked at the first one are one
            while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
                pass
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        digits_run.train(tmp_path, epochs=3, on_event=interrupt_twice)

    assert not isinstance(stopped.value, Interrupted)


class Crash(Exception):  # noqa: N818
    """Stands for a crash between two steps."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([4, 5, 6, 7, 13], id="around an epoch's end"),
        pytest.param(list(range(1, 24)), id="at every step", marks=pytest.mark.nightly),
    ],
)
def test_many_crashes_in_one_run_change_no_bit(name, stops, digits_run, undisturbed, assert_same_end, tmp_path):
    optimizer, amp, quantized, _ = CASES[name]
    for stop in stops:

        def crash(progress, stop=stop):
            if progress.kind == "step" and progress.step == stop:
                raise Crash

        with pytest.raises(Crash):
            digits_run.train(tmp_path, optimizer, amp, quantized, 4, on_event=crash)

    digits_run.train(tmp_path, optimizer, amp, quantized, 4)

    assert_same_end(tmp_path, undisturbed(optimizer, amp, quantized, 4))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_hundred_kills_at_random_steps_change_no_bit(digits_run, undisturbed, kill_at, assert_same_end, tmp_path):
    draw = random.Random(0)
    killed = 0
    for attempt in range(200):
        optimizer, amp, quantized, _ = CASES[draw.choice(sorted(CASES))]
        folder = tmp_path / str(attempt)
        killed += kill_at(draw.randrange(1, 68), folder, optimizer, amp, quantized)
        digits_run.train(folder, optimizer, amp, quantized)
        assert_same_end(folder, undisturbed(optimizer, amp, quantized))
    assert killed > 150


@pytest.mark.parametrize("name", CASES)
def test_the_loop_counts_what_the_optimizer_declares(name, undisturbed):
    optimizer, amp, quantized, _ = CASES[name]
    state = CheckpointFolder(undisturbed(optimizer, amp, quantized) / "checkpoints").newest()["training"]
    cost = state["ledger"]["gradient_evaluations"] / state["ledger"]["steps"]

    if optimizer == "sgd":
        assert cost == 1
    else:
        (declared,) = find(state["optimizer"], "gradient_evaluations")
        assert state["ledger"]["gradient_evaluations"] == pytest.approx(declared, rel=1e-12)
        assert {"sam": 2, "sam-ema": 2, "vsam-budget": 1.15}.get(optimizer, cost) == pytest.approx(cost, abs=0.01)
        assert 1 < cost <= 2


def test_a_finished_training_is_only_read_back(digits_run, tmp_path):
    first = digits_run.train(tmp_path, epochs=2)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()

    second = digits_run.train(tmp_path, epochs=2)

    assert second.resumed_from == first.steps == 12
    assert second.train_loss == first.train_loss
    assert second.validation_accuracy == first.validation_accuracy
    assert second.ledger.train_seconds == pytest.approx(first.ledger.train_seconds, rel=0.1, abs=0.1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def find(tree, name):
    """The values of all keys called `name`, however deep."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from [value] if key == name else find(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from find(value, name)


def test_a_broken_newest_checkpoint_is_reported_and_the_one_before_is_used(
    digits_run, undisturbed, assert_same_end, tmp_path, caplog
):
    digits_run.train(tmp_path, "sgd", None, False, 4)
    older, newest = sorted((tmp_path / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1])

    result = digits_run.train(tmp_path, "sgd", None, False, 4)

    assert newest.name in caplog.text
    assert "do not match" in caplog.text
    assert newest.with_name(newest.name + ".broken").exists()
    assert f"step-{result.resumed_from:08d}" in older.name
    assert_same_end(tmp_path, undisturbed("sgd", None, False, 4))


def test_a_checkpoint_of_another_net_is_refused(digits_run, tmp_path):
    digits_run.train(tmp_path, epochs=1)
    model = torch.nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)

    with RunFolder(tmp_path) as run, pytest.raises(CheckpointError, match=r"(?s)does not fit.*0\.weight"):
        fit(model, optimizer, [], run=run, epochs=1, lr_scheduler=scheduler)
