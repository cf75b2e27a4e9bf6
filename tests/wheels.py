"""Wheels made by hand, so that no registry is asked."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path


def write_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    files: dict[str, str] | None = None,
    tag: str = "py3-none-any",
    needs: tuple[str, ...] = (),
    damaged: bool = False,
    compressed: bool = False,
) -> Path:
    """A wheel with one module of its name that says its version, unless `files` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    contents = files or {f"{name}.py": f"VERSION = {version!r}\n"}
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    contents |= {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},sha256={_hash(text)},{len(text)}\n" for path, text in contents.items())
    path = folder / f"{name}-{version}-{tag}.whl"
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for file, text in contents.items():
            archive.writestr(file, text[::-1] if damaged and file.endswith(".py") else text)
        archive.writestr(f"{about}/RECORD", f"{record}{about}/RECORD,,\n")
    return path


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
