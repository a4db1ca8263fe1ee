"""Parameter groups cover every parameter once; batch norm statistics are measured exactly."""

import pytest
import torch
import torchvision
from torch import nn

from qat_vsam.errors import InputError
from qat_vsam.quant import QuantSpec, calibrate, param_groups, prepare, reestimate_batch_norm


def small_vit():
    return torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)


@pytest.mark.parametrize("build", [torchvision.models.mobilenet_v2, small_vit])
@pytest.mark.parametrize("prepared", [False, True])
def test_every_parameter_is_in_one_group_in_model_order(build, prepared):
    model = build()
    if prepared:
        prepare(model, QuantSpec.preset("w4a4"))
    groups = param_groups(model, weight_decay=0.1)
    position = {id(p): i for i, p in enumerate(model.parameters())}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(position)
    assert len(set(grouped)) == len(grouped)
    for group in groups:
        places = [position[id(p)] for p in group["params"]]
        assert places == sorted(places)
        assert group["weight_decay"] == (0.1 if group["role"] == "weight" else 0.0)
        assert set(group) == {"params", "role", "weight_decay"}
    assert ("step_size" in {group["role"] for group in groups}) == prepared
    assert torch.optim.SGD(groups, lr=0.1).state_dict()["param_groups"][0]["role"] == "weight"


def test_roles():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2))
    model.shared = model[4]
    prepare(model, QuantSpec.preset("w4a4"))
    by_role = {group["role"]: group["params"] for group in param_groups(model)}
    expected = {
        "weight": [model[0].weight, model[4].weight],
        "bias": [model[0].bias, model[4].bias],
        "norm": [model[1].weight, model[1].bias, model[2].weight],
    }
    for role, parameters in expected.items():
        assert [id(p) for p in by_role[role]] == [id(p) for p in parameters]
    assert len(by_role["step_size"]) == 4


def norm_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(144, 2),
    )


def test_batch_norm_gets_the_mean_and_variance_of_all_batches_together():
    model = norm_net()
    model[1].eval()
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(n, 3, 8, 8, generator=generator) + shift for n, shift in [(5, 0.0), (9, 50.0), (2, -20.0)]]
    reestimate_batch_norm(model, [(x, None) for x in data])
    with torch.no_grad():
        values = model[0](torch.cat(data)).double().transpose(0, 1).reshape(4, -1)
    torch.testing.assert_close(model[1].running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[1].running_var.double(), values.var(1), rtol=1e-5, atol=1e-5)
    assert model[1].num_batches_tracked == 0
    assert model[1].momentum == 0.3
    assert model.training
    assert not model[1].training


def test_bad_batches_leave_the_statistics_alone():
    model = norm_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for data in ([], [torch.randn(4, 3, 8, 8), torch.full((4, 3, 8, 8), float("nan"))]):
        with pytest.raises(InputError):
            reestimate_batch_norm(model, data)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])


def test_quantizers_and_models_without_batch_norm_do_not_mind():
    model = norm_net()
    prepare(model, QuantSpec.preset("w4a4", method="minmax"))
    x = torch.randn(4, 3, 8, 8)
    calibrate(model, [x])
    scale = model[5].input_quantizer.scale()
    reestimate_batch_norm(model, [x * 3])
    assert torch.equal(model[5].input_quantizer.scale(), scale)
    reestimate_batch_norm(nn.Linear(2, 2), [])
