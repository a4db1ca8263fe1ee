"""The structure of a model: every tensor with its maker and its readers, and where tensors join."""

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import nn

from qat_vsam.quant import QuantSpec, analyse, calibrate, operations_between, prepare, quant_layers

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Pools(nn.Module):
    """Tensors that only change their arrangement, in several ways, and one that is overwritten under another name."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.flat, self.negative = nn.Linear(16, 2), nn.Conv2d(4, 4, 1)
        self.passing = nn.Sequential(nn.Dropout(), nn.Identity())

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.one(F.max_pool2d(x, 2)) + self.two(self.passing(x)[:, :, ::2, ::2])
        z = torch.cat([y.relu(), F.avg_pool2d(x, 2)], 1)
        w = self.negative(y)
        half = w[:, :2]
        half.mul_(2)
        return self.flat(F.adaptive_max_pool2d(x, 2).flatten(1)), z, w + 1


def test_each_tensor_is_listed_with_its_maker_and_all_its_readers():
    rows = {row.maker: row for row in analyse(torchvision.models.resnet18(), X).tensors}
    assert rows["input"].readers == ("conv1",)
    assert rows["layer1.0.relu#2 relu"].readers == ("layer1.1.conv1", "layer1.1 add")
    assert rows["layer1.0.relu relu"].readers == ("layer1.0.conv2",)
    assert rows["layer1.1.relu#2 relu"].readers == ("layer2.0.conv1", "layer2.0.downsample.0")


def test_joins_name_the_tensors_that_they_read():
    structure = analyse(torchvision.models.resnet18(), X)
    makers = {row.number: row.maker for row in structure.tensors}
    assert [makers[number] for number in structure.adds[0].reads] == ["layer1.0.bn2 batch_norm", "maxpool max_pool"]
    assert structure.batch_norms["layer1.0.bn2"] == "layer1.0.conv2"
    assert len(structure.batch_norms) == 20
    assert len(structure.average_pools) == len(structure.max_pools) == 1


@pytest.mark.parametrize(
    "build",
    [
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v2,
        torchvision.models.squeezenet1_1,
        lambda: torchvision.models.DenseNet(8, (2, 2), 16),
        torchvision.models.shufflenet_v2_x0_5,
    ],
)
def test_it_finds_what_an_exported_graph_holds(build):
    torch.manual_seed(0)
    model = build().eval()
    graph = torch.export.export(model, (X,), strict=False).graph
    nodes = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    names = Counter(node.target.overloadpacket.__name__.rstrip("_") for node in nodes)
    several = sum(node.target is torch.ops.aten.cat.default and len(node.args[0]) > 1 for node in nodes)
    structure = analyse(model, X)
    assert len(structure.adds) == names["add"]
    assert len(structure.concatenations) == several
    assert len(structure.max_pools) == names["max_pool2d"]
    assert len(structure.average_pools) == names["avg_pool2d"] + names["adaptive_avg_pool2d"] + names["mean"]


def test_what_cannot_be_negative_is_known_through_pools_and_concatenations():
    rows = {row.maker: row.non_negative for row in analyse(Pools(), X[:, :, :4, :4]).tensors}
    assert rows["relu"]
    assert rows["max_pool"]
    assert rows["concat"]
    assert rows["average_pool"]
    assert not rows["stem"]
    assert not rows["add"]


def test_layers_that_read_one_tensor_through_arrangements_share_its_quantizer():
    model = Pools()
    prepare(model, QuantSpec.preset("w8a8"), sample=X[:, :, :4, :4])
    assert model.one.input_quantizer is model.two.input_quantizer is model.flat.input_quantizer
    assert len({layer.input_quantizer for _, layer in quant_layers(model)}) == 3


def test_a_tensor_overwritten_under_another_name_is_nobodys():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            y = self.one(x)
            x[:, :2].mul_(2)
            return y + self.two(x)

    model = Hidden()
    prepare(model, QuantSpec.preset("w8a8"), sample=torch.randn(2, 4))
    assert model.one.input_quantizer is not model.two.input_quantizer


def test_looking_changes_nothing():
    model = torchvision.models.resnet18().train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = X.clone()
    analyse(model, x)
    operations_between(model, x)
    assert torch.equal(x, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.bn1.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_float_between_layers_can_be_asked():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(4, 2))
    asked = [(row.name, row.kind) for row in operations_between(model, X) if row.skipped]
    assert asked == [("2", "hardswish"), ("3", "average_pool")]
    prepare(model, QuantSpec.preset("w8a8", residual_adds="quantized"), sample=X)
    calibrate(model, [X])
    assert [row.kind for row in operations_between(model, X) if row.skipped] == ["hardswish"]
    model[2].quantizer_after.enabled = False
    assert [row.kind for row in operations_between(model, X) if row.skipped] == ["hardswish", "average_pool"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_parts_are_seen_from_outside():
    class Twice(nn.Module):
        def forward(self, x):
            return torch.relu(x) + torch.relu(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(Twice()), nn.Conv2d(4, 2, 1))
    summary = prepare(model, QuantSpec.preset("w8a8", residual_adds="quantized"), sample=X)
    assert "it reads the result of relu in the forward of Sequential" in summary.operations[0].skipped


def test_no_memory_format_counts_as_an_operation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model.to(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    assert [row.kind for row in operations_between(model, x)] == ["average_pool"]


def test_it_is_plain_data_and_a_table():
    structure = analyse(Pools(), X[:, :, :4, :4])
    json.dumps(structure.to_dict())
    assert "1 residual adds, 1 concatenations, 1 average pools, 2 max pools" in str(structure)
    assert len(str(structure).splitlines()) == len(structure.tensors) + 2
