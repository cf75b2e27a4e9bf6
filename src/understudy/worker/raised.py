"""What a model raised, as something that can be shown: whatever it is, telling it can't fail.

An exception is somebody else's code too. Its text may raise, have no end, or hold what no encoding has.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import understudy
from understudy.adapters.disks import is_place_trouble
from understudy.invariants import InvariantBroken
from understudy.wire.errors import Code, InvalidArgument, UnderstudyError, presentable
from understudy.wire.tensors import Array
from understudy.worker.hints import hint

NOT_FINITE = "not-finite"  # the `reason` of an output that a caller's data may explain
ERROR_CHARS_MAX = 500  # of an exception's text in a message
TRACEBACK_CHARS_MAX = 8192  # the end of it, where the cause is
TRACEBACK_FRAMES_MAX = 50  # innermost ones, of each exception
_OURS = str(Path(__file__).resolve().parents[1]) + os.sep
# ONNX Runtime reports a failed allocation as an ordinary failure with one of these texts.
_ALLOCATION_FAILED = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
_OF_RUNTIMES = frozenset(
    {Code.INVALID_ARGUMENT, Code.MODEL_FAILED, Code.OUTPUT_INVALID, Code.OUT_OF_MEMORY, Code.LOAD_FAILED}
)
# Whatever its class and metaclass say.
_type_name = type.__dict__["__name__"].__get__
_trace_of = BaseException.__dict__["__traceback__"].__get__


def breaks_contract(error: UnderstudyError) -> bool:
    """Whether the model answered, but not as its signature says; what isn't finite the data may explain."""
    return error.code is Code.OUTPUT_INVALID and error.context.get("reason") != NOT_FINITE


def contain(error: BaseException, pid: int) -> None:
    """Raise what isn't: a broken invariant of ours, and whatever ends a child that was forked from `pid`."""
    if issubclass(type(error), InvariantBroken) or os.getpid() != pid:
        raise error


def model_error(error: BaseException, source: str) -> UnderstudyError:
    """What an exception means to the caller. `source`: where the model's own code lies, if it has any."""
    try:
        return _told(error, source)
    except BaseException:
        return UnderstudyError(Code.MODEL_FAILED, "the model raised an exception that can't be told")


def blame(
    error: BaseException, source: str, inputs: Mapping[str, Array], axes: Mapping[str, tuple[str, ...]]
) -> UnderstudyError:
    """As `model_error`; what only a caller's shapes explain is the caller's fault.

    `axes`: names of the inputs' dimensions; those of one name should have one length.
    """
    found = model_error(error, source)
    if found.code is Code.MODEL_FAILED:
        what = _odd_shapes(inputs, axes)
        if what:
            return InvalidArgument(f"{what}, and {found.message}")
    return found


def _odd_shapes(inputs: Mapping[str, Array], axes: Mapping[str, tuple[str, ...]]) -> str:
    lengths: dict[str, tuple[int, str]] = {}
    for name, array in inputs.items():
        if array.size == 0:
            return f"input {name!r} has no elements"
        for axis, length in zip(axes.get(name, ()), array.shape, strict=False):
            other, where = lengths.setdefault(axis, (length, name)) if axis else (length, name)
            if other != length:
                return f"{axis!r} is {other} in input {where!r} and {length} in input {name!r}"
    return ""


def _told(error: BaseException, source: str) -> UnderstudyError:
    if type(error) in (UnderstudyError, InvalidArgument):
        return _restated(error)
    text = _text(error)
    if issubclass(type(error), understudy.InputError):
        return InvalidArgument(text or "the model refuses the input")
    if issubclass(type(error), MemoryError) or any(sign in text for sign in _ALLOCATION_FAILED):
        return _traced(Code.OUT_OF_MEMORY, "the model ran out of memory: ", error, source)
    return _traced(Code.MODEL_FAILED, "the model raised ", error, source)


def loading_error(error: BaseException, source: str, name: str) -> UnderstudyError:
    """The same for one that ended a load. `name`: what was being loaded."""
    try:
        return _told_of_load(error, source, name)
    except BaseException:
        return UnderstudyError(Code.LOAD_FAILED, f"{name}: the model raised an exception that can't be told")


def _told_of_load(error: BaseException, source: str, name: str) -> UnderstudyError:
    if issubclass(type(error), MemoryError):
        return _traced(Code.OUT_OF_MEMORY, f"{name}: not enough memory to load: ", error, source)
    otherwise = Code.UNAVAILABLE if is_place_trouble(error) else Code.LOAD_FAILED  # a full disk, say
    if type(error) not in (UnderstudyError, InvalidArgument):
        return _traced(otherwise, f"{name}: ", error, source)
    why = _restated(error)
    code = Code.OUT_OF_MEMORY if why.code is Code.OUT_OF_MEMORY else otherwise
    told = UnderstudyError(code, f"{name}: {why.message}")
    told.traceback = why.traceback
    return told


def describe(error: BaseException) -> str:
    """Its type and text, of at most `ERROR_CHARS_MAX`."""
    return printable(f"{_type_name(type(error))}: {_text(error)}".removesuffix(": "))


def printable(text: str, chars_max: int = ERROR_CHARS_MAX) -> str:
    """`text` as any encoding takes it and no terminal obeys it, cut to `chars_max`."""
    cut = str.__getitem__(text, slice(chars_max)) + "…" if str.__len__(text) > chars_max else text
    return presentable(str.encode(cut, "utf-8", "backslashreplace").decode())


def _text(error: BaseException) -> str:
    try:
        return printable(str.strip(str(error)))
    except BaseException as another:
        return f"(its text can't be had: {_type_name(type(another))})"


def _restated(error: BaseException) -> UnderstudyError:
    """A runtime's or our own, or a model's that took our class: nothing in it is relied on."""
    code, message = getattr(error, "code", None), getattr(error, "message", None)
    if code not in _OF_RUNTIMES or not isinstance(message, str):
        return UnderstudyError(Code.MODEL_FAILED, f"the model raised {describe(error)}")
    if code is Code.INVALID_ARGUMENT:
        return InvalidArgument(printable(message))
    context = getattr(error, "context", {})
    reason = context.get("reason") if type(context) is dict else None
    told = UnderstudyError(code, printable(message), **({"reason": reason} if reason == NOT_FINITE else {}))
    told.traceback = getattr(error, "traceback", "")
    return told


def _traced(code: Code, begin: str, error: BaseException, source: str) -> UnderstudyError:
    told = UnderstudyError(code, f"{begin}{describe(error)}{_place(_trace_of(error), source)}{hint(error)}")
    if source:
        told.traceback = _traceback(error)
    return told


def _place(trace: TracebackType | None, source: str) -> str:
    """The innermost line of the model's own code, such as " (model.py, line 9)"."""
    place = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if source and (file == source or file.startswith(source + os.sep)):
            name = printable(os.path.relpath(file, source)) if file != source else os.path.basename(file)
            # A single file is known by its digest on the nodes, which nobody wants to read.
            place = f"{name}, line {trace.tb_lineno}" if name.endswith(".py") else f"line {trace.tb_lineno}"
        trace = trace.tb_next
    return f" ({place})" if place else ""


def _traceback(error: BaseException) -> str:
    """As Python prints it, from the first frame that isn't ours; the end of it if it is too long."""
    trace = _trace_of(error)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    try:
        printed = traceback.TracebackException(type(error), error, trace, limit=-TRACEBACK_FRAMES_MAX)
        text = "".join([printable(part, chars_max=TRACEBACK_CHARS_MAX // 8) for part in printed.format()])
    except BaseException as another:
        return f"(it can't be printed: {_type_name(type(another))})"
    return text if len(text) <= TRACEBACK_CHARS_MAX else "…" + text[1 - TRACEBACK_CHARS_MAX :]
