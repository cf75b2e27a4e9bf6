"""`understudy check`: what can be told of manifests, models and cluster files without a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from understudy.cli.bare import Wishes, is_model, sources
from understudy.cli.inspecting import inspect
from understudy.cli.output import Output
from understudy.cli.packing import ManifestSource
from understudy.config import is_cluster, load_cluster
from understudy.wire.errors import Code, CommandError, UnderstudyError


def run_check(paths: Sequence[Path], wishes: Wishes, output: Output) -> None:
    """The command. Looks at everything, then raises CONFIG if anything is wrong."""
    good: list[str] = []
    bad: list[str] = []
    unknown: list[str] = []
    texts: list[str] = []
    clusters = [path for path in paths if path.suffix == ".toml" and is_cluster(path)]
    models: list[Path] = []
    groups: list[list[Path]] = []
    for path in paths:
        if path in clusters:
            continue
        if path.exists() and is_model(path):
            models.append(path)
        else:
            groups.append([path])
    groups += [models] if models and wishes.name else [[path] for path in models]
    for path in clusters:
        try:
            config = load_cluster(path)
        except UnderstudyError as error:
            bad.append(_said(error))
        else:
            good.append(f"{path}: a cluster of {len(config.nodes)} nodes and {len(config.apps)} apps")
            groups += [[Path(app)] for app in config.apps]
    for group in groups:
        try:
            found, text = sources(group, wishes)
            for source in found:
                source.check()
                wrong, unseen = _of_models(source)
                bad += wrong
                unknown += unseen
                names = ", ".join(variant.name for variant in source.manifest.variants)
                good += [] if wrong else [f"{source.name}: app {source.manifest.name} with {names}"]
            texts += [text] if text else []
        except UnderstudyError as error:
            bad.append(_said(error))
    if output.as_json:
        output.data({"good": good, "bad": bad, "unknown": unknown, "manifests": texts})
    else:
        for line in (*good, *texts):
            output.stdout.print(line, markup=False, soft_wrap=True)
        for line in unknown:
            output.note(f"not checked: {line}")
        if good:
            output.note("a deployment measures the rest: what models answer, and what they take for it")
    if bad:
        raise CommandError(Code.CONFIG, "\n".join(bad).replace("\n", "\n       "))


def _of_models(source: ManifestSource) -> tuple[list[str], list[str]]:
    """What is wrong with the variants' models, and what can't be told here."""
    wrong, unknown = [], []
    for index, variant in enumerate(source.manifest.variants):
        found = inspect(source.manifest, variant, source.folder / variant.artifact)
        where = f"{source.name}: variants[{index}]: {variant.artifact}"
        wrong += [f"{where}: {mistake}" for mistake in found.mistakes]
        unknown += [f"{where}: {reason}" for reason in found.unknown]
    return wrong, unknown


def _said(error: UnderstudyError) -> str:
    hint = error.hint if isinstance(error, CommandError) else ""
    return f"{error}; {hint}" if hint else str(error)
