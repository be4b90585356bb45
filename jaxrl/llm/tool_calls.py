"""The parser of tool calls, under the roof of the language model; environments of text read with the same one."""

from envs_jax.text.tool_calls import STYLES, ParsedCalls, ToolCall, format_tool_calls, parse_tool_calls

__all__ = ["STYLES", "ParsedCalls", "ToolCall", "format_tool_calls", "parse_tool_calls"]
