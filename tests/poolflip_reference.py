"""PoolFlip in plain Python, one resource and one agent at a time: what the JAX version must equal."""

from __future__ import annotations

import copy
import math

import numpy as np


class Reference:
    """Ties go to "defender" or "incumbent"; flips never fail."""

    def __init__(self, num_resources: int, horizon: int, tie: str, utility: str, flip_cost, check_cost, value):
        self.num_resources, self.horizon, self.tie, self.utility = num_resources, horizon, tie, utility
        self.flip_cost, self.check_cost, self.value = flip_cost, check_cost, value
        pool = range(num_resources)
        self.time = 0
        self.owner = [0 for _ in pool]
        self.held_since = [0 for _ in pool]
        self.last_flip = [[-1 for _ in pool] for _ in range(2)]
        self.believed_owner = [[0 for _ in pool] for _ in range(2)]
        self.believed_opponent_flip = [[-1 for _ in pool] for _ in range(2)]
        self.knowledge_time = [[-1 for _ in pool] for _ in range(2)]

    def step(self, actions) -> dict:
        moves = []  # per agent: None, ("flip", r) or ("check", r)
        for action in actions:
            kind = "flip" if action % 2 == 1 else "check"
            moves.append(None if action == 0 else (kind, (action - 1) // 2))
        cost, wasted = [0.0, 0.0], [0, 0]
        for agent, move in enumerate(moves):
            if move is not None:
                table = self.flip_cost if move[0] == "flip" else self.check_cost
                cost[agent] = table[agent][move[1]] / self.num_resources
                wasted[agent] = int(move[0] == "flip" and self.owner[move[1]] == agent)
        for resource in range(self.num_resources):
            flippers = [agent for agent in range(2) if moves[agent] == ("flip", resource)]
            for agent in flippers:
                self.last_flip[agent][resource] = self.time
            if len(flippers) == 2:
                winner = 0 if self.tie == "defender" else self.owner[resource]
            else:
                winner = flippers[0] if flippers else self.owner[resource]
            if winner != self.owner[resource]:
                self.owner[resource], self.held_since[resource] = winner, self.time
        for agent, move in enumerate(moves):
            if move is not None:
                resource = move[1]
                self.believed_owner[agent][resource] = self.owner[resource]
                self.believed_opponent_flip[agent][resource] = self.last_flip[1 - agent][resource]
                self.knowledge_time[agent][resource] = self.time
        self.time += 1
        return {
            "owner": list(self.owner),
            "held_since": list(self.held_since),
            "last_flip": copy.deepcopy(self.last_flip),
            "believed_owner": copy.deepcopy(self.believed_owner),
            "believed_opponent_flip": copy.deepcopy(self.believed_opponent_flip),
            "knowledge_time": copy.deepcopy(self.knowledge_time),
            "observation": self.observe(),
            "reward": self.rewards(cost),
            "own": [self.own(agent) for agent in range(2)],
            "cost": cost,
            "num_flips": [int(move is not None and move[0] == "flip") for move in moves],
            "num_checks": [int(move is not None and move[0] == "check") for move in moves],
            "wasted_flips": wasted,
            "dwell": [
                [self.time - since if owner == agent else 0 for owner, since in zip(self.owner, self.held_since)]
                for agent in range(2)
            ],
        }

    def own(self, agent: int) -> float:
        return sum(value for value, owner in zip(self.value, self.owner) if owner == agent) / sum(self.value)

    def rewards(self, cost) -> list[float]:
        rewards = []
        for agent in range(2):
            own, other = self.own(agent), self.own(1 - agent)
            count = sum(owner == agent for owner in self.owner)
            rewards.append(
                {
                    "flipit": own - cost[agent],
                    "ownership": own - other,
                    "ownership_margin": own - other - cost[agent] + cost[1 - agent],
                    "ownership_floor": own - cost[agent] - 1.0 * max(0.0, 0.5 - own),
                    "ownership_any": (count >= 1) - cost[agent],
                    "ownership_all": (count == self.num_resources) - cost[agent],
                    "ownership_majority": (count > self.num_resources / 2) - cost[agent],
                }[self.utility]
            )
        return rewards

    def observe(self) -> np.ndarray:
        def age(tick: int) -> float:
            return 1.0 if tick < 0 else math.log(1 + self.time - tick) / math.log(1 + self.horizon)

        rows = []
        for agent in range(2):
            row = [float(owner == agent) for owner in self.believed_owner[agent]]
            for ticks in (self.last_flip, self.believed_opponent_flip, self.knowledge_time):
                row += [age(tick) for tick in ticks[agent]]
            rows.append(row + [self.time / self.horizon])
        return np.array(rows, np.float32)
