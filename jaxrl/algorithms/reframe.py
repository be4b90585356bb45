"""Re:Frame (Zelezetsky et al. 2025, arXiv 2508.19344): a Decision Transformer with an expert's memory beside it.

`init` builds the memory: an autoencoder of the expert's steps, whose latents are stored. While the policy learns from
other data, every step looks the most similar entries up, and a gate decides how much of what was found is added to
its features. The same memory answers when the policy acts. Without its memory the network is the Decision Transformer,
and at first it equals it. The paper's text fixes the idea and what an entry holds; the rest is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from envs_jax.core import TimeStep
from envs_jax.registry import nearest
from jaxrl.parts.associative_memory import (
    Autoencoder,
    Experience,
    Memory,
    MemoryConfig,
    Reading,
    build_memory,
    retrieve,
    unit,
)
from jaxrl.parts.normalize import normalize
from jaxrl.parts.sequences import (
    Context,
    SequenceConfig,
    SequenceHParams,
    SequencePolicy,
    SequenceState,
    first_state,
    improve,
    make_sequences,
    standardised,
)
from jaxrl.parts.transformer import DecisionTransformer, masked_squared_error
from jaxrl.types import Algorithm, Array, Data, Metrics, PyTree, Recipe, hparam

CHOICES = {
    "query": ("hidden", "situation"),
    "fusion": ("late", "prefix", "wide"),
    "retrieval": ("content", "random"),
}


@dataclasses.dataclass(frozen=True)
class ReframeConfig(SequenceConfig):
    """What shapes the program."""

    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    max_retrieved: int = 16  # P; `hparams.num_retrieved` of them count
    query: str = "hidden"  # made of the features; or "situation": of the frozen code of return and observation
    # "late": added to the features, gated. "prefix": what the first step finds becomes tokens before the sequence.
    # "wide": a control without memory, in which a network of as many parameters reads the features instead.
    fusion: str = "late"
    retrieval: str = "content"  # or "random": a control

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                hint = nearest(value, allowed)
                raise ValueError(f"config.{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")
        if not 1 <= self.max_retrieved <= self.memory.size:
            raise ValueError(
                f"config.max_retrieved must be in [1, {self.memory.size}], the size of the memory, got "
                f"{self.max_retrieved}"
            )


@struct.dataclass
class ReframeHParams(SequenceHParams):
    """What may be traced and swept."""

    num_retrieved: Any = hparam(8.0, low=1.0)  # entries that count, at most `config.max_retrieved`
    temperature: Any = hparam(0.1, low=1e-3)  # of the softmax over their cosines
    gate_bias: Any = hparam(-2.0)  # what the gate's bias begins with


@struct.dataclass
class ReframePolicy(SequencePolicy):
    memory: Memory
    keys: Array  # f32 [M, key]
    num_retrieved: Array  # f32 []
    temperature: Array  # f32 []


@struct.dataclass
class ReframeState(SequenceState):
    memory: Any = None  # Memory; never changed after `init`
    num_retrieved: Any = None  # f32 []; as in the hyper-parameters
    temperature: Any = None  # f32 []


class Reader(nn.Module):
    """The layers between features and memory."""

    width: int  # of the features
    key_size: int

    def setup(self) -> None:
        self.make_key = nn.Dense(self.key_size, use_bias=False)  # W_k
        self.make_query = nn.Dense(self.key_size, use_bias=False)  # W_q
        self.make_value = nn.Dense(self.width, use_bias=False)  # W_v
        self.make_gate = nn.Dense(1)  # W_g, b_g
        self.output = nn.Dense(self.width, use_bias=False, kernel_init=nn.initializers.zeros)  # W_m

    def keys(self, situations: Array) -> Array:
        """f32 `[..., key]` of length 1, from situations `[..., 2 E]`."""
        return unit(self.make_key(situations))

    def query(self, features: Array) -> Array:
        """f32 `[key]` of length 1, from features `[width]`."""
        return unit(self.make_query(features))

    def values(self, latents: Array) -> Array:
        """f32 `[..., width]` from latents `[..., latent]`."""
        return self.make_value(latents)

    def fuse(self, features: Array, latent: Array) -> tuple[Array, Array]:
        """The features `[width]` with what was read (a mean of latents) added, and the gate in [0, 1], `[]`."""
        read_out = self.make_value(latent)
        gate = jax.nn.sigmoid(self.make_gate(jnp.concatenate([features, read_out])))
        return features + gate * self.output(read_out), gate[0]

    def __call__(self, features: Array, situation: Array, latent: Array) -> tuple:
        return self.keys(situation), self.query(features), self.fuse(features, latent)


class Wide(nn.Module):
    """The control: two layers that read the features, the second zero at first."""

    hidden_size: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        hidden = nn.gelu(nn.Dense(self.hidden_size)(features), approximate=False)
        return features + nn.Dense(features.shape[-1], kernel_init=nn.initializers.zeros)(hidden)


def make_reframe(config: ReframeConfig, env: Any) -> Algorithm:
    """Re:Frame for continuous actions with bounds.

    Args:
        config: static settings.
        env: an `Environment`, or the `EnvSpec` of a data set.

    Returns:
        An `Algorithm` that learns from `data.dataset`, with a memory of `data.expert`. `act` tells the `gate` f32 [],
        and of what was looked up the `rows` i32 [P] of the memory, `similarity` and `weights` f32 [P].

    Raises:
        ValueError: as `make_decision_transformer`.
    """
    sequences = make_sequences(config, env, "Re:Frame")
    width, memory_config = config.transformer.width, config.memory
    observation_size = sequences.window[0].shape[-1]
    backbone = DecisionTransformer(config.transformer, sequences.action_size, sequences.num_times)
    reader, encoder = (
        Reader(width, memory_config.key_size),
        Autoencoder(memory_config, observation_size, sequences.action_size),
    )
    wide = Wide(round(reader_size(config) / (2 * width + 1)))

    def call(module: nn.Module, method: str) -> Callable[..., Any]:
        return lambda params, *inputs, **options: module.apply({"params": params}, *inputs, method=method, **options)

    features, actions = call(backbone, "features"), call(backbone, "actions")
    make_keys, make_query, make_values, fuse = (call(reader, name) for name in ("keys", "query", "values", "fuse"))
    widen, encode = call(wide, "__call__"), call(encoder, "situation")

    def init(key: Array, hparams: ReframeHParams, data: Data) -> ReframeState:
        key_params, key_state = jax.random.split(key)  # as a Decision Transformer does: it begins with its parameters
        key_reader, key_memory = jax.random.split(jax.random.fold_in(key, 1))
        memory = build_memory(key_memory, memory_config, experience(hparams, data))
        hidden = jnp.zeros(width)
        if config.fusion == "wide":
            extra = wide.init(key_reader, hidden)["params"]
        else:
            extra = reader.init(key_reader, hidden, memory.situation[0], memory.latent[0])["params"]
            extra["make_gate"]["bias"] = jnp.full(1, hparams.gate_bias, jnp.float32)
        params = {"backbone": backbone.init(key_params, *sequences.window)["params"], "reader": extra}
        return first_state(ReframeState, params, key_state, hparams, data, sequences.spec, memory=memory)

    def experience(hparams: ReframeHParams, data: Data) -> Experience:
        """The expert's steps as the policy sees them; without a data set, where only the form is asked for, one."""
        expert, dataset = data.expert, data.dataset
        if expert is None or dataset is None:
            zeros = jnp.zeros((1, observation_size)), jnp.zeros((1, sequences.action_size)), jnp.zeros(1)
            return Experience(*zeros, jnp.zeros(1, jnp.int32), jnp.ones((), jnp.int32))
        return Experience(
            observation=standardised(dataset.statistics, expert.transitions.observation),
            action=jax.vmap(sequences.to_unit)(expert.transitions.action),
            return_to_go=expert.return_to_go * hparams.reward_scale,
            episode=expert.episode_start,
            size=expert.size,
        )

    def make_policy(params: PyTree, state: ReframeState, hparams: Any) -> ReframePolicy:
        reads = config.fusion != "wide"
        keys = make_keys(params["reader"], state.memory.situation) if reads else jnp.zeros((memory_config.size, 1))
        return ReframePolicy(
            params, state.statistics, state.reward_scale, state.target_return, state.memory, keys,
            hparams.num_retrieved, hparams.temperature,
        )  # fmt: skip

    def policy(state: ReframeState, data: Data) -> ReframePolicy:
        del data
        return make_policy(state.params, state, state)

    def look_up(policy_params: ReframePolicy, hidden: Array, seen: tuple[Array, Array], key: Array) -> Reading:
        """For one step, with features `hidden` `[width]` and `seen` = (observation [S], return to go [])."""
        params, memory = policy_params.params["reader"], policy_params.memory
        if config.query == "situation":
            situation = encode(memory.encoder["params"], normalize(memory.returns, seen[1], limit=jnp.inf), seen[0])
            query = make_keys(params, jax.lax.stop_gradient(situation))
        else:
            query = make_query(params, hidden)
        return retrieve(
            query, policy_params.keys, memory, policy_params.num_retrieved, policy_params.temperature,
            config.max_retrieved, key if config.retrieval == "random" else None,
        )  # fmt: skip

    def read(policy_params: ReframePolicy, hidden: Array, seen: tuple, key: Array) -> tuple[Array, Array, Reading]:
        """One step's features with what the memory adds to them, the gate, and what was looked up."""
        found = look_up(policy_params, hidden, seen, key)
        fused, gate = fuse(policy_params.params["reader"], hidden, found.latent)
        return fused, gate, found

    def see_windows(policy_params: ReframePolicy, windows: tuple, key: Array, **options: Any) -> tuple[Array, Any]:
        """Features `[B, K, width]` of windows before any late fusion; with "prefix" also what first steps found."""
        params = policy_params.params
        hidden = features(params["backbone"], *windows, **options)
        if config.fusion != "prefix":
            return hidden, None
        keys = jax.random.split(key, hidden.shape[0])
        found = jax.vmap(look_up, (None, 0, 0, 0))(
            policy_params, hidden[:, 0], (windows[0][:, 0], windows[2][:, 0]), keys
        )
        # Times their number, so that equally good entries keep the size of their values.
        tokens = make_values(params["reader"], policy_params.memory.latent[found.rows])
        tokens = tokens * (policy_params.num_retrieved * found.weights)[..., None]
        return features(params["backbone"], *windows, prefix=(tokens, found.weights > 0), **options), found

    def act(
        policy_params: ReframePolicy, carry: Context, time_step: TimeStep, key: Array, deterministic: bool
    ) -> tuple:
        del deterministic
        window, index, carry = sequences.see(policy_params, carry, time_step)
        hidden, found = jax.tree.map(
            lambda leaf: leaf[0], see_windows(policy_params, jax.tree.map(lambda leaf: leaf[None], window), key)
        )
        hidden, gate = hidden[index], jnp.zeros(())
        if config.fusion == "late":
            hidden, gate, found = read(policy_params, hidden, (window[0][index], window[2][index]), key)
        elif config.fusion == "wide":
            hidden = widen(policy_params.params["reader"], hidden)
        chosen = actions(policy_params.params["backbone"], hidden[None])[0]
        told = {} if found is None else {name: getattr(found, name) for name in ("rows", "similarity", "weights")}
        return *sequences.choose(carry, index, chosen), {"gate": gate} | told

    def predict(policy_params: ReframePolicy, windows: tuple, key: Array) -> tuple[Array, Array, Array]:
        """Of windows, with dropout: actions `[B, K, A]`, gates `[B, K]` and the largest cosines `[B, K]`."""
        options = {"deterministic": False, "rngs": {"dropout": key}}
        shape = windows[4].shape
        hidden, found = see_windows(policy_params, windows, jax.random.fold_in(key, 1), **options)
        # One axis of steps, for the sake of the weights' gradients; see `jaxrl.parts.transformer.Linear`.
        steps, seen = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (hidden, (windows[0], windows[2])))
        gates = similarity = jnp.zeros(shape)
        if config.fusion == "late":
            keys = jax.random.split(jax.random.fold_in(key, 2), steps.shape[0])
            steps, gates, found = jax.vmap(read, (None, 0, 0, 0))(policy_params, steps, seen, keys)
            gates, similarity = gates.reshape(shape), found.similarity[:, 0].reshape(shape)
        elif config.fusion == "wide":
            steps = widen(policy_params.params["reader"], steps)
        else:
            similarity = jnp.broadcast_to(found.similarity[:, :1], shape)
        return actions(policy_params.params["backbone"], steps.reshape(hidden.shape)), gates, similarity

    def update(state: ReframeState, hparams: ReframeHParams, data: Data) -> tuple[ReframeState, Metrics]:
        key, key_sample, key_dropout = jax.random.split(state.key, 3)
        windows = sequences.draw(state, hparams, data, key_sample)

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            policy_params = make_policy(params, state, hparams)
            predicted, gates, similarity = predict(policy_params, windows, key_dropout)
            _, action, _, _, mask = windows
            value = masked_squared_error(predicted, action, mask, config.corl_loss)
            weight = mask / jnp.maximum(jnp.sum(mask), 1)
            return value, {
                "loss/action": value,
                "gate": jnp.sum(gates * weight),
                "gate_open": jnp.sum((gates > 0.5) * weight),
                "similarity": jnp.sum(similarity * weight),
                "memory/explained_observation": state.memory.explained[0],
                "memory/explained_action": state.memory.explained[1],
            }

        return improve(state, hparams, key, loss)

    return Algorithm(init=init, update=update, policy=policy, start=sequences.start, act=act)


def reader_size(config: ReframeConfig) -> int:
    """The number of parameters that the memory adds to the Decision Transformer."""
    width, memory = config.transformer.width, config.memory
    keys = memory.key_size * (2 * memory.encoder_size + width)
    return keys + memory.latent_size * width + 2 * width + 1 + width * width


def detached(policy_params: ReframePolicy) -> ReframePolicy:
    """The policy without its memory: nothing of what it reads reaches the features (late fusion)."""
    reader = dict(policy_params.params["reader"])
    reader["output"] = jax.tree.map(jnp.zeros_like, reader["output"])
    return dataclasses.replace(policy_params, params=policy_params.params | {"reader": reader})


def shuffled(policy_params: ReframePolicy, key: Array) -> ReframePolicy:
    """The policy with the contents of its memory dealt out anew to the keys; consumes `key`."""
    memory = policy_params.memory
    last = jnp.where(memory.valid, jax.random.uniform(key, memory.valid.shape), jnp.inf)
    order = jnp.argsort(last)  # what is not valid stays behind what is
    return dataclasses.replace(policy_params, memory=dataclasses.replace(memory, latent=memory.latent[order]))


def specialise(settings: dict[str, Any]) -> Recipe:
    """The recipe; ValueError where more entries are to count than are looked up."""
    asked = settings.get("hparams", {}).get("num_retrieved", ReframeHParams().num_retrieved)
    limit = settings.get("config", {}).get("max_retrieved", ReframeConfig().max_retrieved)
    if isinstance(asked, int | float) and isinstance(limit, int) and asked > limit:
        raise ValueError(f"hparams.num_retrieved must be at most config.max_retrieved = {limit}, got {asked}")
    return REFRAME


REFRAME = Recipe(make_reframe, ReframeConfig, ReframeHParams, specialise, offline=True, expert=True)
