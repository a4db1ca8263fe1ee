"""Promises of the command line: every command does its job, and a mistake is one line and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from qat_vsam import config
from qat_vsam.recipes.optimizers import list_optimizers
from qat_vsam.sections import OptimizerName

Call = Callable[..., tuple[int, str, str]]

RECIPE = """
name: small
model: {name: digits_cnn, options: {width: 4}}
data: {name: digits, train_size: 100, batch_size: 20}
quant: {bits: w4a4, calibration_images: 100}
optimizer: {name: vsam, lr: 0.05, rho: 0.1}
train: {epochs: 1}
export: [packed, onnx]
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_help_imports_no_heavy_package() -> None:
    heavy = ["torch", "torchao", "brevitas", "onnx", "pandas"]
    script = (
        "import sys; from qat_vsam import cli; sys.argv = ['qat-vsam', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_importing_the_package_loads_no_heavy_package() -> None:
    script = "import sys, qat_vsam; print([n for n in ('torch', 'torchao', 'brevitas') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ls_names_what_a_recipe_may_use(command_line: Call) -> None:
    code, out, _ = command_line("ls")
    assert code == 0
    for name in ("digits", "cifar_resnet20", "vsam", "onnx", "w4a4", "onnxruntime", "lsq"):
        assert name in out


def test_layers_lists_how_each_layer_is_quantized_or_why_not(command_line: Call) -> None:
    code, out, _ = command_line("layers", "digits_cnn", "width=4", "--bits", "w4a8", "--keep", "conv2")
    assert code == 0
    assert "w4a8: 3 of 7 layers quantized" in out
    assert "in float: keep: conv2" in out
    code, _, err = command_line("layers", "digits_cnn", "widht=4")
    assert code == 2
    assert "did you mean width" in err


def test_cp_copies_and_never_overwrites(command_line: Call, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    assert command_line("cp", "digits", own)[0] == 0
    assert config.load_comparison(own).name == "digits"
    code, _, err = command_line("cp", "digits", own)
    assert code == 2
    assert "expected a new file" in err


def test_validate_tells_the_cost_before_it_is_paid(command_line: Call, recipe_file: Path) -> None:
    code, out, _ = command_line("validate", recipe_file, "train.epochs=3", "optimizer.gradient_budget=1.2")
    assert code == 0
    assert "gradient_budget: 1.2" in out
    assert "18 in 15 steps" in out


def test_validate_knows_the_length_of_the_run_that_second_gradients_are_counted_over(
    command_line: Call, recipe_file: Path
) -> None:
    text = recipe_file.read_text().replace("{name: vsam, lr: 0.05, rho: 0.1}", "{name: random_count_sam, count: 6}")
    recipe_file.write_text(text)
    code, out, err = command_line("validate", recipe_file, "train.epochs=3")
    assert code == 0, err
    assert "gradient evaluations  1.4 a step" in out
    assert "21 in 15 steps" in out


def test_a_recipe_may_name_every_optimizer_there_is_and_no_other() -> None:
    assert set(get_args(OptimizerName)) == set(list_optimizers())


def test_validate_shows_every_arm_of_a_comparison(command_line: Call) -> None:
    code, out, _ = command_line("validate", "digits")
    assert code == 0
    assert out.count("gradient evaluations") == len(config.load_comparison(config.find_config("digits")).arms)


def test_train_eval_export_verify_and_report_follow_each_other(
    command_line: Call, recipe_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = command_line("train", recipe_file, "--out", run, "--threads", "1")
    assert code == 0, err
    result = json.loads((run / "result.json").read_text())
    code, out, _ = command_line("eval", run)
    assert f"{result['accuracy']['test']:.2%}" in out
    (run / "exports" / "model.onnx").unlink()
    assert command_line("export", run, "--format", "onnx")[0] == 0
    for name in ("model.onnx", "model.packed.safetensors"):
        code, out, err = command_line("verify", run / "exports" / name)
        assert code == 0, err
    assert command_line("report", run, "--out", tmp_path / "report")[0] == 0
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    code, out, _ = command_line("train", recipe_file, "--out", run, "--threads", "1")
    assert code == 0
    assert "nothing is left to do" in out


def test_a_changed_recipe_is_refused_and_the_difference_shown(
    command_line: Call, recipe_file: Path, tmp_path: Path
) -> None:
    arguments = ("train", recipe_file, "export=[]", "--out", tmp_path / "run")
    assert command_line(*arguments)[0] == 0
    code, _, err = command_line(*arguments, "optimizer.lr=0.01")
    assert code == 1
    assert "-  lr: 0.05" in err
    assert "+  lr: 0.01" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "nothing"], "recipe: got nothing; expected a shipped recipe or a .yaml file"),
        (["train", "nothing.yaml"], "expected a file that exists"),
        (["train", "digits"], "use `qat-vsam compare`"),
        (["train", "FILE", "model.name=digit_cnn"], "did you mean digits_cnn?"),
        (["train", "FILE", "data.name=digit"], "did you mean digits?"),
        (["train", "FILE", "quant.bits=w9a4"], "w9a4"),
        (["train", "FILE", "optimizer.rho_=1"], "did you mean rho?"),
        (["train", "FILE", "optimizer.rho=much"], "rho"),
        (["train", "FILE", "optimizer.gradient_budget=0.5"], "gradient_budget: got 0.5"),
        (["train", "FILE", "quant.keep=[convv]"], "convv"),
        (["train", "FILE", "data.batch_size=1000"], "1000"),
        (["train", "FILE", "device=quantum"], "device"),
        (["train", "FILE", "model.options.wide=3"], "wide"),
        (["quantize", "digits_cnn", "--data", "digits", "--checkpoint", "gone.pt"], "gone.pt"),
        (["quantize", "no.such:model", "--data", "digits"], "no.such"),
        (["quantize", "cifar_resnet20", "--data", "cifar10", "--bits", "w4a4"], "QAT_VSAM_DATA"),
        (["verify", "gone.onnx"], "gone.onnx"),
        (["eval", "gone"], "gone"),
        (["report", "gone", "--out", "x"], "gone"),
        (["bnech"], "bench"),
        (["train", "FILE", "--thread", "2"], "--threads"),
    ],
)
def test_bad_input_is_one_clear_line(
    command_line: Call,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QAT_VSAM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    code, out, err = command_line(*[str(recipe_file) if part == "FILE" else part for part in arguments])
    assert code in (1, 2)
    assert expected in err
    assert "Traceback" not in out + err


def test_a_checkpoint_of_another_model_lists_what_does_not_fit(command_line: Call, tmp_path: Path) -> None:
    from qat_vsam.models import build_model

    wrong = build_model("digits_cnn", width=8, seed=0).state_dict()
    wrong["extra"] = wrong.pop("head.bias") if "head.bias" in wrong else wrong.pop(next(iter(wrong)))
    torch.save(wrong, tmp_path / "wrong.pt")
    code, _, err = command_line(
        "quantize",
        "digits_cnn",
        "--data",
        "digits",
        "--checkpoint",
        tmp_path / "wrong.pt",
        "--out",
        tmp_path / "q",
    )
    assert code == 1
    assert "extra" in err
    assert "missing" in err


def test_an_unwritable_folder_is_told_in_one_line(command_line: Call, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = command_line("train", recipe_file, "--out", tmp_path / "file" / "run")
    assert code == 1
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_a_model_and_a_dataset_of_the_user_reach_a_verified_onnx(
    command_line: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_shapes.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    code, _, err = command_line(
        "quantize", "mine_shapes:network", "--data", "mine_shapes:stripes", "--bits", "w4a8", "--epochs", "1",
        "--out", out, "data.batch_size=50",
    )  # fmt: skip
    assert code == 0, err
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    assert result["optimizer"] == "sgd"
    assert {export["format"] for export in result["exports"]} == {"onnx", "packed"}
    assert all(export["proof"]["passed"] for export in result["exports"])
    assert all(export["test_accuracy"] == result["accuracy"]["test"] for export in result["exports"])
    assert command_line("verify", out / "exports" / "model.onnx")[0] == 0
    packed = out / "exports" / "model.packed.safetensors"
    code, _, err = command_line("verify", packed)
    assert code == 2
    assert "mine_shapes:network" in err
    assert command_line("verify", packed, "--trust")[0] == 0


USER_CODE = '''
"""A network with a residual add, a functional activation and no batch norm; a dataset of stripes."""
import torch
from torch import nn
import torch.nn.functional as F


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 4 * 4, 2)

    def forward(self, x):
        x = F.silu(self.stem(x))
        x = x + self.pointwise(F.relu(self.depthwise(x)))
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


def network():
    return Network()


def stripes(root=None):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 2
    ramp = (torch.arange(12) % 4 < 2).float() * 200
    across = ramp.expand(12, 12)
    images = torch.where(labels[:, None, None] == 1, across, across.T)[:, None]
    noisy = images + 60 * torch.rand(600, 1, 12, 12, generator=generator)
    noisy = noisy.clamp(0, 255).to(torch.uint8)
    return (noisy[:400], labels[:400]), (noisy[400:], labels[400:])
'''


def test_info_tells_versions_devices_and_what_is_installed(command_line: Call) -> None:
    code, out, _ = command_line("info")
    facts = dict(line.split(None, 1) for line in out.splitlines())
    assert code == 0
    assert facts["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "device", "processor", "brevitas", "onnxruntime"} <= set(facts)
    assert {"qonnx", "onnxoptimizer", "transformers", "accelerate", "lightning"} <= set(facts)


def test_the_version_and_the_completion_of_a_shell_can_be_asked_for(command_line: Call) -> None:
    from importlib.metadata import version

    assert command_line("--version")[:2] == (0, f"qat-vsam {version('qat-vsam')}\n")
    code, out, _ = command_line("-h")
    assert code == 0
    assert "--show-completion" in out


def test_the_package_can_be_run_as_a_module() -> None:
    command = [sys.executable, "-m", "qat_vsam", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("qat-vsam ")


def test_train_takes_epochs_as_an_option(command_line: Call, recipe_file: Path, tmp_path: Path) -> None:
    code, _, err = command_line("train", recipe_file, "--epochs", "2", "export=[]", "--out", tmp_path / "run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("pretrained", [False, True])
def test_quantize_warns_where_there_are_no_trained_weights(
    command_line: Call, tmp_path: Path, pretrained: bool
) -> None:
    from qat_vsam.models import build_model

    torch.save(build_model("digits_cnn", width=4, seed=0).state_dict(), tmp_path / "net.pt")
    given = ["--checkpoint", tmp_path / "net.pt"] if pretrained else []
    code, out, err = command_line(
        "quantize",
        "digits_cnn",
        "--data",
        "digits",
        *given,
        "model.options.width=4",
        "export=[]",
        "--out",
        tmp_path / "q",
    )
    assert code == 0, err
    assert ("random weights" in out) is not pretrained


def test_a_trained_net_of_the_user_is_fed_as_somebody_tells_or_not_at_all(
    command_line: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "\n\ndef told(root=None):\n    return stripes()\n\n\ntold.mean, told.std = (0.4,), (0.3,)\n"
    (tmp_path / "mine_told.py").write_text(USER_CODE + told)
    monkeypatch.syspath_prepend(str(tmp_path))
    job = ["quantize", "mine_told:network", "--bits", "w4a8", "export=[]"]
    code, _, err = command_line(*job, "--data", "mine_told:stripes", "--out", tmp_path / "refused")
    assert code == 2
    assert "model.mean: got nothing" in err
    assert not (tmp_path / "refused").exists()
    changes = ["model.mean=0.5", "model.std=0.25"]
    code, out, err = command_line(*job, *changes, "--data", "mine_told:stripes", "--out", tmp_path / "given")
    assert code == 0, err
    assert "inputs: 1 x 12 x 12, mean [0.5], std [0.25]" in out
    code, out, err = command_line(*job, "--data", "mine_told:told", "--out", tmp_path / "told")
    assert code == 0, err
    assert "inputs: 1 x 12 x 12, mean [0.4], std [0.3]" in out
