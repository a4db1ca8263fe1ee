from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from qat_vsam.data import list_datasets, load_dataset
from qat_vsam.errors import DataError, InputError


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _png(value: int, side: int = 4) -> bytes:
    return _encode(np.full((side, side, 3), value, dtype=np.uint8))


def _table(labels: list, images: list | None = None, image: str = "img", label: str = "label") -> pa.Table:
    encoded = [_png(i) for i in range(len(labels))] if images is None else images
    structs = pa.array(
        [{"bytes": content, "path": None} for content in encoded],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    return pa.table({image: structs, label: labels})


def _write(folder: Path, train: pa.Table, test: pa.Table | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(train, folder / "train-00000-of-00001.parquet")
    pq.write_table(_table([0, 1, 2]) if test is None else test, folder / "test-00000-of-00001.parquet")
    return folder


def test_cifar10_is_the_published_dataset_in_its_original_order(data_folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    data = load_dataset(
        "cifar10", data_folder, train_size=2000, validation_size=0, progress=lambda *done: seen.append(done)
    )
    assert data.classes[0] == "airplane"
    assert data.test.images.shape == (10000, 3, 32, 32)
    assert data.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.train.labels.bincount().tolist() == [200] * 10
    means = data.train.images.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=0.01)
    assert seen[-1] == (10000, 10000)


@pytest.mark.parametrize("place", [".", "cifar10", "plain_text", "cifar10/plain_text"])
@pytest.mark.parametrize("image", ["img", "image"])
def test_parquet_is_found_where_downloads_put_it(tmp_path: Path, place: str, image: str) -> None:
    _write(tmp_path / place, _table([3, 1, 2, 0], image=image))
    data = load_dataset("cifar10", tmp_path, validation_size=0)
    assert data.train.labels.tolist() == [3, 1, 2, 0]
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert data.classes[3] == "cat"


def test_several_files_of_a_split_are_joined_in_order(tmp_path: Path) -> None:
    _write(tmp_path, _table([5, 4]))
    pq.write_table(_table([3]), tmp_path / "train-00001-of-00002.parquet")
    assert load_dataset("cifar10", tmp_path, validation_size=0).train.labels.tolist() == [5, 4, 3]


def test_class_names_come_from_the_metadata_where_there_are_some(tmp_path: Path) -> None:
    feature = {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    _write(tmp_path, _table([0, 1, 2]).replace_schema_metadata(metadata))
    assert load_dataset("cifar10", tmp_path, validation_size=0).classes == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (_table([]), "0 rows; expected at least one row"),
        (_table([0, 10]), "row 1 column label: got 10; expected a class number in 0..9"),
        (_table([0, -1]), "row 1 column label: got -1"),
        (_table([0, None, 2]), "row 1 column label: got nothing"),
        (_table(["cat", "dog"]), "column label: got string; expected integers"),
        (_table([0.0, 1.0]), "column label: got double; expected integers"),
        (_table([0, 1], image="pixels"), "columns pixels, label; expected a column img or image"),
        (_table([0, 1], label="class"), "expected a column label"),
        (_table([0, 1], images=[_png(0), b"no image"]), "row 1: got an undecodable image"),
        (_table([0, 1], images=[_png(0), _png(0)[:40]]), "row 1: got an undecodable image"),
        (_table([0, 1], images=[_png(0), None]), "row 1: got an undecodable image"),
        (_table([0, 1], images=[_png(0), _png(0, side=5)]), "row 1: got an image of 5 x 5; expected 4 x 4"),
        (pa.table({"img": [[1, 2]], "label": [0]}), "column img: got list"),
    ],
)
def test_a_broken_parquet_is_one_line_with_file_and_row(tmp_path: Path, train: pa.Table, message: str) -> None:
    _write(tmp_path, train)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("cifar10", tmp_path, validation_size=0)
    assert "train-00000-of-00001.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, _table([0]))
    (tmp_path / "train-00000-of-00001.parquet").write_text("<html>")
    with pytest.raises(DataError, match="expected a parquet file"):
        load_dataset("cifar10", tmp_path)


def test_a_changed_pickle_in_torchvisions_folder_is_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Malicious:
        def __reduce__(self) -> tuple:
            return open, (str(canary), "w")

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"):
        (folder / name).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match="torchvision refuses"):
        load_dataset("cifar10", tmp_path)
    assert not canary.exists()


def test_torchvisions_folder_with_its_checksums_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    images = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", {"data": images, "labels": [3, 1, 2, 0]})])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", {"data": images[:1], "labels": [3]})])
    meta = write("batches.meta", {"label_names": list("abcd")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    data = load_dataset("cifar10", tmp_path, validation_size=0)
    assert data.train.labels.tolist() == [3, 1, 2, 0]
    assert data.classes == ("a", "b", "c", "d")
    assert torch.equal(data.train.images, torch.from_numpy(images).reshape(4, 3, 32, 32))


def test_cifar_images_are_shrunk_to_the_mean_of_their_blocks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    table = _table([0, 1, 2], images=[_encode(image) for image in pixels])
    _write(tmp_path, table, test=table)
    for side in (4, 8, 16):
        data = load_dataset("cifar10", tmp_path, size=side, validation_size=0, train_size=3)
        k = 32 // side
        blocks = pixels.reshape(3, side, k, side, k, 3).astype(float).mean((2, 4))
        rounded = torch.from_numpy(np.floor(blocks + 0.5)).permute(0, 3, 1, 2).to(torch.uint8)
        assert torch.equal(data.train.images, rounded)
        assert torch.equal(data.test.images, rounded)
    whole = load_dataset("cifar10", tmp_path, size=32, validation_size=0).train.images
    assert torch.equal(whole, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_a_side_that_images_cannot_have_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, _table([0, 1, 2]))
    for side in (12, 0, 64, "16"):
        with pytest.raises(DataError, match=r"data cifar10\.size: got .*; expected one of 4, 8, 16, 32"):
            load_dataset("cifar10", tmp_path, size=side)
    with pytest.raises(DataError, match="size: got 16; expected a divisor of 4"):
        load_dataset("cifar10", tmp_path, size=16)  # the files hold images of 4 x 4


def _image_folder(root: Path, parts: dict[str, dict[str, int]]) -> Path:
    for part, classes in parts.items():
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                (root / part / name / f"{i}.png").write_bytes(_png(10 * i, side=5 + i))
    return root


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_an_image_folder_is_resized_and_labelled_by_its_subfolders(tmp_path: Path, held_out: str) -> None:
    root = _image_folder(tmp_path, {"train": {"cat": 3, "dog": 4}, held_out: {"cat": 1, "dog": 2}})
    data = load_dataset("image_folder", root, size=6, validation_size=2)
    assert data.classes == ("cat", "dog")
    assert data.validation.labels.tolist() == [0, 1]
    assert data.train.images.shape == (5, 3, 6, 6)
    assert data.test.labels.tolist() == [0, 1, 1]


def test_a_wrong_image_folder_is_refused(tmp_path: Path) -> None:
    root = _image_folder(tmp_path, {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "cow": 1}})
    with pytest.raises(DataError, match=r"other classes than in train \(cow, dog\)"):
        load_dataset("image_folder", root, size=6)
    with pytest.raises(DataError, match=r"image_folder\.size"):
        load_dataset("image_folder", root)
    with pytest.raises(DataError, match="no images"):
        load_dataset("image_folder", root / "train", size=6)


def test_a_users_function_gives_arrays_or_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text(
        "import numpy as np\n"
        "from qat_vsam.data import load_dataset\n"
        "def stripes(root, n=40):\n"
        "    labels = np.arange(n) % 4\n"
        "    images = np.zeros((n, 1, 8, 8), dtype='float32') + labels[:, None, None, None]\n"
        "    return (images, labels), (images[:8], labels[:8])\n"
        "def ready(root):\n    return load_dataset('digits')\n"
        "def wrong(root):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = load_dataset("their_data:stripes", n=20, train_size=8, validation_size=4)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 4, 8)
    assert data.classes == ("0", "1", "2", "3")
    assert load_dataset("their_data:ready").name == "digits"
    with pytest.raises(DataError, match="a Dataset, or"):
        load_dataset("their_data:wrong")
    with pytest.raises(InputError, match="choose one of root, n"):
        load_dataset("their_data:stripes", m=3)


def test_unknown_names_and_missing_folders_say_what_to_do(tmp_path: Path) -> None:
    assert "cifar10" in list_datasets()
    with pytest.raises(DataError, match="did you mean cifar10"):
        load_dataset("cifar-10", tmp_path)
    with pytest.raises(DataError, match=r"give --data or data\.root, or set QAT_VSAM_DATA"):
        load_dataset("cifar10")
    with pytest.raises(DataError, match=r"no cifar10; expected train-\*\.parquet"):
        load_dataset("cifar10", tmp_path)
