"""What several tests do with programs: compile them fast, look into them, compare results bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxrl
from jaxrl.loop import scan_updates
from jaxrl.run.program import play_evaluation

# Neither optimised machine code nor, where it can still be chosen, fused kernels: a quarter of the compile time.
QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False


def compiled(function):
    """`jax.jit` that compiles fast and runs slowly, for programs that run for less than they compile."""
    return jax.jit(function, compiler_options=QUICK)


def equations(jaxpr):
    """All equations of a jaxpr, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def bits(tree):
    """Every leaf as bytes."""
    raw = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree))
    return [np.asarray(leaf).tobytes() for leaf in raw]


def evaluation_returns(name, num_seeds):
    """Mean evaluation return of each of `num_seeds` seeds of a configuration, trained side by side."""
    run = jaxrl.load_config(name)
    (env, _), agent, data = jaxrl.make_env(run), jaxrl.make_algorithm(run), jaxrl.load_data(run)
    assert run.num_updates * agent.steps_per_update <= 500_000
    assert run.evaluation.num_episodes == 20

    def train(seed):
        state = agent.init(jax.random.key(seed), run.hparams, data)
        state, _ = scan_updates(agent, state, run.hparams, run.num_updates, data)
        return play_evaluation(run, env, agent, state, data).episode_return.mean()

    return np.asarray(jax.jit(jax.vmap(train))(jnp.arange(num_seeds)))
