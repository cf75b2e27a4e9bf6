"""What a file is, by its first bytes: so that a refusal can name it."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

HEAD_BYTES = 512
PAGE = "docs/bring-your-own-model.md"
ADVICE = (
    "Understudy serves ONNX files (.onnx) and Python classes (a .py file, or a directory with a model.py); "
    f"{PAGE} shows how what other libraries save is served by one"
)

_SPECIAL = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_BEGINNINGS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras saves"),
    (b"GGUF", "a GGUF file, as llama.cpp reads"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program or library of Linux"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"PAR1", "a Parquet file"),
    (b"tree\n", "a LightGBM model in text form"),
    (b"<!DOCTYPE", "an HTML page: was the download refused?"),
    (b"<html", "an HTML page: was the download refused?"),
    (b"binf", "an XGBoost model"),
)
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_JOBLIB = (b"x\x01", b"x\x9c", b"x\xda", b"BZh", b"ZF")  # compressed


def describe(path: Path) -> str:
    """Such as "a PyTorch checkpoint"; empty where it can't be told, as of an ONNX file. Raises `OSError`."""
    mode = path.stat().st_mode
    for is_special, name in _SPECIAL:
        if is_special(mode):
            return name
    if path.is_dir():
        return _directory(path)
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return "an empty file"
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if head.startswith(_PICKLES):
        return "a pickle: a Python class with a `load` that reads it can be served"
    if path.suffix == ".joblib" or (path.suffix in (".pkl", ".pickle") and head.startswith(_JOBLIB)):
        return "a joblib file: a Python class with a `load` that reads it can be served"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000 and b"\0" in head[:8]:
        return "a safetensors file: weights without the model"
    return _text(head)


def _text(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16 text"
    try:
        text = head.decode() if len(head) < HEAD_BYTES else head[:-4].decode()
    except UnicodeDecodeError:
        return ""
    if not all(character.isprintable() or character in "\r\n\t\ufeff" for character in text):
        return ""
    if text.lstrip().startswith("{"):
        return "a JSON document"
    return "text"


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return "a damaged ZIP archive"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript model: export it with torch.onnx.export, or load it in a Python class"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch checkpoint: export it with torch.onnx.export, or load it in a Python class"
    if "config.json" in names and any(name.endswith(".h5") for name in names):
        return "a Keras model"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive"
    return "a ZIP archive: unpack it"


def _directory(path: Path) -> str:
    if (path / "saved_model.pb").exists():
        return "a TensorFlow SavedModel: convert it with tf2onnx"
    if (path / "MLmodel").exists():
        return "an MLflow model"
    if (path / "config.pbtxt").exists():
        return "an entry of a Triton model repository"
    if any(path.glob("*.safetensors")) or (path / "pytorch_model.bin").exists():
        return "a directory of weights"
    return ""
