"""An ONNX file as the graph that the proof walks. Weights in files beside it are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.worker.graph import Graph, Node, Tensor
from understudy.core.worker.lengths import VALUES_MAX
from understudy.worker.runtimes.onnx import model_file


def read_graph(artifact: str) -> Graph | None:
    """None where the `onnx` package isn't installed. Raises whatever it says of a damaged file."""
    try:
        import onnx  # a second and 50 MB, so only while a variant is measured
        from onnx import inliner
    except ImportError:
        return None
    model = onnx.load(str(model_file(Path(artifact))), load_external_data=False)
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    constants = {tensor.name: _constant(tensor) for tensor in graph.initializer}
    constants |= {sparse.values.name: Tensor() for sparse in graph.sparse_initializer}
    nodes = tuple(_node(node) for node in graph.node)
    opsets = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import
    }
    return Graph(nodes, constants, opsets)


def _node(node: Any) -> Node:
    return Node(
        node.op_type,
        tuple(node.input),
        tuple(node.output),
        node.domain,
        {attribute.name: _attribute(attribute) for attribute in node.attribute},
        node.name,
    )


def _attribute(attribute: Any) -> Any:
    """Its value where rules look at it: numbers, texts and small tensors."""
    import onnx

    kinds = onnx.AttributeProto
    match attribute.type:
        case kinds.INT:
            return attribute.i
        case kinds.INTS:
            return list(attribute.ints)
        case kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        case kinds.TENSOR:
            return _constant(attribute.t)
        case _:
            return None


def _constant(tensor: Any) -> Tensor:
    """Shape, and the values of a few whole numbers."""
    import onnx
    from onnx import numpy_helper

    shape = tuple(tensor.dims)
    if tensor.data_location == onnx.TensorProto.EXTERNAL or int(np.prod(shape)) > VALUES_MAX:
        return Tensor(shape)
    if tensor.data_type == onnx.TensorProto.STRING:
        return Tensor(shape)
    values = numpy_helper.to_array(tensor)
    if values.dtype.kind in "bui":
        return Tensor(shape, None, tuple(int(value) for value in values.ravel().tolist()))
    first = values.ravel()[:1].tolist()
    return Tensor(shape, keeps_first=len(shape) == 1 and first == [1.0])
