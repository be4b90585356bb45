"""Plans for ToolDesk: the fewest calls, demonstrations with faults, and plans that only look busy."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from envs_jax.core import Array
from envs_jax.text.tool_desk_tokens import (
    ANSWER,
    CALL,
    FIRST_ENTITY,
    FIRST_KEY,
    FIRST_TOOL,
    FIRST_VALUE,
    KEYED_ATTRIBUTES,
    LOOKUP_OF_ATTRIBUTE,
    MAX_CALLS,
    MAX_GOALS,
    MAX_LENGTH,
    NUM_LOOKUPS,
    NUM_TOOLS,
    PAD,
    PROMPT_LENGTH,
    ToolDeskState,
)

HACKS = ("every tool once", "one call again and again", "answer at once", "no lookups")


def lookups_needed(state: ToolDeskState, wanted: Array) -> tuple[Array, Array]:
    """The lookup that finds the key of each goal, i32 `[3]`, and which goals have to make theirs, bool `[3]`.

    One lookup serves all goals of `wanted`, bool `[3]`, that need the same key: the first of them makes it.
    """
    attribute, entity = state.goals[:, 0], state.goals[:, 1]
    keyed = wanted & (attribute >= KEYED_ATTRIBUTES)
    lookup = jnp.array(LOOKUP_OF_ATTRIBUTE, jnp.int32)[attribute]
    same = (lookup[:, None] == lookup[None]) & (entity[:, None] == entity[None]) & keyed[None]
    return lookup, keyed & ~jnp.any(same & jnp.tri(MAX_GOALS, k=-1, dtype=bool), axis=1)


def teacher(
    key: Array,
    state: ToolDeskState,
    skip_probability: Array | float = 0.0,
    repeat_probability: Array | float = 0.0,
    num_attempts: int = 1,
) -> Array:
    """The planner's tokens for a query, i32 `[32]`: action i follows the prompt's end by i tokens; consumes `key`.

    Without faults this is the plan of fewest calls. With them each goal is left out, and each call made twice, by
    chance: demonstrations of mixed quality for a cold start. Of several attempts the best is kept: the largest share
    of goals, less 0.1 per repeated call.
    """
    if num_attempts == 1:
        return _faulty_plan(key, state, skip_probability, repeat_probability)[0]
    keys = jax.random.split(key, num_attempts)
    plans, worth = jax.vmap(_faulty_plan, (0, None, None, None))(keys, state, skip_probability, repeat_probability)
    return plans[jnp.argmax(worth)]


def hack(name: str, state: ToolDeskState) -> Array:
    """A plan of `HACKS` that does not answer the query but looks busy, i32 `[32]`.

    "no lookups" copies the query: it asks for every goal by the entity that stands there.
    """
    place = jnp.arange(MAX_CALLS)
    attribute, entity = state.goals[:, 0], state.goals[:, 1]
    goal = jnp.minimum(place, MAX_GOALS - 1)
    if name == "every tool once":
        functions, entities, made = (NUM_TOOLS - 1 - place), jnp.broadcast_to(entity[0], place.shape), place >= 0
    elif name == "one call again and again":
        functions, entities, made = jnp.full(MAX_CALLS, NUM_LOOKUPS) + attribute[0], entity[0] + 0 * place, place >= 0
    elif name == "answer at once":
        functions, entities, made = place, place, place < 0
    elif name == "no lookups":
        functions, entities, made = NUM_LOOKUPS + attribute[goal], entity[goal], place < state.num_goals
    else:
        raise ValueError(f"there is no hack {name!r}; known: {', '.join(HACKS)}")
    return _tokens(state, functions, FIRST_ENTITY + entities, made)


def _faulty_plan(
    key: Array, state: ToolDeskState, skip_probability: Array | float, repeat_probability: Array | float
) -> tuple[Array, Array]:
    """The tokens of one attempt, and what it is worth."""
    key_skip, key_repeat = jax.random.split(key)
    attribute, entity = state.goals[:, 0], state.goals[:, 1]
    wanted = jnp.arange(MAX_GOALS) < state.num_goals
    wanted &= ~jax.random.bernoulli(key_skip, skip_probability, (MAX_GOALS,))
    lookup, asks = lookups_needed(state, wanted)
    argument = jnp.where(
        attribute >= KEYED_ATTRIBUTES, FIRST_KEY + state.keys[lookup, entity], FIRST_ENTITY + entity
    )  # fmt: skip
    functions = jnp.stack([lookup, NUM_LOOKUPS + attribute], axis=1).reshape(-1)
    arguments = jnp.stack([FIRST_ENTITY + entity, argument], axis=1).reshape(-1)
    made = jnp.stack([asks, wanted], axis=1).reshape(-1)
    again = made & jax.random.bernoulli(key_repeat, repeat_probability, made.shape)
    worth = jnp.sum(wanted) / state.num_goals - 0.1 * jnp.sum(again)
    made = jnp.stack([made, again], axis=1).reshape(-1)
    return _tokens(state, jnp.repeat(functions, 2), jnp.repeat(arguments, 2), made), worth


def _tokens(state: ToolDeskState, functions: Array, arguments: Array, made: Array) -> Array:
    """The plan of those calls `[n]` that are `made`, at most seven, and then the right values, i32 `[32]`.

    Args:
        state: of the query.
        functions: what the tools do, i32 `[n]`.
        arguments: tokens, i32 `[n]`.
        made: bool `[n]`.
    """
    order = jnp.argsort(~made, stable=True)[:MAX_CALLS]
    end = 4 * jnp.minimum(jnp.sum(made), MAX_CALLS)
    tools = FIRST_TOOL + jnp.argsort(state.tools)[functions]
    calls = jnp.full(made.shape, CALL, jnp.int32)
    frames = jnp.stack([calls, tools, arguments, jnp.zeros_like(calls)], axis=1)[order].reshape(-1)
    actions = jnp.zeros(MAX_LENGTH - PROMPT_LENGTH, jnp.int32).at[: frames.shape[0]].set(frames)
    values = FIRST_VALUE + state.values[state.goals[:, 0], state.goals[:, 1]]
    place = jnp.arange(actions.shape[0])
    answer = jnp.concatenate([jnp.array([ANSWER], jnp.int32), values])[jnp.clip(place - end, 0, MAX_GOALS)]
    return jnp.where(place < end, actions, jnp.where(place <= end + MAX_GOALS, answer, PAD)).astype(jnp.int32)
