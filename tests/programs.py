"""What several tests do with programs: compile them fast, look into them, compare results bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np


def compiled(function):
    """`jax.jit` without the back end's optimisations: half the compile time, where the run is short anyway."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


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
