"""What goes in and comes out of a replica: the app's declaration and the model's own, made one."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from understudy.settings import nearest
from understudy.wire.messages import Load
from understudy.wire.records import Finite, TensorSpec
from understudy.wire.tensors import DATATYPES, RANK_MAX, show_shape
from understudy.worker.runtimes.contract import Runtime, load_failed

Specs = tuple[TensorSpec, ...]

TENSORS_MAX = 1024  # inputs, and outputs, of a model
NAME_CHARS_MAX = 1024  # of one of them
# Some exporters list each weight as an input with a default. So many are offered, more are weights.
OPTIONAL_INPUTS_MAX = 16


class Signature(NamedTuple):
    inputs: Specs
    outputs: Specs

    @property
    def batched(self) -> bool:
        """Whether dimension 0 of every tensor can have any length, so that it counts rows."""
        return bool(self.inputs) and all(spec.shape[:1] == (-1,) for spec in self.inputs + self.outputs)

    def unpromised(self) -> Signature:
        """The same with no output's shape enforced: to see what comes."""
        return Signature(
            self.inputs, tuple(msgspec.structs.replace(spec, hint=True) for spec in self.outputs)
        )


def agree(load: Load, runtime: Runtime) -> Signature:
    """The signature that app and model share. Raises LOAD_FAILED naming the tensor they disagree about.

    Shapes: of inputs the narrower, because runtimes refuse what doesn't fit the file; of outputs the app's.
    """
    inputs = _merge("input", load.inputs, runtime.inputs, described=runtime.described)
    if load.inputs:
        needed = {spec.name for spec in runtime.inputs if not spec.optional}
        undeclared = needed - {spec.name for spec in load.inputs}
        if undeclared:
            raise load_failed(f"the model needs an input {min(undeclared)!r} that the app doesn't declare")
    elif sum(spec.optional for spec in inputs) > OPTIONAL_INPUTS_MAX:
        inputs = tuple(spec for spec in inputs if not spec.optional)
    outputs = _merge("output", load.outputs, runtime.outputs, described=False)
    for what, specs in (("input", inputs), ("output", outputs)):
        _check_sizes(what, specs)
    if load.finite is Finite.ALLOWED:
        outputs = tuple(msgspec.structs.replace(spec, finite=Finite.ALLOWED) for spec in outputs)
    return Signature(inputs, outputs)


def _check_sizes(what: str, specs: Specs) -> None:
    """Every answer to a question about the model carries these."""
    if len(specs) > TENSORS_MAX:
        raise load_failed(
            f"the model has {len(specs)} {what}s; {TENSORS_MAX} are allowed: declare those that are needed"
        )
    for spec in specs:
        if not spec.name:
            raise load_failed(f"an {what} has no name; requests can't refer to it")
        if len(spec.name) > NAME_CHARS_MAX:
            begin = repr(spec.name[:64] + "…")
            length = len(spec.name)
            raise load_failed(
                f"{what} {begin}: its name has {length} characters; {NAME_CHARS_MAX} are allowed"
            )


def _merge(what: str, declared: Specs, own: Specs, *, described: bool) -> Specs:
    """What the app declares and what the model says, as one. An app may declare some of the outputs only."""
    if not declared and not own and not described:
        raise load_failed(f"no {what}s are declared, and the model doesn't say which it has")
    for spec in declared + own:
        if spec.datatype not in DATATYPES:
            near = nearest(spec.datatype, DATATYPES)
            hint = f"; did you mean {near!r}?" if near else ""
            known = ", ".join(DATATYPES)
            raise load_failed(
                f"{what} {spec.name!r}: unknown datatype {spec.datatype!r}; known: {known}{hint}"
            )
        if len(spec.shape) > RANK_MAX or any(length < -1 for length in spec.shape):
            raise load_failed(f"{what} {spec.name!r}: shape {show_shape(spec.shape)} is not valid")
    names = [spec.name for spec in declared]
    if len(set(names)) != len(names):
        raise load_failed(f"{what}s are declared twice: {', '.join(names)}")
    if not declared or not own:
        return declared or own
    by_name = {spec.name: spec for spec in own}
    merged: list[TensorSpec] = []
    for spec in declared:
        found = by_name.get(spec.name)
        if found is None:
            raise load_failed(f"the model has no {what} {spec.name!r}; it has {', '.join(by_name)}")
        if spec.datatype != found.datatype:
            raise _disagreement(what, spec, found)
        merged.append(_merge_input(spec, found) if what == "input" else _merge_output(spec, found))
    return tuple(merged)


def _merge_output(declared: TensorSpec, own: TensorSpec) -> TensorSpec:
    return msgspec.structs.replace(declared, labels=declared.labels or own.labels)


def _merge_input(declared: TensorSpec, own: TensorSpec) -> TensorSpec:
    """The narrower of both shapes. Raises LOAD_FAILED if no tensor could fit both."""
    if declared.optional and not own.optional:
        raise load_failed(f"input {declared.name!r} is declared as optional, but the model needs it")
    shape = declared.shape
    if not own.hint:
        if len(shape) != len(own.shape):
            raise _disagreement("input", declared, own)
        pairs = list(zip(shape, own.shape, strict=True))
        if any(ours != theirs and -1 not in (ours, theirs) for ours, theirs in pairs):
            raise _disagreement("input", declared, own)
        shape = tuple(theirs if ours == -1 else ours for ours, theirs in pairs)
    return msgspec.structs.replace(declared, shape=shape)


def _disagreement(what: str, declared: TensorSpec, own: TensorSpec) -> Exception:
    return load_failed(
        f"{what} {declared.name!r} is declared as {declared.datatype} {show_shape(declared.shape)}, "
        f"the model has {own.datatype} {show_shape(own.shape)}"
    )
