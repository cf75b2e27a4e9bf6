"""Messages of the Open Inference Protocol's gRPC service, with Triton's extensions as far as served.

Names and field numbers are the public protocol's; fields that nobody here reads or writes are left out,
and protobuf passes over them. The messages live in a pool of their own: a model or a test may import
another library's definitions of the same names beside them.

Needs the package protobuf (extra `grpc`).
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# Message -> fields: type, name, number; first `repeated`, or `map` (from strings); last the oneof it is in.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready 1",
    "ModelReadyRequest": "string name 1, string version 2",
    "ModelReadyResponse": "bool ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name 1, string version 2, repeated string extensions 3",
    "ModelMetadataRequest": "string name 1, string version 2",
    "ModelMetadataResponse": "string name 1, repeated string versions 2, string platform 3, "
    "repeated ModelMetadataResponse.TensorMetadata inputs 4, "
    "repeated ModelMetadataResponse.TensorMetadata outputs 5",
    "ModelMetadataResponse.TensorMetadata": "string name 1, string datatype 2, repeated int64 shape 3",
    "InferParameter": "bool bool_param 1 parameter_choice, int64 int64_param 2 parameter_choice, "
    "string string_param 3 parameter_choice, double double_param 4 parameter_choice, "
    "uint64 uint64_param 5 parameter_choice",
    "InferTensorContents": "repeated bool bool_contents 1, repeated int32 int_contents 2, "
    "repeated int64 int64_contents 3, repeated uint32 uint_contents 4, repeated uint64 uint64_contents 5, "
    "repeated float fp32_contents 6, repeated double fp64_contents 7, repeated bytes bytes_contents 8",
    "ModelInferRequest": "string model_name 1, string model_version 2, string id 3, "
    "map InferParameter parameters 4, repeated ModelInferRequest.InferInputTensor inputs 5, "
    "repeated ModelInferRequest.InferRequestedOutputTensor outputs 6, repeated bytes raw_input_contents 7",
    "ModelInferRequest.InferInputTensor": "string name 1, string datatype 2, repeated int64 shape 3, "
    "map InferParameter parameters 4, InferTensorContents contents 5",
    "ModelInferRequest.InferRequestedOutputTensor": "string name 1, map InferParameter parameters 2",
    "ModelInferResponse": "string model_name 1, string model_version 2, string id 3, "
    "map InferParameter parameters 4, repeated ModelInferResponse.InferOutputTensor outputs 5, "
    "repeated bytes raw_output_contents 6",
    "ModelInferResponse.InferOutputTensor": "string name 1, string datatype 2, repeated int64 shape 3, "
    "map InferParameter parameters 4, InferTensorContents contents 5",
    "ModelStreamInferResponse": "string error_message 1, ModelInferResponse infer_response 2",
    "ModelConfigRequest": "string name 1, string version 2",
    "ModelConfigResponse": "ModelConfig config 1",
    "ModelConfig": "string name 1, string platform 2, int32 max_batch_size 4, repeated ModelInput input 5, "
    "repeated ModelOutput output 6, ModelDynamicBatching dynamic_batching 11 scheduling_choice, "
    "string backend 17",
    "ModelInput": "string name 1, DataType data_type 2, Format format 3, repeated int64 dims 4, "
    "bool optional 8",
    "ModelOutput": "string name 1, DataType data_type 2, repeated int64 dims 3, string label_filename 4",
    "ModelDynamicBatching": "repeated int32 preferred_batch_size 1, uint64 max_queue_delay_microseconds 2",
    "ModelStatisticsRequest": "string name 1, string version 2",
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats 1",
    "ModelStatistics": "string name 1, string version 2, uint64 last_inference 3, uint64 inference_count 4, "
    "uint64 execution_count 5, InferStatistics inference_stats 6",
    "InferStatistics": "StatisticDuration success 1, StatisticDuration fail 2, StatisticDuration queue 3, "
    "StatisticDuration compute_input 4, StatisticDuration compute_infer 5, "
    "StatisticDuration compute_output 6",
    "StatisticDuration": "uint64 count 1, uint64 ns 2",
    "ModelRepositoryParameter": "bool bool_param 1 parameter_choice, int64 int64_param 2 parameter_choice, "
    "string string_param 3 parameter_choice, bytes bytes_param 4 parameter_choice",
    "RepositoryIndexRequest": "string repository_name 1, bool ready 2",
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models 1",
    "RepositoryIndexResponse.ModelIndex": "string name 1, string version 2, string state 3, string reason 4",
    "RepositoryModelLoadRequest": "string repository_name 1, string model_name 2, "
    "map ModelRepositoryParameter parameters 3",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "string repository_name 1, string model_name 2",
    "RepositoryModelUnloadResponse": "",
}

# Where InferTensorContents has the elements of a datatype. FP16 and BF16 have no place there.
CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

# One request, one answer. ModelStreamInfer is the other one.
METHODS = (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip

_DATA_TYPES = (
    "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
    "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING",
    "TYPE_BF16",
)  # fmt: skip

_ENUMS = {"DataType": _DATA_TYPES, "Format": ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW")}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


def _add_field(owner: str, message: Any, words: list[str]) -> None:
    label = words.pop(0) if words[0] in ("repeated", "map") else ""
    type_, name, number, *oneof = words
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if label:
        field.label = _Field.LABEL_REPEATED
    if type_ in _SCALARS:
        field.type = _SCALARS[type_]
    else:
        field.type = _Field.TYPE_ENUM if type_ in _ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{type_}"
    if label == "map":  # on the wire, a repeated message of a key and a value
        entry = message.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        entry.field.add(
            name="value", number=2, label=_Field.LABEL_OPTIONAL, type=field.type, type_name=field.type_name
        )
        field.type_name = f".{PACKAGE}.{owner}.{entry.name}"
    if oneof:
        if not message.oneof_decl:
            message.oneof_decl.add(name=oneof[0])
        field.oneof_index = 0


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="understudy.proto", package=PACKAGE, syntax="proto3")
    for enum, values in _ENUMS.items():
        added = file.enum_type.add(name=enum)
        for number, name in enumerate(values):
            added.value.add(name=name, number=number)
    messages: dict[str, Any] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.partition(".")
        message = messages[outer].nested_type.add(name=inner) if inner else file.message_type.add(name=name)
        messages[name] = message
        for field in filter(None, fields.split(", ")):
            _add_field(name, message, field.split())
    service = file.service.add(name=SERVICE.removeprefix(f"{PACKAGE}."))
    for name in METHODS:
        asked, answer = f".{PACKAGE}.{name}Request", f".{PACKAGE}.{name}Response"
        service.method.add(name=name, input_type=asked, output_type=answer)
    stream = service.method.add(name="ModelStreamInfer", client_streaming=True, server_streaming=True)
    stream.input_type = f".{PACKAGE}.ModelInferRequest"
    stream.output_type = f".{PACKAGE}.ModelStreamInferResponse"
    return file


POOL = descriptor_pool.DescriptorPool()
POOL.Add(_file())


def message(name: str) -> Any:
    """The class of `inference.<name>`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


ModelInferRequest = message("ModelInferRequest")
ModelInferResponse = message("ModelInferResponse")
