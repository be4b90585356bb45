"""Exported policies as ONNX graphs, opset 17: a normaliser, plain layers, the bounds of actions.

A graph is built from the same description of layers as `policy.npz`. A kind of layer is one function in `LAYERS`, an
activation one in `ACTIVATIONS`: whoever adds one adds a function. Needs the extra `onnx`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.results.infer_numpy import FORMAT, FORMAT_VERSION, Policy

OPSET, IR_VERSION = 17, 8
METADATA = "jaxrl"  # the key of the JSON metadata in the file


class Graph:
    """Nodes and constants under construction; values go by their names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(_onnx().numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output; returns its name."""
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(_onnx().helper.make_node(operator, list(inputs), [output], output, **attributes))
        return output


def dense(graph: Graph, features: str, weights: Mapping[str, np.ndarray]) -> str:
    return graph.add("Gemm", features, graph.constant(weights["kernel"]), graph.constant(weights["bias"]))


def flatten(graph: Graph, features: str, weights: Mapping[str, np.ndarray]) -> str:
    del weights
    return graph.add("Flatten", features, axis=1)


def swish(graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def gelu(graph: Graph, x: str) -> str:
    """The approximation by tanh, as in `infer_numpy`."""
    cube = graph.add("Mul", graph.add("Mul", x, x), x)
    inner = graph.add("Add", x, graph.add("Mul", cube, graph.constant(0.044715)))
    curve = graph.add("Tanh", graph.add("Mul", inner, graph.constant(np.sqrt(2 / np.pi))))
    gate = graph.add("Add", graph.constant(0.5), graph.add("Mul", graph.constant(0.5), curve))
    return graph.add("Mul", x, gate)


LAYERS: dict[str, Callable[[Graph, str, Mapping[str, np.ndarray]], str]] = {"dense": dense, "flatten": flatten}
ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "none": lambda graph, x: x,
    "tanh": lambda graph, x: graph.add("Tanh", x),
    "relu": lambda graph, x: graph.add("Relu", x),
    "elu": lambda graph, x: graph.add("Elu", x, alpha=1.0),
    "swish": swish,
    "gelu": gelu,
}


def build_model(
    facts: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray], batch: int | None
) -> Any:
    """The graph of one network, an `onnx.ModelProto` that has passed ONNX's checker.

    Its inputs are `observation` `[b, ...]` and, where the policy is masked, `legal_actions` bool `[b, N]`; its output
    is `action` `[b, ...]`.

    Args:
        facts: the metadata: shapes and dtypes, spaces, masks.
        layers, arrays: of `export.plain_layers`.
        batch: b; None leaves it free.

    Raises:
        ValueError: a layer or an activation has no ONNX form here.
        ImportError: the extra is not installed.
    """
    onnx, graph = _onnx(), Graph()
    features = graph.add("Cast", "observation", to=onnx.TensorProto.FLOAT)
    if "normalizer/mean" in arrays:
        mean, std, limit = (arrays[f"normalizer/{name}"] for name in ("mean", "std", "limit"))
        centred = graph.add("Sub", features, graph.constant(mean))
        scaled = graph.add("Div", centred, graph.constant(std))
        features = graph.add("Clip", scaled, graph.constant(-np.max(limit)), graph.constant(np.max(limit)))
    for i, layer in enumerate(layers):
        for kind, known in ((layer["kind"], LAYERS), (layer["activation"], ACTIVATIONS)):
            if kind not in known:
                raise ValueError(f"ONNX export knows {', '.join(known)}, not {kind!r}; use stablehlo or npz")
        prefix = f"layer/{i}/"
        weights = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        features = ACTIVATIONS[layer["activation"]](graph, LAYERS[layer["kind"]](graph, features, weights))
    _choose(graph, features, facts, arrays)

    free: Any = "b" if batch is None else batch
    action = facts["action"]
    inputs = [_value("observation", facts["observation"]["dtype"], [free, *facts["observation"]["shape"]])]
    if facts["legal_actions"] is not None:
        inputs.append(_value("legal_actions", "bool", [free, facts["legal_actions"]]))
    outputs = [_value("action", action["dtype"], [free, *action["shape"]])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "policy", inputs, outputs, graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_name="jaxrl",
    )
    model.ir_version = IR_VERSION  # the one of this opset, for runtimes as old as it
    onnx.helper.set_model_props(model, {METADATA: json.dumps(dict(facts), allow_nan=False)})
    onnx.checker.check_model(model, full_check=True)
    return model


def _choose(graph: Graph, outputs: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """From the outputs of the network `[b, n]` to "action", as `NumpyPolicy` does it."""
    space, int32 = facts["action"], _onnx().TensorProto.INT32
    if space["kind"] == "box":
        low, high = np.broadcast_to(arrays["action/low"], space["shape"]), arrays["action/high"]
        if np.all(np.isfinite(low)) and np.all(np.isfinite(high)):
            scaled = graph.add("Mul", outputs, graph.constant((high - low) / 2))
            outputs = graph.add("Add", scaled, graph.constant((high + low) / 2))
        # Not Clip, whose bounds are scalars: every component has its own.
        above = graph.add("Max", outputs, graph.constant(low))
        graph.add("Min", above, graph.constant(high), output="action")
        return
    if facts["legal_actions"] is not None:
        outputs = graph.add("Where", "legal_actions", outputs, graph.constant(np.finfo(np.float32).min))
    if space["kind"] == "discrete":
        graph.add("Cast", graph.add("ArgMax", outputs, axis=1, keepdims=0), to=int32, output="action")
        return
    ends = np.cumsum(space["num_values"])
    axis, chosen = graph.constant([1], np.int64), []
    for begin, end in zip([0, *ends[:-1]], ends):
        part = graph.add("Slice", outputs, *(graph.constant([place], np.int64) for place in (begin, end)), axis)
        chosen.append(graph.add("ArgMax", part, axis=1, keepdims=1))
    graph.add("Cast", graph.add("Concat", *chosen, axis=1), to=int32, output="action")


class OnnxPolicy(Policy):
    """A policy run by onnxruntime on one CPU thread, which is the fastest for small networks."""

    def __init__(self, metadata: dict[str, Any], model: bytes):
        super().__init__(metadata, {})
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _run(self, observation: np.ndarray, legal_actions: np.ndarray | None, carry: tuple[Any, ...]) -> Any:
        inputs = {"observation": observation}
        if legal_actions is not None:
            inputs["legal_actions"] = legal_actions
        return self._session.run(["action"], inputs)[0], carry


def load_onnx(path: str | Path) -> OnnxPolicy:
    """Reads a `policy.onnx`.

    Raises:
        ValueError: the file is torn, no exported policy, or of another format version.
        ImportError: the extra is not installed.
    """
    content, onnx = Path(path).read_bytes(), _onnx()
    try:
        model = onnx.load_model_from_string(content)
        metadata = json.loads({prop.key: prop.value for prop in model.metadata_props}[METADATA])
        version = metadata["format_version"] if metadata["format"] == FORMAT else None
    except Exception as error:  # whatever the reader says of a damaged file
        raise ValueError(f"{path} is damaged or no exported policy: {error}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}; this reader knows {FORMAT_VERSION}")
    return OnnxPolicy(metadata, content)


def require() -> None:
    """ImportError, naming the extra, where it is not installed."""
    _onnx()
    _onnxruntime()


def _value(name: str, dtype: str, shape: Sequence[Any]) -> Any:
    onnx = _onnx()
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, list(shape))


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX needs the extra: pip install 'jaxrl[onnx]'") from error
    return onnx


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX needs the extra: pip install 'jaxrl[onnx]'") from error
    return onnxruntime
