"""The job behind all others: run one recipe from data to proven exports.

    data -> float model -> [prepare -> calibrate] -> [fit] -> test -> [export -> prove -> test] -> result

Each stage is repeatable, so a run that was stopped anywhere goes on from its newest checkpoint.
"""

from __future__ import annotations

import copy
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat_vsam.config import ExportFormat, Recipe, dump_yaml, load_recipe
from qat_vsam.data import Batches
from qat_vsam.evaluate import accuracy, latency, model_size
from qat_vsam.export import export, load_runtime
from qat_vsam.models import load_checkpoint
from qat_vsam.recipes import assemble
from qat_vsam.recipes import result as results
from qat_vsam.recipes.checks import check_layers, check_places
from qat_vsam.recipes.events import Listener
from qat_vsam.recipes.optimizers import build_optimizer, describe_optimizer
from qat_vsam.recipes.resolve import resolve
from qat_vsam.recipes.result import WEIGHTS, read_result
from qat_vsam.train import FitResult, RunFolder, TeacherBatches, describe_environment, fit, fused_calls, write_atomic
from qat_vsam.train.manifest import check_manifest, opened, sealed
from qat_vsam.train.run_folder import BASELINE

EXPORT_NAMES: dict[ExportFormat, str] = {
    "onnx": "model.onnx",
    "packed": "model.packed.safetensors",
    "qonnx": "model.qonnx",
}
PROOF_INPUTS = 1000
LATENCY_BATCH = 32


def run_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    data_root: Path | None = None,
    start: Path | None = None,
    listener: Listener | None = None,
    arm: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Run one recipe, or go on with it, or find it finished.

    Args:
        recipe: what to do; what it leaves open is written out first, see `resolve`.
        folder: the run folder; the same recipe resumes there, another one is refused. A run made under other defaults
            than today's is of another recipe.
        data_root: where data and relative checkpoints lie; see `assemble.data_root`.
        start: weights file of another run, loaded into the float network first.
        listener: hears stages and progress.
        arm: the name that the report groups runs by; None takes the recipe's name.
        command: what repeats this; None names the recipe that is kept in the folder.

    Returns:
        The content of `result.json`.

    Raises:
        InputError: something in the recipe cannot be; nothing has been trained.
        CheckpointError, RunFolderError, DataError, NonFiniteError, ExportMismatch: see their docstrings.
        Interrupted: a signal stopped it; the same call goes on.

    Example:
        >>> import tempfile
        >>> from qat_vsam.config import recipe_from
        >>> recipe = recipe_from({
        ...     "name": "example", "model": {"name": "digits_cnn", "options": {"width": 4}},
        ...     "data": {"name": "digits", "batch_size": 32}, "quant": {"bits": "w4a4"},
        ...     "train": {"epochs": 1},
        ... })
        >>> result = run_recipe(recipe, tempfile.mkdtemp())
        >>> result["cost"]["steps"]
        9
    """
    listener = listener or Listener()
    assemble.check_names(recipe)
    recipe = resolve(recipe)
    root = assemble.data_root(recipe, data_root)
    check_places(recipe, root)
    results.refuse_old_schema(Path(folder))
    with RunFolder(folder, dump_yaml(recipe)) as run:
        if run.finished:
            listener.say(f"{run.path}: finished before; nothing is left to do")
            return read_result(run.path)
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        run.record_environment(describe_environment(torch.device(recipe.device)))
        fused_before = fused_calls()
        model = assemble.float_model(recipe, root)
        if start is not None:
            check_manifest(start.parent)
            load_checkpoint(model, start)
        check_layers(recipe, model)
        data = assemble.dataset(recipe, root)
        loaders = assemble.loaders(recipe, data)
        sample = next(iter(loaders.test))[0]
        size = " x ".join(str(length) for length in sample.shape[1:])
        listener.say(f"inputs: {size}, mean {recipe.model.mean}, std {recipe.model.std}")
        has_past = start is not None or recipe.model.checkpoint is not None
        before = _Baseline(run.path)
        if has_past and recipe.quant is not None:
            listener.say(f"float32 test accuracy: {before.measure('float_before', model, loaders.test):.2%}")
        float_size = model_size(model, sample[:1])
        teacher = copy.deepcopy(model) if recipe.train.distill is not None else None
        if recipe.quant is not None:
            summary = assemble.quantize_model(recipe, model, loaders.calibration)
            write_atomic(run.path / "layers.txt", (summary + "\n").encode())
            calibrated = before.measure("calibrated", model, loaders.test)
            listener.say(f"{recipe.quant.bits} test accuracy after calibration: {calibrated:.2%}")
        quantized_size = model_size(model, sample[:1])
        assemble.use_backend(recipe, model)
        trained = train_model(recipe, model, loaders, run, listener, teacher)
        test = accuracy(model, loaders.test, device=recipe.device)
        validation = None if trained is None else trained.fit.validation_accuracy
        if validation is None:
            validation = accuracy(model, loaders.validation, device=recipe.device).value
        listener.say(f"{recipe.precision} test accuracy: {test.value:.2%} of {test.total} images")
        save_weights(model, run.path / WEIGHTS)
        exports = [export_run(recipe, model, loaders, run.exports, kind, listener) for kind in recipe.export]
        result = {
            **results.identity(recipe, arm or recipe.name, command or _command(run.path, start, data_root)),
            "optimizer_derived": None if trained is None else trained.optimizer,
            "model": {"name": recipe.model.name, "parameters": float_size.parameters},
            "data": results.images(recipe, data),
            "accuracy": {"test": test.value, "validation": validation, **before.values()},
            "training_loss": None if trained is None else trained.fit.train_loss,
            "cost": results.cost(None if trained is None else trained.fit),
            "stopped": trained is not None and trained.fit.stopped,
            "size": results.sizes(float_size, quantized_size),
            "fused_quantizers": fused_calls() > fused_before,
            "exports": exports,
            "provenance": results.provenance(recipe, run.path),
        }
        run.write_result(result)
        return result


def save_weights(model: nn.Module, path: Path) -> None:
    """The model's state as a file that `load_checkpoint` reads, on the CPU wherever the model is."""
    state = model.state_dict()
    for name, value in state.items():
        state[name] = value.cpu()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getbuffer())


def load_run(folder: Path, *, root: Path | None = None) -> tuple[Recipe, nn.Module, assemble.Loaders]:
    """A finished run's recipe, trained model and batches.

    Raises:
        CheckpointError: the folder holds no finished run.
    """
    read_result(folder)
    recipe = load_recipe(folder / "recipe.yaml")
    loaders = assemble.loaders(recipe, assemble.dataset(recipe, assemble.data_root(recipe, root)))
    untrained = recipe.model_copy(update={"model": recipe.model.model_copy(update={"checkpoint": None})})
    model = assemble.float_model(untrained, None)
    if recipe.quant is not None:
        assemble.quantize_model(recipe, model, loaders.calibration)
        assemble.use_backend(recipe, model)
    load_checkpoint(model, folder / WEIGHTS)
    return recipe, model.eval(), loaders


def export_run(
    recipe: Recipe,
    model: nn.Module,
    loaders: assemble.Loaders,
    folder: Path,
    kind: ExportFormat,
    listener: Listener,
) -> dict[str, Any]:
    """Write, prove, test and time one artifact.

    Raises:
        ExportMismatch: the artifact computes something else; the worst layer is named.
    """
    path = folder / EXPORT_NAMES[kind]
    inputs = _proof_inputs(loaders)
    target = recipe.quant.target if recipe.quant else None
    model.eval()
    proof = export(model, path, format=kind, sample=inputs[:2], check_inputs=inputs, target=target)
    # the file was written a moment ago: the user's function that it names is the one that built the model
    runtime = load_runtime(path, trust_builder=True)
    tested = accuracy(runtime, loaders.test)
    timed = latency(runtime, inputs[:LATENCY_BATCH])
    size = path.stat().st_size
    listener.say(
        f"{kind}: {path} ({size:,} bytes), test accuracy {tested.value:.2%}, argmax agreement "
        f"{proof.argmax_agreement:.2%} on {proof.inputs} inputs"
    )
    return {
        "format": kind,
        "path": str(path.relative_to(folder.parent)),
        "bytes": size,
        "proof": proof.to_dict(),
        "test_accuracy": tested.value,
        "latency_ms": timed.median_ms,
        "latency_batch": LATENCY_BATCH,
    }


@dataclass(frozen=True)
class Trained:
    """A training that is done.

    Attributes:
        fit: what the loop returned.
        optimizer: what the optimizer was, and what it derived from its options.
    """

    fit: FitResult
    optimizer: dict[str, Any]


def train_model(
    recipe: Recipe,
    model: nn.Module,
    loaders: assemble.Loaders,
    run: RunFolder,
    listener: Listener,
    teacher: nn.Module | None = None,
) -> Trained | None:
    """Train the model as the recipe says, or go on with the training that `run` holds; None for 0 epochs.

    With a teacher the labels are not looked at: the model learns to answer as it does, in evaluation mode, so that
    images of another kind than those of the pretraining leave its batch norms alone.

    Raises:
        As `qat_vsam.train.fit`.
    """
    if recipe.train.epochs == 0:
        return None
    if recipe.train.compile_model:
        model.compile()  # in place: names of parameters stay, and copies for an export are not compiled
    total_steps = recipe.train.epochs * len(loaders.train)
    optimizer = build_optimizer(recipe, model, len(loaders.train))
    described = describe_optimizer(optimizer, total_steps)
    with torch.random.fork_rng(devices=[recipe.device] if recipe.device.startswith("cuda") else []):
        # dropout and the like draw from torch's generator; checkpoints keep its state
        torch.manual_seed(recipe.seed)
        done = fit(
            model,
            optimizer,
            loaders.train if teacher is None else TeacherBatches(loaders.train, teacher),
            epochs=recipe.train.epochs,
            run=run,
            lr_scheduler=assemble.build_lr_scheduler(recipe, optimizer, total_steps),
            loss=assemble.loss_function(recipe),
            validation=loaders.validation,
            validate_every=recipe.train.validate_every,
            device=recipe.device,
            amp=recipe.amp,
            ema=recipe.train.ema,
            training_mode=teacher is None,
            log_every=recipe.train.log_every,
            checkpoint_every_steps=recipe.train.checkpoint_every,
            on_event=listener.progress,
        )
    return Trained(done, described)


def _proof_inputs(loaders: assemble.Loaders) -> Tensor:
    """Test images, and validation images where those are too few; on the CPU, where artifacts run."""
    parts: list[Tensor] = []
    for batches in (loaders.test, loaders.validation):
        for x, _ in batches:
            parts.append(x.cpu())
            if sum(map(len, parts)) >= PROOF_INPUTS:
                return torch.cat(parts)[:PROOF_INPUTS]
    return torch.cat(parts)


def _command(folder: Path, start: Path | None, data_root: Path | None) -> str:
    words = ["qat-vsam", "train", str(folder / "recipe.yaml"), "--out", f"{folder}-again"]
    words += [] if start is None else ["--start", str(start)]
    words += [] if data_root is None else ["--data", str(data_root)]
    return shlex.join(words)


class _Baseline:
    """Accuracies from before the training, measured once a run and kept beside it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / BASELINE
        self._values: dict[str, float] = {}
        if self._path.exists():
            self._values = opened(self._path, self._path.read_bytes(), ("float_before", "calibrated"))

    def measure(self, name: str, model: nn.Module, test: Batches) -> float:
        if name not in self._values:
            self._values[name] = accuracy(model, test, device=test.device).value
            write_atomic(self._path, json.dumps(sealed(self._values)).encode())
        return self._values[name]

    def values(self) -> Mapping[str, float | None]:
        return {name: self._values.get(name) for name in ("float_before", "calibrated")}
