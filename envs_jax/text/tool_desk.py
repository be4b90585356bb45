"""ToolDesk: a planner asks tools, token by token, until it knows what a query needs. All of it is arrays.

Tools look up keys of entities or give values of attributes; half of the attributes are found by a key only, so that a
lookup must come before. What a plan is worth is how much of the query it has found out, whatever is answered.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, TimeStep, constant, time_step
from envs_jax.spaces import Discrete, MultiDiscrete

PAD, BOS, QUERY, SEPARATOR, CALL, ANSWER, ERROR = range(7)
VOCAB_SIZE, NUM_TOOLS, NUM_ENTITIES, NUM_VALUES, NUM_ATTRIBUTES, NUM_LOOKUPS = 64, 8, 10, 16, 6, 2
FIRST_TOOL, FIRST_ENTITY, FIRST_KEY, FIRST_VALUE, FIRST_ATTRIBUTE = 8, 16, 26, 36, 52
MAX_GOALS, MAX_CALLS = 3, 7
PROMPT_LENGTH = 3 + 2 * MAX_GOALS
MAX_LENGTH = PROMPT_LENGTH + 4 * MAX_CALLS + 1 + MAX_GOALS  # tokens of the longest episode
KEYED_ATTRIBUTES = 3  # attributes from this one on are found by a key
LOOKUP_OF_ATTRIBUTE = (0, 0, 0, 0, 0, 1)  # which lookup's keys they are found by; the first three need none
ROLE_PROMPT, ROLE_AGENT, ROLE_TOOL = 0, 1, 2
# What the planner says next, or the tool: the phases of a call, and of the answer.
OPEN, NAME, ARGUMENT, RESULT, VALUES = range(5)


@struct.dataclass
class ToolDeskState:
    prompt: Array  # i32 [9]
    goals: Array  # i32 [3, 2]; attribute, entity
    num_goals: Array  # i32 []
    keys: Array  # i32 [2, 10]; of each entity under each lookup
    values: Array  # i32 [6, 10]; of each attribute of each entity
    verifiable: Array  # bool []; an answer to this query can be checked
    length: Array  # i32 []; tokens so far
    phase: Array  # i32 []
    tool: Array  # i32 []; named in the call under way
    result: Array  # i32 []; the token a tool says next
    facts: Array  # bool [6, 10]; found out
    called: Array  # bool [8, 20]; calls that succeeded, by tool and argument (entities, then keys)
    num_calls: Array  # i32 []
    num_repeats: Array  # i32 []
    num_errors: Array  # i32 []
    num_right: Array  # i32 []; right values in the answer
    num_answered: Array  # i32 []
    stopped: Array  # bool []; the planner has said ANSWER
    invalid: Array  # bool []; it has said what no plan holds there


@struct.dataclass
class ToolDeskParams(EnvParams):
    repeat_penalty: Array = constant(0.1)  # per call that had succeeded before
    error_penalty: Array = constant(0.1)  # per call with the wrong kind of argument
    max_penalised: Array = constant(5, jnp.int32)  # calls that each of the two counts at most
    unstopped_factor: Array = constant(0.5)  # of the completeness where the planner did not stop by itself
    completeness_weight: Array = constant(1.0)
    answer_weight: Array = constant(0.0)  # needs `answers`
    verifiable_share: Array = constant(1.0)  # of queries whose answer can be rewarded
    skip_probability: Array = constant(0.25)  # of a demonstration to leave out a goal
    repeat_probability: Array = constant(0.2)  # of a demonstration to make a call twice


class ToolDesk(Environment[ToolDeskState, ToolDeskParams]):
    """Plan calls of tools for a query of one to three goals.

    - Observation: i32 `[2]`: the last token (0 to 63) and whether the planner says the next one.
    - Action: Discrete(64), the planner's next token; ignored where it does not speak. A call is CALL, a tool, an
      entity or a key; the tool's result follows by itself. ANSWER ends planning, as does an eighth CALL.
    - Prompt: BOS QUERY, three slots (attribute, entity) or PAD, SEPARATOR.
    - Reward: at the end, `completeness_weight * (c + r)` with c the share of goals found out (or, `strict`, whether all
      are), halved where the planner did not stop, and r = -0.1 per repeated and per wrong call, at most five of each;
      with `answers`, plus `answer_weight` where all values said after ANSWER are right. An ill-formed token ends the
      episode with -1.
    - Ending: terminated after ANSWER (with `answers`, after one value per goal), an ill-formed token, or CALL number 8.
    - Info: role of the last token; completeness, complete, num_calls, num_repeats, num_errors, invalid, stopped, right.
    """

    max_steps = MAX_LENGTH - 1

    def __init__(self, strict: bool = False, answers: bool = False):
        """`strict`: completeness is all or nothing; `answers`: the planner also answers, one value per goal."""
        self.strict, self.answers = strict, answers

    @property
    def default_params(self) -> ToolDeskParams:
        return ToolDeskParams()

    def observation_space(self, params: ToolDeskParams) -> MultiDiscrete:
        return MultiDiscrete((VOCAB_SIZE, 2))

    def action_space(self, params: ToolDeskParams) -> Discrete:
        return Discrete(VOCAB_SIZE)

    def reset(self, key: Array, params: ToolDeskParams) -> tuple[ToolDeskState, TimeStep]:
        key_goals, key_number, key_keys, key_values, key_verifiable = jax.random.split(key, 5)
        pairs = jax.random.permutation(key_goals, NUM_ATTRIBUTES * NUM_ENTITIES)[:MAX_GOALS].astype(jnp.int32)
        goals = jnp.stack([pairs // NUM_ENTITIES, pairs % NUM_ENTITIES], axis=1)
        num_goals = jax.random.randint(key_number, (), 1, MAX_GOALS + 1, jnp.int32)
        used = jnp.arange(MAX_GOALS)[:, None] < num_goals
        slots = jnp.where(used, goals + jnp.array([[FIRST_ATTRIBUTE, FIRST_ENTITY]], jnp.int32), PAD).reshape(-1)
        ends = jnp.array([BOS, QUERY, SEPARATOR], jnp.int32)
        shuffle = jax.vmap(lambda key: jax.random.permutation(key, NUM_ENTITIES))
        zero, false = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        state = ToolDeskState(
            prompt=jnp.concatenate([ends[:2], slots, ends[2:]]),
            goals=goals,
            num_goals=num_goals,
            keys=shuffle(jax.random.split(key_keys, NUM_LOOKUPS)).astype(jnp.int32),
            values=jax.random.randint(key_values, (NUM_ATTRIBUTES, NUM_ENTITIES), 0, NUM_VALUES, jnp.int32),
            verifiable=jax.random.uniform(key_verifiable) < params.verifiable_share,
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
        return state, self._show(state, zero + BOS, zero + ROLE_PROMPT, false, params)

    def step(
        self, key: Array, state: ToolDeskState, action: Array, params: ToolDeskParams
    ) -> tuple[ToolDeskState, TimeStep]:
        """Appends one token; ignores `key`."""
        del key
        in_prompt, told = state.length < PROMPT_LENGTH, state.phase == RESULT
        said = state.prompt[jnp.minimum(state.length, PROMPT_LENGTH - 1)]
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
        result, fact, success = self._run(state, state.tool, argument)
        success, before = argues & success, state.called[state.tool, argument]
        goal = jnp.minimum(state.num_answered, MAX_GOALS - 1)
        expected = FIRST_VALUE + state.values[state.goals[goal, 0], state.goals[goal, 1]]
        phase = jnp.where(calls, NAME, jnp.where(names, ARGUMENT, jnp.where(argues, RESULT, OPEN)))
        state = dataclasses.replace(
            state,
            length=state.length + 1,
            phase=jnp.where(answers | answering, VALUES, phase).astype(jnp.int32),
            tool=jnp.where(names, tool, state.tool),
            result=jnp.where(argues, result, state.result),
            facts=state.facts | (success & fact),
            called=state.called.at[state.tool, argument].set(before | success),
            num_calls=state.num_calls + argues,
            num_repeats=state.num_repeats + (argues & before),
            num_errors=state.num_errors + (argues & ~success),
            num_right=state.num_right + (answering & (token == expected)),
            num_answered=state.num_answered + answering,
            stopped=state.stopped | answers,
            invalid=state.invalid | invalid,
        )
        finished = (state.num_answered == state.num_goals) if self.answers else answers
        return state, self._show(state, token, role, invalid | exhausted | finished, params)

    def demonstrate(self, key: Array, state: ToolDeskState, params: ToolDeskParams) -> Array:
        """The planner's tokens of a demonstration with faults, from a state that `reset` gave; see `teacher`."""
        return teacher(key, state, params.skip_probability, params.repeat_probability)

    def _run(self, state: ToolDeskState, tool: Array, argument: Array) -> tuple[Array, Array, Array]:
        """A tool's result token, the fact it tells bool `[6, 10]`, and whether its argument was of the right kind."""
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
        return jnp.where(success, found, ERROR), fact & ~lookup, success

    def _show(self, state: ToolDeskState, token: Array, role: Array, ended: Array, params: ToolDeskParams) -> TimeStep:
        used = jnp.arange(MAX_GOALS) < state.num_goals
        found = jnp.sum(used & state.facts[state.goals[:, 0], state.goals[:, 1]])
        complete = found == state.num_goals
        completeness = complete.astype(jnp.float32) if self.strict else found / state.num_goals
        penalty = params.repeat_penalty * jnp.minimum(state.num_repeats, params.max_penalised)
        penalty += params.error_penalty * jnp.minimum(state.num_errors, params.max_penalised)
        planning = completeness * jnp.where(state.stopped, 1.0, params.unstopped_factor) - penalty
        right = state.stopped & (state.num_right == state.num_goals)
        reward = params.completeness_weight * planning
        if self.answers:
            reward += params.answer_weight * (right & state.verifiable)
        speaks = (state.length >= PROMPT_LENGTH) & (state.phase != RESULT) & ~ended
        info: dict[str, Any] = {
            "completeness": found / state.num_goals,
            "complete": complete,
            "num_calls": state.num_calls,
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


def teacher(
    key: Array, state: ToolDeskState, skip_probability: Array | float = 0.0, repeat_probability: Array | float = 0.0
) -> Array:
    """The planner's tokens for a query, i32 `[32]`: action i follows the prompt's end by i tokens; consumes `key`.

    Without faults this is the plan of fewest calls. With them each goal is left out, and each call made twice, by
    chance: demonstrations of mixed quality for a cold start.
    """
    key_skip, key_repeat = jax.random.split(key)
    attribute, entity = state.goals[:, 0], state.goals[:, 1]
    wanted = jnp.arange(MAX_GOALS) < state.num_goals
    wanted &= ~jax.random.bernoulli(key_skip, skip_probability, (MAX_GOALS,))
    keyed = attribute >= KEYED_ATTRIBUTES
    lookup = jnp.array(LOOKUP_OF_ATTRIBUTE, jnp.int32)[attribute]
    # One lookup serves every goal that needs the same key: the first of them makes it.
    same = (lookup[:, None] == lookup[None]) & (entity[:, None] == entity[None]) & (wanted & keyed)[None]
    asks = wanted & keyed & ~jnp.any(same & jnp.tri(MAX_GOALS, k=-1, dtype=bool), axis=1)
    argument = jnp.where(keyed, FIRST_KEY + state.keys[lookup, entity], FIRST_ENTITY + entity)
    tools = jnp.stack([FIRST_TOOL + lookup, FIRST_TOOL + NUM_LOOKUPS + attribute], axis=1).reshape(-1)
    arguments = jnp.stack([FIRST_ENTITY + entity, argument], axis=1).reshape(-1)
    made = jnp.stack([asks, wanted], axis=1).reshape(-1)
    again = made & jax.random.bernoulli(key_repeat, repeat_probability, made.shape)
    made = jnp.stack([made, again], axis=1).reshape(-1)
    order = jnp.argsort(~made, stable=True)[:MAX_CALLS]
    number = jnp.minimum(jnp.sum(made), MAX_CALLS)
    frames = jnp.stack(
        [
            jnp.full(2 * len(tools), CALL, jnp.int32),
            jnp.repeat(tools, 2),
            jnp.repeat(arguments, 2),
            jnp.zeros(2 * len(tools), jnp.int32),
        ],
        1,
    )
    actions = jnp.zeros(MAX_LENGTH - PROMPT_LENGTH, jnp.int32)
    actions = actions.at[: 4 * MAX_CALLS].set(frames[order].reshape(-1))
    values = FIRST_VALUE + state.values[attribute, entity]
    place, end = jnp.arange(actions.shape[0]), 4 * number
    answer = jnp.concatenate([jnp.array([ANSWER], jnp.int32), values])[jnp.clip(place - end, 0, MAX_GOALS)]
    return jnp.where(place < end, actions, jnp.where(place <= end + MAX_GOALS, answer, PAD)).astype(jnp.int32)
