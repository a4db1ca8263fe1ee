"""The compiled kernels compute what the eager ones do, and changing sizes compile few graphs."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from qat_vsam.errors import MissingDependencyError
from qat_vsam.quant import Quantizer, QuantSpec, TensorSpec, calibrate, lsq_quantize, prepare, set_compiled
from qat_vsam.quant import compiled as compiled_module
from qat_vsam.quant import quantizers as quantizers_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def compiler():
    try:
        return compiled_module.compiled_kernels()
    except MissingDependencyError as error:
        pytest.skip(str(error))


def run(x, step, gradient, q_min, q_max, compiled):
    x, step = x.clone().requires_grad_(), step.clone().requires_grad_()
    x_hat = lsq_quantize(x, step, q_min, q_max, 0.1, compiled=compiled)
    x_hat.backward(gradient)
    return x_hat.detach(), x.grad, step.grad


@pytest.mark.usefixtures("compiler")
def test_compiled_equals_eager_and_new_sizes_compile_at_most_three_graphs_a_kernel():
    generator = torch.Generator().manual_seed(0)
    for per_channel in (False, True):
        before = counters["stats"]["unique_graphs"]
        for batch, size, (q_min, q_max) in [
            (4, 8, (0, 15)),
            (7, 8, (0, 15)),
            (3, 5, (-8, 7)),
            (16, 12, (-128, 127)),
            (1, 31, (0, 255)),
        ]:
            x = torch.randn(batch, 6, size, size, generator=generator)
            x = x.to(memory_format=torch.channels_last)
            gradient = torch.randn(x.shape, generator=generator)
            step = torch.rand(batch if per_channel else (), generator=generator) * 0.3 + 0.1
            eager = run(x, step, gradient, q_min, q_max, compiled=False)
            fused = run(x, step, gradient, q_min, q_max, compiled=True)
            assert fused[0].stride() == x.stride()
            assert torch.equal(fused[0], eager[0])
            assert torch.equal(fused[1], eager[1])
            torch.testing.assert_close(fused[2], eager[2], rtol=1e-4, atol=1e-3)
        assert counters["stats"]["unique_graphs"] - before <= 2 * 3


@pytest.mark.usefixtures("compiler")
def test_a_model_switched_to_compiled_kernels_gives_the_same_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    prepare(model, QuantSpec.preset("w4a4"))
    x = torch.randn(5, 3, 8, 8)
    calibrate(model, [x])
    gradients = []
    for compiled in (False, True):
        set_compiled(model, compiled)
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for eager, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-6)


@pytest.fixture
def fresh_kernels(monkeypatch):
    """The kernels as a process that has not compiled any finds them."""
    for name in ("compiled_kernels", "compiler_trouble", "_compiled"):
        uncached = functools.cache(getattr(compiled_module, name).__wrapped__)
        monkeypatch.setattr(compiled_module, name, uncached)
    monkeypatch.setattr(quantizers_module, "compiled_kernels", compiled_module.compiled_kernels)


def broken_compiler(*arguments, **options):
    raise OSError("no C++ compiler here")


@pytest.mark.usefixtures("fresh_kernels")
def test_without_a_compiler_the_switch_says_so_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: broken_compiler)
    model = nn.Sequential(nn.Linear(4, 4))
    prepare(model, QuantSpec.preset("w4a4"))
    with pytest.raises(MissingDependencyError, match=r"compiled: got no working compiler.*stay eager"):
        set_compiled(model)
    assert not any(m.compiled for m in model.modules() if isinstance(m, Quantizer))


LARGE = torch.linspace(-1, 2, 2**18)


def large_step(compiled=None):
    x, step = LARGE.clone().requires_grad_(), torch.tensor(0.25, requires_grad=True)
    x_hat = lsq_quantize(x, step, -8, 7, compiled=compiled)
    (x_hat * LARGE.cos()).sum().backward()
    return x_hat.detach(), x.grad, step.grad


@pytest.mark.usefixtures("compiler", "fresh_kernels")
def test_large_tensors_run_fused_where_a_compiler_is_found(monkeypatch):
    compiled = []
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f.__name__) or original(f, **options))
    lsq_quantize(LARGE[1:], torch.tensor(0.25), -8, 7)
    assert not compiled
    automatic, eager = large_step(), large_step(compiled=False)
    assert compiled == ["_fused_forward", "_fused_backward"]
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(automatic, eager, strict=True))


def wrong_gradient(function, **options):
    def run(*arguments):
        first, second = function(*arguments)
        return (first, second) if function.__name__ == "_fused_forward" else (first, torch.zeros_like(second))

    return run


@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize(
    ("compiler", "trouble"),
    [(lambda function, **options: broken_compiler, "no C\\+\\+ compiler"), (wrong_gradient, "its gradient is not")],
)
def test_a_compiler_that_fails_or_errs_is_not_used(monkeypatch, compiler, trouble):
    monkeypatch.setattr(torch, "compile", compiler)
    automatic, eager = large_step(), large_step(compiled=False)
    assert all(torch.equal(a, b) for a, b in zip(automatic, eager, strict=True))
    with pytest.raises(MissingDependencyError, match=trouble):
        compiled_module.compiled_kernels()
    assert "stay eager" in compiled_module.compiler_trouble()


# weight, activation
SPECS = {
    "lsq": ({}, {}),
    "1 bit": ({"bits": 1}, {"bits": 1}),
    "balanced": ({"bits": 2, "balanced": True}, {"bits": 2}),
    "powers of two": ({"power_of_two": True}, {"power_of_two": True}),
    "ewgs": ({"surrogate": "ewgs"}, {"surrogate": "ewgs"}),
    "stable": ({"surrogate": "stable"}, {"surrogate": "stable"}),
    "per group": ({"granularity": "per_group", "group_size": 3}, {}),
    "lsq_plus": ({}, {"method": "lsq_plus"}),
    "pact": ({}, {"method": "pact"}),
    "dorefa": ({"method": "dorefa"}, {}),
    "minmax": ({"method": "minmax"}, {"method": "minmax"}),
}


@pytest.mark.parametrize("kind", SPECS)
def test_a_whole_model_is_one_graph_with_the_gradients_of_eager_operations(kind):
    torch._dynamo.reset()
    weight, activation = SPECS[kind]
    spec = QuantSpec(
        weight=TensorSpec(**{"bits": 4, "signed": True, "granularity": "per_channel", **weight}),
        activation=TensorSpec(**{"bits": 4, **activation}),
        first_last_bits=None,
    )
    torch.manual_seed(0)
    first = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
    model = nn.Sequential(
        *first, nn.ReLU(), nn.Conv2d(6, 3, 3), nn.Hardswish(), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 2), nn.Flatten()
    )
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last)
    prepare(model, spec, sample=x[:2])
    calibrate(model, [x])
    model.train()
    gradients = []
    twin = copy.deepcopy(model)  # ranges that follow the batches move at each forward
    twin.compile(backend="aot_eager", fullgraph=True)
    for network in (model, twin):
        leaf = x.clone().requires_grad_()
        network(leaf).square().mean().backward()
        gradients.append([leaf.grad] + [p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) > 5
    for eager, compiled in zip(*gradients, strict=True):
        assert eager.abs().sum() > 0
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)
