"""Open Inference Protocol over HTTP: request body -> arrays, arrays -> response body.

Lives here: the schema of bodies, which tensors a request has and which it asks for. Does not live here: one
input (`inputs`), the bytes of a tensor in binary form (`wire.tensors`), the best classes (`classification`).
A body that is wrong in any way is an `InvalidArgument` that says what was expected and what came.

A body with binary tensors is JSON, then the raw bytes of those inputs that have a `binary_data_size`, in
their order. The form of the answer follows from the body alone, so every replica answers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from math import prod
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from understudy.wire.errors import Code, InvalidArgument, UnderstudyError
from understudy.wire.frames import Buffer
from understudy.wire.records import TensorSpec
from understudy.wire.tensors import Array, to_raw
from understudy.worker.classification import best_classes
from understudy.worker.costs import (
    ELEMENT_BYTES,
    SMALL_BYTES,
    json_bytes_decoded,
    refuse_beyond,
)
from understudy.worker.inputs import (
    DECODE_ERRORS,
    ELEMENTS,
    FlatTensor,
    InputRule,
    Parameters,
    ReadParameters,
    ReadTensor,
    given,
    shown,
)
from understudy.worker.json_dialects import loosened, why_invalid

T = TypeVar("T")


class RequestedOutput(msgspec.Struct):
    name: str
    parameters: ReadParameters | None = None


class _Body(msgspec.Struct):
    inputs: list[ReadTensor]
    id: str | None = None
    parameters: ReadParameters | None = None
    outputs: list[RequestedOutput] | None = None


class _FlatBody(msgspec.Struct, Generic[T]):
    """A body whose tensors all have flat data of one element type: the usual one, read in one pass."""

    inputs: list[FlatTensor[T]]
    id: str | None = None
    parameters: ReadParameters | None = None
    outputs: list[RequestedOutput] | None = None


class _WrittenTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: Sequence[int]
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, int] | msgspec.UnsetType = msgspec.UNSET


class _Response(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_WrittenTensor]
    id: str | None = None


class Output(msgspec.Struct, frozen=True, gc=False):
    """One output and the form that it is wanted in."""

    name: str
    binary: bool = False
    classes: int = 0  # the best so many instead of the values; 0: the values


class Request(msgspec.Struct, gc=False):
    """A checked request. `rows` is the length of dimension 0, or 1 for a model that can't be batched.

    Requests with equal `key` may share a batch.
    """

    inputs: dict[str, Array]
    rows: int
    key: Hashable
    id: str | None
    outputs: tuple[Output, ...]
    protobuf: bool = False  # so came the request, and so goes the answer
    in_contents: bool = False  # of protobuf: rather than raw
    parameters: Parameters | None = None  # for the model, if it asks for them


class Answer(msgspec.Struct, gc=False):
    """A response body; `json_bytes` of it are JSON and the rest binary tensors, or -1: it is all JSON."""

    body: bytes
    json_bytes: int


BINARY_SIZE = "binary_data_size"  # parameter of a tensor
BINARY_OUTPUT = "binary_data_output"  # parameter of a request; what it means is done here
PARAMETERS_BYTES_MAX = 64 * 1024  # of a request's, as JSON, if they are for the model

_decode_body = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


class Bodies:
    """Response bodies of one model version: arrays -> JSON, and raw bytes where they are asked for."""

    def __init__(self, app: str, version: int, outputs: tuple[TensorSpec, ...], *, batched: bool) -> None:
        self.bytes_max = 2**31  # of one
        self._app = app
        self._version = str(version)
        self.datatypes = {spec.name: spec.datatype for spec in outputs}
        self._labels = {spec.name: spec.labels for spec in outputs if spec.labels}
        self._numbers = not any(spec.datatype == "BYTES" for spec in outputs)
        self._batched = batched

    def encode(
        self, outputs: dict[str, Array], requests: Sequence[Request], rows: int
    ) -> list[Answer | UnderstudyError]:
        """The answer to each of `requests`, which share `outputs` of `rows` rows in this order.

        Or why one has none: it asked for a form that the output doesn't have, or that can't be sent.
        """
        answers: list[Answer | UnderstudyError] = []
        if len(requests) == rows > 1 and self._numbers and _alike(requests):
            return [
                answer if len(answer.body) <= self.bytes_max else _too_long(answer, self.bytes_max)
                for answer in self._answer_rows(outputs, requests)
            ]
        start = 0
        for request in requests:
            end = start + request.rows
            own = outputs
            if request.rows != rows:
                own = {}
                for name, array in outputs.items():  # a comprehension takes twice as long in Python 3.11
                    own[name] = array[start:end]
            try:
                answer = self._answer(own, request)
                if len(answer.body) > self.bytes_max:
                    raise _too_long(answer, self.bytes_max)
                answers.append(answer)
            except UnderstudyError as error:
                answers.append(error)
            start = end
        return answers

    def _answer_rows(self, outputs: dict[str, Array], requests: Sequence[Request]) -> Iterator[Answer]:
        """As `_answer`, for requests that are alike: an output becomes Python's numbers once for all."""
        columns = [
            (name, self.datatypes[name], (1, *array.shape[1:]), array.reshape(len(array), -1).tolist())
            for name, array in outputs.items()
        ]
        for row, request in enumerate(requests):
            tensors = []
            for name, datatype, shape, values in columns:
                tensors.append(_WrittenTensor(name, datatype, shape, values[row]))
            yield Answer(_encode(_Response(self._app, self._version, tensors, request.id)), -1)

    def _answer(self, outputs: dict[str, Array], request: Request) -> Answer:
        tensors: list[_WrittenTensor] = []
        contents: list[Buffer] = []
        for output in request.outputs:
            name = output.name
            array = outputs[name]
            datatype = self.datatypes[name]
            if output.classes:
                datatype, array = self._classified(output, array)
            tensor = _WrittenTensor(name, datatype, array.shape)
            if output.binary:
                content = to_raw(datatype, array)
                tensor.parameters = {BINARY_SIZE: len(content)}
                contents.append(content)
            else:
                tensor.data = _flat_list(name, array)
            tensors.append(tensor)
        json = _encode(_Response(self._app, self._version, tensors, request.id))
        return Answer(b"".join((json, *contents)), len(json)) if contents else Answer(json, -1)

    def _classified(self, output: Output, array: Array) -> tuple[str, Array]:
        """Datatype and values that are sent for an output of which the best classes are wanted."""
        labels = self._labels.get(output.name, ())
        return "BYTES", best_classes(array, output.classes, batched=self._batched, labels=labels)


class Codec:
    """Bodies of one model version. `batched`: dimension 0 of every tensor counts rows.

    Unless requests run `together`, inputs may have different numbers of them.

    The specs must have datatypes of `DATATYPES`; names are unique.
    """

    bodies_class = Bodies

    def __init__(
        self,
        app: str,
        version: int,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        batched: bool,
        together: bool = True,
    ) -> None:
        self.bodies = self.bodies_class(app, version, outputs, batched=batched)
        self.encode = self.bodies.encode
        self._rules = {spec.name: InputRule(spec) for spec in inputs}
        self._dynamic = [rule.spec.name for rule in self._rules.values() if rule.dynamic]
        self._text_inputs = sum(spec.datatype == "BYTES" for spec in inputs)
        self._required = [spec.name for spec in inputs if not spec.optional]
        self._outputs = self.bodies.datatypes
        self._all_json = tuple(Output(spec.name) for spec in outputs)
        self._all_binary = tuple(Output(spec.name, binary=True) for spec in outputs)
        self._batched = batched
        self._together = together
        self.keeps_parameters = False  # of requests, for the model
        self.missing_allowed = False  # NaN and null in JSON are missing values
        self.decoded_bytes_max = 2**62  # of what one body may become
        self.rows_may_differ = False  # from one input to another, if nobody has declared that they count rows
        self.text_bytes: float = ELEMENT_BYTES  # that one text takes until it is answered
        elements = {ELEMENTS[spec.datatype] for spec in inputs}
        body = _FlatBody[elements.pop()] if len(elements) == 1 else _Body  # type: ignore[misc]
        self._decode_body: Callable[[Buffer], _Body | _FlatBody[Any]] = msgspec.json.Decoder(body).decode

    def allow_missing(self) -> None:
        self.missing_allowed = True
        for rule in self._rules.values():
            rule.missing_allowed = True

    def decode(self, body: Buffer, json_bytes: int = -1) -> Request:
        """The request in `body`, of which `json_bytes` are JSON (-1: all). Raises `InvalidArgument`.

        Without any JSON, all of `body` is the only input. Arrays may be views of `body`.
        """
        parsed: _Body | _FlatBody[Any]
        if len(body) > SMALL_BYTES:
            json = body if json_bytes < 0 else memoryview(body)[: max(0, json_bytes)]
            refuse_beyond(self.decoded_bytes_max, json_bytes_decoded(json), "request body: decoding it")
        if json_bytes < 0:
            try:
                parsed = self._decode_body(body)
            except DECODE_ERRORS:
                parsed = self._decode_raw(body)
            return self._request(parsed, body, len(body))
        if json_bytes > len(body):
            raise InvalidArgument(f"request body: has {len(body)} bytes, {json_bytes} of JSON were announced")
        if json_bytes == 0:
            return self._whole(body)
        return self._request(self._decode_raw(memoryview(body)[:json_bytes]), body, json_bytes)

    def decode_protobuf(self, message: Buffer) -> Request:
        """The request in a serialized ModelInferRequest: see `protobuf.Codec`."""
        raise UnderstudyError(Code.CONFIG, "gRPC needs 'understudy[grpc]' installed on every node")

    def _decode_raw(self, body: Buffer) -> _Body:
        """Whatever the tensors' data may be, and as other programs write JSON."""
        try:
            return _decode_body(loosened(body, missing_allowed=self.missing_allowed))
        except DECODE_ERRORS as error:
            raise InvalidArgument(f"request body: {why_invalid(body, error)}") from error

    def _request(self, parsed: _Body | _FlatBody[Any], body: Buffer, binary_at: int) -> Request:
        arrays: dict[str, Array] = {}
        for tensor in parsed.inputs:
            name = tensor.name
            rule = self._rules.get(name) or self._unknown(name)
            if name in arrays:
                raise InvalidArgument(f"input {shown(name)}: given twice")
            if tensor.parameters:
                size = _binary_size(tensor, len(body) - binary_at)
                if size is not None:
                    self._refuse_many(tensor.datatype, tensor.shape, size)
                    arrays[name] = rule.read_binary(tensor.datatype, tensor.shape, body, binary_at, size)
                    binary_at += size
                    continue
            arrays[name] = rule.read(tensor)
        if binary_at != len(body):
            left = len(body) - binary_at
            raise InvalidArgument(f"request body: {left} bytes are left after the last input's binary data")
        if not parsed.outputs and not parsed.parameters:
            return self.checked(arrays, parsed.id, self._all_json)
        parameters = given(parsed.parameters)
        request = self.checked(arrays, parsed.id, self._requested(parsed.outputs, parameters))
        if parameters and self.keeps_parameters:
            self._keep(request, parameters)
        return request

    def _keep(self, request: Request, parameters: Parameters) -> None:
        """For the model. Only requests with the same parameters share a batch."""
        kept = {name: value for name, value in parameters.items() if name != BINARY_OUTPUT}
        if not kept:
            return
        encoded = _encode_sorted(kept)
        if len(encoded) > PARAMETERS_BYTES_MAX:
            raise InvalidArgument(f"parameters: {len(encoded)} bytes; {PARAMETERS_BYTES_MAX} are allowed")
        request.parameters = kept
        request.key = (request.key, encoded)

    def _refuse_many(self, datatype: str, shape: Sequence[int], size: int) -> None:
        """Texts in binary form: an element may be four bytes there."""
        if datatype == "BYTES":
            count = min(prod(shape), size // 4)  # what claims more is refused for that
            needed = int(count * self.text_bytes * self._text_inputs)
            refuse_beyond(self.decoded_bytes_max, needed, "request body: decoding it")

    def _whole(self, body: Buffer) -> Request:
        if len(self._rules) != 1:
            raise InvalidArgument(
                f"a body without JSON is for a model with one input; the model has {self._input_names()}"
            )
        ((name, rule),) = self._rules.items()
        return self.checked({name: rule.read_whole(body)}, None, self._all_binary)

    def checked(self, arrays: dict[str, Array], id: str | None, outputs: tuple[Output, ...]) -> Request:
        """The request with these inputs, each of which has been checked alone."""
        key: Hashable = ()
        if len(arrays) != len(self._rules):
            key = self._given(arrays)
        elif self._dynamic:
            key = tuple([arrays[name].shape[1:] for name in self._dynamic])
        rows = self._rows(arrays) if self._batched else 1
        if rows < 0:
            rows, key = 1, object()  # shares a batch with none
        return Request(arrays, rows, key, id, outputs)

    def _given(self, arrays: dict[str, Array]) -> Hashable:
        """The key of a request that leaves inputs out: only those with the same inputs share a batch."""
        missing = ", ".join(repr(name) for name in self._required if name not in arrays)
        if missing:
            raise InvalidArgument(f"missing input: {missing}")
        given = [(name, arrays[name].shape[1:]) for name in self._rules if name in arrays]
        return "given", *given

    def _rows(self, arrays: dict[str, Array]) -> int:
        """-1: inputs differ, and it is for the model to say whether they may."""
        rows = -1
        for name, array in arrays.items():
            if rows not in (-1, len(array)):
                if self.rows_may_differ or not self._together:
                    return -1
                first = next(iter(arrays))
                raise InvalidArgument(
                    f"input {shown(name)}: has {len(array)} rows, input {shown(first)} has {rows}"
                )
            rows = len(array)
        return 1 if rows < 0 else rows  # all inputs are optional, and none was given

    def _requested(self, outputs: list[RequestedOutput] | None, parameters: Parameters) -> tuple[Output, ...]:
        binary_data = _flag("parameters", parameters, BINARY_OUTPUT, False)
        if not outputs:
            return self._all_binary if binary_data else self._all_json
        requested: dict[str, Output] = {}
        for output in outputs:
            name = output.name
            if name not in self._outputs:
                known = ", ".join(repr(name) for name in self._outputs)
                raise InvalidArgument(f"output {shown(name)}: unknown; the model has {known}")
            if name in requested:
                raise InvalidArgument(f"output {shown(name)}: asked for twice")
            requested[name] = self._output(name, given(output.parameters), binary_data)
        return tuple(requested.values())

    def _output(self, name: str, parameters: Parameters, binary_data: bool) -> Output:
        who = f"output {shown(name)}"
        refuse_shared_memory(who, parameters)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidArgument(f"{who}: classification is a number of classes, not {classes!r}")
        if classes and self._outputs[name] == "BYTES":
            raise InvalidArgument(f"{who}: has no best classes: it is BYTES")
        return Output(name, _flag(who, parameters, "binary_data", binary_data), classes)

    def _unknown(self, name: str) -> NoReturn:
        raise InvalidArgument(f"input {shown(name)}: unknown; the model has {self._input_names()}")

    def _input_names(self) -> str:
        return ", ".join(repr(name) for name in self._rules)


def _alike(requests: Sequence[Request]) -> bool:
    """Each has one row and wants the same outputs, all of them as JSON."""
    wanted = requests[0].outputs
    plain = not any(output.binary or output.classes for output in wanted)
    return plain and sum([each.rows == 1 and each.outputs is wanted for each in requests]) == len(requests)


def _too_long(answer: Answer, bytes_max: int) -> UnderstudyError:
    return UnderstudyError(
        Code.TOO_LARGE,
        f"the answer has {len(answer.body)} bytes, and {bytes_max} can be sent "
        "(worker.frame_bytes_max): ask for binary data, or for less at once",
    )


def _binary_size(tensor: ReadTensor | FlatTensor[Any], bytes_max: int) -> int | None:
    """Bytes of `tensor` behind the JSON, where `bytes_max` are; None if its data is in the JSON."""
    parameters = given(tensor.parameters)
    who = f"input {shown(tensor.name)}"
    refuse_shared_memory(who, parameters)
    size = parameters.get(BINARY_SIZE)
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise InvalidArgument(f"{who}: {BINARY_SIZE} is a number of bytes, not {size!r}")
    if isinstance(tensor, FlatTensor) or memoryview(tensor.data):
        raise InvalidArgument(f"{who}: has both data and {BINARY_SIZE}")
    if size > bytes_max:
        raise InvalidArgument(f"{who}: {BINARY_SIZE} is {size}, {bytes_max} bytes are left behind the JSON")
    return size


def _flag(who: str, parameters: Parameters, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"{who}: {name} is true or false, not {value!r}")
    return value


def refuse_shared_memory(who: str, parameters: Parameters) -> None:
    if "shared_memory_region" in parameters:
        raise InvalidArgument(f"{who}: shared memory is not offered; send and ask for the data itself")


def encode_tensors(arrays: dict[str, Array], inputs: tuple[TensorSpec, ...]) -> bytes:
    """A request body with those of `inputs` that `arrays` has."""
    tensors = [
        _WrittenTensor(
            spec.name, spec.datatype, arrays[spec.name].shape, _flat_list(spec.name, arrays[spec.name])
        )
        for spec in inputs
        if spec.name in arrays
    ]
    return _encode({"inputs": tensors})


def _flat_list(name: str, array: Array) -> list[Any]:
    """Row-major elements as JSON values; bytes of a BYTES tensor become text."""
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind not in "OS":
        return values
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"output {shown(name)}: has an element that is not UTF-8 text; ask for it with binary_data"
        ) from error
