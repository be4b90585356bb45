"""ToolDesk: a planner asks tools, token by token, until it knows what a query needs. All of it is arrays.

Tools look up keys of entities or give values of attributes; half of the attributes are found by a key only, so that a
lookup must come before. What a plan is worth is how much of the query it has found out, whatever is answered.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from envs_jax.core import Array, Environment, TimeStep, positive_integer, time_step
from envs_jax.spaces import Discrete, MultiDiscrete
from envs_jax.text.tool_desk_plans import lookups_needed, teacher
from envs_jax.text.tool_desk_tokens import (
    ANSWER,
    ARGUMENT,
    BOS,
    CALL,
    DESCRIPTION_LENGTH,
    ERROR,
    FIRST_ATTRIBUTE,
    FIRST_ENTITY,
    FIRST_KEY,
    FIRST_LOOKUP,
    FIRST_TOOL,
    FIRST_VALUE,
    KEYED_ATTRIBUTES,
    LOOKUP_OF_ATTRIBUTE,
    MAX_CALLS,
    MAX_GOALS,
    MAX_LENGTH,
    NAME,
    NUM_ATTRIBUTES,
    NUM_ENTITIES,
    NUM_LOOKUPS,
    NUM_TOOLS,
    NUM_VALUES,
    OPEN,
    PAD,
    PROMPT_LENGTH,
    QUERY,
    RESULT,
    ROLE_AGENT,
    ROLE_PROMPT,
    ROLE_TOOL,
    SEPARATOR,
    VALUES,
    VOCAB_SIZE,
    ToolDeskParams,
    ToolDeskState,
)

__all__ = ["ANSWER", "CALL", "ERROR", "MAX_LENGTH", "PROMPT_LENGTH", "ToolDesk", "ToolDeskParams", "ToolDeskState",
           "teacher"]  # fmt: skip
_POOL = 1  # the seed of the fixed queries


class ToolDesk(Environment[ToolDeskState, ToolDeskParams]):
    """Plan calls of tools for a query of one to three goals.

    - Observation: i32 `[2]`: the last token (0 to 63) and whether the planner says the next one.
    - Action: Discrete(64), the planner's next token; ignored where it does not speak. A call is CALL, a tool, an
      entity or a key; the tool's result follows by itself. ANSWER ends planning, as does an eighth CALL.
    - Prompt: BOS QUERY, three slots (attribute, entity) or PAD, SEPARATOR; with `described_tools`, after BOS, eight
      pairs of what a tool does (an attribute it tells, or one of two tokens for lookups) and its token.
    - Reward: at the end, `completeness_weight * (c + r)` with c the share of goals found out (or, `strict`, whether all
      are), halved where the planner did not stop, and r = -0.1 per repeated and per wrong call, at most five of each,
      and `-length_penalty` per call more than the query needs; with `answers`, plus `answer_weight` where all values
      said after ANSWER are right and the answer can be checked. An ill-formed token ends the episode with -1. A judge
      that errs (`judge_false_positive`, `judge_false_negative`) flips whether a goal counts as found out, each goal by
      itself, once per episode; only the reward sees it. Keep the penalties of one call below 1/3: a goal is then
      always worth its call.
    - Ending: terminated after ANSWER (with `answers`, after one value per goal), an ill-formed token, or CALL number 8.
    - Info: role of the last token; completeness, complete, num_calls, num_needed (the fewest), precision (calls that
      were needed over calls), num_repeats, num_errors, invalid, stopped, right.
    """

    def __init__(
        self, strict: bool = False, answers: bool = False, described_tools: bool = False, num_attempts: int = 1
    ):
        """Static options.

        Args:
            strict: completeness is all or nothing.
            answers: the planner also answers, one value per goal.
            described_tools: what each tool does is drawn anew for every query and told in the prompt.
            num_attempts: a demonstration is the best of so many.
        """
        self.strict, self.answers, self.described_tools = strict, answers, described_tools
        self.num_attempts = positive_integer("num_attempts", num_attempts)
        self.prompt_length = PROMPT_LENGTH + DESCRIPTION_LENGTH * described_tools
        self.max_steps = MAX_LENGTH + DESCRIPTION_LENGTH * described_tools - 1

    @property
    def default_params(self) -> ToolDeskParams:
        return ToolDeskParams()

    def observation_space(self, params: ToolDeskParams) -> MultiDiscrete:
        return MultiDiscrete((VOCAB_SIZE, 2))

    def action_space(self, params: ToolDeskParams) -> Discrete:
        return Discrete(VOCAB_SIZE)

    def reset(self, key: Array, params: ToolDeskParams) -> tuple[ToolDeskState, TimeStep]:
        index = jax.random.randint(jax.random.fold_in(key, 0), (), 0, jnp.maximum(params.num_queries, 1))
        fixed, pooled = params.num_queries > 0, jax.random.fold_in(jax.random.key(_POOL), index)
        key = jnp.where(fixed, pooled, key)
        key_goals, key_number, key_keys, key_values, key_verifiable = jax.random.split(key, 5)
        # The first of the fixed queries are verifiable, so that the share is exact.
        place = jnp.where(fixed, (index + 0.5) / params.num_queries, jax.random.uniform(key_verifiable))
        tools = jnp.arange(NUM_TOOLS, dtype=jnp.int32)
        if self.described_tools:
            tools = _draw_tools(jax.random.fold_in(key, 1), params.held_out_tools)
        pairs = jax.random.permutation(key_goals, NUM_ATTRIBUTES * NUM_ENTITIES)[:MAX_GOALS].astype(jnp.int32)
        goals = jnp.stack([pairs // NUM_ENTITIES, pairs % NUM_ENTITIES], axis=1)
        num_goals = jax.random.randint(key_number, (), 1, MAX_GOALS + 1, jnp.int32)
        used = jnp.arange(MAX_GOALS)[:, None] < num_goals
        slots = jnp.where(used, goals + jnp.array([[FIRST_ATTRIBUTE, FIRST_ENTITY]], jnp.int32), PAD).reshape(-1)
        first, query, last = (jnp.array([token], jnp.int32) for token in (BOS, QUERY, SEPARATOR))
        described = _descriptions(tools) if self.described_tools else jnp.zeros(0, jnp.int32)
        shuffle = jax.vmap(lambda key: jax.random.permutation(key, NUM_ENTITIES))
        zero, false = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        state = ToolDeskState(
            prompt=jnp.concatenate([first, described, query, slots, last]),
            tools=tools,
            goals=goals,
            num_goals=num_goals,
            keys=shuffle(jax.random.split(key_keys, NUM_LOOKUPS)).astype(jnp.int32),
            values=jax.random.randint(key_values, (NUM_ATTRIBUTES, NUM_ENTITIES), 0, NUM_VALUES, jnp.int32),
            verifiable=place < params.verifiable_share,
            length=zero + 1,
            phase=zero + OPEN,
            tool=zero,
            result=zero,
            facts=jnp.zeros((NUM_ATTRIBUTES, NUM_ENTITIES), bool),
            called=jnp.zeros((NUM_TOOLS, 2 * NUM_ENTITIES), bool),
            num_calls=zero,
            num_repeats=zero,
            num_errors=zero,
            num_right=zero,
            num_answered=zero,
            stopped=false,
            invalid=false,
        )
        return state, self._show(state, zero + BOS, zero + ROLE_PROMPT, false, params, jnp.ones(MAX_GOALS))

    def step(
        self, key: Array, state: ToolDeskState, action: Array, params: ToolDeskParams
    ) -> tuple[ToolDeskState, TimeStep]:
        """Appends one token; consumes `key`: which calls fail, and where the judge errs."""
        # Not drawn at reset: the conversations of a group start alike, but a judge errs about each by itself.
        noise = jax.random.uniform(key, (1 + MAX_GOALS,))
        in_prompt, told = state.length < self.prompt_length, state.phase == RESULT
        said = state.prompt[jnp.minimum(state.length, self.prompt_length - 1)]
        token = jnp.where(in_prompt, said, jnp.where(told, state.result, action)).astype(jnp.int32)
        role = jnp.where(in_prompt, ROLE_PROMPT, jnp.where(told, ROLE_TOOL, ROLE_AGENT)).astype(jnp.int32)

        # Which phase the planner's token is in, and whether it belongs there.
        opening, naming, arguing, answering = (~in_prompt & (state.phase == p) for p in (OPEN, NAME, ARGUMENT, VALUES))
        calls, answers = opening & (token == CALL), opening & (token == ANSWER)
        tool, argument = token - FIRST_TOOL, token - FIRST_ENTITY  # arguments: ten entities, then ten keys
        names = naming & (tool >= 0) & (tool < NUM_TOOLS)
        argues = arguing & (argument >= 0) & (argument < 2 * NUM_ENTITIES)
        invalid = (opening & ~calls & ~answers) | (naming & ~names) | (arguing & ~argues)
        exhausted = calls & (state.num_calls == MAX_CALLS)

        argument = jnp.clip(argument, 0, 2 * NUM_ENTITIES - 1)
        result, fact, fitting = self._run(state, state.tool, argument)
        success = argues & fitting & (noise[0] >= params.failure_probability)
        before = state.called[state.tool, argument]
        goal = jnp.minimum(state.num_answered, MAX_GOALS - 1)
        expected = FIRST_VALUE + state.values[state.goals[goal, 0], state.goals[goal, 1]]
        phase = jnp.where(calls, NAME, jnp.where(names, ARGUMENT, jnp.where(argues, RESULT, OPEN)))
        state = dataclasses.replace(
            state,
            length=state.length + 1,
            phase=jnp.where(answers | answering, VALUES, phase).astype(jnp.int32),
            tool=jnp.where(names, state.tools[jnp.clip(tool, 0, NUM_TOOLS - 1)], state.tool),
            result=jnp.where(argues, jnp.where(success, result, ERROR), state.result),
            facts=state.facts | (success & fact),
            called=state.called.at[state.tool, argument].set(before | success),
            num_calls=state.num_calls + argues,
            num_repeats=state.num_repeats + (argues & before),
            num_errors=state.num_errors + (argues & ~fitting),
            num_right=state.num_right + (answering & (token == expected)),
            num_answered=state.num_answered + answering,
            stopped=state.stopped | answers,
            invalid=state.invalid | invalid,
        )
        finished = (state.num_answered == state.num_goals) if self.answers else answers
        return state, self._show(state, token, role, invalid | exhausted | finished, params, noise[1:])

    def demonstrate(self, key: Array, state: ToolDeskState, params: ToolDeskParams) -> Array:
        """The planner's tokens of a demonstration with faults, from a state that `reset` gave; see `teacher`."""
        return teacher(key, state, params.skip_probability, params.repeat_probability, self.num_attempts)

    def _run(self, state: ToolDeskState, tool: Array, argument: Array) -> tuple[Array, Array, Array]:
        """What a call tells: the token, the fact bool `[6, 10]`, and whether its argument was of the right kind."""
        attribute = jnp.clip(tool - NUM_LOOKUPS, 0, NUM_ATTRIBUTES - 1)
        lookup, keyed = tool < NUM_LOOKUPS, (tool >= NUM_LOOKUPS) & (attribute >= KEYED_ATTRIBUTES)
        by_key = argument >= NUM_ENTITIES
        key_space = state.keys[jnp.array(LOOKUP_OF_ATTRIBUTE, jnp.int32)[attribute]]
        owner = jnp.argmax(key_space == argument - NUM_ENTITIES)
        entity = jnp.where(by_key, owner, argument % NUM_ENTITIES)
        success = by_key == keyed
        found = jnp.where(
            lookup,
            FIRST_KEY + state.keys[jnp.minimum(tool, NUM_LOOKUPS - 1), entity],
            FIRST_VALUE + state.values[attribute, entity],
        )
        fact = (jnp.arange(NUM_ATTRIBUTES) == attribute)[:, None] & (jnp.arange(NUM_ENTITIES) == entity)[None]
        return found, fact & ~lookup, success

    def _show(
        self, state: ToolDeskState, token: Array, role: Array, ended: Array, params: ToolDeskParams, noise: Array
    ) -> TimeStep:
        used = jnp.arange(MAX_GOALS) < state.num_goals
        known = used & state.facts[state.goals[:, 0], state.goals[:, 1]]
        found = jnp.sum(known)
        flipped = noise < jnp.where(known, params.judge_false_negative, params.judge_false_positive)
        judged = jnp.sum(used & (known ^ flipped))
        completeness = (judged == state.num_goals).astype(jnp.float32) if self.strict else judged / state.num_goals
        lookup, asks = lookups_needed(state, used)
        num_needed = state.num_goals + jnp.sum(asks)
        num_useful = found + jnp.sum(asks & state.called[lookup, state.goals[:, 1]])
        penalty = params.repeat_penalty * jnp.minimum(state.num_repeats, params.max_penalised)
        penalty += params.error_penalty * jnp.minimum(state.num_errors, params.max_penalised)
        penalty += params.length_penalty * jnp.maximum(state.num_calls - num_needed, 0)
        planning = completeness * jnp.where(state.stopped, 1.0, params.unstopped_factor) - penalty
        right = state.stopped & (state.num_right == state.num_goals)
        reward = params.completeness_weight * planning
        if self.answers:
            reward += params.answer_weight * (right & state.verifiable)
        speaks = (state.length >= self.prompt_length) & (state.phase != RESULT) & ~ended
        info: dict[str, Any] = {
            "completeness": found / state.num_goals,
            "complete": found == state.num_goals,
            "num_calls": state.num_calls,
            "num_needed": num_needed,
            "precision": num_useful / jnp.maximum(state.num_calls, 1),
            "num_repeats": state.num_repeats,
            "num_errors": state.num_errors,
            "invalid": state.invalid,
            "stopped": state.stopped,
            "right": right,
        }
        return time_step(
            jnp.stack([token, speaks.astype(jnp.int32)]),
            jnp.where(ended, jnp.where(state.invalid, -1.0, reward), 0.0),
            ended,
            info={"role": role} | {name: jnp.asarray(value, jnp.float32) for name, value in info.items()},
        )


def _draw_tools(key: Array, held_out: Array) -> Array:
    """What each tool does, a permutation i32 `[8]`: an even one, or where `held_out` is 1 an odd one."""
    tools = jax.random.permutation(key, NUM_TOOLS).astype(jnp.int32)
    inversions = jnp.sum((tools[:, None] > tools[None]) & ~jnp.tri(NUM_TOOLS, dtype=bool))
    swapped = tools[jnp.array([1, 0, *range(2, NUM_TOOLS)])]
    return jnp.where(inversions % 2 == held_out, tools, swapped)


def _descriptions(tools: Array) -> Array:
    """The prompt's pairs of what a tool does and its token, i32 `[16]`."""
    does = jnp.where(tools < NUM_LOOKUPS, FIRST_LOOKUP + tools, FIRST_ATTRIBUTE + tools - NUM_LOOKUPS)
    return jnp.stack([does, FIRST_TOOL + jnp.arange(NUM_TOOLS, dtype=jnp.int32)], axis=1).reshape(-1)
