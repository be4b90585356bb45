"""One piece of work of a language model on random tokens, for one core: generation, forward, backward, a step."""

import functools
import json
import sys

import jax
import numpy as np
import optax

from harness import Stopwatch, report
from jaxrl.llm.config import preset
from jaxrl.llm.generation import generate
from jaxrl.llm.losses import aggregate, token_loss
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.sampling import make_sampling

settings = json.loads(sys.argv[1])
work, batch_size, length = settings["work"], settings["batch_size"], settings["length"]
model = TransformerLM(preset(settings["model"]))
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch_size, length), np.int32)
params = jax.jit(model.init)(jax.random.key(0))


def loss(params, tokens):
    logits, _ = model.apply(params, tokens)
    return aggregate(token_loss(logits[:, :-1], tokens[:, 1:]), np.ones((batch_size, length - 1), bool))


def step(state, tokens):
    gradient = jax.grad(loss)(state[0], tokens)
    change, opt_state = optimizer.update(gradient, state[1], state[0])
    return optax.apply_updates(state[0], change), opt_state


if work == "generate":
    new = settings["new"]
    sampling = make_sampling(temperature=0.0)
    run = functools.partial(generate, model, max_new=new, sampling=sampling, stop_ids=(), key=jax.random.key(0))
    function, arguments, count = jax.jit(run), (params, tokens), batch_size * new
else:
    functions = {"forward": lambda params, tokens: model.apply(params, tokens)[0], "backward": jax.grad(loss)}
    function, arguments, count = jax.jit(functions.get(work, step)), (params, tokens), batch_size * length
    if work == "step":
        function, arguments = jax.jit(step, donate_argnums=0), ((params, optimizer.init(params)), tokens)

with Stopwatch() as compiling:
    compiled = function.lower(*arguments).compile()
result = jax.block_until_ready(compiled(*arguments))  # warm-up
if work == "step":
    arguments = (result, tokens)
with Stopwatch() as running:
    jax.block_until_ready(compiled(*arguments))
times = {"compile_seconds": compiling.wall, "compile_cpu_seconds": compiling.cpu}
report(settings, count, times | {"seconds": running.wall, "cpu_seconds": running.cpu}, unit="tokens")
