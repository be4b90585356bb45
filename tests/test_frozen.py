"""Models that `[data]` names: from runs and from checkpoints, checked before anything is traced."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl.llm.checkpoints import save_hf
from jaxrl.llm.model import TransformerLM
from jaxrl.run.config import ConfigError, load_config, make_config
from jaxrl.run.frozen import load_frozen
from jaxrl.run.runner import load_state
from programs import bits
from token_worlds import TINY

MODEL = {name: getattr(TINY, name) for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim",
                                               "intermediate_size", "qk_norm", "tie_embeddings")}  # fmt: skip
CONFIGS = {
    "sft": {"batch_size": 4},
    "grpo": {"num_groups": 2, "group_size": 2, "reward_model": MODEL},
    "reward_model": {"batch_size": 4, "num_demonstrations": 8, "num_held_out": 4},
}


def run_of(algorithm, *overrides):
    values = {
        "algorithm": algorithm,
        "num_updates": 1,
        "env": {"name": "token_worlds:Bandit", "max_steps": 2},
        "config": {"model": MODEL} | CONFIGS[algorithm],
        "hparams": {"learning_rate": 0.1, "anneal_updates": 0},
        "evaluation": {"num_episodes": 2},
    }
    return make_config(values, overrides)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a Hugging Face checkpoint, a run of adapters beside it, and a reward model; what is in them."""
    root = tmp_path_factory.mktemp("models")
    params = TransformerLM(TINY).init(jax.random.key(7))
    save_hf(root / "hf", TINY, params)
    lora = ["config.lora.rank=2", "config.lora.targets=['attn.[qv]', 'mlp.*']", f"data.base={root / 'hf'}"]
    adapted, log = jaxrl.fit(run_of("sft", *lora), root / "lora", progress=False)
    assert np.isfinite(log[-1]["evaluation/return"])
    judge, log = jaxrl.fit(run_of("reward_model"), root / "reward", progress=False)
    assert "held_out/kappa" in log[-1]
    return root, params, adapted, judge


def test_a_run_of_adapters_acts_with_its_base_and_serves_as_one(folders):
    root, params, adapted, _ = folders
    assert set(adapted.params) == {"attn.q", "attn.v", "mlp.gate", "mlp.up", "mlp.down"}
    again, run = load_state(root / "lora")
    assert bits(again.params) == bits(adapted.params)
    data = jaxrl.load_data(run, dataset=False)
    assert bits(data.frozen["base"]) == bits(params)
    # Merged it is the model that another run starts from, while its reference is yet another one.
    other = run_of("grpo", f"data.base={root / 'lora'}", f"data.reference={root / 'hf'}", "config.kl=k3")
    other_data = jaxrl.load_data(other)
    base, reference = other_data.frozen["base"], other_data.frozen["reference"]
    assert bits(reference) == bits(params)
    assert sum(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), base, reference))) == 5
    agent, acting = jaxrl.make_algorithm(run), jaxrl.make_algorithm(other)
    started = acting.init(jax.random.key(0), other.hparams, other_data)
    assert bits(started.params) == bits(base)
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 6)
    policies = agent.policy(again, data), acting.policy(started, other_data)
    np.testing.assert_allclose(*(TransformerLM(TINY).apply(policy, tokens)[0] for policy in policies), atol=1e-5)
    assert load_frozen(other, acting=True) is None  # all its weights learn: to act it needs no other model


def test_a_reward_model(folders):
    root, _, _, judge = folders
    run = run_of("grpo", "config.reward=model", f"data.reward={root / 'reward'}")
    assert bits(load_frozen(run)["reward"]) == bits(judge.params)
    hparams, agent, data = run.hparams, jaxrl.make_algorithm(run), jaxrl.load_data(run)
    shapes = jax.eval_shape(lambda key: agent.update(agent.init(key, hparams, data), hparams, data), jax.random.key(0))
    assert "reward/model" in shapes[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.base=nowhere"], r"data\.base: there is no folder 'nowhere'"),
        (["data.base={root}"], r"data\.base: .* is neither a run with checkpoints nor a Hugging Face checkpoint"),
        (
            ["data.base={root}/hf", "config.model.rope_theta=1e6"],
            r"rope_theta is 10000\.0 there and 1000000\.0",
        ),
        (["data.base={root}/hf", "config.model.tie_embeddings=false"], r"tie_embeddings is True there and False"),
        (["data.base={root}/reward"], r"data\.base: .*does not fit: embed is absent there and \[6, 16\] in this run"),
        (["config.lora.rank=2"], r"'grpo' with these settings needs data\.base"),
        (["config.kl=k3"], r"'grpo' with these settings needs data\.reference or data\.base"),
        (["config.reward=model"], r"'grpo' with these settings needs data\.reward"),
        (
            ["config.reward=model", "data.reward={root}/hf"],
            r"data\.reward: .*does not fit: embed is \[6, 16\] there and",
        ),
        (["data.reference={root}/hf"], r"data\.reference must be empty: 'grpo' does not read it with these settings"),
        (["data.bace=x"], r"unknown key 'data\.bace'; did you mean 'base'"),
        (["config.lora.rank=2", "config.lora.targets=['mlp.x']"], r"'mlp\.x' fits none of"),
    ],
)
def test_what_is_refused(folders, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_frozen(run_of("grpo", *(setting.format(root=folders[0]) for setting in overrides)))


def test_damaged_checkpoints_and_other_algorithms(folders, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"data\.base: "):
        load_frozen(run_of("sft", f"data.base={tmp_path}"))
    run = run_of("sft", f"data.base={folders[0] / 'hf'}")
    missing = dataclasses.replace(run, data=dataclasses.replace(run.data, base=f"{folders[0]}/lora/checkpoints/7"))
    with pytest.raises(ConfigError, match=r"data\.base: there is no folder"):
        load_frozen(missing)
    with pytest.raises(ConfigError, match=r"data\.base must be empty: 'ppo' does not read it"):
        load_config("ppo_cartpole", ["data.base=x"])
