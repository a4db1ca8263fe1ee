from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qat_vsam.data import Batches, Split, load_dataset
from qat_vsam.errors import CheckpointError
from qat_vsam.evaluate import accuracy
from qat_vsam.models import build_model, load_checkpoint, model_info

PUBLISHED = {
    "cifar_resnet20": ("resnet20-12fca82f.th", 9173),
    "cifar_resnet44": ("resnet44-014dd654.th", 9310),
}


def _public_model(name: str, data_folder: Path) -> torch.nn.Module:
    return build_model(name, checkpoint=data_folder / "pretrained" / PUBLISHED[name][0])


@pytest.fixture(scope="module")
def some_test_images(data_folder: Path) -> Split:
    data = load_dataset("cifar10", data_folder, train_size=0, validation_size=300, validation_from="test")
    return data.validation


@pytest.mark.parametrize("name", PUBLISHED)
def test_public_checkpoints_load_unchanged_and_see(name: str, data_folder: Path, some_test_images: Split) -> None:
    info = model_info(name)
    model = _public_model(name, data_folder).to(memory_format=torch.channels_last)
    batches = Batches(some_test_images, 100, mean=info.mean, std=info.std, channels_last=True)
    # own normalisation and shortcut matter: with CIFAR's constants or a wrong shortcut it is far below
    assert 0.90 <= accuracy(model, batches).value <= 0.96


@pytest.mark.nightly
@pytest.mark.parametrize("name", PUBLISHED)
def test_public_checkpoints_have_their_published_accuracy(name: str, data_folder: Path) -> None:
    data = load_dataset("cifar10", data_folder, train_size=0, validation_size=0)
    info = model_info(name)
    result = accuracy(_public_model(name, data_folder), Batches(data.test, 250, mean=info.mean, std=info.std))
    # another thread count or processor may turn an image whose two largest logits are equal to six digits
    assert abs(result.correct - PUBLISHED[name][1]) <= 2


@pytest.fixture
def trained() -> torch.nn.Module:
    return build_model("digits_cnn", width=4, seed=1)


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(a.state_dict()[key], b.state_dict()[key]) for key in a.state_dict())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_where_training_scripts_put_them(
    trained: torch.nn.Module, tmp_path: Path, wrapper: str | None, prefix: str, zipped: bool
) -> None:
    content = {prefix + key: value for key, value in trained.state_dict().items()}
    if wrapper is not None:
        content = {wrapper: content, "epoch": 3, "best_prec1": 91.0}
    torch.save(content, tmp_path / "net.th", _use_new_zipfile_serialization=zipped)
    assert _same(build_model("digits_cnn", tmp_path / "net.th", width=4, seed=2), trained)


def test_safetensors_load(trained: torch.nn.Module, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "net.safetensors")
    assert _same(build_model("digits_cnn", tmp_path / "net.safetensors", width=4, seed=2), trained)


def test_counters_that_old_files_lack_may_be_absent(trained: torch.nn.Module, tmp_path: Path) -> None:
    content = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(content, tmp_path / "net.pt")
    assert _same(build_model("digits_cnn", tmp_path / "net.pt", width=4, seed=2), trained)


def test_a_checkpoint_of_another_model_lists_the_differences_and_changes_nothing(
    trained: torch.nn.Module, tmp_path: Path
) -> None:
    content = dict(trained.state_dict())
    content["head.weight"] = content.pop("linear.weight")
    content["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(content, tmp_path / "net.pt")
    model = build_model("digits_cnn", width=4, seed=2)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "net.pt")
    message = str(caught.value)
    assert "net.pt" in message
    assert "1 missing: linear.weight [10, 8]" in message
    assert "1 unexpected: head.weight [10, 8]" in message
    assert "1 of another shape: conv1.weight [4, 3, 3, 3] instead of [4, 1, 3, 3]" in message
    assert _same(model, build_model("digits_cnn", width=4, seed=2))


def test_a_long_list_of_differences_is_cut_and_counted(tmp_path: Path) -> None:
    torch.save(build_model("cifar_resnet56").state_dict(), tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"\d+ unexpected: .*, \.\.\.") as caught:
        build_model("cifar_resnet20", tmp_path / "net.pt")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pt", None, "no such file"),
        ("net.onnx", {"w": torch.zeros(1)}, "suffix"),
        ("net.pt", {}, "an empty dict"),
        ("net.pt", [torch.zeros(1)], "a list"),
        ("net.pt", {"w": 3}, "'w' of type int"),
        ("net.pt", {"w": torch.zeros(1, dtype=torch.complex64)}, "no dense real tensor"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(
    trained: torch.nn.Module, tmp_path: Path, name: str, content: object, message: str
) -> None:
    if content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(trained, tmp_path / name)


def _altered(model: torch.nn.Module, key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**model.state_dict(), key: value}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(
    trained: torch.nn.Module, tmp_path: Path, suffix: str, number: float
) -> None:
    path, fresh = tmp_path / f"net{suffix}", build_model("digits_cnn", width=4, seed=2)
    before = build_model("digits_cnn", width=4, seed=2)
    key = next(key for key in trained.state_dict() if key.endswith("running_var"))
    value = trained.state_dict()[key].clone()
    value[1] = number
    content = _altered(trained, key, value)
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"NaN or infinity in 1 tensors: {key}"):
        load_checkpoint(fresh, path)
    assert _same(fresh, before)


def test_numbers_beyond_the_type_of_the_model_are_refused(trained: torch.nn.Module, tmp_path: Path) -> None:
    key, path = next(iter(trained.state_dict())), tmp_path / "net.pt"
    torch.save(_altered(trained, key, trained.state_dict()[key].double() + 1e300), path)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_checkpoint(trained, path)


def test_an_infinity_that_the_model_has_itself_is_no_mistake(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(model.state_dict(), tmp_path / "net.pt")
    other = torch.nn.Linear(2, 2)
    other.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    load_checkpoint(other, tmp_path / "net.pt")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())


def test_tensors_without_numbers_are_refused_by_name(trained: torch.nn.Module, tmp_path: Path) -> None:
    key, path = next(iter(trained.state_dict())), tmp_path / "net.pt"
    torch.save(_altered(trained, key, trained.state_dict()[key].to("meta")), path)
    with pytest.raises(CheckpointError, match=f"{key}.*meta device"):
        load_checkpoint(trained, path)


def test_no_flipped_bit_of_a_checkpoint_gives_other_weights(trained: torch.nn.Module, tmp_path: Path) -> None:
    path, whole = tmp_path / "net.pt", build_model("digits_cnn", width=4, seed=1)
    torch.save(trained.state_dict(), path)
    data = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        bent = bytearray(data)
        bent[draw.randrange(len(bent))] ^= 1 << draw.randrange(8)
        path.write_bytes(bent)
        with contextlib.suppress(CheckpointError):  # what still loads fell on bytes that mean nothing
            load_checkpoint(trained, path)
        assert _same(trained, whole)
