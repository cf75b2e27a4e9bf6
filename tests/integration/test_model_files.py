"""Files as people have them, from `deploy` to an answer over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import running
from onnx import TensorProto

from onnx_graphs import FLOAT, INT64, classifier, node, save, value, with_external_data
from understudy.client import AsyncClient, InvalidInput


def write_app(folder: Path, artifact: str, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "APP.toml").write_text(
        f'name = "{folder.name}"\n{more}\n'
        f'[[variants]]\nname = "v"\nruntime = "onnx"\nartifact = "{artifact}"\naccuracy = 0.9\n'
    )
    return folder / artifact


def write_apps(apps: Path) -> None:
    with_external_data(write_app(apps / "file", "net.onnx"), "net.onnx.data")
    (apps / "folder" / "model").mkdir(parents=True)
    with_external_data(write_app(apps / "folder", "model") / "model.onnx")
    classifier(write_app(apps / "flowers", "m.onnx"), ["rose", "aster", "lily"])
    x = value("x", FLOAT, ["n", 2])
    log = write_app(apps / "log", "m.onnx", 'outputs = { finite = "allowed" }')
    save(log, [node("Log", ["x"], ["y"])], [x], [value("y", FLOAT, [1, 2])])
    odd = [value("a/b ü", FLOAT, ["n"])], [value("'out' \"put\"", FLOAT, ["n"])]
    save(write_app(apps / "odd", "m.onnx"), [node("Neg", ["a/b ü"], ["'out' \"put\""])], *odd)
    table = {"table": np.zeros((3, 2), np.float32)}
    ids, rows = value("ids", INT64, ["n"]), value("y", TensorProto.FLOAT, ["n", 2])
    save(write_app(apps / "rows", "m.onnx"), [node("Gather", ["table", "ids"], ["y"])], [ids], [rows], table)


def test_files_are_served_as_people_have_them(tmp_path: Path) -> None:
    write_apps(tmp_path / "apps")

    async def test() -> None:
        async with (
            running(tmp_path, nodes={"n1": "a"}) as harness,
            AsyncClient(f"http://127.0.0.1:{harness.ports[0]}", check=True) as client,
        ):
            ones = {"x": np.ones((2, 64), np.float32)}
            for app in ("file", "folder"):
                assert (await client.infer(app, ones)).outputs["y"].tolist() == [[2] * 64] * 2
            flowers = await client.infer("flowers", {"X": np.ones((2, 4), np.float32)})
            assert flowers.outputs["probabilities"].sum(axis=1) == pytest.approx([1, 1])
            described = (await harness.ask("GET", "/v2/models/flowers")).json
            assert described["outputs"][1]["labels"] == ["aster", "lily", "rose"]
            odd = await client.infer("odd", {"a/b ü": np.ones(1, np.float32)})
            assert odd.outputs["'out' \"put\""].tolist() == [-1]
            await holds_infinity(harness)
            for _ in range(5):
                with pytest.raises(InvalidInput, match="indices element out of data bounds"):
                    await client.infer("rows", {"ids": np.array([99])})
            assert (await client.infer("rows", {"ids": np.array([1])})).outputs["y"].shape == (1, 2)

    asyncio.run(test())


async def holds_infinity(harness: Any) -> None:
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 1]}]}
    ).encode()
    answer = await harness.ask("POST", "/v2/models/log/infer", body)
    assert answer.json["outputs"][0]["data"] == [None, 0]
    said = [event["message"] for event in await harness.events("app.ready")]
    assert any(
        "the file says [1,2], the model returned [1,2] and [2,2]: served as [-1,2]" in text for text in said
    )
