"""Open Inference Protocol over gRPC: the same checks and the same answers as over HTTP, in protobuf.

Raw contents of a request are read where they lie, as binary tensors are; an answer's are always raw. A
request in protobuf may share a batch with others in JSON, so one codec speaks both.

Needs the package protobuf (extra `grpc`).
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from understudy.wire.errors import InvalidArgument
from understudy.wire.frames import Buffer
from understudy.wire.inference import CONTENTS, ModelInferRequest, ModelInferResponse
from understudy.wire.protobuf import length_prefix, without_field
from understudy.wire.tensors import Array, text_or_bytes, to_raw
from understudy.worker import oip
from understudy.worker.costs import PROTOBUF_FACTOR, SMALL_BYTES, refuse_beyond
from understudy.worker.inputs import FlatTensor, InputRule, Parameters, shown

RAW_INPUT_CONTENTS, RAW_OUTPUT_CONTENTS = 7, 6  # fields of the request and of the response


class Bodies(oip.Bodies):
    """Response bodies of one model version, each in the form of its request."""

    def _answer(self, outputs: dict[str, Array], request: oip.Request) -> oip.Answer:
        if not request.protobuf:
            return super()._answer(outputs, request)
        response = ModelInferResponse(model_name=self._app, model_version=self._version, id=request.id)
        contents: list[Buffer] = []
        # As it was asked, if all of it has a place there: an answer has one form.
        in_contents = request.in_contents and all(
            output.classes or self.datatypes[output.name] in CONTENTS for output in request.outputs
        )
        for output in request.outputs:
            array = outputs[output.name]
            datatype = self.datatypes[output.name]
            if output.classes:
                datatype, array = self._classified(output, array)
            tensor = response.outputs.add(name=output.name, datatype=datatype, shape=array.shape)
            if in_contents:
                elements = array.ravel().tolist()
                if datatype == "BYTES":
                    elements = [each.encode() if isinstance(each, str) else each for each in elements]
                getattr(tensor.contents, CONTENTS[datatype]).extend(elements)
                continue
            content = to_raw(datatype, array)
            contents += (length_prefix(RAW_OUTPUT_CONTENTS, len(content)), content)
        return oip.Answer(b"".join((response.SerializeToString(), *contents)), -1)


class Codec(oip.Codec):
    """Bodies of one model version in JSON and in protobuf."""

    bodies_class = Bodies

    def decode_protobuf(self, message: Buffer) -> oip.Request:
        """The request in a serialized ModelInferRequest. Raises `InvalidArgument`.

        Arrays may be views of `message`.
        """
        rest, spans = without_field(message, RAW_INPUT_CONTENTS)
        if len(rest) > SMALL_BYTES:
            refuse_beyond(
                self.decoded_bytes_max, len(rest) * PROTOBUF_FACTOR, "request: decoding its contents"
            )
        try:
            parsed = ModelInferRequest.FromString(rest)
        except DecodeError as error:
            raise InvalidArgument("not a valid inference.ModelInferRequest") from error
        if spans and len(spans) != len(parsed.inputs):
            raise InvalidArgument(
                f"raw_input_contents has {len(spans)} items for {len(parsed.inputs)} inputs"
            )
        arrays: dict[str, Array] = {}
        for index, tensor in enumerate(parsed.inputs):
            rule = self._rules.get(tensor.name) or self._unknown(tensor.name)
            if tensor.name in arrays:
                raise InvalidArgument(f"input {shown(tensor.name)}: given twice")
            oip.refuse_shared_memory(f"input {shown(tensor.name)}", tensor.parameters)
            if not spans:
                arrays[tensor.name] = _read_contents(rule, tensor)
                continue
            if tensor.HasField("contents"):
                raise InvalidArgument(f"input {shown(tensor.name)}: has both contents and raw_input_contents")
            start, end = spans[index]
            shape = list(tensor.shape)
            self._refuse_many(tensor.datatype, shape, end - start)
            arrays[tensor.name] = rule.read_binary(tensor.datatype, shape, message, start, end - start)
        wanted = [oip.RequestedOutput(output.name, {**_parameters(output)}) for output in parsed.outputs]
        outputs = self._requested(wanted, {"binary_data_output": True})
        request = self.checked(arrays, parsed.id, outputs)
        request.protobuf = True
        request.in_contents = not spans and bool(parsed.inputs)
        if self.keeps_parameters and parsed.parameters:
            self._keep(request, _parameters(parsed))
        return request


def _read_contents(rule: InputRule, tensor: Any) -> Array:
    field = CONTENTS.get(tensor.datatype)
    if field is None and tensor.datatype == rule.spec.datatype:
        raise InvalidArgument(
            f"input {shown(tensor.name)}: {tensor.datatype} travels in raw_input_contents only"
        )
    filled = [found.name for found, _ in tensor.contents.ListFields()]
    if len(filled) > 1:
        raise InvalidArgument(f"input {shown(tensor.name)}: has {' and '.join(filled)}; one kind is valid")
    if field and filled and filled != [field] and tensor.datatype == rule.spec.datatype:
        raise InvalidArgument(
            f"input {shown(tensor.name)}: {tensor.datatype} travels in {field}, not in {filled[0]}"
        )
    data = list(getattr(tensor.contents, field)) if field else []
    if field == "bytes_contents":
        data = [text_or_bytes(element) for element in data]
    return rule.read(FlatTensor(tensor.name, tensor.datatype, list(tensor.shape), data))


def _parameters(part: Any) -> Parameters:
    """Those of a request or an output, but for what JSON calls `binary_data`: here everything is binary."""
    return {
        name: getattr(value, choice)
        for name, value in part.parameters.items()
        if (choice := value.WhichOneof("parameter_choice")) and name != "binary_data"
    }
