"""What algorithms that train language models share: settings, the weights that learn, and gradient steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs_jax.core import Environment
from envs_jax.spaces import Discrete
from jaxrl.llm.config import LMConfig, preset
from jaxrl.llm.lora import LoraConfig, adapted_paths, attach, init_adapters
from jaxrl.llm.parameters import Params, init_params
from jaxrl.parts.schedules import linear_decay
from jaxrl.parts.setup import at_least_one
from jaxrl.types import Data, FrozenModel, Metrics, PyTree, hparam

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """What shapes the program of every learner."""

    model: LMConfig = dataclasses.field(default_factory=lambda: preset("nano"))
    lora: LoraConfig | None = None  # adapters learn beside `data.frozen["base"]`; None: all weights do
    max_length: int = 0  # tokens of a conversation; 0: of the environment's longest
    num_micro_batches: int = 1  # a gradient is computed in so many parts, one after the other: less memory

    def __post_init__(self) -> None:
        at_least_one(self, "num_micro_batches")
        if self.max_length < 0:
            raise ValueError(f"config.max_length must be at least 0, got {self.max_length}")
        if self.lora is not None:
            adapted_paths(self.model, self.lora)


@struct.dataclass
class LearnerHParams:
    """What every learner's optimiser may have traced and swept."""

    learning_rate: Any = hparam(5e-4, low=0.0)
    anneal_updates: Any = hparam(0.0, low=0.0)  # the learning rate falls linearly to 0 over so many; 0: constant
    weight_decay: Any = hparam(0.0, low=0.0)  # decoupled (AdamW)
    max_grad_norm: Any = hparam(1.0, low=0.0)


def conversation_length(env: Any, model: LMConfig, max_length: int, learner: str) -> int:
    """T, the tokens of a conversation: `max_length`, or where that is 0 those of the environment's longest episode.

    Raises:
        ValueError: the environment does not speak in this model's tokens, or does not bound its episodes.
    """
    if not isinstance(env, Environment):
        raise ValueError(f"{learner} plays inside its program: it needs env.backend='jax'")
    space, shape = env.action_space(env.default_params), env.observation_space(env.default_params).shape
    if not isinstance(space, Discrete) or shape != (2,):
        raise ValueError(f"{learner} needs an environment of tokens (last one, who speaks), got {type(env).__name__}")
    if space.num_values != model.vocab_size:
        size, own = space.num_values, model.vocab_size
        raise ValueError(f"config.model.vocab_size must be {size}, the environment's, got {own}")
    if not max_length and not env.max_steps:
        raise ValueError("config.max_length must be given: this environment does not bound its episodes")
    length = max_length or env.max_steps + 1  # type: ignore[operator]
    if model.position == "learned" and length > model.max_positions:
        raise ValueError(f"config.model.max_positions must be at least {length}, got {model.max_positions}")
    return length


def frozen_models(config: LearnerConfig) -> dict[str, FrozenModel]:
    """What `data.frozen` may hold for a learner, see `jaxrl.types.Recipe.frozen`; without a reference."""
    return {"base": FrozenModel(config.model, model_shape(config.model), ("base",) if config.lora else ())}


def model_shape(model: LMConfig) -> PyTree:
    """The shapes of a model's parameters."""
    return jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))


def init_learned(config: LearnerConfig, key: Array, data: Data) -> Params:
    """The weights that learn, f32: adapters, or those of the base, or fresh ones; consumes `key`."""
    if config.lora is not None:
        return init_adapters(config.model, config.lora, key)
    if data.frozen is not None and "base" in data.frozen:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), data.frozen["base"])
    return init_params(config.model, key)


def model_params(config: LearnerConfig, learned: Params, data: Data) -> Params:
    """The parameters of the whole model, from the weights that learn.

    Raises:
        ValueError: adapters have no base.
    """
    if config.lora is None:
        return learned
    return attach(frozen_model(data, "config.lora", "base"), learned, config.lora.scale)


def reference_params(data: Data, setting: str) -> Params:
    """The parameters of the reference; without one those of the base, which under adapters needs no second copy.

    Raises:
        ValueError: there is neither; `setting` asked for it.
    """
    return frozen_model(data, setting, "reference", "base")


def frozen_model(data: Data, setting: str, *names: str) -> PyTree:
    """The first of the entries `names` that `data.frozen` holds; ValueError where it holds none."""
    for name in names:
        if data.frozen is not None and name in data.frozen:
            return data.frozen[name]
    raise ValueError(f"{setting} needs data.frozen[{' or '.join(map(repr, names))}]")


def adamw(hparams: Any, num_updates: Array) -> optax.GradientTransformation:
    """AdamW on a clipped gradient; the learning rate falls linearly to 0 over `hparams.anneal_updates`."""
    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(hparams.weight_decay),
        optax.scale(-hparams.learning_rate * linear_decay(num_updates, hparams.anneal_updates)),
    )


def gradient_step(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Params, PyTree], tuple[Array, Metrics]],
    params: Params,
    opt_state: PyTree,
    batch: PyTree,
    num_micro_batches: int = 1,
) -> tuple[Params, PyTree, Metrics]:
    """One step down the gradient of a loss.

    Args:
        optimizer: as from `adamw`.
        loss: `loss(params, rows) -> (loss, metrics)`, each a sum over rows: what micro-batches give is added.
        params: what learns.
        opt_state: of the optimiser.
        batch: leaves lead with B.
        num_micro_batches: divides B.

    Returns:
        Parameters, optimiser state and metrics, the norm of the gradient among them.
    """

    def part(rows: PyTree) -> tuple[Params, Metrics]:
        return jax.grad(loss, has_aux=True)(params, rows)

    if num_micro_batches == 1:
        gradient, metrics = part(batch)
    else:
        parts = jax.tree.map(lambda leaf: leaf.reshape(num_micro_batches, -1, *leaf.shape[1:]), batch)
        shape = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[0], parts))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
        (gradient, metrics), _ = jax.lax.scan(
            lambda total, rows: (jax.tree.map(jnp.add, total, part(rows)), None), nothing, parts
        )
    change, opt_state = optimizer.update(gradient, opt_state, params)
    metrics = metrics | {"grad_norm": optax.tree.norm(gradient)}
    return optax.apply_updates(params, change), opt_state, metrics


def micro_batches_divide(config: LearnerConfig, size: int, what: str) -> None:
    """ValueError unless a batch of `size` can be cut into `config.num_micro_batches`; `what` the batch is of."""
    if size % config.num_micro_batches:
        raise ValueError(f"config.num_micro_batches must divide {size} {what}, got {config.num_micro_batches}")
