from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qat_vsam.errors import InputError
from qat_vsam.models import build_model, list_models, model_info

NAMES = [name for name in list_models() if "NAME" not in name and ":" not in name]


@pytest.mark.parametrize("name", [*NAMES, "torchvision:squeezenet1_1"])
def test_a_model_maps_its_input_shape_to_its_classes(name: str) -> None:
    info = model_info(name, num_classes=7)
    model = build_model(name, num_classes=7).eval()
    assert info.num_classes == 7
    assert model(torch.zeros(2, *info.input_shape)).shape == (2, 7)


def test_parameter_counts_are_those_of_the_paper() -> None:
    counts = {
        depth: sum(p.numel() for p in build_model(f"cifar_resnet{depth}").parameters()) for depth in (20, 32, 44, 56)
    }
    assert counts == {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}


def test_the_small_nets_are_one_architecture_in_two_sizes() -> None:
    def convolutions(name: str, **options: int) -> list[tuple[int, int, int]]:
        convs = [m for m in build_model(name, **options).modules() if isinstance(m, torch.nn.Conv2d)]
        return [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in convs]

    assert convolutions("digits_cnn", width=8) == [(1, 8, 1), (8, 16, 2), (16, 16, 1)]
    assert convolutions("small_cnn", width=8) == [(3, 8, 1), (8, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1)]
    assert sum(p.numel() for p in build_model("digits_cnn").parameters()) == 14_458
    assert sum(p.numel() for p in build_model("small_cnn").parameters()) == 70_618


@pytest.mark.parametrize("name", ["digits_cnn", "small_cnn", "cifar_resnet20"])
def test_a_seed_decides_the_weights_and_leaves_the_generator_alone(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (build_model(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_a_model_can_be_rebuilt_from_what_it_carries() -> None:
    model = build_model("digits_cnn", width=8, seed=0)
    rebuilt = build_model(model.builder["name"], **model.builder["options"])
    rebuilt.load_state_dict(model.state_dict())
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model.eval()(x), rebuilt.eval()(x))


def test_the_shortcut_keeps_every_second_pixel_and_adds_zero_channels_around() -> None:
    x = torch.rand(1, 16, 4, 4)
    y = build_model("cifar_resnet20").layer2[0].shortcut(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_a_function_of_the_current_folder_builds_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_nets.py").write_text(
        "from torch import nn\n"
        "def tiny(width=4):\n    return nn.Linear(3, width)\n"
        "tiny.mean, tiny.std = (0.1,), (0.2,)\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path.parent))  # gives sys.path back at the end
    monkeypatch.chdir(tmp_path)
    model = build_model("their_nets:tiny", width=5)
    assert model.out_features == 5
    assert model.builder == {"name": "their_nets:tiny", "options": {"width": 5}}
    assert model_info("their_nets:tiny").mean == (0.1,)
    with pytest.raises(InputError, match=r"a int; expected a torch\.nn\.Module"):
        build_model("their_nets:number")
    with pytest.raises(InputError, match="did you mean tiny"):
        build_model("their_nets:tinny")


def test_a_module_that_fails_to_import_is_told_apart_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_nets.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="its import raises ModuleNotFoundError"):
        build_model("broken_nets:f")
    with pytest.raises(InputError, match="no such module"):
        build_model("absent_nets.sub:f")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar_resnt20", {}, "did you mean cifar_resnet20"),
        ("torchvision:resnet81", {}, "did you mean torchvision:resnet18"),
        ("resnet18", {}, "did you mean torchvision:resnet18"),
        ("digits_cnn", {"widht": 8}, "did you mean width"),
        ("digits_cnn", {"width": "wide"}, "options that the builder takes"),
        ("torchvision:resnet18", {"colour": 1}, "options that the builder takes"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "nothing is downloaded"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "expected a known model"),
    ],
)
def test_a_wrong_name_or_option_is_one_line_with_advice(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model(name, **options)
    assert "\n" not in str(caught.value)


def test_timm_models_by_name_know_what_they_expect() -> None:
    pytest.importorskip("timm", reason="the extra timm")
    info = model_info("timm:test_vit", num_classes=5)
    model = build_model("timm:test_vit", num_classes=5, seed=0).eval()
    assert info.num_classes == 5
    assert info.source == "timm"
    assert model(torch.zeros(2, *info.input_shape)).shape == (2, 5)
    with pytest.raises(InputError, match="did you mean timm:resnet18"):
        build_model("timm:resnte18")
    with pytest.raises(InputError, match="nothing is downloaded"):
        build_model("timm:resnet18", pretrained=True)


TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
}


def test_a_transformer_by_type_or_folder_maps_one_tensor_to_one(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra transformers")
    model = build_model("hf:vit", seed=0, **TINY_VIT)
    x = torch.rand(2, 3, 16, 16)
    expected = model.eval()(x)
    assert expected.shape == (2, 5)
    model.model.save_pretrained(tmp_path)
    again = build_model(f"hf:{tmp_path}").eval()
    assert torch.equal(again(x), expected)
    assert model_info(f"hf:{tmp_path}").input_shape == (3, 16, 16)
    assert model_info(f"hf:{tmp_path}").num_classes == 5
    (tmp_path / "model.safetensors").unlink()
    assert not torch.equal(build_model(f"hf:{tmp_path}", seed=1).eval()(x), expected)


def test_an_embedding_is_the_mean_over_the_tokens_that_are_not_padding() -> None:
    pytest.importorskip("transformers", reason="the extra transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = build_model("hf:bert", seed=0, vocab_size=50, pad_token_id=0, **sizes).eval()
    tokens = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 0]])
    assert model(tokens).shape == (1, 16)
    torch.testing.assert_close(model(padded), model(tokens))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf:vitt", {}, "did you mean vit?"),
        ("hf:no/such", {}, "fetch the model first"),
        ("hf:vit", {"hiden_size": 4}, "did you mean hidden_size"),
        ("hf:vit", {"image_size": "wide"}, "expected fitting values"),
    ],
)
def test_a_transformer_that_is_not_there_is_one_line_with_advice(name: str, options: dict, message: str) -> None:
    pytest.importorskip("transformers", reason="the extra transformers")
    with pytest.raises(InputError, match=message) as caught:
        build_model(name, **options)
    assert "\n" not in str(caught.value)
