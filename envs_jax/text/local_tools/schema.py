"""A Python function as a tool: its JSON schema from type hints and docstring, and the check of a call against it."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from envs_jax.registry import nearest

MAX_TEXT = 2000  # characters of a string argument
_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_ACCEPTED = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a tool as chat templates take it, `{"type": "function", "function": {...}}`.

    Args:
        function: its hints are `str`, `int`, `float`, `bool` or a `Literal` of strings; parameters with a default are
            optional. The docstring's text up to "Args:" is the description, the lines after it are the parameters'.

    Raises:
        TypeError: another hint, or a parameter that the docstring does not describe.
    """
    text, _, parts = inspect.cleandoc(function.__doc__ or "").partition("Args:")
    lines = dict(re.findall(r"^\s+(\w+): (.+)$", parts, re.MULTILINE))
    hints = get_type_hints(function)
    properties, required = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        if name not in lines:
            raise TypeError(f"{function.__name__}: the docstring does not describe {name!r}")
        properties[name] = {**_type(function.__name__, name, hints.get(name)), "description": lines[name]}
        if parameter.default is parameter.empty:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    description = " ".join(text.split())
    return {
        "type": "function",
        "function": {"name": function.__name__, "description": description, "parameters": schema},
    }


def check_arguments(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """ValueError unless `arguments` fit the schema of `describe`; the message names the argument."""
    name, parameters = schema["function"]["name"], schema["function"]["parameters"]
    properties = parameters["properties"]
    for key in parameters["required"]:
        if key not in arguments:
            raise ValueError(f"{name} needs the argument {key!r}")
    for key, value in arguments.items():
        if key not in properties:
            raise ValueError(f"{name} has no argument {key[:50]!r}{nearest(key[:50], properties)}")
        allowed = properties[key]
        if not _fits(value, allowed["type"]):
            # The type alone: a value may be nested too deeply to print.
            raise ValueError(f"{key!r} of {name} must be of type {allowed['type']}, got {type(value).__name__}")
        if isinstance(value, str) and len(value) > allowed.get("maxLength", MAX_TEXT):
            raise ValueError(f"{key!r} of {name} must have at most {MAX_TEXT} characters, got {len(value)}")
        if value not in allowed.get("enum", (value,)):
            raise ValueError(f"{key!r} of {name} must be one of {', '.join(allowed['enum'])}, got {value[:50]!r}")


def _type(function: str, name: str, hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Literal and all(isinstance(value, str) for value in get_args(hint)):
        return {"type": "string", "enum": list(get_args(hint))}
    if hint not in _TYPES:
        raise TypeError(f"{function}: {name!r} must be str, int, float, bool or a Literal of strings, got {hint!r}")
    return {"type": _TYPES[hint]} | ({"maxLength": MAX_TEXT} if hint is str else {})


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()  # as JSON schema has it: 3.0 is an integer
    if isinstance(value, float) and not math.isfinite(value):  # 1e999 in JSON
        return False
    return isinstance(value, _ACCEPTED[kind])
