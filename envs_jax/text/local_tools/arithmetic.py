"""A calculator for untrusted expressions: numbers, + - * / // % **, brackets, six functions; every step is bounded."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 200  # characters
MAX_SIZE = 1e30  # of every intermediate result
MAX_EXPONENT = 64
Number = int | float

_BINARY: dict[type, Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {  # with the least and the largest number of arguments
    "abs": (abs, 1, 1),
    "round": (lambda value, digits=0: round(value, max(-30, min(30, int(digits)))), 1, 2),
    "sqrt": (math.sqrt, 1, 1),
    "floor": (math.floor, 1, 1),
    "min": (min, 2, 20),
    "max": (max, 2, 20),
}


def evaluate(expression: str) -> Number:
    """The value of an arithmetic expression.

    Raises:
        ValueError: it is too long, holds anything else, or has no value; a step exceeds the bounds.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"an expression must have at most {MAX_LENGTH} characters, got {len(expression)}")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"not an expression: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("the expression is nested too deeply") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error
    except OverflowError as error:
        raise ValueError("the result is too large") from error


def number_text(value: Number) -> str:
    """A number as tools write it: at most six decimals, 12.0 as 12."""
    if isinstance(value, float):
        text = f"{value:.6f}".rstrip("0").rstrip(".")
        return "0" if text == "-0" else text
    return str(value)


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            result = value
        case ast.BinOp() if type(node.op) in _BINARY:
            left, right = _value(node.left), _value(node.right)
            if isinstance(node.op, ast.Pow) and abs(right) > MAX_EXPONENT:
                raise ValueError(f"exponents must be within {MAX_EXPONENT}, got {right}")
            result = _BINARY[type(node.op)](left, right)
        case ast.UnaryOp() if type(node.op) in _UNARY:
            result = _UNARY[type(node.op)](_value(node.operand))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            function, least, most = _FUNCTIONS[name]
            if not least <= len(node.args) <= most:
                raise ValueError(f"{name} takes {least} to {most} numbers, got {len(node.args)}")
            result = function(*map(_value, node.args))
        case _:
            raise ValueError(f"only numbers, + - * / // % ** and {', '.join(_FUNCTIONS)} are known")
    if isinstance(result, complex) or not abs(result) <= MAX_SIZE:
        raise ValueError(f"every result must be a real number within {MAX_SIZE:g}")
    return result
