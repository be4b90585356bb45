"""PPO on PoolFlip: the main job, whole training as one compiled call."""

import tomllib
from pathlib import Path

from harness import Contender, arguments, take_turns

options = arguments(__doc__).parse_args()
config = tomllib.loads((Path(__file__).parents[1] / "configs" / "ppo_poolflip.toml").read_text())
take_turns(
    [Contender("jaxrl PPO poolflip-r3", "jaxrl_ppo.py", {"config": config, "seed": 0})], options.rounds, options.out
)
