"""The packed file has its true size, comes back as the same model, and no broken one is ever believed."""

import json
import random

import pytest
import safetensors.torch
import torch
from torch import nn

import qat_vsam as qv
from qat_vsam.errors import CheckpointError, InputError
from qat_vsam.export import integer_model, load_packed, predict
from qat_vsam.export.packed import read_packed
from qat_vsam.models import build_model


def resnet20(bits: str, x: torch.Tensor) -> nn.Module:
    model = build_model("cifar_resnet20", seed=0)
    qv.prepare(model, qv.QuantSpec.preset(bits), sample=x[:2])
    qv.calibrate(model, [x])
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def artifact(tmp_path, quantize, x):
    """(path, model) of a small packed net without builder."""
    model, path = quantize("w4a4"), tmp_path / "model.safetensors"
    qv.export(model, path, format="packed", sample=x, minimum_inputs=0)
    return path, model


@pytest.mark.parametrize(("bits", "aim"), [("w4a4", 165_000), ("w3a3", 131_500), ("w2a2", 98_000)])
def test_resnet20_takes_its_bits_and_little_more(bits: str, aim: int, tmp_path, images) -> None:
    """Float takes 1,106,736 bytes; codes, scales, norms and the header of the packed file are counted."""
    path = tmp_path / "model.safetensors"
    proof = qv.export(resnet20(bits, images), path, format="packed", sample=images, minimum_inputs=0)
    assert proof.bytes == path.stat().st_size <= aim
    assert proof.bytes <= 0.16 * 1_106_736


def test_a_known_model_is_rebuilt_from_the_file_alone(tmp_path, images) -> None:
    model, path = resnet20("w4a4", images), tmp_path / "model.safetensors"
    qv.export(model, path, format="packed", sample=images, minimum_inputs=0)
    assert torch.equal(load_packed(path)(images), integer_model(model)(images))
    assert torch.equal(predict(path, images, batch_size=3), integer_model(model)(images))
    assert qv.verify(path).passed


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w3a8", "w2a2", "w1a2", "w4", None])
def test_every_width_comes_back_bit_for_bit(bits, tmp_path, quantize, x) -> None:
    model, path = quantize(bits), tmp_path / "model.safetensors"
    proof = qv.export(model, path, format="packed", sample=x, minimum_inputs=0)
    assert proof.passed
    assert torch.equal(load_packed(path, quantize(None, seed=1))(x), integer_model(model)(x))


def test_it_is_a_safetensors_file_that_says_what_it_is(artifact) -> None:
    path, model = artifact
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["content"])
        assert file.metadata()["format"] == "qat_vsam.packed"
        assert file.get_tensor("wide.weight_codes").numel() == model.wide.weight.numel() // 2
        assert file.get_tensor("wide.weight_scale").shape == (16,)
    assert content["layers"]["wide"]["shape"] == [16, 8, 3, 3]
    assert content["layers"]["wide"]["weight"]["bits"] == 4


def test_a_layer_under_two_names_stays_one_layer(tmp_path) -> None:
    layer = nn.Linear(6, 6)
    model, inputs = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(32, 6)
    qv.prepare(model, qv.QuantSpec.preset("w4a4"))
    qv.calibrate(model, [inputs])
    path = tmp_path / "model"
    assert qv.export(model, path, format="packed", sample=inputs).passed
    assert torch.equal(load_packed(path, model)(inputs), integer_model(model)(inputs))


def test_any_flipped_bit_is_noticed(artifact) -> None:
    path, model = artifact
    data = path.read_bytes()
    generator = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [generator.randrange(header) for _ in range(400)] + [generator.randrange(len(data)) for _ in range(600)]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1 << generator.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_packed(path, model)


def test_any_truncation_is_noticed(artifact) -> None:
    path, model = artifact
    data = path.read_bytes()
    generator = random.Random(0)
    for length in [0, 1, 7, 8, 9, len(data) - 1] + [generator.randrange(len(data)) for _ in range(194)]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_packed(path, model)


def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.safetensors"
    monkeypatch.setattr("qat_vsam.export.packed.VERSION", 2)
    qv.export(nn.Linear(3, 2), path, format="packed", sample=torch.randn(4, 3), minimum_inputs=0)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="got version 2; expected version 1"):
        load_packed(path, nn.Linear(3, 2))


def test_a_file_whose_parts_do_not_fit_together_is_refused(artifact, monkeypatch) -> None:
    """Whoever writes a file can write a fitting checksum, too."""
    path, model = artifact
    content, tensors = read_packed(path)
    for layers in ({"wide": {"shape": [16, 8, 3, 3]}}, {"wide": 3}, [], {"wide": {"shape": "?", "weight": {}}}):
        lie = ({**content, "layers": layers}, dict(tensors))
        monkeypatch.setattr("qat_vsam.export.packed.read_packed", lambda _, lie=lie: lie)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_packed(path, model)


def test_a_missing_file_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_packed(tmp_path / "nothing.safetensors")


def test_a_foreign_safetensors_file_is_refused(tmp_path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="packed model"):
        load_packed(path)


def test_another_architecture_is_refused_by_name(artifact) -> None:
    path, _ = artifact
    with pytest.raises(CheckpointError, match="stem: got no such layer"):
        load_packed(path, nn.Sequential(nn.Linear(3, 4)))


def test_without_builder_the_architecture_is_asked_for(artifact) -> None:
    path, model = artifact
    with pytest.raises(InputError, match="model="):
        qv.verify(path)
    assert qv.verify(path, model).passed


def test_a_function_named_by_a_file_is_called_only_when_trusted(tmp_path, quantize, x) -> None:
    path = tmp_path / "model.safetensors"
    canary = tmp_path / "canary"
    builder = {"name": "os:mkdir", "options": {"path": str(canary)}}
    qv.export(quantize("w4a4"), path, format="packed", sample=x, builder=builder, minimum_inputs=0)
    with pytest.raises(InputError, match="trust_builder"):
        load_packed(path)
    assert not canary.exists()
