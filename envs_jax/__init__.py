"""Environments in pure JAX. `make(name, **options)` builds one, `names()` lists them."""

from envs_jax import registry

_CATALOGUE = (
    # name, factory, options, one line
    ("toy-constant-reward", "envs_jax.control.toy:ConstantReward", {}, "One step, reward 1: can a value be learned?"),
    ("toy-observed-value", "envs_jax.control.toy:ObservedValue", {}, "One step, reward = observation"),
    ("toy-discounting", "envs_jax.control.toy:Discounting", {}, "Two steps, reward at the second"),
    ("toy-action-choice", "envs_jax.control.toy:ActionChoice", {}, "One step, one action pays"),
    ("toy-observed-action", "envs_jax.control.toy:ObservedAction", {}, "One step, the action must match"),
    ("cartpole", "envs_jax.control.cartpole:CartPole", {}, "Balance a pole on a cart"),
    ("pendulum", "envs_jax.control.pendulum:Pendulum", {}, "Swing up a torque-limited pendulum"),
    ("flipit", "envs_jax.games.flipit:FlipIt", {}, "FlipIt: one resource, two players, stealthy takeover"),
    ("poolflip-r1", "envs_jax.games.poolflip:PoolFlip", {"num_resources": 1}, "PoolFlip with one resource"),
    ("poolflip-r3", "envs_jax.games.poolflip:PoolFlip", {"num_resources": 3}, "PoolFlip with three resources"),
    ("poolflip-r10", "envs_jax.games.poolflip:PoolFlip", {"num_resources": 10}, "PoolFlip with ten resources"),
    ("cyborg-cage2", "envs_jax.security.cyborg:Cyborg", {}, "CAGE Challenge 2: blue against B_line, exact"),
    (
        "cyborg-cage2-extended",
        "envs_jax.security.cyborg:Cyborg",
        {"extension": True, "observation": "extended"},
        "CAGE Challenge 2 with Patch, Isolate and Unisolate",
    ),
    (
        "cyborg-network",
        "envs_jax.security.cyborg:Cyborg",
        {"network": {}},
        "The game of CAGE Challenge 2 on a network drawn anew for each episode",
    ),
    ("cyborg-duel", "envs_jax.security.cyborg:CyborgDuel", {}, "CAGE Challenge 2 with red as the second player"),
    ("hopper-flip", "envs_jax.robotics.hopper_flip:HopperFlip", {}, "Front flip of a one-leg hopper, in its plane"),
    ("brax-hopper", "envs_jax.adapters.brax:Brax", {"task": "hopper"}, "Brax's hopper: run on one leg"),
    ("brax-walker2d", "envs_jax.adapters.brax:Brax", {"task": "walker2d"}, "Brax's walker: run on two legs"),
    ("brax-halfcheetah", "envs_jax.adapters.brax:Brax", {"task": "halfcheetah"}, "Brax's half cheetah: run"),
    ("matrix-game", "envs_jax.games.matrix_game:MatrixGame", {}, "Two roles, one simultaneous choice, known solutions"),
    ("tool-desk", "envs_jax.text.tool_desk:ToolDesk", {}, "Plan calls of tools, token by token, to answer a query"),
    ("symbols", "envs_jax.text.symbols:Symbols", {}, "Repeat, reverse or sort a string of symbols, token by token"),
)
for _name, _factory, _options, _summary in _CATALOGUE:
    registry.register(_name, _factory, options=_options, summary=_summary)

make, names, register = registry.make, registry.names, registry.register

__all__ = ["make", "names", "register"]
