"""Conversations as text: small templates whose pieces know whose they are, so that masks come from construction.

`chatml` is the layout of Qwen, `llama3` that of Llama 3, `plain` needs no marks. A model that was trained with its own
template should be given that one, by `HFTokenizer`; what the templates here say about tools is jaxrl's wording.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxrl.llm.config import one_of

ROLES = ("prompt", "agent", "tool", "user", "control", "pad")  # a token's role is its place here
# The marks of each template; the last one ends the agent's turn.
SPECIALS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "plain": (),
}
TEMPLATES = tuple(SPECIALS)
_MESSAGE_KEYS = {"role", "content", "tool_calls", "name", "tool_call_id"}
_SPEAKERS = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]
Schema = Mapping[str, Any]


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    role: str  # one of ROLES
    special: bool = False  # a mark: one token


class _Encodes(Protocol):
    def encode(self, text: str, specials: bool = False) -> list[int]: ...

    def decode(self, tokens: Any) -> str: ...


def render(
    template: str,
    messages: Sequence[Message],
    tools: Sequence[Schema] | None = None,
    add_generation_prompt: bool = True,
    thinking: bool = True,
) -> list[Piece]:
    """The pieces of a conversation.

    Args:
        template: one of TEMPLATES.
        messages: `{"role": "system" | "user" | "assistant" | "tool", "content": text}`; an assistant's may hold
            `"tool_calls": [{"name": ..., "arguments": {...}}]`.
        tools: JSON schemas of the tools, told in the system message.
        add_generation_prompt: end with the beginning of the agent's turn.
        thinking: False puts an empty thought into the generation prompt of `chatml`, as Qwen3 has it.

    Returns:
        Pieces; those of role "agent" are what the agent says, its end mark included.
    """
    one_of("template", template, TEMPLATES)
    for message in messages:
        one_of("role", message.get("role", ""), _SPEAKERS)
        unknown = set(message) - _MESSAGE_KEYS
        if unknown:
            raise ValueError(f"a message has unknown keys {', '.join(sorted(unknown))}: {dict(message)}")
    messages = _with_tools(template, list(messages), tools)
    pieces = list(_LAYOUTS[template](messages, add_generation_prompt))
    if template == "chatml" and add_generation_prompt and not thinking:
        pieces.append(Piece("<think>\n\n</think>\n\n", "control"))
    return [piece for piece in pieces if piece.text]


def encode_pieces(tokenizer: _Encodes, pieces: Sequence[Piece], strict: bool = True) -> tuple[list[int], list[int]]:
    """Tokens and their roles (places in ROLES).

    Neighbours of one role are encoded together. With `strict`, ValueError where the tokens do not read as the pieces.
    """
    tokens: list[int] = []
    roles: list[int] = []
    for (role, special), group in itertools.groupby(pieces, key=lambda piece: (piece.role, piece.special)):
        encoded = tokenizer.encode("".join(piece.text for piece in group), specials=special)
        tokens += encoded
        roles += [ROLES.index(role)] * len(encoded)
    if strict:
        expected, found = "".join(piece.text for piece in pieces), tokenizer.decode(tokens)
        if found != expected:
            raise ValueError(f"the tokens of a conversation read {found!r} instead of {expected!r}")
    return tokens, roles


def call_text(template: str, call: Mapping[str, Any]) -> str:
    """A call of a tool, `{"name": ..., "arguments": {...}}`, as the agent of a template writes it."""
    one_of("template", template, TEMPLATES)
    if template == "llama3":
        return json.dumps({"name": call["name"], "parameters": call["arguments"]}, ensure_ascii=False)
    text = json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


def _with_tools(template: str, messages: list[Message], tools: Sequence[Schema] | None) -> list[Message]:
    """The messages with the tools told in the system message."""
    if not tools:
        return messages
    example = call_text(template, {"name": "tool_name", "arguments": {"argument": "value"}})
    schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    lines = f"The tools you can call, one JSON schema per line:\n<tools>\n{schemas}\n</tools>\nA call reads:\n{example}"
    first = messages[0] if messages and messages[0]["role"] == "system" else {"role": "system", "content": ""}
    rest = messages[1:] if first in messages[:1] else messages
    content = f"{first['content']}\n\n{lines}" if first["content"] else lines
    return [{"role": "system", "content": content}, *rest]


def _said(template: str, message: Message) -> str:
    """The words of a message, calls included."""
    separator = "; " if template == "llama3" else "\n"
    calls = separator.join(call_text(template, call) for call in message.get("tool_calls") or ())
    content = message.get("content") or ""
    return f"{content}\n{calls}" if content and calls else content or calls


def _role(message: Message) -> str:
    return {"system": "prompt", "user": "user", "assistant": "agent", "tool": "tool"}[message["role"]]


def _turns(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Messages one by one, but consecutive results of tools together."""
    for is_tool, group in itertools.groupby(messages, key=lambda message: message["role"] == "tool"):
        turn = list(group)
        yield from [turn] if is_tool else ([message] for message in turn)


def _chatml(messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[Piece]:
    start, end = SPECIALS["chatml"]
    for turn in _turns(messages):
        role = _role(turn[0])
        yield Piece(start, "control", True)
        if role == "tool":
            yield Piece("user\n", "control")
            results = (f"<tool_response>\n{message['content']}\n</tool_response>" for message in turn)
            yield Piece("\n".join(results), "tool")
        else:
            yield Piece(f"{turn[0]['role']}\n", "control")
            yield Piece(_said("chatml", turn[0]), role)
        yield Piece(end, "agent" if role == "agent" else "control", True)
        yield Piece("\n", "control")
    if add_generation_prompt:
        yield Piece(start, "control", True)
        yield Piece("assistant\n", "control")


def _llama3(messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[Piece]:
    begin, header, header_end, end = SPECIALS["llama3"]

    def heading(name: str) -> Iterator[Piece]:
        yield Piece(header, "control", True)
        yield Piece(name, "control")
        yield Piece(header_end, "control", True)
        yield Piece("\n\n", "control")

    yield Piece(begin, "control", True)
    for message in messages:
        role = _role(message)
        yield from heading("ipython" if role == "tool" else message["role"])
        yield Piece(_said("llama3", message), role)
        yield Piece(end, "agent" if role == "agent" else "control", True)
    if add_generation_prompt:
        yield from heading("assistant")


def _plain(messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[Piece]:
    for message in messages:
        role = _role(message)
        yield Piece(f"{message['role']}: ", "control")
        yield Piece(_said("plain", message), role)
        yield Piece("\n", "agent" if role == "agent" else "control")
    if add_generation_prompt:
        yield Piece("assistant: ", "control")


_LAYOUTS = {"chatml": _chatml, "llama3": _llama3, "plain": _plain}
