"""Calls of tools in what an agent wrote. Whatever the text, there is an answer: faults are reported, never raised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from envs_jax.registry import nearest

STYLES = ("hermes", "llama3")
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_ARGUMENTS = {"hermes": "arguments", "llama3": "parameters"}


class ToolCall(NamedTuple):
    name: str
    arguments: dict[str, Any]


class ParsedCalls(NamedTuple):
    content: str  # what is no call
    calls: list[ToolCall]  # the well-formed ones, in order
    errors: list[str]  # one per malformed one


def parse_tool_calls(text: str, style: str = "hermes") -> ParsedCalls:
    """The calls in an agent's message.

    Args:
        text: the message, without its end mark.
        style: "hermes" (Qwen): JSON with `name` and `arguments` between `<tool_call>` and `</tool_call>`; "llama3": the
            whole message is JSON with `name` and `parameters`, several separated by semicolons.
    """
    _check_style(style)
    content, sources, errors = (_hermes if style == "hermes" else _llama3)(text)
    calls: list[ToolCall] = []
    for source in sources:
        try:
            calls.append(_call(json.loads(source, parse_constant=_refuse), _ARGUMENTS[style]))
        except RecursionError:
            errors.append("JSON nested too deeply")
        except ValueError as error:
            errors.append(f"{error} in {source[:200]!r}")
    return ParsedCalls(content, calls, errors)


def format_tool_calls(calls: Iterable[ToolCall], style: str = "hermes") -> str:
    """Calls as an agent writes them: what `parse_tool_calls` reads back."""
    _check_style(style)
    texts = [json.dumps({"name": call.name, _ARGUMENTS[style]: call.arguments}, ensure_ascii=False) for call in calls]
    return "; ".join(texts) if style == "llama3" else "\n".join(f"{_OPEN}\n{text}\n{_CLOSE}" for text in texts)


def _check_style(style: str) -> None:
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}{nearest(style, STYLES)}")


def _hermes(text: str) -> tuple[str, list[str], list[str]]:
    sources = [match.strip() for match in re.findall(f"{_OPEN}(.*?){_CLOSE}", text, re.DOTALL)]
    rest = re.sub(f"{_OPEN}.*?{_CLOSE}", "", text, flags=re.DOTALL)
    errors = []
    if _OPEN in rest:
        rest, _, cut = rest.partition(_OPEN)
        errors.append(f"{_OPEN} without {_CLOSE}: {cut.strip()[:200]!r}")
    if _CLOSE in rest:
        rest = rest.replace(_CLOSE, "")
        errors.append(f"{_CLOSE} without {_OPEN}")
    return rest.strip(), sources, errors


def _llama3(text: str) -> tuple[str, list[str], list[str]]:
    stripped = text.strip()
    body = stripped.removeprefix(_PYTHON_TAG).strip()
    if not body.startswith("{"):
        return stripped, [], [f"{_PYTHON_TAG} without a call"] if body != stripped else []
    sources = []
    decoder = json.JSONDecoder()
    while body:
        try:
            _, end = decoder.raw_decode(body)
        except (ValueError, RecursionError):
            return "", [*sources, body], []  # refused with its reason by the caller
        sources.append(body[:end])
        rest = body[end:].lstrip()
        body = rest.removeprefix(";").strip()
        if rest and not rest.startswith(";"):
            return "", sources, [f"text after a call: {rest[:200]!r}"]
    return "", sources, []


def _call(value: Any, arguments: str) -> ToolCall:
    if not isinstance(value, dict):
        raise ValueError(f"a call must be a JSON object, got {type(value).__name__}")
    unknown = sorted(set(value) - {"name", arguments})
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    if not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("a call needs a name")
    if not isinstance(value.get(arguments), dict):
        raise ValueError(f"a call needs {arguments}, a JSON object")
    return ToolCall(value["name"], value[arguments])


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
