"""From a manifest on disk to what the control API takes: artifacts by digest and the app's description."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import msgspec

from understudy.cli import kinds, wheels
from understudy.cli.contents import contents, not_a_model
from understudy.config import load_manifest
from understudy.settings.manifest import AppManifest, VariantManifest
from understudy.wire.errors import Code, CommandError, ConfigError, UnderstudyError
from understudy.wire.records import ArtifactRef

VARIANTS = re.compile(r"^\s*(\[\[variants\]\]|variants\s*=)", re.MULTILINE)


REQUIREMENTS = "requirements.txt"
STRAYS_SHOWN_MAX = 10
EXPECTED = (
    "expected */APP.toml, *.toml with variants, an .onnx file, or a model.py with a class that loads "
    f"what else lies there: see {kinds.PAGE}"
)


class Artifact(NamedTuple):
    """One file to upload, opened for reading at its beginning."""

    ref: ArtifactRef
    content: IO[bytes]


@dataclass(frozen=True)
class Package:
    """An app ready to be sent. A context manager: its end closes the artifacts."""

    description: dict[str, Any]  # the manifest's fields; each variant's artifact is an ArtifactRef
    artifacts: tuple[Artifact, ...]  # each digest once
    opened: contextlib.ExitStack
    path: str = ""  # of the manifest, where there is one
    notes: tuple[str, ...] = ()  # for whoever deploys it

    @property
    def name(self) -> str:
        return str(self.description["name"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()


def find_manifests(path: Path) -> list[Path]:
    """`path` itself, or the manifests in a directory: */APP.toml, APP.toml and other *.toml with variants."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    if not path.is_dir():
        return [path]
    found = sorted({*path.glob("*/APP.toml"), *path.glob("*.toml")})
    # A cluster file may lie in the same directory; it has no variants.
    manifests = [p for p in found if p.name == "APP.toml" or VARIANTS.search(p.read_text(errors="replace"))]
    if not manifests:
        raise ConfigError(f"{path}: no manifests here, and no model; {EXPECTED}")
    return manifests


@dataclass(frozen=True)
class ManifestSource:
    """A manifest, the folder that its paths are relative to, and what to call it."""

    manifest: AppManifest
    folder: Path
    name: str
    path: str = ""

    @staticmethod
    def of(path: Path) -> ManifestSource:
        """Raises `ConfigError`."""
        return ManifestSource(load_manifest(path), path.parent, str(path), str(path.resolve()))

    def check(self) -> None:
        """Raises `ConfigError` naming the fields whose artifacts are missing or unusable."""
        wrong: list[UnderstudyError] = []
        for index, variant in enumerate(self.manifest.variants):
            where = f"{self.name}: variants[{index}].artifact"
            path = self.folder / variant.artifact
            try:
                _check_artifact(where, variant, path)
                wheels.check(f"{self.name}: variants[{index}]", *self._named_packages(variant))
            except UnderstudyError as error:
                wrong.append(error)
            except (OSError, ValueError) as error:  # ValueError: a path that can't be one
                reason = error.strerror if isinstance(error, OSError) else str(error)
                wrong.append(ConfigError(f"{where}: {path} can't be read: {reason}"))
        if len(wrong) == 1:
            raise wrong[0]
        if wrong:
            hints = dict.fromkeys(e.hint for e in wrong if isinstance(e, CommandError) and e.hint)
            raise CommandError(Code.CONFIG, "\n".join(map(str, wrong)), "; ".join(hints))

    def pack(self) -> Package:
        """Hash the artifacts; directories become tar files of the same bytes every time.

        Raises as `check` does, and where pip can't have what a variant needs.
        """
        self.check()
        artifacts: dict[str, Artifact] = {}
        environments = _Environments(self.name)
        variants = []
        with contextlib.ExitStack() as opened:
            for variant in self.manifest.variants:
                path = self.folder / variant.artifact
                files = contents(path, variant.runtime)
                content = opened.enter_context(_pack(path, files) if files else _open_file(path))
                ref = _refer(content, path, packed=bool(files))
                artifacts.setdefault(ref.digest, Artifact(ref, content))
                described = {**_plain(variant), "artifact": msgspec.to_builtins(ref)}
                del described["requirements"], described["wheels"]
                packages = environments.of(variant, *self._named_packages(variant), opened)
                if packages is not None:
                    artifacts.setdefault(packages.ref.digest, packages)
                    described["wheels"] = msgspec.to_builtins(packages.ref)
                environments.remark(variant, path)
                environments.notes += _strays(path, files)
                variants.append(described)
            description = {**_plain(self.manifest), "variants": variants}
            return Package(
                description, tuple(artifacts.values()), opened.pop_all(), self.path, tuple(environments.notes)
            )

    def _named_packages(self, variant: VariantManifest) -> tuple[Path | None, Path | None]:
        """The file of requirements, and the directory of wheels."""
        requirements, folder = variant.requirements, variant.wheels
        return (
            self.folder / requirements if requirements is not None else None,
            self.folder / folder if folder is not None else None,
        )


class _Environments:
    """The packages of one app's variants, each set resolved once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: dict[tuple[Path | None, Path | None], Artifact | None] = {}
        self.notes: list[str] = []

    def of(
        self,
        variant: VariantManifest,
        requirements: Path | None,
        folder: Path | None,
        opened: contextlib.ExitStack,
    ) -> Artifact | None:
        """None where none are needed."""
        asked = requirements, folder
        if asked == (None, None):
            return None
        if asked not in self._found:
            found = wheels.resolve(f"{self._source}: variant {variant.name!r}", requirements, folder)
            opened.enter_context(found.content)
            label = (requirements or folder or Path()).name
            self._found[asked] = None
            if found.names:
                ref = _refer(found.content, Path(f"{label}.wheels"), packed=True)
                self._found[asked] = Artifact(ref, found.content)
            self.notes.append(f"{label}: {', '.join(found.names) or 'asks for no package'}")
        return self._found[asked]

    def remark(self, variant: VariantManifest, path: Path) -> None:
        """Say so if an artifact seems to name packages and the manifest doesn't."""
        unnamed = variant.requirements is None and variant.wheels is None and variant.python is None
        if unnamed and (path / REQUIREMENTS).is_file():
            self.notes.append(
                f"{path / REQUIREMENTS} is not installed from: the manifest doesn't name it for variant "
                f"{variant.name!r} (requirements = {f'{variant.artifact}/{REQUIREMENTS}'!r})"
            )


def pack(manifest_path: Path) -> Package:
    """Read a manifest and hash its artifacts. Raises `ConfigError`."""
    return ManifestSource.of(manifest_path).pack()


def _plain(settings: AppManifest | VariantManifest) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    return plain


def _strays(folder: Path, files: Mapping[str, Path]) -> list[str]:
    """That files from outside of `folder` go along: whoever wrote it may have chosen them."""
    real = folder.resolve()
    led_out = [(name, to) for name, file in files.items() if not (to := file.resolve()).is_relative_to(real)]
    if not folder.is_dir() or not led_out:
        return []
    shown = ", ".join(f"{name} is {to}" for name, to in led_out[:STRAYS_SHOWN_MAX])
    more = f", and {len(led_out) - STRAYS_SHOWN_MAX} more" if len(led_out) > STRAYS_SHOWN_MAX else ""
    return [f"links lead out of {folder}: {shown}{more}"]


def _check_artifact(where: str, variant: VariantManifest, path: Path) -> None:
    if not path.exists():
        raise CommandError(
            Code.CONFIG,
            f"{where}: {path} does not exist (looked at {path.absolute()})",
            "the path is relative to the manifest",
        )
    if path.is_dir():
        if mistake := not_a_model(path, variant.runtime):
            raise ConfigError(f"{where}: {path} {mistake}")
    else:
        _check_file(where, variant, path)


def _check_file(where: str, variant: VariantManifest, path: Path) -> None:
    kind = kinds.describe(path)
    if kind == "an empty file":
        raise ConfigError(f"{where}: {path} is empty")
    odd = not path.is_file() or (variant.runtime == "onnx" and kind not in ("", "text"))
    if variant.runtime == "python" and path.suffix != ".py" and kind != "text":
        odd, kind = True, kind or "no Python source"
    if odd:
        raise CommandError(Code.CONFIG, f"{where}: {path} is {kind}", kinds.ADVICE)


def _open_file(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error


def _pack(path: Path, files: Mapping[str, Path]) -> IO[bytes]:
    content = tempfile.TemporaryFile()  # noqa: SIM115 - the package closes it
    try:
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, file in files.items():
                # Names and contents only: who packed it, when and where must not change the digest.
                entry = tarfile.TarInfo(name)
                entry.mode = 0o755 if os.access(file, os.X_OK) else 0o644
                with file.open("rb") as source:
                    entry.size = os.fstat(source.fileno()).st_size
                    tar.addfile(entry, source)
    except OSError as error:
        content.close()
        raise ConfigError(f"{path}: can't be packed: {error}") from error
    except ConfigError:
        content.close()
        raise
    return content


def _refer(content: IO[bytes], path: Path, *, packed: bool) -> ArtifactRef:
    content.seek(0)
    digest = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    size_bytes = content.tell()
    content.seek(0)
    return ArtifactRef(
        digest, size_bytes, f"{path.name}.tar" if packed else path.name, "tar" if packed else "file"
    )
