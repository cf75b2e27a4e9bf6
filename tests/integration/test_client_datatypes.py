"""Every datatype from a NumPy array through a gateway and a worker, and back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import running

from understudy.client import AsyncClient, InvalidInput
from understudy.wire.tensors import DATATYPES

MODEL = """
class Model:
    def load(self, path):
        pass

    def predict(self, inputs):
        return {name + "_out": array for name, array in inputs.items()}
"""


def write_echo_app(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    manifest = 'name = "echo"\n'
    for direction, suffix in (("inputs", ""), ("outputs", "_out")):
        for datatype in DATATYPES:
            tensor = f'name = "{datatype.lower()}{suffix}"\ndatatype = "{datatype}"\nshape = [-1, 2]'
            manifest += f"\n[[{direction}]]\n{tensor}\n"
    manifest += '\n[[variants]]\nname = "full"\nruntime = "python"\nartifact = "model.py"\naccuracy = 0.9\n'
    (folder / "APP.toml").write_text(manifest)


def values(datatype: str, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([[limits.min, limits.max], [0, 1]], dtype)
    if dtype.kind == "b":
        return np.array([[True, False], [False, True]])
    if datatype == "BYTES":
        return np.array([["", "näh"], ["a\0b", "x" * 300]], object)
    return np.array([[0.5, -1.0], [0.0, 240.0]], dtype)


@pytest.mark.parametrize("check", [True, False])
def test_every_datatype_comes_back_as_it_went(tmp_path: Path, check: bool):
    write_echo_app(tmp_path / "apps" / "echo")
    sent = {datatype.lower(): values(datatype, dtype) for datatype, dtype in DATATYPES.items()}

    async def test() -> None:
        async with (
            running(tmp_path, nodes={"n1": "a"}) as harness,
            AsyncClient(f"http://127.0.0.1:{harness.ports[0]}", check=check) as client,
        ):
            answer = await client.infer("echo", sent, datatypes={"bf16": "BF16"})
            assert answer.outputs.keys() == {f"{name}_out" for name in sent}
            for name, array in sent.items():
                came = answer.outputs[f"{name}_out"]
                np.testing.assert_array_equal(came, array)
                assert (came.dtype, came.shape) == (array.dtype, array.shape)
                assert came.flags.writeable
            some = await client.infer("echo", sent, datatypes={"bf16": "BF16"}, outputs=["bool_out"])
            assert list(some.outputs) == ["bool_out"]
            with pytest.raises(InvalidInput):
                await client.infer("echo", {**sent, "fp32": np.zeros((2, 3), np.float32)})

    asyncio.run(test())
