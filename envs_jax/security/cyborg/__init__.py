"""CybORG CAGE Challenge 2 in JAX: exact, compiled, and open to extension.

`Cyborg` is the defender's environment, `CyborgDuel` the game with red as a second player; `parity.check_folder`
compares the game with records of the original simulator.
"""

from envs_jax.security.cyborg.duel import CyborgDuel
from envs_jax.security.cyborg.environment import Cyborg
from envs_jax.security.cyborg.generate import NetworkConfig

__all__ = ["Cyborg", "CyborgDuel", "NetworkConfig"]
