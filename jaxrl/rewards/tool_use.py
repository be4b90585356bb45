"""The reward of a plan of tool calls: how complete it is, less repeated and failed calls; -1 for a broken format.

The structure is that of RLTR (arXiv 2508.19598): -1 where the format is invalid, else completeness plus rules for
repeated and for wrong calls. The numbers are this project's: the paper's were not published where we could read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from envs_jax.text.local_tools.trajectory import Trajectory
from envs_jax.text.requirements import completeness


@dataclasses.dataclass(frozen=True)
class ToolUseReward:
    """The terms' weights.

    Raises:
        ValueError: a penalty is so large that leaving out a needed call could pay: finding out one of `max_needed`
            things must be worth more than one repeat or one error.
    """

    completeness_weight: float = 1.0
    repeat_penalty: float = 0.1  # per call that had succeeded before with the same arguments
    error_penalty: float = 0.1  # per call that returned an error
    max_penalised: int = 5  # calls that each of the two counts at most
    length_penalty: float = 0.0  # per call beyond the fewest that the task needs, without bound
    unstopped_factor: float = 0.5  # of the completeness where the planner ran into a limit
    max_needed: int = 5  # calls that a task may need

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} must be at least 0, got {getattr(self, field.name)}")
        if self.max_needed < 1:
            raise ValueError(f"max_needed must be at least 1, got {self.max_needed}")
        worth = self.completeness_weight / self.max_needed
        for name in ("repeat_penalty", "error_penalty"):
            if getattr(self, name) >= worth:
                raise ValueError(
                    f"{name} must be below completeness_weight / max_needed = {worth:g}, else leaving out a needed "
                    f"call could pay; got {getattr(self, name)}"
                )

    def __call__(self, trajectory: Trajectory, complete: float) -> float:
        """The reward of a finished trajectory.

        Args:
            trajectory: what was done.
            complete: its completeness in [0, 1], from rules or a judge.

        Raises:
            ValueError: the trajectory is not finished.
        """
        if not trajectory.stop:
            raise ValueError("only a finished trajectory has a reward: this one has no stop")
        if trajectory.stop == "bad_format":
            return -1.0
        factor = 1.0 if trajectory.stop == "answer" else self.unstopped_factor
        counts = count_calls(trajectory)
        reward = self.completeness_weight * factor * complete
        reward -= self.repeat_penalty * min(counts.repeats, self.max_penalised)
        reward -= self.error_penalty * min(counts.errors, self.max_penalised)
        return reward - self.length_penalty * max(0, counts.calls - trajectory.task.num_needed)


@dataclasses.dataclass(frozen=True)
class CallCounts:
    calls: int
    repeats: int
    errors: int


def count_calls(trajectory: Trajectory) -> CallCounts:
    """Calls, those that repeat a call that had succeeded, and those that returned an error."""
    succeeded, repeats, errors = set[str](), 0, 0
    for call in trajectory.calls:
        repeats += call.signature in succeeded
        errors += call.error
        if not call.error:
            succeeded.add(call.signature)
    return CallCounts(len(trajectory.calls), repeats, errors)


def precision(trajectory: Trajectory) -> float:
    """The share of all calls by which something required was found out first; 0 without calls.

    Raises:
        ValueError: what the task requires is not known.
    """
    if trajectory.task.requirement is None:
        raise ValueError("precision needs a task with a requirement")
    found = {number for number in trajectory.task.requirement.satisfied_by(trajectory.events) if number is not None}
    return len(found) / max(len(trajectory.calls), 1)


def rule_completeness(trajectory: Trajectory) -> float:
    """The completeness of a trajectory by its task's formula.

    Raises:
        ValueError: what the task requires is not known.
    """
    if trajectory.task.requirement is None:
        raise ValueError("the task has no requirement: its completeness is for a judge to say")
    return completeness(trajectory.task.requirement, trajectory.events)


def group_rewards(
    reward: ToolUseReward, trajectories: Sequence[Trajectory], scores: Sequence[float | None], group_size: int
) -> list[float]:
    """Rewards of trajectories in groups of one query, group by group.

    Where a judge came to no score (None) the reward is the mean of the others of its group, which has no advantage and
    so teaches nothing; a group without any score gets 0. A broken format needs no score.

    Args:
        reward: the terms.
        trajectories: `num_groups * group_size` finished ones.
        scores: their completeness.
        group_size: trajectories of each query.
    """
    if group_size < 1 or len(trajectories) % group_size or len(scores) != len(trajectories):
        raise ValueError(f"{len(trajectories)} trajectories and {len(scores)} scores make no groups of {group_size}")
    given = [
        reward(trajectory, score or 0.0) if score is not None or trajectory.stop == "bad_format" else None
        for trajectory, score in zip(trajectories, scores)
    ]
    rewards = []
    for start in range(0, len(given), group_size):
        group = given[start : start + group_size]
        known = [value for value in group if value is not None]
        mean = sum(known) / max(len(known), 1)
        rewards += [mean if value is None else value for value in group]
    return rewards


def make_reward(
    judge: Callable[[Sequence[Trajectory]], Sequence[float | None]], reward: ToolUseReward, group_size: int
) -> Callable[[Sequence[Trajectory]], list[float]]:
    """The rewards of trajectories in groups, their completeness judged: what `jaxrl.llm.text_rollout` takes."""
    return lambda trajectories: group_rewards(reward, trajectories, judge(trajectories), group_size)
