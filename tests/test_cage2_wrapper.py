"""The classes of CAGE Challenge 2: what an agent written for the original sees."""

from pathlib import Path

import jax
import numpy as np
import pytest

from envs_jax.adapters.cage2 import (
    NUM_ACTIONS,
    B_lineAgent,
    ChallengeWrapper,
    CybORG,
    GreenAgent,
    RedMeanderAgent,
    SleepAgent,
)
from envs_jax.security.cyborg import Cyborg
from envs_jax.security.cyborg.traces import read_traces

GOLDEN = Path(__file__).parent / "golden" / "cyborg"


@pytest.fixture(scope="module")
def against_bline():
    return ChallengeWrapper(env=CybORG("some/where/Scenario2.yaml", "sim", agents={"Red": B_lineAgent}),
                            agent_name="Blue", max_steps=30)  # fmt: skip


@pytest.fixture(scope="module")
def against_nobody():
    return ChallengeWrapper("Blue", CybORG(agents={"Red": SleepAgent}))


def test_an_evaluation_written_for_the_original_runs(against_bline):
    class Agent:
        """In the shape the challenge asks for."""

        def __init__(self):
            self.seen = []

        def get_action(self, observation, action_space):
            assert action_space == 145
            self.seen.append(observation)
            return 132 + int(np.argmax(observation.reshape(13, 4)[:, 3])) if observation.any() else 0

        def end_episode(self):
            self.seen.clear()

    env, agent, totals = against_bline, Agent(), []
    observation, action_space = env.reset(), env.get_action_space("Blue")
    for _ in range(3):
        rewards, actions = [], []
        for _ in range(30):
            observation, reward, done, info = env.step(agent.get_action(observation, action_space))
            rewards.append(reward)
            actions.append((str(env.get_last_action("Blue")), str(env.get_last_action("Red"))))
        assert done
        assert info["action"] == actions[-1][0]
        assert actions[0] == ("Sleep", "DiscoverRemoteSystems User")
        assert actions[1][1].startswith("DiscoverNetworkServices User")
        agent.end_episode()
        totals.append(sum(rewards))
        observation = env.reset()
    assert -400 < min(totals) <= max(totals) < 0


def test_types_are_those_of_the_original(against_bline):
    env = against_bline
    first = env.reset()
    assert (first.dtype, first.shape, first.any()) == (np.int64, (52,), False)
    observation, reward, done, info = env.step(env.action_space.sample())
    assert (observation.dtype, observation.shape) == (np.int64, (52,))
    assert env.observation_space.contains(observation.astype(np.float32))
    assert type(reward) is float
    assert type(done) is bool
    assert {"action", "action_space", "done", "error", "observation", "reward"} <= set(info)
    assert env.action_space.n == env.get_action_space() == len(env.possible_actions) == NUM_ACTIONS
    observation[:] = 7  # the caller's own
    assert not (env.get_observation("Blue") == 7).any()
    assert env.get_attr("get_last_action")("Blue") == info["action"]
    assert env.get_attr("max_steps") == 30


def test_it_is_the_compiled_game(against_bline):
    """The same seed gives the episode that the environment plays on the same key, step for step."""
    env = against_bline
    env.set_seed(11)
    env.reset()
    game = env.env.env.episode
    direct = Cyborg(red="bline", max_steps=2**31 - 1, all_legal=True)
    params, key = direct.default_params, game._key
    state, time_step = direct.reset(key, params)
    step = jax.jit(direct.step)
    actions = np.random.default_rng(0).integers(NUM_ACTIONS, size=40)
    for number, action in enumerate(actions, start=1):
        state, time_step = step(jax.random.fold_in(key, number), state, action, params)
        observation, reward, done, _ = env.step(action)
        np.testing.assert_array_equal(observation, time_step.observation)
        assert reward == pytest.approx(float(time_step.reward), abs=1e-6)
        assert done == (number >= 30)  # and the game goes on, as the original does
    env.set_seed(11)
    env.reset()
    replayed = [env.step(action)[1] for action in actions]
    env.set_seed(12)
    env.reset()
    assert replayed != [env.step(action)[1] for action in actions]


def test_it_repeats_the_records_of_the_original(against_nobody):
    """Against a sleeping red nothing is left to chance: recorded actions must give the recorded results."""
    traces = read_traces(GOLDEN)
    arrays, env, steps = traces.arrays, against_nobody, 0
    sleeping = traces.legend["red_agents"].index("Sleep")
    for episode in np.flatnonzero((arrays["ep_red"] == sleeping) & (arrays["ep_green"] == 0)):
        assert not env.reset().any()
        rows = range(arrays["ep_start"][episode], arrays["ep_start"][episode] + arrays["ep_len"][episode])
        for row in rows:
            observation, reward, done, _ = env.step(arrays["blue_action"][row])
            np.testing.assert_array_equal(observation, arrays["obs"][row])
            assert reward == pytest.approx(float(arrays["reward"][row]), abs=1e-9)
            assert not done
            rewards = env.get_rewards()
            assert rewards["Blue"] == reward
            assert rewards["Red"] == pytest.approx(-float(arrays["rew_conf"][row] + arrays["rew_avail"][row]), abs=1e-9)
        steps += len(rows)
    assert steps >= 300


def test_action_names_and_numbers(against_nobody):
    names = against_nobody.possible_actions
    hosts = read_traces(GOLDEN).legend["hosts"]
    assert names[:2] == ["Sleep", "Monitor"]
    kinds = ["Analyse", "Remove", "DecoyApache", "DecoyFemitter", "DecoyHarakaSMPT", "DecoySmss", "DecoySSHD",
             "DecoySvchost", "DecoyTomcat", "DecoyVsftpd", "Restore"]  # fmt: skip
    assert names[2:] == [f"{kind} {host}" for kind in kinds for host in hosts]


def test_rewards_by_host(against_bline):
    env = against_bline
    env.reset()
    for _ in range(25):  # undisturbed, B_line takes the service by now
        _, reward, _, _ = env.step()
    breakdown = env.get_reward_breakdown("Blue")
    assert list(breakdown)[7] == "Op_Server0"
    assert breakdown["Op_Server0"].availability == -10
    assert breakdown["Enterprise2"].confidentiality == -1
    assert breakdown["Defender"] == (0, 0)
    assert sum(map(sum, breakdown.values())) == pytest.approx(reward)
    assert env.get_rewards()["Red"] == pytest.approx(-reward)


def test_agents_may_be_classes_objects_or_names():
    games = [CybORG(agents={"Red": red}).env.env for red in (RedMeanderAgent, RedMeanderAgent(), "RedMeanderAgent")]
    assert {game.red_names for game in games} == {("meander",)}
    game = CybORG(agents={"Red": SleepAgent, "Green": GreenAgent}).env.env
    assert (game.red_names, game.green) == (("sleep",), True)


def test_refusals(against_nobody):
    for arguments, message in (
        (("Scenario1.yaml",), "only scenario is Scenario2.yaml, got 'Scenario1.yaml'"),
        ((None, "aws"), "must be 'sim', got 'aws'"),
        ((None, "sim", {"Red": "BlineAgent"}), "did you mean 'B_lineAgent'"),
        ((None, "sim", {"Blue": SleepAgent}), "may name 'Red' and 'Green', got 'Blue'"),
    ):
        with pytest.raises(ValueError, match=message):
            CybORG(*arguments)
    with pytest.raises(ValueError, match="agent_name must be 'Blue', got 'Red'"):
        ChallengeWrapper("Red", CybORG())
    with pytest.raises(ValueError, match="got object"):
        ChallengeWrapper("Blue", object())  # type: ignore[arg-type]
    fresh = ChallengeWrapper("Blue", CybORG())
    assert fresh.get_last_action("Blue") is None
    with pytest.raises(ValueError, match="call reset before step"):
        fresh.step(0)
    against_nobody.reset()
    with pytest.raises(ValueError, match="145"):
        against_nobody.step(145)
    with pytest.raises(AttributeError):
        against_nobody.get_attr("get_ip_map")
