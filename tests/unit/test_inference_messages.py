"""Our messages are the public ones: names, numbers, types, as another implementation has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from understudy.wire import inference

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
# Shared memory, traces and log settings are not offered.
METHODS = [
    method for method in SERVICE.methods if not any(word in method.name for word in ("Memory", "Setting"))
]


def differences(ours: Any, theirs: Any, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Fields of ours that are not theirs. We leave some out."""
    if ours.full_name in seen:
        return
    for field in ours.fields:
        other = theirs.fields_by_number.get(field.number)
        if other is None:
            yield f"{ours.full_name}.{field.name}: no field {field.number}"
        elif (field.name, field.type, field.is_repeated) != (other.name, other.type, other.is_repeated):
            yield f"{ours.full_name}.{field.name}: is {other.name}, {other.type}"
        elif (field.containing_oneof and field.containing_oneof.name) != (
            other.containing_oneof and other.containing_oneof.name
        ):
            yield f"{ours.full_name}.{field.name}: in another oneof"
        elif field.message_type:
            yield from differences(field.message_type, other.message_type, seen | {ours.full_name})


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_fields_are_the_public_ones(method: Any) -> None:
    for theirs in (method.input_type, method.output_type):
        assert not list(differences(inference.message(theirs.name).DESCRIPTOR, theirs))


def test_of_inference_nothing_is_left_out() -> None:
    for name in ("ModelInferRequest", "ModelInferResponse", "InferTensorContents", "InferParameter"):
        theirs = service_pb2.DESCRIPTOR.message_types_by_name[name]
        assert not list(differences(theirs, inference.message(name).DESCRIPTOR))


def test_datatypes_have_the_public_numbers() -> None:
    theirs = model_config_pb2.DataType.items()
    ours = inference.message("ModelInput").DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    assert {name: value.number for name, value in ours.items()} == dict(theirs)
