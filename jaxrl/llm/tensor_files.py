"""Files in the safetensors format: eight bytes of header length, a JSON header, the tensors' bytes.

The format is small enough to be read and written here: no library is needed to exchange weights. Tensors are mapped
from the file, so that only what is used of them is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype("bfloat16"),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own bound: a damaged length is found before memory is asked for


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a file by name, as read-only arrays that are read when they are used.

    Raises:
        ValueError: the file is damaged or cut short, or holds a type of number that is not supported.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise ValueError(f"{path} is no safetensors file, or cut short: a header of {length} bytes in {size}")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is no safetensors file: its header is not JSON") from error
    begin, end = 8 + length, 8 + length
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} is of type {entry['dtype']}; supported: {', '.join(_DTYPES)}")
        dtype, shape, (first, last) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if last - first != math.prod(shape) * dtype.itemsize or first < 0 or begin + last > size:
            raise ValueError(f"{path} is damaged or cut short: {name} {shape} has bytes {first} to {last} of {size}")
        end = max(end, begin + last)
        tensors[name] = np.memmap(path, dtype, "r", begin + first, shape) if last > first else np.zeros(shape, dtype)
    if end != size:
        raise ValueError(f"{path} is damaged: {size - end} bytes follow the last tensor")
    return tensors


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes `tensors`, in the order given. A file of that name is replaced only when the new one is complete."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise ValueError(f"{name} is of type {tensor.dtype}; supported: {', '.join(map(str, _CODES))}")
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    path = Path(path)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    unfinished.replace(path)
