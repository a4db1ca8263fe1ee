"""With `residual_adds="quantized"` additions, concatenations and average pools read tensors quantized once each."""

import copy
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qat_vsam.errors import ConfigError
from qat_vsam.optim import SAM
from qat_vsam.quant import (
    LayerRule,
    Quantizer,
    QuantSpec,
    calibrate,
    param_groups,
    prepare,
    quant_layers,
    set_quantizers_enabled,
)
from qat_vsam.quant.borders import border_quantizers, borders

SPEC = QuantSpec.preset("w4a4", residual_adds="quantized")
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block as torchvision writes it: one ReLU called twice, and an addition in place."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Net(nn.Module):
    """A stem, two blocks, a concatenation, and a head; everything between them is a function of the root."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 3), nn.Sequential(Block(), Block())
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1)
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        x = self.blocks(F.relu(self.stem(x)))
        x = self.last(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def prepared(build=Net, spec=SPEC, x=X):
    torch.manual_seed(0)
    model = build()
    summary = prepare(model, spec, sample=x[:2])
    calibrate(model, [x])
    return model, summary


class OffGrid(TorchDispatchMode):
    """Counts the inputs of additions, concatenations and mean pools that lie on no grid of the model's quantizers."""

    def __init__(self, model):
        super().__init__()
        self.scales = [quantizer.step().detach() for quantizer in border_quantizers(model)]
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        inputs = {"add": args[:2], "cat": args and args[0], "mean": args[:1], "avg_pool2d": args[:1]}.get(name, ())
        inputs = [x for x in inputs if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim() == 4]
        for x in inputs if func is not torch.ops.aten.mean.default else ():
            codes = [(x / scale) for scale in self.scales]
            on = any((v - v.round()).abs().max() < 1e-3 and v.abs().max() < 16 for v in codes)
            self.found[name, on] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("build", "joined"),
    [
        (torchvision.models.resnet18, {"add": 8, "average_pool": 1}),
        (torchvision.models.mobilenet_v2, {"add": 10, "average_pool": 1}),
        (torchvision.models.squeezenet1_1, {"concat": 8, "average_pool": 1}),
        (torchvision.models.shufflenet_v2_x0_5, {"concat": 16, "average_pool": 1}),
        (lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False), {"concat": 9, "average_pool": 1}),
    ],
)
def test_everything_that_joins_tensors_reads_quantized_ones(build, joined):
    torch.manual_seed(0)
    model = build().eval()
    x = X[:2]
    with torch.no_grad():
        expected = model(x)
        summary = prepare(model, SPEC, sample=x)
        set_quantizers_enabled(model, False)
        assert torch.equal(model(x), expected)
    assert Counter(row.kind for row in summary.operations if not row.skipped) == joined
    assert not [row for row in summary.operations if row.skipped]


def test_what_is_added_lies_on_the_grid_also_in_training():
    model, _ = prepared()
    for training in (False, True):
        model.train(training)
        with torch.no_grad(), OffGrid(model) as spy:
            model(X)
        assert spy.found == {("add", True): 4, ("cat", True): 2, ("mean", True): 1}
    with torch.no_grad(), OffGrid(model) as spy:
        prepared(spec=QuantSpec.preset("w4a4"))[0](X)
    assert spy.found["add", False]


def test_forward_and_gradients_are_those_of_the_written_out_block():
    """Each tensor is quantized once: the step size hears of every reader through that one quantizer."""
    model, _ = prepared()
    model = model.double().eval()
    first = model.blocks[0]
    before = first.quantizer_before if hasattr(first, "quantizer_before") else first.conv1.input_quantizer
    assert first.conv1.input_quantizer is before
    x = torch.rand(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    steps = [before.step_size, first.bn2.quantizer_after.step_size]
    found = torch.autograd.grad(first(x).square().sum(), [x, *steps])

    x_hat = before(x)
    y = F.conv2d(x_hat, first.conv1.quantized_weight(), first.conv1.bias, padding=1)
    y = first.conv2.input_quantizer(F.relu(first.bn1(y)))
    y = first.bn2.quantizer_after(
        F.batch_norm(
            F.conv2d(y, first.conv2.quantized_weight(), first.conv2.bias, padding=1),
            *(first.bn2.running_mean, first.bn2.running_var, first.bn2.weight, first.bn2.bias),
        )
    )
    y = F.relu(y + x_hat)
    if hasattr(first, "quantizer_after"):
        y = first.quantizer_after(y)
    expected = torch.autograd.grad(y.square().sum(), [x, *steps])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_each_tensor_passes_one_quantizer_once():
    model, _ = prepared()
    calls = Counter()
    for name, module in model.named_modules():
        if isinstance(module, Quantizer) and module.role == "activation":
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        model(X)
    joined = model.left.quantizer_after
    assert joined is model.right.quantizer_after is model.last.input_quantizer
    assert model.last.input_is_quantized
    # both parts of the concatenation pass one; left and right read what is no operand, and each quantize it
    assert sorted(calls.values()) == [1] * (len(calls) - 2) + [2, 2]


def test_layers_that_read_an_operand_share_its_quantizer_and_do_not_repeat_it():
    model, _ = prepared(torchvision.models.resnet18)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert stage[1].conv1.input_quantizer is stage[0].quantizer_after
        assert stage[1].conv1.input_is_quantized
    assert model.maxpool.quantizer_after is model.layer1[0].conv1.input_quantizer
    assert not model.layer2[0].conv1.input_is_quantized  # what it reads is no operand: the shortcut has a layer
    assert type(model.layer1[0]) is torchvision.models.resnet.BasicBlock


class Shortcut(nn.Module):
    """A block whose shortcut is a module, as the CIFAR nets have it: its input is read by a layer before."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.shortcut, self.head = nn.Identity(), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.conv(x))
        return self.head(F.relu(y + self.shortcut(x)))


@pytest.mark.parametrize(
    "build", [Shortcut, Net, torchvision.models.squeezenet1_1, torchvision.models.shufflenet_v2_x0_5]
)
def test_what_a_layer_does_not_quantize_again_lies_on_its_grid(build):
    model, _ = prepared(build)
    off = []

    def note(layer, args):
        x_hat = layer.input_quantizer.dequantize(layer.input_quantizer.codes(args[0]))
        off.append((args[0] - x_hat).abs().max() > 1e-4 * x_hat.abs().max())

    for _, layer in quant_layers(model):
        if layer.input_is_quantized:
            layer.register_forward_pre_hook(note)
    with torch.no_grad():
        model.eval()(X)
    assert off
    assert not any(off)


class Fork(nn.Module):
    """What is added is read by two layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.one(x) + x), self.two(x)


@pytest.mark.parametrize(("wide", "bits"), [(["two"], 4), (["one"], 4), (["one", "two"], 8)])
def test_a_tensor_has_the_width_of_its_readers_and_a_wider_one_keeps_its_own_quantizer_behind_it(wide, bits):
    rules = [LayerRule.preset(name, "w8a8") for name in wide]
    spec = QuantSpec.preset("w4a4", residual_adds="quantized", overrides=rules)
    model, _ = prepared(Fork, spec, torch.randn(8, 4))
    assert model.stem.quantizer_after.bits == bits
    for name in ("one", "two"):
        layer = model.get_submodule(name)
        assert layer.input_quantizer.bits == (8 if name in wide else 4)
        assert layer.input_is_quantized == (layer.input_quantizer is model.stem.quantizer_after)
        assert layer.input_is_quantized == (layer.input_quantizer.bits == bits)


class Unreachable(nn.Module):
    """One sum is made and read in one forward; the other is fine."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Linear(4, 4) for _ in range(3))
        self.again, self.act, self.head = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        y = torch.tanh(x)
        x = y + self.one(y)
        x = self.two(x) + self.one(y)
        return self.head(self.act(self.act(self.again(x)) + self.act(x)))


def test_what_cannot_be_reached_is_listed_with_the_reason_and_left():
    model, summary = prepared(Unreachable, x=torch.randn(8, 4))
    reasons = [row.skipped for row in summary.operations]
    assert "it reads the result of tanh in the forward of Unreachable" in reasons[0]
    assert "it reads what passes one, which is called several times" in reasons[1]
    assert "it reads what passes act, which is called several times" in reasons[2]
    assert not list(borders(model))
    assert "between them: 0 of 3 operations quantized" in str(summary)
    assert "in float: it reads the result of tanh" in str(summary)


def test_what_is_kept_in_float_keeps_its_additions():
    for entry in ("blocks.0", "re:blocks\\.0"):
        spec = QuantSpec.preset("w4a4", residual_adds="quantized", keep=[entry])
        _, summary = prepared(spec=spec)
        assert [row.skipped for row in summary.operations] == [f"keep: {entry}", "", "", ""]
    spec = QuantSpec.preset("w4a4", residual_adds="quantized", overrides=[LayerRule.preset("blocks", "float")])
    _, summary = prepared(spec=spec)
    assert [row.skipped for row in summary.operations] == ["override: blocks", "override: blocks", "", ""]


def test_copies_are_independent_and_files_restore_them():
    model, _ = prepared()
    other = copy.deepcopy(model)
    assert other.blocks[0].bn2.quantizer_after is not model.blocks[0].bn2.quantizer_after
    assert other.last.input_quantizer is other.left.quantizer_after is other.right.quantizer_after
    model.eval(), other.eval()
    expected = model(X)
    other.blocks[0].bn2.quantizer_after.step_size.data.mul_(3)
    assert torch.equal(model(X), expected)
    assert not torch.equal(other(X), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), expected)
    fresh = Net().eval()
    prepare(fresh, SPEC, sample=X[:2])
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(X), expected)


def test_their_step_sizes_are_learned_and_both_passes_see_the_same_quantizers():
    for method in ("lsq", "minmax"):
        model, _ = prepared(spec=QuantSpec.preset("w4a4", residual_adds="quantized", method=method))
        twin = copy.deepcopy(model).train()
        optimizer = SAM(param_groups(model.train()), torch.optim.SGD, model=model, lr=0.05, rho=0.1)
        before = {name: value.clone() for name, value in model.state_dict().items() if "quantizer_after" in name}

        def closure(rows=slice(None), model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X[rows]), torch.arange(4)[rows] % 3)
            loss.backward()
            return loss

        assert torch.isfinite(optimizer.step(closure, batch_size=4))
        roles = {group["role"]: group["params"] for group in optimizer.param_groups}
        after = model.state_dict()
        moved = [
            name for name, old in before.items() if "extra_state" not in name and not torch.equal(after[name], old)
        ]
        assert moved
        if method == "lsq":
            assert any(model.blocks[0].bn2.quantizer_after.step_size is p for p in roles["step_size"])
        else:  # statistics follow the batch once a step, whatever the number of passes
            twin(X)
            for name in moved:
                torch.testing.assert_close(after[name], twin.state_dict()[name], rtol=1e-6, atol=0)


def test_a_compiled_model_stays_one_graph():
    model, _ = prepared()
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model.train())(X)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_it_needs_a_sample_and_quantized_activations():
    with pytest.raises(ConfigError, match=r"residual_adds: got quantized without a sample; .*sample=x"):
        prepare(Net(), SPEC)
    with pytest.raises(ConfigError, match="residual_adds: got quantized for weights only"):
        QuantSpec.preset("w4", residual_adds="quantized")
    with pytest.raises(ConfigError, match=r"residual_adds: got quantised; .*did you mean quantized"):
        QuantSpec.preset("w4a4", residual_adds="quantised")
    assert QuantSpec.from_dict(SPEC.to_dict()) == SPEC


def test_without_the_policy_nothing_is_added():
    model, summary = prepared(spec=QuantSpec.preset("w4a4"))
    assert summary.operations == []
    assert not list(borders(model))
    assert not any(layer.input_is_quantized for _, layer in quant_layers(model))
