"""Deploying models without a manifest: one is written from the files, used, and shown to be kept."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from understudy.adapters.control import Servers
from understudy.cli import kinds
from understudy.cli.deploy import run_deploy
from understudy.cli.output import Output
from understudy.cli.packing import REQUIREMENTS, VARIANTS, ManifestSource, find_manifests
from understudy.config import checked_manifest, parse_toml
from understudy.settings.manifest import AppManifest
from understudy.settings.runtimes import RUNTIMES
from understudy.wire.errors import Code, CommandError, ConfigError

PYTHON_ENTRY, ONNX_ENTRY = (RUNTIMES[name].entry for name in ("python", "onnx"))
ACCURACY_STEP = 0.01  # between variants, while nobody has measured it
EXAMPLE = 'inputs = [{ name = "x", datatype = "FP32", shape = [-1, 4] }]'


class Wishes(NamedTuple):
    """What the command line says of models that have no manifest."""

    name: str = ""
    inputs: Sequence[str] = ()  # each NAME:DATATYPE:LENGTH,LENGTH,…
    outputs: Sequence[str] = ()
    save: Path | None = None  # where to keep the manifest


def run_deploy_any(
    control: Servers,
    paths: Sequence[Path],
    wishes: Wishes,
    output: Output,
    wait_s: float | None,
    *,
    verbose: bool,
) -> bool:
    """The command. False when a deployment failed."""
    found, text = sources(paths, wishes)
    if wishes.save is not None:
        _keep(text, wishes.save)
    done = run_deploy(control, found, output, wait_s, verbose=verbose)
    if done and text and wishes.save is None and not output.as_json:
        output.note("\nThe manifest; keep it with --save FILE, and deploy that from now on:\n")
        output.stdout.print(text.rstrip(), markup=False, soft_wrap=True)
    return done


def _keep(text: str, path: Path) -> None:
    try:
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--save: {path} can't be written: {error.strerror}") from error


def sources(paths: Sequence[Path], wishes: Wishes) -> tuple[list[ManifestSource], str]:
    """Where the apps to deploy are described, and the text of a manifest that was written for bare models.

    Raises `ConfigError` or `CommandError` that says what each path is and what would be accepted.
    """
    models = [path for path in paths if is_model(path)]
    if models and len(models) < len(paths):
        other = next(path for path in paths if path not in models)
        raise CommandError(Code.CONFIG, f"{other} is no model, and {models[0]} is", "deploy them one by one")
    if not models:
        if wishes != Wishes():
            what = "--name, --input, --output and --save are for models without a manifest"
            raise CommandError(Code.CONFIG, what)
        return [ManifestSource.of(manifest) for path in paths for manifest in find_manifests(path)], ""
    folder = wishes.save.parent if wishes.save else Path()
    text = _manifest(models, wishes, folder)
    manifest = checked_manifest(parse_toml(text.encode(), "the manifest", AppManifest), "the manifest")
    return [ManifestSource(manifest, folder, "the manifest")], text


def is_model(path: Path) -> bool:
    """A model, or something that is taken for one; then it is refused as such. Manifests aren't."""
    if not path.exists():
        raise CommandError(Code.CONFIG, f"{path}: no such file or directory (looked at {path.absolute()})")
    if path.is_dir():
        if any(path.glob("*.toml")) or any(path.glob("*/APP.toml")):
            return False
        return any((path / entry).exists() for entry in (PYTHON_ENTRY, ONNX_ENTRY)) or bool(
            list(path.glob("*.onnx")) or kinds.describe(path)
        )
    if path.suffix == ".toml":
        return False
    try:
        return kinds.describe(path) != "text" or not VARIANTS.search(path.read_text(errors="replace"))
    except OSError:
        return True


def _manifest(models: Sequence[Path], wishes: Wishes, folder: Path) -> str:
    found = [_model(path) for path in models]
    found.sort(key=lambda model: -model[2])
    names: list[str] = []
    for path, _, _ in found:
        names.append(_unique(_name(path), names))
    lines = [f"name = {_quoted(wishes.name or _app_name(models))}"]
    inputs = [_tensor("--input", text) for text in wishes.inputs]
    outputs = [_tensor("--output", text) for text in wishes.outputs]
    in_python = [path for path, runtime, _ in found if runtime == "python"]
    if in_python and not (inputs and outputs):
        _check_declared(in_python[0])
    for side, tensors in (("inputs", inputs), ("outputs", outputs)):
        lines += [f"{side} = [{', '.join(tensors)}]"] if tensors else []
    if len(found) > 1:
        lines.append("# The larger file is taken for the better model: put the accuracies that you measured.")
    for index, ((path, runtime, _), name) in enumerate(zip(found, names, strict=True)):
        lines += [
            "",
            "[[variants]]",
            f"name = {_quoted(name)}",
            f'runtime = "{runtime}"',
            f"artifact = {_quoted(os.path.relpath(path, folder))}",
            f"accuracy = {max(0.0, 1 - index * ACCURACY_STEP):.2f}",
        ]
        if (path / REQUIREMENTS).is_file():
            lines.append(f"requirements = {_quoted(os.path.relpath(path / REQUIREMENTS, folder))}")
    return "\n".join(lines) + "\n"


def _model(path: Path) -> tuple[Path, str, int]:
    """(artifact, runtime, bytes). Raises `CommandError` naming what it is instead."""
    try:
        kind = kinds.describe(path)
        if path.is_dir():
            return _directory(path, kind)
        size_bytes = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    if path.suffix.lower() == ".py" and kind in ("", "text", "a JSON document"):
        return path, "python", size_bytes
    if path.suffix.lower() in (".onnx", ".ort") and not kind:
        return path, "onnx", size_bytes
    if not kind:
        kind = "nothing that is known here"
    raise CommandError(Code.CONFIG, f"{path} is {kind}", f"{kinds.ADVICE}; manifests end in .toml")


def _directory(path: Path, kind: str) -> tuple[Path, str, int]:
    size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if (path / PYTHON_ENTRY).is_file():
        return path, "python", size_bytes
    models = list(path.glob("*.onnx"))
    if len(models) == 1 and not any(file != models[0] for file in path.iterdir()):
        return models[0], "onnx", size_bytes
    if RUNTIMES["onnx"].entry_in(model.name for model in models):
        return path, "onnx", size_bytes
    if models:
        listed = ", ".join(sorted(model.name for model in models)[:5])
        hint = f"one of them has to be named {ONNX_ENTRY}; or name the files that are variants of one app"
        raise CommandError(Code.CONFIG, f"{path} holds {listed}", hint)
    raise CommandError(Code.CONFIG, f"{path} is {kind}", kinds.ADVICE)


def _check_declared(path: Path) -> None:
    """Python code that doesn't say what it takes and gives can't be asked anything."""
    source = path / PYTHON_ENTRY if path.is_dir() else path
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        raise CommandError(Code.CONFIG, f"{source} is not valid Python: {error}") from error
    said: set[str] = set()
    for node in ast.walk(tree):
        for each in node.body if isinstance(node, ast.ClassDef) else ():
            targets = each.targets if isinstance(each, ast.Assign) else [getattr(each, "target", None)]
            said |= {target.id for target in targets if isinstance(target, ast.Name)}
    if not {"inputs", "outputs"} <= said:
        raise CommandError(
            Code.CONFIG,
            f"{source} doesn't say what the model takes and gives",
            "add --input x:FP32:-1,4 --output y:FP32:-1,2, or give the class attributes such as "
            'inputs = [("x", "FP32", [-1, 4])], or write a manifest beside it:\n' + _example(path),
        )


def _example(path: Path) -> str:
    outputs = EXAMPLE.replace("inputs", "outputs").replace('"x"', '"y"')
    return (
        f"name = {_quoted(_name(path))}\n{EXAMPLE}\n{outputs}\n"
        f'[[variants]]\nname = {_quoted(_name(path))}\nruntime = "python"\n'
        f"artifact = {_quoted(path.name)}\naccuracy = 1.0"
    )


def _tensor(option: str, text: str) -> str:
    name, _, rest = text.partition(":")
    datatype, _, lengths = rest.partition(":")
    if not name or not datatype or not re.fullmatch(r"(-?\d{1,10}(,-?\d{1,10})*)?", lengths):
        raise CommandError(
            Code.CONFIG, f"{option}: {text!r} is no NAME:DATATYPE:SHAPE", "such as x:FP32:-1,4"
        )
    return f"{{ name = {_quoted(name)}, datatype = {_quoted(datatype)}, shape = [{lengths}] }}"


def _app_name(models: Sequence[Path]) -> str:
    if len(models) == 1:
        return _name(models[0])
    first, last = min(map(_name, models)), max(map(_name, models))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    shared = "".join(pair[0] for pair in same).strip("._-")
    if not shared:
        raise CommandError(
            Code.CONFIG, "several models are variants of one app, which needs a name", "give it with --name"
        )
    return shared


def _name(path: Path) -> str:
    whole = path.resolve().name if path.is_dir() else path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", whole).strip("._-")[:64].strip("._-")
    if not name:
        raise CommandError(Code.CONFIG, f"{path}: no name can be made of {whole!r}", "give one with --name")
    return name


def _unique(name: str, taken: Sequence[str]) -> str:
    number, free = 2, name
    while free in taken:
        free = f"{name[:60]}-{number}"
        number += 1
    return free


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
