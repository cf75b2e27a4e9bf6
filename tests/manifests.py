"""Random manifests: valid ones, and what careless people, scripts and editors make of them."""

from __future__ import annotations

import copy
import datetime
import json
import random
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    0.0, -0.0, 0.5, 1e-320, 1e-300, 1e15, 1e308, float("inf"), float("-inf"), float("nan"),
    "", "x", "a\n", "a b", "../..", "\0", "\x7f", "ü" * 70, "x" * 100_000, "FP32", "INT64", "static", "app:q",
    [], [[]], {}, {"a": 1}, [1, "a", None], {"outputs": []}, {"inputs": [{}]},
    datetime.datetime(2026, 1, 2, 3, 4), datetime.date(2026, 1, 2), datetime.time(3, 4),
)  # fmt: skip
SYNTAX = (b"[[", b"]]", b"=", b'"', b"{", b"\0", b"\xff\xfe", b"9" * 5000, b"[" * 3000)
VALUES = (b"\r\n", b"inf", b"nan", b"1e999", b"true", b"0x", b"1979-05-27")
TENSOR = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.5]}
BASE: dict[str, Any] = {
    "name": "digits",
    "criticality": "standard",
    "weight": 1.0,
    "replicas": 1,
    "idempotent": True,
    "deadline_ms": 1000.0,
    "objective_ms": 900.0,
    "brownout": True,
    "client_rate": {"requests_per_s": 5.0, "burst": 10},
    "stand_in_for": ["shop-*"],
    "requests_per_s": 1.0,
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    "batching": {"rows_max": 8, "wait_us": 0},
    "static": {"outputs": [TENSOR]},
    "probe": {"inputs": [{**TENSOR, "name": "x"}]},
    "fallback": ["smaller-variant", "previous-version", "static"],
    "variants": [
        {
            "name": name,
            "runtime": "python",
            "artifact": "model.py",
            "accuracy": accuracy,
            "options": {"class": "Model"},
            "memory_limit_mb": 500.0,
        }
        for name, accuracy in (("big", 0.9), ("small", 0.8))
    ],
}


def deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def mutated(draw: random.Random, base: dict[str, Any] = BASE) -> dict[str, Any]:
    """`base` after up to three changes: a value replaced, a field removed, renamed, doubled or added."""
    document = copy.deepcopy(base)
    for _ in range(draw.randint(0, 3)):
        places = _places(document)
        if not places:
            break
        holder, key = draw.choice(places)
        match draw.randrange(6):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(draw.choice(NASTY))
            case 3 if isinstance(holder, dict):
                del holder[key]
            case 4 if isinstance(holder, dict):
                holder[draw.choice((f"{key}s", f"{key}\n", key[::-1], "ü", ""))] = holder[key]
            case _:
                holder[key] = deep(draw.choice((2, 40, 60, 100)))
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        each = waiting.pop()
        pairs = each.items() if isinstance(each, dict) else enumerate(each)
        for key, value in pairs:
            found.append((each, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def toml(value: Any, depth: int = 0) -> str:
    """As TOML, everything inline below the top. What TOML has no form for becomes something else."""
    if isinstance(value, dict):
        if depth == 0:
            return "\n".join(f"{_text(key)} = {toml(each, 1)}" for key, each in value.items())
        return "{" + ", ".join(f"{_text(key)} = {toml(each, 1)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(each, 1) for each in value) + "]"
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"  # not valid, as much else here
    if isinstance(value, str):
        return _text(value)
    return str(value) if not isinstance(value, int) or abs(value) < 10**300 else "9" * 400


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def scrambled(draw: random.Random, text: bytes) -> bytes:
    """Bytes lost, doubled, put elsewhere or replaced, as by a hurried hand or another encoding."""
    changed = bytearray(text)
    for _ in range(draw.randint(0, 3)):
        at, size = draw.randrange(len(changed)), draw.choice((1, 1, 2, 10, 50))
        match draw.randrange(5):
            case 0:
                del changed[at : at + size]
            case 1:
                changed[at:at] = changed[at : at + size]
            case 2:
                changed[at : at + 1] = bytes([draw.randrange(256)])
            case 3:
                changed[at:at] = draw.choice(
                    (b"[[", b"]]", b"=", b'"', b"{", b"\0", b"\xff\xfe", b"9" * 5000, b"[" * 3000)
                )
            case _:
                changed[at:at] = draw.choice(
                    (b"\r\n", b"inf", b"nan", b"1e999", b"true", b"0x", b"1979-05-27")
                )
    mark = draw.choice((b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"))
    return bytes(mark + changed) or b" "


def give_artifact(document: dict[str, Any], artifact: dict[str, Any]) -> None:
    """Each variant, as far as there are any, refers to `artifact`."""
    variants = document.get("variants")
    for variant in variants if isinstance(variants, list | tuple) else ():
        if isinstance(variant, dict):
            variant["artifact"] = artifact


def as_json(document: Any) -> bytes:
    """As a client would send it who thinks that Python's JSON is everybody's."""
    try:
        return json.dumps(document, default=str).encode()
    except (ValueError, RecursionError):
        return b"[" * 5000
