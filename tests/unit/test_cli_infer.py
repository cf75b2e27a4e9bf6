"""What `infer --data` accepts becomes one complete request, or a message that names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from understudy.cli.infer import build_request, read_data
from understudy.wire.errors import UnderstudyError

IRIS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}


def test_a_complete_request_goes_out_as_it_came() -> None:
    request: dict[str, Any] = {"id": "7", "inputs": [{"name": "x", "shape": [1], "data": [1]}]}
    assert build_request(request, {}) is request


@pytest.mark.parametrize(
    ("data", "shape"),
    [([[1, 2, 3, 4]], [1, 4]), ([[1, 2, 3, 4], [5, 6, 7, 8]], [2, 4]), ([1, 2, 3, 4], [1, 4]), ([], [1, 0])],
)
def test_a_nested_list_becomes_the_only_input(data: list[Any], shape: list[int]) -> None:
    assert build_request(data, IRIS) == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}]
    }


def test_uneven_rows_are_named() -> None:
    with pytest.raises(UnderstudyError, match=r"--data\[1\]: shape \[3\], but the rows before it have \[4\]"):
        build_request([[1, 2, 3, 4], [5, 6, 7]], IRIS)


@pytest.mark.parametrize(
    ("data", "metadata", "message"),
    [
        ({"input": []}, IRIS, 'complete request with "inputs"'),
        ([1], {"inputs": [IRIS["inputs"][0], {**IRIS["inputs"][0], "name": "y"}]}, "2 inputs (x, y)"),
        (3, IRIS, "expected a list or an object, got 3"),
    ],
)
def test_what_cannot_be_sent_is_said(data: Any, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(UnderstudyError) as raised:
        build_request(data, metadata)
    assert message in str(raised.value)


def test_data_is_json_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_text("[[1]]")
    assert read_data("[[1]]") == read_data(str(file)) == [[1]]


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UnderstudyError, match=r"lost\.json can't be read: No such file"):
        read_data("lost.json")


def test_broken_json_is_said() -> None:
    with pytest.raises(UnderstudyError, match="--data: not valid JSON"):
        read_data("[1,")
