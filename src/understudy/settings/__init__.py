"""What every setting is made of: the root of the tables, and numbers and names with their limits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from understudy.wire.numbers import NonNegative as NonNegative
from understudy.wire.numbers import Positive as Positive

# `$` alone would let a newline follow.
_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$(?!\n)"
_PATTERN = r"^[A-Za-z0-9._*?-]{1,64}$(?!\n)"
LINKS = ("smaller-variant", "previous-version", "last-good", "static")
LINK = r"^(smaller-variant|previous-version|last-good|static|app:[A-Za-z0-9][A-Za-z0-9._-]{0,63})$(?!\n)"
PATTERNS = {  # what a value that doesn't match is told
    _NAME: "a name is 1 to 64 letters, digits, '.', '_' and '-', the first and last a letter or digit",
    _PATTERN: "an app's name, in which * and ? stand for other characters",
    LINK: "a link is one of smaller-variant, previous-version, last-good, static and app:NAME",
}
Name = Annotated[str, Meta(pattern=_NAME)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=2**53)]
Length = Annotated[int, Meta(ge=-1, le=2**31 - 1)]  # of one dimension; -1: any
AppPattern = Annotated[str, Meta(pattern=_PATTERN)]
FallbackLink = Annotated[str, Meta(pattern=LINK)]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip
# Of datatypes elsewhere, in lower case; the protocol's own in lower case are found by themselves.
_SPELLINGS = {
    "float16": "FP16", "half": "FP16", "bfloat16": "BF16", "float": "FP32", "float32": "FP32",
    "single": "FP32", "float64": "FP64", "double": "FP64", "str": "BYTES", "string": "BYTES",
    "object": "BYTES", "text": "BYTES", "int": "INT64", "long": "INT64", "boolean": "BOOL", "byte": "UINT8",
}  # fmt: skip


def nearest(text: str, valid: Iterable[str]) -> str:
    """Which of the `valid` was probably meant; empty if that can't be told."""
    listed = list(valid)
    meant = _SPELLINGS.get(text.lower().rpartition(".")[2], text.upper())
    if meant in listed:
        return meant
    return next(iter(difflib.get_close_matches(text, listed, n=1)), "")


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Root of everything that is read from a file."""
