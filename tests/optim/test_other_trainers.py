"""The README's examples for other trainers run as they stand, where the trainer is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from qat_vsam import optim
from qat_vsam.errors import InputError
from qat_vsam.optim import SAM, VSAM, MicroBatches

README = Path(optim.__file__).with_name("README.md").read_text()
EXAMPLES = dict(zip(("micro-batches", "lightning", "lightning-rows", "accelerate", "transformers"),
                    re.findall(r"```python\n(.*?)```", README, re.DOTALL), strict=True))  # fmt: skip
# The trainers' own warnings (of few workers, of what they deprecate) are no business of these tests.
pytestmark = pytest.mark.filterwarnings("ignore")


def build_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


@pytest.fixture
def rows() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator)
    return list(zip(x, (x[:, 0] > 0).long(), strict=True))


def run(name: str, **names: Any) -> dict[str, Any]:
    scope = {"torch": torch, "F": F, "SAM": SAM, "VSAM": VSAM, "MicroBatches": MicroBatches, "build_net": build_net}
    scope.update(names)
    exec(compile(EXAMPLES[name], f"README: {name}", "exec"), scope)
    return scope


def test_the_micro_batch_example(rows) -> None:
    model = build_net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1)
    scope = run("micro-batches", model=model, optimizer=optimizer, micro_batches=list(loader_of(rows)))
    assert optimizer.forwards == 2
    assert scope["loss"] > 0
    assert int(model[1].num_batches_tracked) == 4


@pytest.mark.parametrize(("name", "least", "most"), [("lightning", 16, 16), ("lightning-rows", 8.5, 15.5)])
def test_lightning(rows, name, least, most) -> None:
    lightning = pytest.importorskip("lightning", reason="needs the extra `lightning`")
    scope = run(name, lightning=lightning, loader=loader_of(rows))
    optimizer = scope["trainer"].optimizers[0]
    assert optimizer.steps == 8
    assert least <= optimizer.gradient_evaluations <= most
    assert int(scope["trainer"].lightning_module.net[1].num_batches_tracked) == 8


def test_lightning_in_half_precision_is_told_what_to_do(rows) -> None:
    lightning = pytest.importorskip("lightning", reason="needs the extra `lightning`")
    if not torch.cuda.is_available():
        pytest.skip("Lightning has 16-mixed on a GPU only")
    source = EXAMPLES["lightning"].replace('"cpu"', '"gpu", precision="16-mixed"')
    with pytest.raises(InputError, match="GradScaler"):
        exec(source, {"torch": torch, "F": F, "SAM": SAM, "build_net": build_net, "lightning": lightning,
                      "loader": loader_of(rows)})  # fmt: skip


def test_accelerate(rows) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs the extra `accelerate`")
    scope = run("accelerate", accelerate=accelerate, loader=loader_of(rows))
    assert scope["optimizer"].steps == 4
    assert 4 < scope["optimizer"].gradient_evaluations < 8
    # the prepared optimizer, too, hands a closure on, and without one says what to do
    scope["prepared"].step(scope["closure"])
    assert scope["optimizer"].steps == 5
    with pytest.raises(InputError, match=r"with accelerate call optimizer\.step\(closure\)"):
        scope["prepared"].step()


def test_the_hugging_face_trainer(rows, tmp_path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
    pytest.importorskip("accelerate", reason="needs the extra `accelerate`")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build_net()

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    dataset = [{"x": x, "labels": y} for x, y in rows]
    scope = run(
        "transformers", transformers=transformers, build_hugging_face_model=Net, dataset=dataset, output_dir=tmp_path
    )
    assert scope["optimizer"].steps == scope["trainer"].state.global_step == 8
    assert 8 < scope["optimizer"].gradient_evaluations < 16
    assert int(scope["model"].net[1].num_batches_tracked) == 8


def loader_of(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    return torch.utils.data.DataLoader(rows, batch_size=8)
