"""Whatever is wrong with the input is said in one line that names the file, and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qat_vsam.errors import InputError
from qat_vsam.report import build_report, load_results


def complaint(runs: Path | list[Path], **options: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_results(runs, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "; expected " in text
    return text


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "without any result.json" in complaint(tmp_path)
    with pytest.raises(InputError, match="without any result"):
        build_report(tmp_path, tmp_path / "out", title="nothing")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "nowhere" in complaint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no JSON at line 1"),
        ('{"schema": 2, "name": ', "no JSON at line 1"),
        ("[]", "result.json"),
        ('{"schema": 1}', "schema: got 1; expected 2, for its optimizer's options were not recorded"),
        ('{"schema": 3}', "schema: got 3"),
        ("\x00\x01", "no JSON"),
    ],
)
def test_a_broken_result_names_its_file(make_run: Callable[..., Path], text: str, named: str) -> None:
    folder = make_run("w4a4", "sgd", 0)
    (folder / "result.json").write_text(text, encoding="utf-8")
    message = complaint(folder)
    assert str(folder / "result.json") in message
    assert named in message


def test_bytes_that_are_no_text_are_refused(make_run: Callable[..., Path]) -> None:
    folder = make_run("w4a4", "sgd", 0)
    (folder / "result.json").write_bytes(b"\xff\xfe\x00")
    assert "result.json" in complaint(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"accuracy": {"test": 97.3}}, "accuracy.test: got 97.3"),
        ({"accuracy": {"test": float("nan")}}, "accuracy.test: got nan"),
        ({"accuracy": {"test": None}}, "accuracy.test: got None"),
        ({"kind": "guessed"}, "kind: got 'guessed'"),
        ({"seed": "one"}, "seed: got 'one'"),
        ({"cost": {"train_seconds": -1}}, "cost.train_seconds: got -1"),
    ],
)
def test_an_impossible_value_names_its_key(
    make_run: Callable[..., Path], changes: dict[str, object], named: str
) -> None:
    folder = make_run("w4a4", "sgd", 0)
    content = json.loads((folder / "result.json").read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    (folder / "result.json").write_text(json.dumps(content))
    assert named in complaint(folder)


def test_a_missing_key_is_named(make_run: Callable[..., Path]) -> None:
    folder = make_run("w4a4", "sgd", 0)
    content = json.loads((folder / "result.json").read_text())
    del content["accuracy"]["test"]
    (folder / "result.json").write_text(json.dumps(content))
    assert "accuracy.test: got nothing" in complaint(folder)


def test_a_broken_metrics_line_is_named_by_its_number(make_run: Callable[..., Path]) -> None:
    folder = make_run("w4a4", "sgd", 0)
    (folder / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 0}\n{"kind": "ep')
    assert "metrics.jsonl, line 2" in complaint(folder)


def test_a_broken_bench_is_named(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder, bench = make_run("w4a4", "sgd", 0), tmp_path / "bench.json"
    bench.write_text('{"unit": "float32 SGD step", "rows": [{"median_ms": 3}]}')
    assert "rows.0.arm: got nothing" in complaint(folder, bench=bench)
    # an older one, whose unit was SGD of the same bits
    bench.write_text('{"rows": [{"arm": "w4a4-sgd", "ratio_to_sgd": 1.0}]}')
    assert "unit: got nothing" in complaint(folder, bench=bench)


def test_one_seed_twice_and_two_models_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    first = make_run("w4a4", "sgd", 0)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "result.json").write_text((first / "result.json").read_text())
    assert "one run per arm and seed" in complaint([first, copy])
    other = make_run("w4a4", "sam", 0, model={"name": "resnet18"})
    message = complaint([first, other])
    for part in ("model.name", "resnet18 in w4a4-sam/seed-0", "digits_cnn in w4a4-sgd/seed-0"):
        assert part in message


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"name": "resnet18"}),
        ("model", {"parameters": 99}),
        ("data", {"name": "cifar10"}),
        ("data", {"options": {"size": 16}}),
        ("data", {"train": 500}),
        ("data", {"validation": 500}),
        ("data", {"test": 500}),
        ("data", {"augment": "shift"}),
        ("data", {"label_noise": 0.2}),
    ],
)
def test_runs_of_another_model_or_data_are_refused_unless_the_recipe_tells_the_arms_apart(
    section: str, change: dict[str, object], make_run: Callable[..., Path]
) -> None:
    (key,) = change
    root = make_run("w4a4", "sgd", 0).parent.parent
    make_run("w4a4", "sam", 0, **{section: change})
    message = complaint(root)
    assert f"{section}.{key}: got" in message
    assert "w4a4-sgd/seed-0" in message
    assert "w4a4-sam/seed-0" in message
    (root / "comparison.yaml").write_text(f"arms: {{w4a4-sgd: {{}}, w4a4-sam: {{{section}: {{}}}}}}\n")
    load_results(root)
    # within an arm, over its seeds, no recipe can say so
    make_run("w4a4", "sam", 1)
    assert f"{section}.{key}: got" in complaint(root)


@pytest.mark.parametrize("key", ["target", "optimizer", "epochs", "optimizer_options"])
def test_the_seeds_of_an_arm_differ_in_their_seed_only(key: str, make_run: Callable[..., Path]) -> None:
    other = {"target": "onnxruntime", "optimizer": "adam", "epochs": 7, "optimizer_options": {"rho": 0.7}}[key]
    root = make_run("w4a4", "sam", 0).parent.parent
    make_run("w4a4", "sam", 1, **{key: other})
    assert f"{key}: got" in complaint(root)


def test_what_sets_runs_apart_is_marked(make_run: Callable[..., Path]) -> None:
    root = make_run("w4a4", "sgd", 0).parent.parent
    assert load_results(root).marks == ()
    make_run("w4a4", "sgd", 1, provenance={"commit": "abcdef123456, 0123456789ab+dirty", "finished": "2026-12-03"})
    versions = {"torch": "2.15.0", "python": "3.11.2"}
    make_run("w4a4", "sam", 0, provenance={"versions": versions, "processor": "Another"}, epochs=90)
    make_run("w4a4", "vsam", 0, provenance={"package": "0.2.0"}, data={"seed": 4})
    results = load_results(root)
    assert results.marks == (
        "Arms were trained for different numbers of epochs: 60, but 90 for w4a4-sam.",
        "Arms of one seed drew different images, so their differences hold the draw of the data as well.",
        "The runs were made under 2 commits of the code: 0123456789ab+dirty; abcdef123456.",
        "The runs were made under 2 versions of this package: 0.1.0; 0.2.0.",
        "The runs were made under 2 versions of torch: 2.14.1; 2.15.0.",
        "The runs were made under 2 kinds of machine, and floating-point sums differ between machines: "
        "A processor, 1 thread; Another, 1 thread.",
        "Some runs were made by code that was changed after the commit that they name (+dirty).",
    )
    assert results.provenance.date == "2026-12-03"
    assert results.provenance.versions["python"] == ("3.11.2",)


def test_the_same_folder_given_twice_counts_once(make_run: Callable[..., Path]) -> None:
    folder = make_run("w4a4", "sgd", 0)
    assert len(load_results([folder, folder, folder / "result.json"]).runs) == 1


def test_unfinished_runs_are_listed_and_not_counted(make_run: Callable[..., Path]) -> None:
    root = make_run("w4a4", "sgd", 0).parent.parent
    (root / "w4a4-sgd" / "seed-1").mkdir()
    results = load_results(root)
    assert (len(results.runs), results.unfinished) == (1, ("w4a4-sgd/seed-1",))


def test_unknown_keys_and_missing_curves_are_no_obstacle(make_run: Callable[..., Path]) -> None:
    folder = make_run("w4a4", "sgd", 0, future="field")
    (folder / "metrics.jsonl").unlink()
    results = load_results(folder)
    assert results.steps.empty
    assert results.epochs.empty


def test_steps_carry_what_the_schedule_did(make_run: Callable[..., Path]) -> None:
    folder = make_run("w4a4", "vsam", 0)
    steps = [
        {"kind": "step", "step": 50, "psf_norm": 0.2, "rate": 0.16},
        {"kind": "step", "step": 100, "psf_norm": 0.3},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    read = load_results(folder).steps
    assert read[["arm", "seed", "step"]].values.tolist() == [["w4a4-vsam", 0, 50], ["w4a4-vsam", 0, 100]]
    assert read["psf_norm"].tolist() == [0.2, 0.3]
    assert read["rate"].fillna(-1).tolist() == [0.16, -1]
    steps[0]["rate"] = 1.5
    (folder / "metrics.jsonl").write_text(json.dumps(steps[0]))
    assert "metrics.jsonl, line 1: rate: got 1.5" in complaint(folder)
