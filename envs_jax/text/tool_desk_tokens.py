"""ToolDesk's words: its vocabulary, the state of an episode and its parameters."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from envs_jax.core import Array, EnvParams, constant

PAD, BOS, QUERY, SEPARATOR, CALL, ANSWER, ERROR = range(7)
VOCAB_SIZE, NUM_TOOLS, NUM_ENTITIES, NUM_VALUES, NUM_ATTRIBUTES, NUM_LOOKUPS = 64, 8, 10, 16, 6, 2
FIRST_TOOL, FIRST_ENTITY, FIRST_KEY, FIRST_VALUE, FIRST_ATTRIBUTE, FIRST_LOOKUP = 8, 16, 26, 36, 52, 58
MAX_GOALS, MAX_CALLS = 3, 7
PROMPT_LENGTH = 3 + 2 * MAX_GOALS
DESCRIPTION_LENGTH = 2 * NUM_TOOLS  # tokens that the prompt has more with `described_tools`
MAX_LENGTH = PROMPT_LENGTH + 4 * MAX_CALLS + 1 + MAX_GOALS  # tokens of the longest episode, without descriptions
KEYED_ATTRIBUTES = 3  # attributes from this one on are found by a key
LOOKUP_OF_ATTRIBUTE = (0, 0, 0, 0, 0, 1)  # which lookup's keys they are found by; the first three need none
ROLE_PROMPT, ROLE_AGENT, ROLE_TOOL = 0, 1, 2
# What the planner says next, or the tool: the phases of a call, and of the answer.
OPEN, NAME, ARGUMENT, RESULT, VALUES = range(5)


@struct.dataclass
class ToolDeskState:
    prompt: Array  # i32 [9], or [25] with descriptions
    tools: Array  # i32 [8]; what each tool does: 0 and 1 look up keys, 2 + a tells attribute a
    goals: Array  # i32 [3, 2]; attribute, entity
    num_goals: Array  # i32 []
    keys: Array  # i32 [2, 10]; of each entity under each lookup
    values: Array  # i32 [6, 10]; of each attribute of each entity
    verifiable: Array  # bool []; an answer to this query can be checked
    length: Array  # i32 []; tokens so far
    phase: Array  # i32 []
    tool: Array  # i32 []; what the tool does that is named in the call under way
    result: Array  # i32 []; the token a tool says next
    facts: Array  # bool [6, 10]; found out
    called: Array  # bool [8, 20]; calls that succeeded, by what the tool does and argument (entities, then keys)
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
    length_penalty: Array = constant(0.0)  # per call more than the fewest with which the query can be answered
    unstopped_factor: Array = constant(0.5)  # of the completeness where the planner did not stop by itself
    completeness_weight: Array = constant(1.0)
    answer_weight: Array = constant(0.0)  # needs `answers`
    judge_false_positive: Array = constant(0.0)  # chance that a goal missed is rewarded as found out
    judge_false_negative: Array = constant(0.0)  # chance that a goal found out is rewarded as missed
    failure_probability: Array = constant(0.0)  # of a call; what failed by chance is not penalised, nor its retry
    num_queries: Array = constant(0, jnp.int32)  # episodes ask one of so many fixed queries; 0: ever new ones
    verifiable_share: Array = constant(1.0)  # of queries whose answer can be rewarded; of fixed ones, the first
    held_out_tools: Array = constant(0, jnp.int32)  # 1: `described_tools` come in the orders that 0 never shows
    skip_probability: Array = constant(0.25)  # of a demonstration to leave out a goal
    repeat_probability: Array = constant(0.2)  # of a demonstration to make a call twice
