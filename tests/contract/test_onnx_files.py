"""What a file says of itself is a hint: what ONNX Runtime makes of tensors is served, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from worker_process import loading, request, tensor

from onnx_graphs import FLOAT, INT64, STRING, classifier, node, save, value, with_external_data
from understudy.wire.errors import Code, UnderstudyError
from understudy.wire.messages import Load, Loaded
from understudy.wire.records import Finite, TensorSpec
from understudy.worker.model import Model, load_model


def load(path: Path, **more: Any) -> tuple[Model, Loaded]:
    """As a deployment does it: measured, then loaded anew with what was measured."""
    first: Load = loading("onnx", path, **more)
    first.measure_latency_runs = 2
    _, measured = load_model(first, 1)
    again: Load = loading("onnx", path, **more | {"inputs": measured.inputs, "outputs": measured.outputs})
    model, loaded = load_model(again, 1)
    assert (loaded.inputs, loaded.outputs) == (measured.inputs, measured.outputs)
    return model, measured


def answer(model: Model, *tensors: Any) -> dict[str, Any]:
    (done,) = model.execute([model.codec.decode(request(*tensors))])
    if done.outputs is None:
        assert done.error is not None
        raise done.error
    (encoded,) = model.codec.encode(done.outputs, done.requests, done.rows)
    assert not isinstance(encoded, UnderstudyError)
    return {output["name"]: output for output in json.loads(encoded.body)["outputs"]}


def refusal(model: Model, *tensors: Any) -> UnderstudyError:
    with pytest.raises(UnderstudyError) as caught:
        answer(model, *tensors)
    return caught.value


X2 = value("x", FLOAT, ["n", 2])


def test_a_batch_of_one_baked_into_an_output_is_corrected(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Neg", ["x"], ["y"])], [X2], [value("y", FLOAT, [1, 2])])
    model, measured = load(path)
    assert measured.outputs[0].shape == (-1, 2)
    assert measured.notes == (
        "output 'y': the file says [1,2], the model returned [1,2] and [2,2]: served as [-1,2]",
    )
    assert answer(model, tensor("x", "FP32", [2, 2], [1, 2, 3, 4]))["y"]["data"] == [-1, -2, -3, -4]


def test_a_length_baked_into_an_output_is_corrected_where_none_is_returned(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("NonZero", ["x"], ["y"])], [X2], [value("y", INT64, [2, 3])])
    model, measured = load(path)
    assert measured.outputs[0].shape == (2, -1)
    assert answer(model, tensor("x", "FP32", [1, 2], [0, 0]))["y"]["shape"] == [2, 0]
    assert answer(model, tensor("x", "FP32", [1, 2], [1, 0]))["y"]["data"] == [0, 0]


def test_an_unknown_rank_is_no_scalar(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "s"], ["y"])]
    inputs = [value("x", FLOAT, None), value("s", INT64, ["r"])]
    path = save(tmp_path / "m.onnx", nodes, inputs, [value("y", FLOAT, None)])
    probe = json.loads(request(tensor("x", "FP32", [4], [1, 2, 3, 4]), tensor("s", "INT64", [2], [2, 2])))
    model, _ = load(path, probe=probe)
    for shape, wanted in (([4], [2, 2]), ([2, 2], [4]), ([1, 4, 1], [1, 1, 4])):
        given = tensor("x", "FP32", shape, [1, 2, 3, 4])
        got = answer(model, given, tensor("s", "INT64", [len(wanted)], wanted))["y"]
        assert (got["shape"], got["data"]) == (wanted, [1, 2, 3, 4])


def test_squeezed_lengths_of_one_come_back_where_the_manifest_declares_them(tmp_path: Path) -> None:
    squeeze = [node("Squeeze", ["x"], ["y"])]
    path = save(tmp_path / "m.onnx", squeeze, [value("x", FLOAT, ["n", 1, 2])], [value("y", FLOAT, None)])
    one, two = (tensor("x", "FP32", [n, 1, 2], list(range(2 * n))) for n in (1, 2))
    as_it_is, _ = load(path)
    assert [answer(as_it_is, rows)["y"]["shape"] for rows in (one, two)] == [[2], [2, 2]]
    declared, measured = load(path, outputs=(TensorSpec("y", "FP32", (-1, 2)),))
    assert measured.notes == ()
    assert [answer(declared, rows)["y"]["shape"] for rows in (one, two)] == [[1, 2], [2, 2]]


def test_what_is_returned_counts_more_than_what_is_declared(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Neg", ["x"], ["y"])], [X2], [value("y", FLOAT, None)])
    _, measured = load(path, outputs=(TensorSpec("y", "FP32", (-1, 3)),))
    assert measured.outputs[0].shape == (-1, -1)
    assert "it is declared as [-1,3], the model returned [1,2]" in measured.notes[0]


def test_what_the_runtime_enforces_stays_enforced(tmp_path: Path) -> None:
    fixed = value("x", FLOAT, [1, 2])
    path = save(tmp_path / "m.onnx", [node("Neg", ["x"], ["y"])], [fixed], [value("y", FLOAT, None)])
    model, measured = load(path, inputs=(TensorSpec("x", "FP32", (-1, 2)),))
    assert measured.inputs[0].shape == (1, 2)
    assert refusal(model, tensor("x", "FP32", [2, 2], [0] * 4)).code is Code.INVALID_ARGUMENT


def test_tensors_without_elements_are_served(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Neg", ["x"], ["y"])], [X2], [value("y", FLOAT, ["n", 2])])
    model, _ = load(path)
    assert answer(model, tensor("x", "FP32", [0, 2], []))["y"]["shape"] == [0, 2]


@pytest.mark.parametrize("labels", [[7, 3, 11], ["rose", "aster", "lily"]])
def test_maps_become_a_column_for_each_class(tmp_path: Path, labels: Any) -> None:
    model, measured = load(classifier(tmp_path / "m.onnx", labels))
    spec = measured.outputs[1]
    assert (spec.shape, spec.labels) == ((-1, 3), tuple(str(label) for label in sorted(labels)))
    assert "output 'probabilities' is one map per row: served as a FP32 tensor" in measured.notes[0]
    got = answer(model, tensor("X", "FP32", [2, 4], [5.1, 3.5, 1.4, 0.2, 0, 0, 3, -1]))
    rows = np.reshape(got["probabilities"]["data"], (2, 3))
    assert rows.sum(axis=1) == pytest.approx([1, 1])
    assert [sorted(labels)[best] for best in rows.argmax(axis=1)] == got["label"]["data"]


def test_an_output_of_tensors_in_a_sequence_is_left_out_and_named(tmp_path: Path) -> None:
    parts = helper.make_tensor_sequence_value_info("parts", FLOAT, None)
    nodes = [node("SequenceConstruct", ["x"], ["parts"]), node("Neg", ["x"], ["y"])]
    _, measured = load(save(tmp_path / "m.onnx", nodes, [X2], [parts, value("y", FLOAT, None)]))
    assert [spec.name for spec in measured.outputs] == ["y"]
    assert (
        "output 'parts' is a seq(tensor(float)), which can't be served, and is left out" in measured.notes[0]
    )


def test_an_optional_output_is_a_tensor(tmp_path: Path) -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, ["n"]))
    nodes = [node("Optional", ["x"], ["y"])]
    outputs = [onnx.ValueInfoProto(name="y", type=kind)]
    model, _ = load(save(tmp_path / "m.onnx", nodes, [value("x", FLOAT, ["n"])], outputs))
    assert answer(model, tensor("x", "FP32", [2], [1, 2]))["y"]["data"] == [1, 2]


def test_an_input_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    path = with_default(tmp_path / "m.onnx", ir_version=8)
    model, measured = load(path)
    assert [(spec.name, spec.optional) for spec in measured.inputs] == [("x", False), ("w", True)]
    x = tensor("x", "FP32", [1, 2], [1, 1])
    assert answer(model, x)["y"]["data"] == [2, 3]
    assert answer(model, x, tensor("w", "FP32", [2], [5, 7]))["y"]["data"] == [5, 7]
    assert answer(model, x)["y"]["data"] == [2, 3]


def test_weights_that_old_files_list_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    model, measured = load(with_default(tmp_path / "m.onnx", ir_version=3))
    assert [spec.name for spec in measured.inputs] == ["x"]
    assert answer(model, tensor("x", "FP32", [1, 2], [1, 1]))["y"]["data"] == [2, 3]


def with_default(path: Path, ir_version: int) -> Path:
    return save(
        path, [node("Mul", ["x", "w"], ["y"])], [X2, value("w", FLOAT, [2])],
        [value("y", FLOAT, ["n", 2])], {"w": np.float32([2, 3])}, ir_version=ir_version, opset=9,
    )  # fmt: skip


def test_a_model_without_inputs_answers(tmp_path: Path) -> None:
    constant = node("Constant", [], ["y"], value=helper.make_tensor("v", FLOAT, [1, 2], [3.0, 4.0]))
    model, _ = load(save(tmp_path / "m.onnx", [constant], [], [value("y", FLOAT, [1, 2])]))
    assert answer(model)["y"]["data"] == [3, 4]


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    b16 = TensorProto.BFLOAT16
    nodes = [
        node("Cast", ["x"], ["f"], to=FLOAT),
        node("Neg", ["f"], ["n"]),
        node("Cast", ["n"], ["y"], to=b16),
    ]
    path = save(tmp_path / "m.onnx", nodes, [value("x", b16, ["n"])], [value("y", b16, ["n"])])
    model, _ = load(path)
    assert answer(model, tensor("x", "BF16", [2], [1.5, -3.0]))["y"]["data"] == [-1.5, 3.0]


@pytest.mark.parametrize("name", ["a b", "images/left:0", "größe→", "\"'\\", "x" * 200, "\n"])
def test_names_of_any_kind_are_served(tmp_path: Path, name: str) -> None:
    text = value(name, STRING, ["n"])
    path = save(
        tmp_path / "m.onnx",
        [node("Identity", [name], [f"{name}!"])],
        [text],
        [value(f"{name}!", STRING, ["n"])],
    )
    model, _ = load(path)
    assert answer(model, tensor(name, "BYTES", [1], ["ü"]))[f"{name}!"]["data"] == ["ü"]


def test_what_onnx_runtime_calls_an_invalid_argument_is_the_callers(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx", [node("Gather", ["table", "ids"], ["y"])], [value("ids", INT64, ["n"])],
        [value("y", FLOAT, None)], {"table": np.zeros((3, 2), np.float32)},
    )  # fmt: skip
    model, _ = load(path)
    refused = refusal(model, tensor("ids", "INT64", [1], [99]))
    assert refused.code is Code.INVALID_ARGUMENT
    assert "indices element out of data bounds, idx=99" in refused.message


def test_lengths_that_differ_under_one_name_are_the_callers_only_if_the_model_minds(tmp_path: Path) -> None:
    names = ["batch", "seq"]
    inputs = [value("ids", FLOAT, names), value("mask", FLOAT, names)]
    path = save(
        tmp_path / "m.onnx", [node("Mul", ["ids", "mask"], ["y"])], inputs, [value("y", FLOAT, names)]
    )
    model, _ = load(path)
    ids = tensor("ids", "FP32", [2, 3], [1] * 6)
    refused = refusal(model, ids, tensor("mask", "FP32", [2, 2], [1] * 4))
    assert refused.code is Code.INVALID_ARGUMENT
    assert "'seq' is 3 in input 'ids' and 2 in input 'mask'" in refused.message
    assert answer(model, ids, tensor("mask", "FP32", [2, 1], [1, 0]))["y"]["data"] == [1, 1, 1, 0, 0, 0]


def test_a_model_that_fails_on_zeros_is_probed_with_something_else_and_that_is_said(tmp_path: Path) -> None:
    unit = [node("ReduceL2", ["x"], ["length"], axes=[1]), node("Div", ["x", "length"], ["y"])]
    path = save(tmp_path / "unit.onnx", unit, [X2], [value("y", FLOAT, ["n", 2])])
    _, measured = load(path)
    assert measured.notes[0].startswith(
        "the model failed on the probe, which is zeros of shape [1,2] because the manifest has none; it is "
        "probed with ones of shape [1,2]; give [probe] inputs = [...]"
    )
    image = value("image", FLOAT, ["n", 3, "h", "w"])
    conv = node("Conv", ["image", "k"], ["y"], kernel_shape=[3, 3])
    kernel = {"k": np.ones((1, 3, 3, 3), np.float32)}
    _, measured = load(save(tmp_path / "conv.onnx", [conv], [image], [value("y", FLOAT, None)], kernel))
    assert "probed with zeros of shape [1,3,8,8]" in measured.notes[0]


def test_a_model_that_no_guess_satisfies_says_what_it_was_asked_and_what_would_help(tmp_path: Path) -> None:
    towns = node("OneHotEncoder", ["town"], ["y"], domain="ai.onnx.ml", cats_strings=["Ulm", "Jena"], zeros=0)
    path = save(tmp_path / "m.onnx", [towns], [value("town", STRING, ["n", 1])], [value("y", FLOAT, None)])
    with pytest.raises(UnderstudyError) as caught:
        load(path)
    assert caught.value.code is Code.LOAD_FAILED
    assert (
        "the model was asked with zeros of shape [1,1], because the manifest has no probe, and it failed on "
        "ones and on longer ones too; give [probe] inputs = [...]"
    ) in caught.value.message
    load(path, probe=json.loads(request(tensor("town", "BYTES", [1, 1], ["Ulm"]))))


def test_outputs_hold_infinity_where_the_app_allows_it(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Log", ["x"], ["y"])], [X2], [value("y", FLOAT, ["n", 2])])
    zero = tensor("x", "FP32", [1, 2], [0, 1])
    strict, _ = load(path)
    refused = refusal(strict, zero)
    assert (refused.code, refused.context) == (Code.OUTPUT_INVALID, {"reason": "not-finite"})
    free, measured = load(path, finite=Finite.ALLOWED)
    assert measured.notes == ()
    assert answer(free, zero)["y"]["data"] == [None, 0]
    raw = free.codec.decode(request(zero, parameters={"binary_data_output": True}))
    (done,) = free.execute([raw])
    assert done.outputs is not None
    (encoded,) = free.codec.encode(done.outputs, done.requests, done.rows)
    assert not isinstance(encoded, UnderstudyError)
    assert np.frombuffer(encoded.body[encoded.json_bytes :], "<f4").tolist() == [-np.inf, 0]


def test_a_directory_with_its_data_is_served(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with_external_data(tmp_path / "model" / "any.onnx")
    model, _ = load(tmp_path / "model")
    assert answer(model, tensor("x", "FP32", [1, 64], [1] * 64))["y"]["data"] == [2] * 64
    (tmp_path / "model" / "other.onnx").write_bytes(b"")
    with pytest.raises(UnderstudyError, match=r"without a model\.onnx or just one other \.onnx"):
        load(tmp_path / "model")
