"""Supervised fine-tuning of a language model on conversations: it learns what the agent says and reads all the rest.

They come from a data set, or from the environment itself: one of tokens that has `demonstrate(key, state, params)` is
played by its teacher inside the compiled program. A fixed number of such demonstrations needs no storage: number i is
drawn anew from key i whenever it is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import TimeStep
from jaxrl.data.dataset import Dataset, sample_rows, take_rows, window_rows
from jaxrl.llm.config import LMConfig, preset
from jaxrl.llm.learning import adamw, conversation_length
from jaxrl.llm.losses import aggregate, token_loss
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params, unstack_layers
from jaxrl.llm.rollout import make_policy
from jaxrl.llm.sampling import make_sampling
from jaxrl.parts.setup import at_least_one
from jaxrl.rollout import EpisodeParams
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe, TrainState, hparam


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """What shapes the program."""

    batch_size: int = 64  # conversations of one update
    num_demonstrations: int = 0  # of the environment's teacher; 0: ever new ones. Not read where there is a data set
    max_length: int = 0  # tokens of a conversation; 0: of the environment's longest
    model: LMConfig = dataclasses.field(default_factory=lambda: preset("nano"))

    def __post_init__(self) -> None:
        at_least_one(self, "batch_size")
        if self.num_demonstrations < 0:
            raise ValueError(f"config.num_demonstrations must be at least 0, got {self.num_demonstrations}")
        if self.max_length < 0:
            raise ValueError(f"config.max_length must be at least 0, got {self.max_length}")


@struct.dataclass
class SFTHParams:
    """What may be traced and swept."""

    learning_rate: Any = hparam(2e-3, low=0.0)
    anneal_updates: Any = hparam(0.0, low=0.0)  # the learning rate falls linearly to 0 over so many; 0: constant
    weight_decay: Any = hparam(0.0, low=0.0)  # decoupled (AdamW)
    max_grad_norm: Any = hparam(1.0, low=0.0)
    label_smoothing: Any = hparam(0.0, low=0.0, high=1.0)


@struct.dataclass
class SFTState(TrainState):
    demonstrations: Any = None  # typed key; number i of the set comes from `fold_in` with i


@struct.dataclass
class Demonstrations:
    """B conversations of T tokens; the first token of each is the environment's."""

    tokens: Array  # i32 [B, T]
    valid: Array  # bool [B, T]; False after the end
    mask: Array  # bool [B, T]; the agent's tokens
    returns: Array  # f32 [B]


def make_sft(config: SFTConfig, env: Any) -> Algorithm:
    """Supervised fine-tuning.

    Args:
        config: static settings.
        env: an environment of tokens, see `jaxrl.llm.rollout`. Without a data set it needs
            `demonstrate(key, state, params)`: the agent's tokens i32 `[N]` from a fresh state, the first for where the
            agent first speaks; entries that fall to the words of others are not read.

    Returns:
        An `Algorithm` whose policy samples at temperature 1.

    Raises:
        ValueError: the environment does not fit the model.
    """
    length = conversation_length(env, config.model, config.max_length, "SFT")
    model = TransformerLM(config.model)
    start, act = make_policy(model, make_sampling(), length)

    def init(key: Array, hparams: SFTHParams, data: Data) -> SFTState:
        del data
        key_params, key_demonstrations, key_state = jax.random.split(key, 3)
        params, num_updates = model.init(key_params), jnp.zeros((), jnp.int32)
        opt_state = adamw(hparams, num_updates).init(params)
        return SFTState(params, opt_state, key_state, num_updates, rollout=None, demonstrations=key_demonstrations)

    def policy(state: SFTState, data: Data) -> Params:
        del data
        return unstack_layers(state.params)

    def draw(state: SFTState, key: Array, data: Data) -> Demonstrations:
        if data.dataset is not None:
            rows = sample_rows(data.dataset, key, config.batch_size)  # of whole conversations: by their lengths
            return recorded(data.dataset, rows, length)
        if config.num_demonstrations:
            numbers = jax.random.randint(key, (config.batch_size,), 0, config.num_demonstrations)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(state.demonstrations, numbers)
        else:
            keys = jax.random.split(key, config.batch_size)
        return demonstrate(env, data.env_params, keys, length)

    def update(state: SFTState, hparams: SFTHParams, data: Data) -> tuple[SFTState, Metrics]:
        key, key_batch = jax.random.split(state.key)
        batch = draw(state, key_batch, data)

        def loss(params: Params) -> tuple[Array, Metrics]:
            logits, _ = model.apply(params, batch.tokens[:, :-1], valid=batch.valid[:, :-1])
            targets, mask = batch.tokens[:, 1:], batch.mask[:, 1:]
            right = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
            total = aggregate(token_loss(logits, targets, hparams.label_smoothing), mask)
            return total, {"loss/imitation": total, "agreement": aggregate(right, mask)}

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        change, opt_state = adamw(hparams, state.num_updates).update(gradient, state.opt_state, state.params)
        metrics |= {"grad_norm": optax.tree.norm(gradient), "demonstration/return": jnp.mean(batch.returns)}
        state = dataclasses.replace(
            state,
            params=optax.apply_updates(state.params, change),
            opt_state=opt_state,
            key=key,
            num_updates=state.num_updates + 1,
        )
        return state, metrics

    return Algorithm(init=init, update=update, policy=policy, start=start, act=act)


def demonstrate(env: Any, env_params: Any, keys: Array, length: int) -> Demonstrations:
    """One conversation of `length` tokens per key `[B]`, played by the environment's teacher; consumes `keys`.

    Raises:
        ValueError: the environment has no teacher.
    """
    if not hasattr(env, "demonstrate"):
        raise ValueError(f"SFT needs a data set: {type(env).__name__} has no `demonstrate`")
    sampled = EpisodeParams(env, env_params)
    key_draw, key_reset, key_plan, key_steps = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(keys), 1, 0)

    def play(key_reset: Array, key_plan: Array, key_steps: Array, params: PyTree) -> Demonstrations:
        state, first = env.reset(key_reset, params)
        plan = env.demonstrate(key_plan, state, params)

        def step(loop: tuple[PyTree, TimeStep, Array, Array], key: Array) -> tuple[tuple, tuple]:
            state, before, place, alive = loop
            speaks = before.observation[1] != 0
            # The plan runs from the agent's first token on, and on past the words of others.
            state, after = env.step(key, state, plan[jnp.clip(place, 0, plan.shape[0] - 1)], params)
            shown = jnp.where(alive, after.observation[0], 0), alive, alive & speaks, jnp.where(alive, after.reward, 0)
            place = place + (speaks | (place > 0))
            return (state, after, place, alive & ~after.ended), shown

        loop = (state, first, jnp.zeros((), jnp.int32), jnp.ones((), bool))
        _, (tokens, alive, mask, rewards) = jax.lax.scan(step, loop, jax.random.split(key_steps, length - 1))
        return Demonstrations(
            tokens=jnp.concatenate([first.observation[:1], tokens]),
            valid=jnp.pad(alive, (1, 0), constant_values=True),
            mask=jnp.pad(mask, (1, 0)),
            returns=jnp.sum(rewards),
        )

    return sampled.map(play, sampled.draw(key_draw), key_reset, key_plan, key_steps)


def recorded(dataset: Dataset, rows: Array, length: int) -> Demonstrations:
    """The conversations to which the rows i32 `[B]` of a data set belong, each from its beginning."""
    first = take_rows(dataset.episode_start, rows)
    window, inside = window_rows(dataset, first, length - 1)
    before, after = take_rows((dataset.transitions.observation, dataset.transitions.next_observation), window)
    return Demonstrations(
        tokens=jnp.concatenate([before[:, :1, 0], jnp.where(inside, after[:, :, 0], 0)], axis=1),
        valid=jnp.pad(inside, ((0, 0), (1, 0)), constant_values=True),
        mask=jnp.pad(inside & (before[:, :, 1] != 0), ((0, 0), (1, 0))),
        returns=take_rows(dataset.return_to_go, first),
    )


def specialise(settings: dict[str, Any]) -> Recipe:
    """With a data set it is an offline algorithm."""
    table = settings.get("data")
    return SFT._replace(specialise=None, offline=isinstance(table, dict) and bool(table.get("name")))


SFT = Recipe(make_sft, SFTConfig, SFTHParams, specialise)
