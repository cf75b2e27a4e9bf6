"""What clients send to an app and get from it: the same for all of its variants."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from understudy.wire.errors import InvalidArgument
from understudy.wire.messages import Measured
from understudy.wire.records import AppVersion, Finite, TensorSpec
from understudy.wire.statics import show_spec

Signature = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def common_signature(measured: Mapping[str, Measured]) -> Signature:
    """(inputs, outputs) that hold for every variant, from what each said of itself.

    A length that one variant fixes and another leaves open (-1) is fixed for inputs, which must suit all,
    and open for outputs. An optional input that some variants lack isn't offered. Raises `InvalidArgument`
    naming two variants that a client could tell apart.
    """
    (first, reference), *others = measured.items()
    inputs, outputs = reference.inputs, reference.outputs
    for name, other in others:
        inputs = _merged("inputs", inputs, other.inputs, (first, name))
        outputs = _merged("outputs", outputs, other.outputs, (first, name))
    return inputs, outputs


def _merged(
    side: str, ours: tuple[TensorSpec, ...], theirs: tuple[TensorSpec, ...], names: tuple[str, str]
) -> tuple[TensorSpec, ...]:
    names_of_all = {spec.name for spec in ours} & {spec.name for spec in theirs}
    ours = tuple(spec for spec in ours if spec.name in names_of_all or not spec.optional)
    theirs = tuple(spec for spec in theirs if spec.name in names_of_all or not spec.optional)
    by_name = {spec.name: spec for spec in theirs}
    if {spec.name for spec in ours} != set(by_name):
        raise _differ(side, names, listed(ours), listed(theirs))
    return tuple(_merged_tensor(side, spec, by_name[spec.name], names) for spec in ours)


def _merged_tensor(side: str, one: TensorSpec, other: TensorSpec, names: tuple[str, str]) -> TensorSpec:
    if side == "inputs" and not (one.shape and other.shape) and one.hint | other.hint:  # one takes any rank
        one, other = (other, one) if one.hint else (one, other)
        return msgspec.structs.replace(one, optional=one.optional and other.optional)
    shape = [_merged_length(side, a, b) for a, b in zip(one.shape, other.shape, strict=False)]
    if one.datatype != other.datatype or len(one.shape) != len(other.shape) or None in shape:
        raise _differ(side, names, listed((one,)), listed((other,)))
    if one.labels and other.labels and one.labels != other.labels:
        raise _differ(side, names, f"{one.name} of {one.labels}", f"{other.name} of {other.labels}")
    return TensorSpec(
        one.name,
        one.datatype,
        tuple(length for length in shape if length is not None),
        optional=one.optional and other.optional,
        hint=one.hint or other.hint,
        finite=Finite.ALLOWED if Finite.ALLOWED in (one.finite, other.finite) else Finite.REQUIRED,
        labels=one.labels or other.labels,
        format=one.format or other.format,
    )


def _merged_length(side: str, one: int, other: int) -> int | None:
    """None: they can't both be."""
    if one == other:
        return one
    if -1 not in (one, other):
        return None
    return max(one, other) if side == "inputs" else -1


def listed(specs: tuple[TensorSpec, ...]) -> str:
    """`specs` as sentences show them."""
    return ", ".join(map(_shown, specs)) or "none"


def _shown(spec: TensorSpec) -> str:
    optional = " (optional)" if spec.optional else ""
    return f"{show_spec(spec)}{optional}"


def _differ(side: str, names: tuple[str, str], ours: str, theirs: str) -> InvalidArgument:
    return InvalidArgument(
        f"variants: {names[0]!r} and {names[1]!r} have different {side} ({ours} against {theirs}); "
        "clients must not notice which one answers"
    )


def told_changes(current: AppVersion | None, coming: AppVersion) -> tuple[str, ...]:
    """A warning where who calls `current` can't call `coming` the same way. What only adds is no change."""
    if current is None:
        return ()
    changes = [
        *_changes("input", current.inputs, coming.inputs),
        *_changes("output", current.outputs, coming.outputs),
    ]
    if not changes:
        return ()
    return (f"clients of version {current.version} may fail with this one: {'; '.join(changes)}",)


def _changes(kind: str, before: tuple[TensorSpec, ...], after: tuple[TensorSpec, ...]) -> list[str]:
    fresh = {spec.name: spec for spec in after}
    found = []
    for old in before:
        new = fresh.pop(old.name, None)
        if new is None:
            found.append(f"{kind} {_shown(old)} is gone")
        elif not _takes(kind, old, new):
            found.append(f"{kind} {_shown(old)} is now {_shown(new)}")
    added = [spec for spec in fresh.values() if kind == "input" and not spec.optional]
    return found + [f"input {_shown(spec)} is needed now" for spec in added]


def _takes(kind: str, old: TensorSpec, new: TensorSpec) -> bool:
    if old.datatype != new.datatype or (kind == "input" and old.optional and not new.optional):
        return False
    if old.hint or new.hint:  # one of them is no promise
        return True
    wide, narrow = (new.shape, old.shape) if kind == "input" else (old.shape, new.shape)
    return len(wide) == len(narrow) and all(a in (-1, b) for a, b in zip(wide, narrow, strict=True))
