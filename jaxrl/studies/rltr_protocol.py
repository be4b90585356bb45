"""How the RLTR study measures a planner: its plans on held-out queries, and answers by a summariser common to all."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from envs_jax.core import TimeStep
from envs_jax.text.tool_desk import ANSWER, ToolDesk
from envs_jax.text.tool_desk_plans import hack
from jaxrl.llm.attention import Cache
from jaxrl.llm.config import LMConfig
from jaxrl.llm.demonstrations import demonstrate
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.rollout import make_policy
from jaxrl.llm.sampling import make_sampling
from jaxrl.rollout import Policy, episodes
from jaxrl.studies.laboratory import Arrays, over_seeds
from jaxrl.types import Array

TEST_SEED, DEVELOPMENT_SEED = 12345, 54321


@dataclasses.dataclass(frozen=True)
class Examination:
    """Plays held-out queries, the same ones for every planner.

    Args:
        model: the shape of planners and summariser.
        num_tasks: how many.
        seed: of the queries.
        described: of the environment: tools are described in the prompt, in orders never met in training.
    """

    model: LMConfig
    num_tasks: int
    seed: int = TEST_SEED
    described: bool = False

    def plans(self, params: Params, *, sampled: bool = False) -> Arrays:
        """Means over the queries of what ToolDesk's `info` holds at the end, f32 `[S]` each; parameters `[S, ...]`.

        "copied": the share of right answers if an exact copier gave them: what was found out completely and in time.
        """
        return over_seeds(self._sampled if sampled else self._greedy, (0,), params)

    def answers(self, params: Params) -> Arrays:
        """The share of queries that a planner which also answers answers right by itself, f32 `[S]`."""
        return over_seeds(self._own, (0,), params)

    def summarised(self, params: Params, summariser: Params) -> Arrays:
        """The share of right answers where one summariser, without axis S, reads every planner's finished calls."""
        return over_seeds(self._team, (0, None), params, summariser)

    def _greedy(self, params: Params) -> dict[str, Array]:
        return self._plans(params, True)

    def _sampled(self, params: Params) -> dict[str, Array]:
        return self._plans(params, False)

    def _plans(self, params: Params, deterministic: bool) -> dict[str, Array]:
        env = ToolDesk(described_tools=self.described)
        final = self._play(env, make_policy(*self._model(env)), unstack_layers(params), deterministic)
        final["copied"] = final["complete"] * final["stopped"]
        return {name: jnp.mean(values) for name, values in final.items()}

    def _own(self, params: Params) -> dict[str, Array]:
        env = ToolDesk(answers=True)
        final = self._play(env, make_policy(*self._model(env)), unstack_layers(params), True)
        return {"right": jnp.mean(final["right"])}

    def _team(self, params: Params, summariser: Params) -> dict[str, Array]:
        env = ToolDesk(answers=True)
        pair = unstack_layers(params), unstack_layers(summariser)
        return {"right": jnp.mean(self._play(env, make_team(*self._model(env)), pair, True)["right"])}

    def _model(self, env: ToolDesk) -> tuple[TransformerLM, Any, int]:
        return TransformerLM(self.model), make_sampling(), num_tokens(env)

    def _play(self, env: ToolDesk, policy: Policy, policy_params: Any, deterministic: bool) -> dict[str, Array]:
        key_reset, key_noise = jax.random.split(jax.random.key(self.seed))
        params = dataclasses.replace(env.default_params, held_out_tools=jnp.ones((), jnp.int32))
        return episodes(
            *(env, policy, policy_params, params, jax.random.split(key_reset, self.num_tasks), key_noise),
            num_tokens(env) - 1,
            deterministic=deterministic,
        ).final


def num_tokens(env: ToolDesk) -> int:
    """Of the longest conversation."""
    return (env.max_steps or 0) + 1


def make_team(model: TransformerLM, sampling: Any, num_slots: int) -> Policy:
    """`(start, act)` of a planner and a summariser: up to ANSWER the one speaks, then the other, which has read along.

    Policy parameters are the pair of theirs. No token of the planner is chosen by the summariser, nor the reverse.
    """
    start_one, act_one = make_policy(model, sampling, num_slots)

    def start(params: tuple[Params, Params], key: Array) -> tuple[Cache, Cache, Array]:
        return start_one(params[0], key), start_one(params[1], key), jnp.zeros((), bool)

    def act(
        params: tuple[Params, Params],
        carry: tuple[Cache, Cache, Array],
        time_step: TimeStep,
        key: Array,
        deterministic: bool,
    ) -> tuple[Array, tuple[Cache, Cache, Array], dict[str, Array]]:
        planned, planning, _ = act_one(params[0], carry[0], time_step, key, deterministic)
        answered, answering, _ = act_one(params[1], carry[1], time_step, key, True)
        finished = carry[2] | (time_step.observation[0] == ANSWER)
        return jnp.where(finished, answered, planned), (planning, answering, finished), {}

    return start, act


class Scripted(ToolDesk):
    """ToolDesk whose teacher is the exact planner, or one of `tool_desk_plans.HACKS`."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def demonstrate(self, key: Array, state: Any, params: Any) -> Array:
        if self.name:
            return hack(self.name, state)
        still = jnp.zeros(())
        return super().demonstrate(key, state, dataclasses.replace(params, skip_probability=still,
                                                                   repeat_probability=still))  # fmt: skip


@functools.cache
def scripted_return(name: str, num_tasks: int, length_penalty: float) -> float:
    """The mean return of a scripted plan; "" is the plan of fewest calls."""
    env = Scripted(name)
    params = dataclasses.replace(env.default_params, length_penalty=jnp.float32(length_penalty))
    keys = jax.random.split(jax.random.key(TEST_SEED), num_tasks)
    played = jax.jit(lambda keys: demonstrate(env, params, keys, num_tokens(env)).returns)(keys)
    return float(jnp.mean(played))
