"""The command line: parses, calls the jobs, prints.

Exit codes: 0 done, 1 failed, 2 bad input, 130 and 143 stopped by a signal with a checkpoint written.
Imports of torch stand inside the commands, so that `--help` and `ls` answer at once.
"""

from __future__ import annotations

import gc
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qat_vsam.errors import ConfigError, InputError, QatVsamError, explain

if TYPE_CHECKING:
    from qat_vsam.recipes import Listener

app = typer.Typer(
    name="qat-vsam",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Quantize pretrained vision models, train them with vSAM, compare accuracy with training cost.",
    epilog="Start with: qat-vsam compare digits",
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="changes, e.g. train.epochs=3")]
GridOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="changes, e.g. seeds=2, or recipe.train.epochs=3 for every arm"),
]
DataRoot = Annotated[Path | None, typer.Option("--data", help="folder where data lie; else QAT_VSAM_DATA")]
Out = Annotated[Path | None, typer.Option("--out", help="folder for the results; default runs/NAME")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads of torch")]
Amp = Annotated[str | None, typer.Option(help="bf16: forward passes under autocast")]
Seed = Annotated[int | None, typer.Option(min=0, help="seed of weights, order and augmentation")]


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=lambda asked: _print_version(asked), is_eager=True, help="and leave")
    ] = False,
) -> None:
    """Quantize pretrained vision models, train them with vSAM, compare accuracy with training cost."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        app()
    except InputError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
    except (QatVsamError, OSError) as error:
        typer.echo(str(error), err=True)
        sys.exit(1)


@app.command("ls")
def list_names() -> None:
    """List recipes, models, datasets, optimizers, quantizers, exports and targets."""
    from qat_vsam.quant import describe_targets
    from qat_vsam.recipes import catalogue

    for title, names in catalogue().items():
        typer.echo(f"{title:<12}" + "  ".join(names))
    for name, line in describe_targets().items():
        typer.echo(f"  {name:<20}{line}")


@app.command("cp")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="a shipped recipe")],
    file: Annotated[Path, typer.Argument(help="the new file; never overwritten")],
) -> None:
    """Copy a shipped recipe, to own and change it."""
    from qat_vsam.config import find_config

    source = find_config(name)
    if file.exists():
        raise ConfigError(explain(str(file), "a file that exists", "a new file", "choose another name"))
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, file)
    typer.echo(f"{source} -> {file}")


@app.command()
def validate(
    file: Annotated[str, typer.Argument(help="NAME or file of a recipe or comparison")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="changes, e.g. train.epochs=3; comparison: recipe.train.epochs=3"
        ),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Check a recipe: resolved values, parameters, size, gradient evaluations, files. No data read, no training."""
    from qat_vsam import config
    from qat_vsam.recipes import assemble, resolve
    from qat_vsam.recipes.checks import check_places
    from qat_vsam.recipes.plan import comparison_plan, plan

    path = config.find_config(file)
    if config.is_comparison(config.read_recipe_file(path)):
        comparison = config.load_comparison(path, overrides or [])
        _echo_lines(comparison_plan(comparison))
        for arm in comparison.arms:
            check_places(comparison.arm(arm, 0), assemble.data_root(comparison.arm(arm, 0), data_root))
        return
    recipe = config.load_recipe(path, overrides or [])
    lines = plan(recipe).lines()
    typer.echo(config.dump_yaml(resolve(recipe)))
    _echo_lines(lines)
    check_places(recipe, assemble.data_root(recipe, data_root))


@app.command()
def train(
    file: Annotated[str, typer.Argument(help="NAME or file of a recipe")],
    overrides: Overrides = None,
    data_root: DataRoot = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    amp: Amp = None,
    seed: Seed = None,
    start: Annotated[Path | None, typer.Option(help="weights.pt of another run to start from")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="of training, as train.epochs=N")] = None,
) -> None:
    """Run one recipe, or go on with it."""
    from qat_vsam.config import find_config, load_recipe
    from qat_vsam.recipes import run_recipe

    options = {"device": device, "threads": threads, "amp": amp, "seed": seed, "train.epochs": epochs}
    changes = [*(overrides or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
    recipe = load_recipe(find_config(file), changes)
    folder = out or Path("runs") / recipe.name
    with _console() as listener:
        run_recipe(recipe, folder, data_root=data_root, start=start, listener=listener, command=_command())
    typer.echo(f"result: {folder / 'result.json'}")


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="a model of `qat-vsam ls`, or package.module:function")],
    data: Annotated[str, typer.Option(help="a dataset's name, its folder, or package.module:function")],
    bits: Annotated[str, typer.Option(help="w8a8, w4a8, w4a4, ...; w4 quantizes weights only")] = "w8a8",
    checkpoint: Annotated[str | None, typer.Option(help="pretrained weights")] = None,
    epochs: Annotated[int, typer.Option(min=0, help="of fine-tuning; 0 calibrates only")] = 0,
    distill: Annotated[str | None, typer.Option(help="kl or mse: learn the float net's answers, not labels")] = None,
    target: Annotated[str, typer.Option(help="simulated, onnxruntime, litert, ...; see `qat-vsam ls`")] = "simulated",
    keep: Annotated[list[str] | None, typer.Option(help="layers that stay in float (repeatable)")] = None,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = None,
    threads: Threads = None,
    amp: Amp = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Quantize a pretrained model: calibrate, fine-tune if asked, export, prove."""
    from qat_vsam.config import recipe_from
    from qat_vsam.recipes import quantize as run_quantize
    from qat_vsam.recipes import quantize_recipe

    name, root = _dataset(data)
    recipe = quantize_recipe(
        model,
        checkpoint=checkpoint,
        data=name,
        bits=bits,
        epochs=epochs,
        distill=distill,
        target=target,
        keep=list(keep or []),
        seed=seed,
        device=device or "cpu",
        threads=threads,
        amp=amp,
    )
    recipe = recipe_from(recipe.model_dump(mode="json"), overrides or [])
    folder = out or Path("runs") / recipe.name
    with _console() as listener:
        run_quantize(recipe, folder, data_root=root, listener=listener, command=_command())
    typer.echo(f"layers: {folder / 'layers.txt'}")
    typer.echo(f"result: {folder / 'result.json'}")


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="a model of `qat-vsam ls`, or package.module:function")],
    options: Annotated[list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="of the builder")] = None,
    bits: Annotated[str, typer.Option(help="w8a8, w4a8, w4a4, ...")] = "w8a8",
    keep: Annotated[list[str] | None, typer.Option(help="layers that stay in float (repeatable)")] = None,
) -> None:
    """List the layers of a model: how each would be quantized, or why it stays in float."""
    from qat_vsam.config import parse_overrides
    from qat_vsam.models import build_model
    from qat_vsam.quant import QuantSpec, prepare

    built = build_model(model, seed=0, **parse_overrides(options or []))
    typer.echo(str(prepare(built, QuantSpec.preset(bits, keep=keep or []))))


@app.command()
def compare(
    file: Annotated[str, typer.Argument(help="NAME or file of a comparison")],
    overrides: GridOverrides = None,
    data_root: DataRoot = None,
    out: Out = None,
    study: Annotated[
        Path | None, typer.Option(help="folder for finished runs, choices and report; goes on on any machine")
    ] = None,
) -> None:
    """Choose settings by trials if asked, run a grid of arms and seeds, then write its report."""
    from qat_vsam.config import find_config, load_comparison
    from qat_vsam.recipes import compare as run_compare
    from qat_vsam.report import answer_lines, load_study

    comparison = load_comparison(find_config(file), overrides or [])
    folder = out or Path("runs") / comparison.name
    with _console() as listener:
        page = run_compare(comparison, folder, study=study, data_root=data_root, listener=listener, command=_command())
    _echo_lines(answer_lines(load_study(study or folder)))
    typer.echo(f"report: {page}")


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="study, comparison or run folders")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="one report of all of them there; default: in each")] = None,
    title: Annotated[str | None, typer.Option(help="headline of the page, in place of the study's")] = None,
    everything: Annotated[Path | None, typer.Option("--all", help="rebuild every study below, and their index")] = None,
) -> None:
    """Write the report of finished runs, or rebuild those of studies."""
    from qat_vsam.report import build_all, build_report

    folders = list(runs or [])
    if (everything is None) == (not folders):
        got = "neither folders nor --all" if everything is None else "folders and --all"
        raise ConfigError(explain("report", got, "one of the two", "name folders, or write --all reports"))
    if everything is not None:
        typer.echo(f"studies: {build_all(everything)}")
        return
    given: dict[str, Any] = {} if title is None else {"title": title}
    if out is not None:
        typer.echo(f"report: {build_report(folders[0] if len(folders) == 1 else folders, out, **given)}")
        return
    for folder in folders:
        if not (folder / "runs.jsonl").is_file():
            rule = "a study folder, which has a runs.jsonl"
            raise ConfigError(explain(str(folder), "runs without a place for their report", rule, "give --out FOLDER"))
        typer.echo(f"report: {build_report(folder, folder, **given)}")


@app.command("eval")
def evaluate_run(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")], data_root: DataRoot = None
) -> None:
    """Measure a finished run's model again on validation and test images."""
    from qat_vsam.evaluate import accuracy
    from qat_vsam.recipes import load_run

    recipe, model, loaders = load_run(run, root=data_root)
    for name in ("validation", "test"):
        measured = accuracy(model, getattr(loaders, name), device=recipe.device)
        typer.echo(f"{name:<11}{measured.value:.2%} of {measured.total} images, loss {measured.loss:.4f}")


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="folder of a finished run")],
    format: Annotated[Literal["onnx", "packed", "qonnx"], typer.Option("--format")] = "onnx",
    data_root: DataRoot = None,
) -> None:
    """Export a finished run's model and prove that it computes the same."""
    from qat_vsam.recipes import export_run, load_run

    recipe, model, loaders = load_run(run, root=data_root)
    with _console() as listener:
        export_run(recipe, model, loaders, run / "exports", format, listener)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="an exported file, its proof beside it")],
    trust: Annotated[bool, typer.Option("--trust", help="let a packed file call the function it names")] = False,
) -> None:
    """Reload an exported file in its runtime and compare it with the proof written at export."""
    from qat_vsam.export import verify as verify_artifact

    typer.echo(str(verify_artifact(artifact, trust_builder=trust)))


@app.command()
def bench(
    file: Annotated[str | None, typer.Argument(help="a comparison, to time its arms; none: ResNet steps")] = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="networks of 0.1 M to 90 M parameters instead")] = False,
    repeats: Annotated[int | None, typer.Option(min=3, help="timed rounds; 30, for ResNet steps 8")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    data_root: DataRoot = None,
) -> None:
    """Time training steps, interleaved in one process; ratios matter, absolute times do not."""
    from qat_vsam import recipes

    if file is not None and sizes:
        raise ConfigError(explain("--sizes", f"a file, {file}", "one of the two", "leave the file or --sizes out"))
    if file is None:
        with _console() as listener:
            measure = recipes.bench_sizes if sizes else recipes.bench_steps
            for table in measure(repeats=repeats or 8, threads=threads, listener=listener):
                _echo_lines(table.lines())
        return
    from qat_vsam.config import BenchSection, find_config, load_comparison
    from qat_vsam.recipes import resolve

    comparison = load_comparison(find_config(file), [f"bench.repeats={repeats or 30}"])
    arms = {arm: resolve(comparison.arm(arm, 0)) for arm in comparison.arms}
    measured = recipes.bench_arms(arms, comparison.bench or BenchSection(), data_root, threads)
    if measured["rows"]:
        typer.echo(f"unit: a {measured['unit']}, {measured['unit_ms']:.2f} ms on {threads} thread(s)")
    for row in measured["rows"]:
        interval = f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
        typer.echo(f"{row['arm']:<28}{row['median_ms']:>9.2f} ms a step {row['ratio']:>6.2f} units {interval}")


@app.command()
def info() -> None:
    """Show versions, devices, and which optional packages are here."""
    import torch

    from qat_vsam.recipes import describe_backends
    from qat_vsam.train import describe_environment

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = describe_environment(device)
    facts |= {**facts.pop("versions"), **describe_backends()}
    _echo_lines(f"{key:<20}{value}" for key, value in facts.items())


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"qat-vsam {version('qat-vsam')}")
        raise typer.Exit


def _dataset(data: str) -> tuple[str, Path | None]:
    """`--data` takes a dataset's name, or a folder: of images by class (it has `train/`), or of CIFAR-10."""
    path = Path(data)
    if not path.is_dir():
        return data, None
    return "image_folder" if (path / "train").is_dir() else "cifar10", path


def _command() -> str:
    """What was typed, without `--out`: the same work in another place is the same work."""
    kept = []
    words = iter(sys.argv[1:])
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["qat-vsam", *kept])


def _echo_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


@contextmanager
def _console() -> Iterator[Listener]:
    """Draws the job of the block; a signal that stopped it becomes the exit code 130 or 143."""
    from qat_vsam.console import ConsoleListener
    from qat_vsam.recipes.worker import sigterm_interrupts
    from qat_vsam.train import Interrupted

    try:
        with sigterm_interrupts(), ConsoleListener() as listener:
            try:
                yield listener
            except Interrupted:
                raise
            except KeyboardInterrupt:
                raise Interrupted(signal.SIGINT) from None
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        # else the interpreter takes seconds to look for garbage among torch's objects before it ends
        gc.freeze()
        raise typer.Exit(stop.exit_code) from None
