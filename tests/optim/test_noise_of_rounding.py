"""A second gradient on part of a batch: the step takes of h what is more than the noise of rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import qat_vsam as qv
from qat_vsam.data import Batches
from qat_vsam.models import model_info
from qat_vsam.quant import set_compiled

PART, REST = (3.0, 0.0), (1.0, 2.0)


def step_with(second, share=0.25):
    """What VSAM steps with, where the part has the gradient PART at w and `second` at w + e, the rest REST."""
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = qv.VSAM([w], torch.optim.SGD, lr=1.0, rho=0.1, largest_rise=None, share=share, interval=1)

    def closure(rows=slice(None)):
        at_w = not w.detach().any()
        rest = rows.start is not None and rows.start > 0
        w.grad = torch.tensor(REST if rest else PART if at_w else second, dtype=torch.float64)
        return torch.tensor(0.0)

    optimizer.step(closure, batch_size=8)
    return (-w.detach()).tolist()


@pytest.mark.parametrize(
    ("second", "share_of_h"),
    [
        ((4.0, 1.0), 1.0),  # uphill, and all of it counts
        ((0.0, 3.0), 0.0),  # as long as before, and elsewhere: two errors of equal size
        ((1.0, 1.0), 0.0),  # shorter
        ((3.0, 0.0), 0.0),  # the same: there is nothing to take
        ((1.0, 4.0), (17 - 9) / 20),  # in between: |h|^2 = 20
    ],
)
def test_h_counts_in_proportion_to_what_is_no_noise(second, share_of_h):
    expected = [
        0.25 * part + 0.75 * rest + share_of_h * (there - part)
        for part, rest, there in zip(PART, REST, second, strict=True)
    ]
    assert step_with(second) == pytest.approx(expected, rel=1e-12)


def test_on_the_whole_batch_the_step_is_made_with_the_gradient_at_the_displaced_weights():
    assert step_with((0.0, 3.0), share=1.0) == [0.0, 3.0]


@pytest.fixture(scope="module")
def images(data_folder):
    data = qv.load_dataset("cifar10", data_folder, train_size=0, validation_size=256, validation_from="test")
    info = model_info("cifar_resnet20")
    return Batches(data.validation, 128, mean=info.mean, std=info.std)


@pytest.mark.parametrize(("bits", "least", "most"), [(None, 0.99, 1.0), ("w2a2", 0.0, 0.4)])
def test_in_a_trained_net_at_two_bits_most_of_h_is_noise_and_in_float_none(data_folder, images, bits, least, most):
    model = qv.build_model("cifar_resnet20", data_folder / "pretrained" / "resnet20-12fca82f.th")
    if bits is not None:
        qv.prepare(model, qv.QuantSpec.preset(bits))
        qv.calibrate(model, images)
        set_compiled(model, False)
    taken, length = h_of_a_step(model.train(), *next(iter(images)))
    assert least * length <= taken <= most * length * (1 + 1e-5)


def h_of_a_step(model, x, y):
    """The length of what VSAM took of h, and that of h."""
    optimizer = qv.VSAM(qv.param_groups(model), torch.optim.SGD, model=model, lr=0.0, rho=0.05, interval=1)
    gradients = []

    def closure(rows=slice(None)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        return loss

    optimizer.step(closure, batch_size=len(x))
    return optimizer.statistics()["psf_norm"], (gradients[1] - gradients[0]).norm().item()
