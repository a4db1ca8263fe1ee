"""`prepare` accounts for every layer, and changes nothing but what it says."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from qat_vsam.errors import ConfigError, InputError
from qat_vsam.quant import (
    QuantConv2d,
    QuantLinear,
    QuantSpec,
    calibrate,
    prepare,
    quant_layers,
    set_quantizers_enabled,
)

W4A4 = QuantSpec.preset("w4a4")


class Block(nn.Module):
    """Its input is read by two convolutions; a third reads the same memory after an in-place change."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.main = nn.Conv2d(4, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.late = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.main(x) + self.shortcut(x)
        y = y + self.late(x.relu_())
        return self.head(y.mean((2, 3)))


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)
    )


def small_vit():
    return torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)


def small_swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2])


@pytest.mark.parametrize(
    "build",
    [
        small_net,
        Block,
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v2,
        small_vit,
    ],
)
def test_with_quantizers_off_the_model_is_the_float_one_bit_for_bit(build):
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(2, 3, 8 if isinstance(model, nn.Sequential) else 32, 8 if isinstance(model, nn.Sequential) else 32)
    with torch.no_grad():
        before = model(x)
        parameters = {id(p) for p in model.parameters()}
        prepare(model, W4A4, sample=x)
        set_quantizers_enabled(model, False)
        assert torch.equal(model(x), before)
    assert parameters <= {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    "build",
    [
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v2,
        small_swin,
        small_vit,
    ],
)
def test_every_layer_is_swapped_or_listed_with_a_reason(build):
    names = set()
    with torch.device("meta"):
        for name, module in build().named_modules():
            if isinstance(module, nn.MultiheadAttention):
                names.add(f"{name}.in_proj")  # what its own parameters become
            elif isinstance(module, (nn.Conv2d, nn.Linear)) or list(module.parameters(recurse=False)):
                names.add(name)
    model = build()
    summary = prepare(model, W4A4)
    swapped = {name for name, _ in quant_layers(model)}
    assert {row.name for row in summary} == names
    assert {row.name for row in summary.quantized} == swapped
    assert all(bool(row.skipped) != (row.name in swapped) for row in summary)
    left = {name for name, module in model.named_modules() if type(module) in (nn.Conv2d, nn.Linear)}
    assert left == {row.name for row in summary.skipped if "reads its weights without calling it" in row.skipped}


def test_first_and_last_layer_have_their_own_width():
    rows = {row.name: row for row in prepare(small_net(), QuantSpec.preset("w3a4", first_last_bits=7)).quantized}
    assert [(row.weight_bits, row.activation_bits) for row in rows.values()] == [(7, 7), (3, 4), (7, 7)]
    kept_float = prepare(small_net(), QuantSpec.preset("w3a4", first_last_bits=None))
    assert [row.name for row in kept_float.quantized] == ["3"]
    assert "first or last" in kept_float.rows[0].skipped
    only = prepare(nn.Sequential(nn.Linear(3, 2)), QuantSpec.preset("w4"))
    assert [(row.weight_bits, row.activation_bits) for row in only] == [(8, None)]


def test_names_and_patterns_are_kept_in_float():
    model = nn.Sequential()
    model.stem, model.body, model.head = nn.Conv2d(3, 4, 3), small_net()[3:], nn.Linear(2, 2)
    kept = prepare(copy.deepcopy(model), QuantSpec.preset("w4a4", keep=["body"]))
    assert [row.name for row in kept.quantized] == ["stem", "head"]
    assert kept.skipped[0].skipped == "keep: body"
    kept = prepare(copy.deepcopy(model), QuantSpec.preset("w4a4", keep=["re:.*\\.3"]))
    assert [row.name for row in kept.skipped] == ["body.3"]
    for entry, advice in [
        ("boby", "did you mean body"),
        ("re:x.*", "check the pattern"),
        ("re:(", "mend it"),
    ]:
        with pytest.raises(ConfigError, match=f"keep: got .*{advice}"):
            prepare(copy.deepcopy(model), QuantSpec.preset("w4a4", keep=[entry]))


def test_what_cannot_be_swapped_is_listed_and_left():
    class OwnConv(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.ModuleDict(
        {
            "first": nn.Linear(4, 4),
            "attention": nn.MultiheadAttention(8, 2, add_zero_attn=True),
            "encoder": nn.TransformerEncoderLayer(8, 2, 16),
            "own": OwnConv(2, 2, 1),
            "bag": nn.EmbeddingBag(4, 4),
            "memory": nn.LSTM(2, 2),
            "lazy": nn.LazyLinear(3),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "group": nn.GroupNorm(1, 4),
            "last": nn.Linear(4, 4),
        }
    )
    summary = prepare(model, W4A4)
    reasons = {row.name: row.skipped for row in summary.skipped}
    assert [row.name for row in summary.quantized] == ["first", "last"]
    assert "without calling it" in reasons["attention.out_proj"]
    assert "without calling it" in reasons["encoder.linear1"]
    assert "a subclass of Conv2d whose forward changes what conv2d gives" in reasons["own"]
    assert "no quantized twin" in reasons["bag"]
    assert {"memory", "lazy", "normed", "group", "attention", "encoder.self_attn"} <= set(reasons)
    assert type(model["attention"].out_proj) is not QuantLinear


def test_a_model_with_nothing_but_unreachable_layers_is_listed_and_left():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16))
    assert prepare(model, W4A4).quantized == []


def test_a_tied_module_is_quantized_once_and_stays_tied():
    model = nn.Sequential()
    model.first, model.a, model.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    model.b = model.a
    summary = prepare(model, W4A4)
    assert [row.name for row in summary] == ["first", "a", "last"]
    assert isinstance(model.a, QuantLinear)
    assert model.a is model.b


def test_layers_that_read_one_tensor_share_its_quantizer():
    torch.manual_seed(0)
    model = Block()
    summary = prepare(model, W4A4, sample=torch.randn(2, 3, 4, 4))
    assert model.main.input_quantizer is model.shortcut.input_quantizer
    assert model.late.input_quantizer is not model.main.input_quantizer
    assert "shared with main" in {row.name: row.scheme for row in summary}["shortcut"]

    late = Block()
    prepare(late, W4A4)
    assert late.main.input_quantizer is not late.shortcut.input_quantizer
    calibrate(late, [torch.randn(2, 3, 4, 4)])
    assert late.main.input_quantizer is late.shortcut.input_quantizer


def test_layers_of_different_width_do_not_share():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.first(x) + self.second(x))

    model = Fork()
    prepare(model, W4A4, sample=torch.randn(2, 4))
    assert model.first.input_quantizer is not model.second.input_quantizer
    same = Fork()
    prepare(same, QuantSpec.preset("w8a8"), sample=torch.randn(2, 4))
    assert same.first.input_quantizer is same.second.input_quantizer


def test_readers_of_one_tensor_see_one_range_which_moves_once_a_forward():
    torch.manual_seed(0)
    model, x = Block(), torch.randn(2, 3, 4, 4)
    prepare(model, QuantSpec.preset("w4a4", method="minmax"), sample=x)
    calibrate(model, [x])
    quantizer, seen = model.main.input_quantizer, []
    quantizer.register_forward_hook(lambda module, args, x_hat: seen.append((args[0].clone(), x_hat, module.step())))
    before = quantizer.step()
    model.train()(x * 3)
    (read, x_hat, step), (_, x_hat_too, step_too) = seen
    assert torch.equal(step, step_too)
    assert torch.equal(x_hat, x_hat_too)
    torch.testing.assert_close(step, before.lerp(torch.maximum(read.max() / 7, -read.min() / 8), 0.1))
    assert quantizer.updates_state


def test_the_blocks_of_resnet18_with_a_projection_share_their_input():
    model = torchvision.models.resnet18()
    prepare(model, W4A4, sample=torch.randn(1, 3, 32, 32))
    for stage in (model.layer2, model.layer3, model.layer4):
        assert stage[0].conv1.input_quantizer is stage[0].downsample[0].input_quantizer
    shared = len({layer.input_quantizer for _, layer in quant_layers(model)})
    assert shared == len(list(quant_layers(model))) - 3


def test_a_shared_model_is_restored_by_a_plain_state_dict():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    trained, fresh = Block(), Block()
    for model in (trained, fresh):
        prepare(model, W4A4, sample=x)
    calibrate(trained, [x])
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(x), trained(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 2), "model: got a single Linear; .*wrap it"),
        (lambda: nn.Sequential(nn.ReLU()), "model: got no such layer"),
        (
            lambda: nn.Sequential(QuantConv2d(1, 1, 1, weight_spec=W4A4.weight)),
            "model: got a model with quantizers",
        ),
    ],
)
def test_a_model_that_cannot_be_prepared_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        prepare(make(), W4A4)


def test_a_failure_leaves_the_model_untouched():
    model = small_net()
    nn.init.constant_(model[3].weight, float("nan"))
    with pytest.raises(InputError, match=r"3\.weight: got NaN"):
        prepare(model, W4A4)
    nn.init.ones_(model[3].weight)
    with pytest.raises(RuntimeError):
        prepare(model, W4A4, sample=torch.randn(2, 5, 8, 8))
    assert not list(quant_layers(model))
    assert model.training


class FailsLater(nn.Module):
    """A net whose forward fails at its call number `at`; an addition and a batch norm are in it."""

    def __init__(self, at):
        super().__init__()
        self.a, self.norm, self.relu, self.b = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2)
        self.__dict__["calls"] = [at]

    def forward(self, x):
        self.calls[0] -= 1
        if self.calls[0] == 0:
            raise MemoryError("the pass does not fit")
        y = self.relu(self.norm(self.a(x)))
        y = self.attention(y, y, y, need_weights=False)[0]
        return self.b(y + y)


@pytest.mark.parametrize("at", [1, 2])
def test_a_failure_behind_the_swap_leaves_the_model_as_it_was(at):
    model, kept = FailsLater(at), []
    model.a.register_forward_hook(lambda *_: kept.append(1))
    before = {name: (module, type(module), dict(module.__dict__)) for name, module in model.named_modules()}
    hooks = {
        name: [len(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)]
        for name, module in model.named_modules()
    }
    state = {key: value.clone() for key, value in model.state_dict().items()}
    spec = QuantSpec.preset("w8a8", residual_adds="quantized", batch_norm="freeze", freeze_after=3)
    with pytest.raises(MemoryError):
        prepare(model, spec, sample=torch.randn(2, 8))
    after = dict(model.named_modules())
    assert list(after) == list(before)
    for name, (module, kind, attributes) in before.items():
        assert after[name] is module
        assert type(module) is kind
        assert vars(module).keys() == attributes.keys()
        present = [len(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)]
        assert present == hooks[name]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    prepare(model, spec, sample=torch.randn(2, 8))  # and it can be prepared then


def test_records_and_table_carry_every_row():
    summary = prepare(small_net(), QuantSpec.preset("w4"))
    assert summary.to_records()[1] == {
        "name": "1",
        "kind": "BatchNorm2d",
        "weight_bits": None,
        "activation_bits": None,
        "scheme": "",
        "skipped": "normalisation",
    }
    assert len(str(summary).splitlines()) == len(summary) + 2 == 6
