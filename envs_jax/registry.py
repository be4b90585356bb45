"""Names of environments: `make("cartpole")`, `make("poolflip-r3", role="blue", opponents=["sleep"])`, `names()`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs_jax.core import Environment, EnvParams


@dataclasses.dataclass(frozen=True)
class Entry:
    factory: str | Callable[..., Environment]  # a callable, or "package.module:name", imported on first use
    options: Mapping[str, Any]
    summary: str


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str, factory: str | Callable[..., Environment], *, options: Mapping[str, Any] | None = None, summary: str = ""
) -> None:
    """Makes `make(name)` build `factory(**options)`; a string `"package.module:name"` is imported on first use."""
    if name in _ENTRIES:
        raise ValueError(f"environment {name!r} is registered already")
    if ":" in name:
        raise ValueError(f"an environment name must not contain ':', got {name!r}")
    _ENTRIES[name] = Entry(factory, dict(options or {}), summary)


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_ENTRIES))


def summary(name: str) -> str:
    """One line about a registered environment."""
    return _entry(name).summary


def make(name: str, **options: Any) -> tuple[Environment, Any]:
    """Builds an environment and its default parameters.

    Args:
        name: a registered name, or `"package.module:name"` for a class or function of your own.
        **options: keyword arguments of its constructor, or fields of its `EnvParams` (these replace the default
            value). For an environment with two roles: `role`, which of them learns, and `opponents`, the policies it
            meets, by the names the environment gives to its heuristics; then the result is single-agent.
            `frame_stack=k` stacks the last k observations.

    Returns:
        `(env, params)`.

    Raises:
        ValueError: the name or an option is unknown (with the nearest one), or a value is refused.

    Example:
        >>> env, params = make("cartpole", max_steps=200)
    """
    from envs_jax.core import Environment

    entry = _entry(name)
    factory = _factory(entry)
    options = {**entry.options, **options}
    versus = {key: options.pop(key) for key in ("role", "opponents") if key in options}
    frame_stack = options.pop("frame_stack", 1)

    accepted = set(inspect.signature(factory).parameters)
    env = factory(**{key: options.pop(key) for key in list(options) if key in accepted})
    if not isinstance(env, Environment):
        raise ValueError(f"{name!r} built a {type(env).__name__}, not an envs_jax.core.Environment")
    params = _replace_params(name, env.default_params, options, accepted)
    if versus:
        from envs_jax.versus import make_versus

        env, params = make_versus(env, params, versus.get("role"), versus.get("opponents"))
    if frame_stack != 1:
        from envs_jax.wrappers import FrameStack

        env = FrameStack(env, frame_stack)
    return env, params


def version(name: str) -> int:
    """The version of a registered environment: raised when the same key gives another episode."""
    return getattr(_factory(_entry(name)), "version", 1)


def static_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `make`'s options that shape the program; the others only change the environment's parameters."""
    factory = _factory(_entry(name))
    shaping = {*inspect.signature(factory).parameters, "role", "opponents", "frame_stack"}
    traced = getattr(factory, "traced_options", None)  # a factory may be a plain function
    shaping -= set(traced(options) if traced else ())
    return {key: value for key, value in options.items() if key in shaping}


def resolve(path: str) -> Any:
    """The object that `"package.module:name"` names."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise
        raise ValueError(f"{path!r}: there is no module {module_name!r} on the import path") from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(f"{path!r}: module {module_name!r} has no {attribute!r}{nearest(attribute, public)}")
    return getattr(module, attribute)


def nearest(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known word, else `"."`: the end of a sentence about an unknown one."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _entry(name: str) -> Entry:
    if ":" in name:
        return Entry(name, {}, "")
    if name not in _ENTRIES:
        raise ValueError(f"unknown environment {name!r}{nearest(name, _ENTRIES)} Known: {', '.join(names())}")
    return _ENTRIES[name]


def _factory(entry: Entry) -> Callable[..., Environment]:
    return resolve(entry.factory) if isinstance(entry.factory, str) else entry.factory


def _replace_params(name: str, params: EnvParams, values: dict[str, Any], constructor: set[str]) -> EnvParams:
    import jax.numpy as jnp
    import numpy as np

    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    changed = {}
    for key, value in values.items():
        if key not in fields:
            known = sorted(set(fields) | constructor)
            raise ValueError(
                f"environment {name!r} has no option {key!r}{nearest(key, known)} Allowed: {', '.join(known) or 'none'}"
            )
        old = jnp.asarray(fields[key])
        try:
            # A fraction for an integer is refused, not cut.
            new = np.asarray(value).astype(old.dtype, casting="same_kind")
            changed[key] = jnp.asarray(np.broadcast_to(new, old.shape))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"option {key!r} of environment {name!r} must be {old.dtype} of shape {old.shape}, got {value!r}"
            ) from error
    return dataclasses.replace(params, **changed)
