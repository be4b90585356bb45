"""PoolFlip as a Python game of OpenSpiel: rules, observation and utility ("ownership_margin") of `poolflip-r3`.

The simultaneous moves of a tick are taken in turn, the second without seeing the first, which is how `psro_v2` plays
simultaneous games.
"""

import numpy as np
import pyspiel

FLIP_COST, CHECK_COST, NEVER = 4.0, 1.0, -1


def make_game(num_resources: int, horizon: int) -> pyspiel.Game:
    game_type = pyspiel.GameType(
        short_name="python_poolflip",
        long_name="PoolFlip",
        dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL,
        chance_mode=pyspiel.GameType.ChanceMode.DETERMINISTIC,
        information=pyspiel.GameType.Information.IMPERFECT_INFORMATION,
        utility=pyspiel.GameType.Utility.ZERO_SUM,
        reward_model=pyspiel.GameType.RewardModel.REWARDS,
        max_num_players=2,
        min_num_players=2,
        provides_information_state_string=True,
        provides_information_state_tensor=True,
        provides_observation_string=True,
        provides_observation_tensor=True,
    )
    largest = horizon * (1.0 + FLIP_COST)
    info = pyspiel.GameInfo(
        num_distinct_actions=1 + 2 * num_resources,
        max_chance_outcomes=0,
        num_players=2,
        min_utility=-largest,
        max_utility=largest,
        utility_sum=0.0,
        max_game_length=2 * horizon,
    )

    class PoolFlipGame(pyspiel.Game):
        def __init__(self, params=None):
            super().__init__(game_type, info, params or {})
            self.num_resources, self.horizon = num_resources, horizon

        def new_initial_state(self):
            return PoolFlipState(self)

        def make_py_observer(self, iig_obs_type=None, params=None):
            return PoolFlipObserver(self)

    return PoolFlipGame()


class PoolFlipState(pyspiel.State):
    def __init__(self, game):
        super().__init__(game)
        self.num_resources, self.horizon, self.time, self.player, self.first = game.num_resources, game.horizon, 0, 0, 0
        shape = (2, self.num_resources)
        self.owner = np.zeros(self.num_resources, int)
        self.believed = np.zeros(shape, int)
        self.last_flip, self.opponent_flip, self.known = (np.full(shape, NEVER) for _ in range(3))
        self.last_rewards, self.sums = [0.0, 0.0], [0.0, 0.0]

    def current_player(self):
        return pyspiel.PlayerId.TERMINAL if self.is_terminal() else self.player

    def _legal_actions(self, player):
        return list(range(1 + 2 * self.num_resources))

    def _apply_action(self, action):
        if self.player == 0:
            self.first, self.player, self.last_rewards = action, 1, [0.0, 0.0]
            return
        self.player = 0
        actions, costs = (self.first, action), [0.0, 0.0]
        flips = [(a - 1) // 2 if a and (a - 1) % 2 == 0 else None for a in actions]
        for agent in (1, 0):  # the defender moves last: ties are his
            if flips[agent] is not None:
                self.owner[flips[agent]] = agent
                self.last_flip[agent, flips[agent]] = self.time
        for agent, a in enumerate(actions):
            if a:
                resource = (a - 1) // 2
                self.believed[agent, resource] = self.owner[resource]
                self.opponent_flip[agent, resource] = self.last_flip[1 - agent, resource]
                self.known[agent, resource] = self.time
                costs[agent] = (CHECK_COST if flips[agent] is None else FLIP_COST) / self.num_resources
        margin = float(np.mean(self.owner == 0) - np.mean(self.owner == 1) - costs[0] + costs[1])
        self.last_rewards = [margin, -margin]
        self.sums = [self.sums[0] + margin, self.sums[1] - margin]
        self.time += 1

    def is_terminal(self):
        return self.time >= self.horizon

    def rewards(self):
        return self.last_rewards

    def returns(self):
        return self.sums

    def _action_to_string(self, player, action):
        return f"{player}:{action}"

    def __str__(self):
        return f"{self.time} {self.owner}"


class PoolFlipObserver:
    def __init__(self, game):
        self.tensor = np.zeros(4 * game.num_resources + 1, np.float32)
        self.dict = {"observation": self.tensor}
        self.scale = np.log1p(game.horizon)

    def set_from(self, state, player):
        def age(tick):
            return np.where(tick == NEVER, 1.0, np.log1p(state.time - tick) / self.scale)

        blocks = [state.believed[player] == player, *(age(x[player]) for x in (state.last_flip, state.opponent_flip))]
        self.tensor[:] = np.concatenate([*blocks, age(state.known[player]), [state.time / state.horizon]])

    def string_from(self, state, player):
        self.set_from(state, player)
        return str(self.tensor)
