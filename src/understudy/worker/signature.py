"""What goes in and comes out of a replica: the app's declaration and the model's own, made one."""

from __future__ import annotations

from typing import NamedTuple

from understudy.wire.messages import Load
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import DATATYPES, RANK_MAX, show_shape
from understudy.worker.runtimes.contract import Runtime, load_failed

TENSORS_MAX = 1024  # inputs, and outputs, of a model
NAME_CHARS_MAX = 1024  # of one of them


class Signature(NamedTuple):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batched(self) -> bool:
        """Whether dimension 0 of every tensor can have any length, so that it counts rows."""
        return all(spec.shape[:1] == (-1,) for spec in self.inputs + self.outputs)


def agree(load: Load, runtime: Runtime) -> Signature:
    """The signature that app and model share. Raises LOAD_FAILED naming the tensor they disagree about."""
    inputs = _merge("input", load.inputs, runtime.inputs)
    if load.inputs:
        needed = {spec.name for spec in runtime.inputs if not spec.optional}
        undeclared = needed - {spec.name for spec in load.inputs}
        if undeclared:
            raise load_failed(f"the model needs an input {min(undeclared)!r} that the app doesn't declare")
    outputs = _merge("output", load.outputs, runtime.outputs)
    for what, specs in (("input", inputs), ("output", outputs)):
        _check_sizes(what, specs)
    return Signature(inputs, outputs)


def _check_sizes(what: str, specs: tuple[TensorSpec, ...]) -> None:
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


def _merge(
    what: str, declared: tuple[TensorSpec, ...], own: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """What the app declares and what the model says, as one. An app may declare some of the outputs only."""
    if not declared and not own:
        raise load_failed(f"no {what}s are declared, and the model doesn't say which it has")
    for spec in declared:
        if spec.datatype not in DATATYPES:
            known = ", ".join(DATATYPES)
            raise load_failed(f"{what} {spec.name!r}: unknown datatype {spec.datatype!r}; known: {known}")
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
        merged.append(_merge_spec(what, spec, found))
    return tuple(merged)


def _merge_spec(what: str, declared: TensorSpec, own: TensorSpec) -> TensorSpec:
    """The narrower of both shapes. Raises LOAD_FAILED if no tensor could fit both."""
    # ONNX Runtime shows an unknown rank as a scalar's shape.
    own_shape = own.shape or declared.shape
    conflict = len(declared.shape) != len(own_shape) or any(
        ours != theirs and -1 not in (ours, theirs)
        for ours, theirs in zip(declared.shape, own_shape, strict=False)
    )
    if declared.datatype != own.datatype or conflict:
        raise load_failed(
            f"{what} {declared.name!r} is declared as {declared.datatype} {show_shape(declared.shape)}, "
            f"the model has {own.datatype} {show_shape(own.shape)}"
        )
    if declared.optional and not own.optional:
        raise load_failed(f"{what} {declared.name!r} is declared as optional, but the model needs it")
    shape = tuple(
        theirs if ours == -1 else ours for ours, theirs in zip(declared.shape, own_shape, strict=True)
    )
    return TensorSpec(declared.name, declared.datatype, shape, declared.optional)
