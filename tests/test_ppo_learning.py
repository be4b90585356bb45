"""The shipped configurations of PPO reach their returns, on seeds trained side by side."""

import pytest

from programs import evaluation_returns


@pytest.mark.slow
def test_cartpole_is_solved():
    assert (evaluation_returns("ppo_cartpole", 10) >= 475).sum() >= 9


@pytest.mark.slow
def test_pendulum_is_solved():
    assert (evaluation_returns("ppo_pendulum", 5) >= -250).all()
