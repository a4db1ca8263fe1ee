"""Two ranks are one process on the union of their batches, or ascend each by itself; they never disagree.

The ranks run once, in `distributed_checks`; each test reads what they found.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qat_vsam.errors import ConfigError
from qat_vsam.optim import SAM

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def findings(folder):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(HERE / "distributed_checks.py"), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    files = sorted(folder.glob("?.json"))
    assert len(files) == 2, run.stderr[-4000:]
    return [json.loads(file.read_text()) for file in files]


def each(findings, check):
    """What the ranks found, by name; a rank that failed in this check fails the test with its traceback."""
    for found in findings:
        assert "failed" not in found.get(check, {"failed": "not reached"}), found.get(check, found)["failed"]
        yield from found[check].items()


@pytest.mark.parametrize("check", ["global_ddp", "global_quantized", "global_fsdp", "bucket_views"])
def test_a_global_perturbation_is_that_of_one_process_on_the_union_of_the_batches(findings, check):
    for name, found in each(findings, check):
        assert found["distance"] < 1e-6, name
        assert found["moved"] > 0.1, name
        assert found["same norms"], name


@pytest.mark.parametrize("check", ["global_ddp", "global_quantized", "global_fsdp", "bucket_views"])
def test_ranks_are_bit_equal_after_each_step_and_pay_what_one_process_pays(findings, check):
    for name, found in each(findings, check):
        assert found["equal"], name
        assert found["same cost"], name


def test_a_perturbation_per_rank_is_another_one_and_ranks_stay_bit_equal(findings):
    from_earlier_steps = {"msam", "s2-sam"}
    for name, found in each(findings, "per_rank"):
        assert (found["from global"] == 0) == (name in from_earlier_steps), name
        assert found["from global"] > 1e-3 or name in from_earlier_steps, name
        assert found["equal"], name
        assert found["same decisions"], name


def test_a_perturbation_per_rank_is_each_ranks_own_gradient_and_a_mean_of_what_is_found_there(findings):
    twins = [(name, found["from twin"]) for name, found in each(findings, "per_rank") if "from twin" in found]
    assert {name for name, _ in twins} == {"sam", "vsam-budget"}
    for name, distance in twins:
        assert distance < 1e-12, name


@pytest.mark.parametrize("check", ["shards_come_back", "copies"])
def test_shards_come_back_bit_for_bit_and_copies_go_on_as_the_original(findings, check):
    for name, found in each(findings, check):
        assert found is True, name


def test_micro_batches_are_the_batch_that_they_make_together_on_several_ranks_too(findings):
    for name, distance in each(findings, "micro_batches"):
        assert distance < 1e-9, name


def test_ranks_with_batches_of_other_sizes_decide_alike(findings):
    for name, found in each(findings, "uneven_batches"):
        assert found == {"equal": True, "same decisions": True}, name


def test_an_overflow_on_one_rank_skips_the_step_on_all(findings):
    for name, found in each(findings, "overflow"):
        assert found == {"equal": True, "scales": [2.0**9, 2.0**9], "skipped": 1}, name


def test_all_schedules_decide_alike_on_all_ranks_for_ten_thousand_steps(findings):
    for name, found in each(findings, "decisions"):
        assert found["equal"], name
        assert found["some"] > 1000, name


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        ("unwrapped", "pass model=ddp, not ddp.module"),
        ("no model", "pass model=ddp, not ddp.module"),
        ("wrapped too late", "pass model=ddp, not ddp.module"),
        ("unused parameters", "find_unused_parameters=True"),
        ("per rank in shards", "expected DistributedDataParallel"),
        ("offsets in shards", 'use perturbation="euclidean"'),
        ("shards and whole", "shard all of them"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(findings, attempt, message):
    messages = [found for name, found in each(findings, "refusals") if name == attempt]
    assert len(messages) == 2
    assert all(message in found for found in messages)


def test_a_distributed_checkpoint_resumes_exactly(findings):
    for name, found in each(findings, "checkpoints"):
        assert all(found.values()), (name, found)


def test_a_checkpoint_of_sharded_ranks_goes_on_in_one_process(findings, folder):
    command = [sys.executable, str(HERE / "distributed_resume.py"), str(folder / "fsdp-vsam-rise-7")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert float(run.stdout) < 1e-12


def test_an_unknown_synchronisation_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"^perturbation_sync: got 'per-rank'.* did you mean per_rank"):
        SAM([torch.zeros(1)], torch.optim.SGD, lr=0.1, perturbation_sync="per-rank")


def test_a_rank_whose_partner_is_killed_leaves_with_an_error(tmp_path):
    command = [sys.executable, str(HERE / "distributed_survivor.py"), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        _, error = ranks[0].communicate(timeout=60)
        ranks[1].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[1].returncode == -signal.SIGKILL
    assert ranks[0].returncode == 1
    assert "Error" in error
    assert (tmp_path / "0.steps").read_text() == (tmp_path / "1.steps").read_text() == "3"
