"""State dicts of prepared models: other libraries save them, and a new process shares quantizers as the old one did."""

import copy

import pytest
import safetensors.torch
import torch
from torch import nn

from qat_vsam.quant import Quantizer, QuantSpec, calibrate, param_groups, prepare, quant_layers

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class Fork(nn.Module):
    """Three layers read one tensor; the last of them in module order reads it first."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.head(torch.relu(self.norm(self.d(y) + self.b(y) + self.c(y))))


def ready(method="lsq", sample=None, **options):
    torch.manual_seed(0)
    model = Fork()
    spec = QuantSpec.preset("w4a4", method=method, **options)
    prepare(model, spec, sample=sample)
    return model


def train(model, optimizer, steps):
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).pow(2).sum().backward()
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(param_groups(model), lr=0.01, momentum=0.9)


@pytest.mark.parametrize("method", ["lsq", "lsq_plus", "pact", "minmax", "percentile"])
def test_safetensors_saves_what_a_state_dict_holds_and_it_loads_strictly(method, tmp_path):
    trained, fresh = ready(method), ready(method)
    calibrate(trained, [X])
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "model.safetensors")
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh.eval()(X), trained.eval()(X))


def test_a_quantizer_at_a_border_and_in_its_reader_is_saved_too(tmp_path):
    trained, fresh = (ready(sample=X, residual_adds="quantized") for _ in range(2))
    calibrate(trained, [X])
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "model.safetensors")
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(fresh.eval()(X), trained.eval()(X))


def test_the_first_name_is_the_parameter_itself_and_variables_stay_variables():
    model = ready(sample=X)
    state, variables = model.state_dict(), model.state_dict(keep_vars=True)
    step = model.b.input_quantizer.step_size
    assert state["b.input_quantizer.step_size"].data_ptr() == step.data_ptr()
    assert all(variables[f"{name}.input_quantizer.step_size"] is step for name in "bcd")


@pytest.mark.parametrize("method", ["lsq", "lsq_plus", "pact", "minmax"])
def test_a_model_prepared_without_a_sample_shares_as_the_one_whose_state_it_loads(method):
    old, new = ready(method), ready(method)
    calibrate(old, [X])
    first = sgd(old)
    train(old, first, 2)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert new.b.input_quantizer is new.c.input_quantizer is new.d.input_quantizer
    assert [layer.reads_again for _, layer in quant_layers(new)] == [
        layer.reads_again for _, layer in quant_layers(old)
    ]
    second = sgd(new)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(old, first, 5)
    train(new, second, 5)
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))


def test_layers_join_inside_of_a_wrapper_and_in_a_part_of_the_net():
    old = ready()
    calibrate(old, [X])
    wrapped = nn.DataParallel(ready())
    wrapped.load_state_dict({f"module.{key}": value for key, value in old.state_dict().items()})
    assert wrapped.module.b.input_quantizer is wrapped.module.d.input_quantizer
    again = copy.deepcopy(ready())
    again.load_state_dict(old.state_dict())
    assert again.c.input_quantizer is again.d.input_quantizer


def test_a_state_of_four_bytes_loads_and_says_nothing_of_sharing():
    old, new = ready(), ready()
    calibrate(old, [X])
    state = {key: value[:4] if key.endswith("_extra_state") else value for key, value in old.state_dict().items()}
    new.load_state_dict(state)
    assert torch.equal(new.eval()(X), old.eval()(X))
    assert len({module for module in new.modules() if isinstance(module, Quantizer)}) == 2 * len(
        list(quant_layers(new))
    )
