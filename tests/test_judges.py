"""Judges: what is asked, what is believed of a reply, votes, retries, memory, noise, and whether one can be trusted."""

import contextlib
import dataclasses
import http.server
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.text.local_tools import Call, LocalTools, Task, Trajectory, Turn, generate_tasks
from envs_jax.text.local_tools.planners import make_faulty, oracle, play
from envs_jax.text.requirements import Requirement
from jaxrl.llm.config import preset
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.tokenizers import ByteTokenizer
from jaxrl.rewards.api_judge import ApiJudge, JudgeError
from jaxrl.rewards.calibration import calibrate, compare, require_trust
from jaxrl.rewards.judge_prompt import judge_prompt, read_verdict, trajectory_key
from jaxrl.rewards.judges import LMJudge, NoisyJudge, RuleJudge, yes_no_score
from programs import compiled

REQUIREMENT = Requirement((("a",), ("b",)))


def trajectory(query="How far is it?", facts=("a",)):
    good = Call("find_route", {"start": "A", "goal": "B"}, "12 km " + "x" * 500, False, frozenset(facts))
    bad = Call("calculate", {"expression": "1/0"}, "error: division by zero", True, frozenset())
    tools = {"find_route": "Finds a way.\nMore.", "calculate": "Computes."}
    return Trajectory(Task(query, REQUIREMENT, answer="the answer is 12"), tools, [Turn("hm", (good, bad))], "answer")


def reply(*needs, complete=True):
    rows = [{"need": "n", "status": status, "call": call} for status, call in needs]
    return json.dumps({"needs": rows, "complete": complete})


GOOD, HALF = reply(("yes", 1)), reply(("yes", 1), ("no", None), complete=False)


# The prompt and its reply.


def test_the_prompt_asks_in_two_steps_and_shows_no_answer():
    text = judge_prompt(trajectory())
    parts = [
        "# Query\nHow far is it?",
        "- find_route: Finds a way.\n",
        "# Step 1",
        '1. find_route({"goal":"B","start":"A"})',
    ]
    parts += ["2. calculate", "error: error: division", "# Step 2", '"needs"']
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "x" * 380 in text
    assert "x" * 400 not in text  # an observation is cut
    assert "the answer is 12" not in text


@pytest.mark.parametrize(
    ("text", "statuses", "fraction", "strict"),
    [
        (GOOD, ("yes",), 1.0, 1.0),
        (HALF, ("yes", "no"), 0.5, 0.0),
        (f"Let me see. {{}} So:\n```json\n{HALF}\n```", ("yes", "no"), 0.5, 0.0),
        (reply(("yes", 1), ("na", None)), ("yes", "na"), 1.0, 1.0),
        (reply(("na", None)), ("na",), 1.0, 1.0),
        (reply(), (), 1.0, 1.0),
        (reply(("yes", 2)), ("no",), 0.0, 0.0),  # an error proves nothing
        (reply(("yes", 3)), ("no",), 0.0, 0.0),  # there is no such call
        (reply(("yes", 0)), ("no",), 0.0, 0.0),
        (reply(("yes", None), ("yes", 1)), ("no", "yes"), 0.5, 0.0),
        (GOOD + reply(("no", None)), ("no",), 0.0, 0.0),  # the last word counts
    ],
)
def test_replies_are_checked(text, statuses, fraction, strict):
    verdict = read_verdict(text, trajectory())
    assert verdict.statuses == statuses
    assert (verdict.score("fraction"), verdict.score("strict")) == (fraction, strict)


@pytest.mark.parametrize(
    "text",
    [
        "", "complete", GOOD[:-1], '{"complete": true}', '{"needs": 3, "complete": true}', '{"needs": []}',
        '{"needs": [], "complete": "yes"}', reply(("maybe", 1)), reply(("yes", "1")), reply(("yes", True)),
        '{"needs": [{"status": "yes", "call": 1}], "complete": true}', '{"needs": ' + "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_reply(text):
    assert read_verdict(text, trajectory()) is None


def test_equal_trajectories_have_equal_keys():
    one, other = trajectory(), trajectory()
    other.turns[0] = dataclasses.replace(other.turns[0], thought="another thought")
    assert trajectory_key(one) == trajectory_key(other)
    keys = {trajectory_key(one), trajectory_key(trajectory("Else?")), trajectory_key(one, "strict")}
    other.turns.append(other.turns[0])
    assert len(keys | {trajectory_key(other)}) == 4


# The judge behind an address.


@contextlib.contextmanager
def server(answer):
    """A service on this machine; `answer(number, request body) -> text, or status code, or None: silence`."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers.get("Authorization"), body))
            said = answer(len(requests), body)
            if said is None:
                stopped.wait(5.0)
                return
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]})
            self.send_response(said if isinstance(said, int) else 200)
            self.end_headers()
            self.wfile.write(b"no" if isinstance(said, int) else content.encode())

        def log_message(self, *arguments):
            del arguments

    stopped = threading.Event()
    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{service.server_port}/v1", requests
    finally:
        stopped.set()
        service.shutdown()
        service.server_close()
        thread.join()


def test_votes_are_averaged_and_remembered(tmp_path):
    cache = tmp_path / "folder" / "scores.jsonl"
    with server(lambda number, body: GOOD if number % 3 else HALF) as (url, requests):
        judge = ApiJudge(url, "strong", "secret", votes=3, cache=cache, num_workers=1)
        assert judge([trajectory(), trajectory()]) == pytest.approx([5 / 6, 5 / 6])  # one question for two equals
        assert len(requests) == 3
        path, authorisation, body = requests[0]
        assert (path, authorisation) == ("/v1/chat/completions", "Bearer secret")
        assert (body["model"], body["temperature"]) == ("strong", 0.7)
        assert body["messages"] == [{"role": "user", "content": judge_prompt(trajectory())}]
        judge([trajectory()])
        with cache.open("a") as file:
            file.write('{"key": "cut')
        assert ApiJudge(url, "strong", votes=3, cache=cache)([trajectory()]) == pytest.approx([5 / 6])
        assert len(requests) == 3
        assert "secret" not in cache.read_text()
        ApiJudge(url, "strong", votes=1, cache=cache)([trajectory()])  # another way of judging
        assert len(requests) == 4


def test_a_reply_that_cannot_be_read_is_asked_for_once_more():
    with server(lambda number, body: "what?" if number == 1 else GOOD) as (url, requests):
        judge = ApiJudge(url, "m", votes=1)
        assert judge([trajectory()]) == [1.0]
        assert (len(requests), judge.failures) == (2, 0)
    with server(lambda number, body: "what?" if number < 3 else HALF) as (url, requests):
        judge = ApiJudge(url, "m", votes=2, num_workers=1)
        assert judge([trajectory()]) == [0.5]  # the mean of the votes that there are
        assert (len(requests), judge.failures) == (3, 1)


def test_no_verdict_is_no_score_and_not_remembered():
    with server(lambda number, body: "what?" if number < 3 else GOOD) as (url, requests):
        judge = ApiJudge(url, "m", votes=1)
        assert judge([trajectory()]) == [None]
        assert judge([trajectory()]) == [1.0]
        assert len(requests) == 3


def test_a_server_that_fails_or_is_silent():
    with server(lambda number, body: 500) as (url, requests):
        assert ApiJudge(url, "m", votes=1)([trajectory()]) == [None]
        assert len(requests) == 2
    with server(lambda number, body: None) as (url, requests):
        start = time.monotonic()
        assert ApiJudge(url, "m", votes=2, timeout=0.2)([trajectory()]) == [None]
        assert time.monotonic() - start < 3.0
    assert ApiJudge(url, "m", votes=1, timeout=0.2)([trajectory()]) == [None]  # nobody listens any more


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_an_error(status):
    with server(lambda number, body: status) as (url, _), pytest.raises(JudgeError, match=f"refuses.*{status}"):
        ApiJudge(url, "m", "wrong")([trajectory()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost"}, "must begin with http"),
        ({"votes": 0}, "votes must be at least 1"),
        ({"mode": "fractions"}, "did you mean 'fraction'"),
        ({"timeout": 0}, "timeout must be positive"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ApiJudge(**{"url": "http://x", "model": "m"} | settings)


# Judges with known errors, and of our own.


def sample(number):
    env, planners = LocalTools(), (oracle, make_faulty(0, skip_probability=0.4))
    return [play(env, task, planners[i % 2]) for i, task in enumerate(generate_tasks("train", number))]


def test_noise_has_the_given_rates():
    same = [trajectory(f"Question {i}?") for i in range(2000)]  # one of two clauses holds
    assert RuleJudge()(same[:2]) == [0.5, 0.5]
    assert NoisyJudge(0.0, 0.0)(same[:2]) == [0.5, 0.5]
    assert NoisyJudge(1.0, 1.0)(same[:2]) == [0.5, 0.5]
    assert np.mean(NoisyJudge(0.2, 0.0)(same)) == pytest.approx(0.6, abs=0.02)
    assert np.mean(NoisyJudge(0.0, 0.2)(same)) == pytest.approx(0.4, abs=0.02)
    strict = NoisyJudge(0.3, 0.0, "strict")(same)
    assert set(strict) == {0.0, 1.0}
    assert np.mean(strict) == pytest.approx(0.3, abs=0.03)
    assert NoisyJudge(0.3, 0.1)(same) == NoisyJudge(0.3, 0.1)(same) != NoisyJudge(0.3, 0.1, seed=1)(same)
    with pytest.raises(ValueError, match=r"false_positive must be in \[0, 1\], got 2"):
        NoisyJudge(2, 0)


def test_kappa_by_hand():
    # 20 yes-yes, 5 no where yes, 10 yes where no, 15 no-no: agreement 0.7, by chance 0.5.
    verdicts = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    result = compare([*verdicts, None], [True] * 25 + [False] * 26)
    assert result == pytest.approx((50, 1, 0.7, 0.4, 0.4))
    assert compare([True] * 3, [True] * 3).kappa == 0.0
    assert compare([True, False], [True, False]).kappa == 1.0
    assert compare([None], [True]).judged == 0


def test_a_judge_must_be_trusted_before_it_trains():
    played = sample(120)
    exact = calibrate(RuleJudge(), played, 0.99)
    assert exact[:5] == (120, 0, 1.0, 1.0, 0.0)
    require_trust(exact)
    poor = calibrate(NoisyJudge(0.4, 0.4, "strict"), played)
    assert poor.kappa < 0.5
    assert poor.false_positive_rate > 0.2
    with pytest.raises(ValueError, match=r"kappa is 0\.\d+, below 0\.6"):
        require_trust(poor)
    require_trust(poor, force=True)
    with pytest.raises(ValueError, match="at least 100 trajectories, got 99"):
        calibrate(RuleJudge(), played[:99])


@pytest.fixture(scope="module")
def small():
    model = TransformerLM(preset("nano", vocab_size=259, hidden_size=16, num_layers=1, head_dim=4))
    return model, compiled(model.init)(jax.random.key(0))


def test_a_model_as_the_judge(small):
    judge = LMJudge(*small, ByteTokenizer(), batch_size=2, block=1024)
    played = [trajectory(), trajectory("Else?"), trajectory("Or what?")]
    scores = judge(played)
    assert all(0.0 < score < 1.0 for score in scores)
    assert len(set(scores)) == 3
    assert judge(played[2:]) == scores[2:]
    with pytest.raises(ValueError, match="begin with the same token 121"):
        LMJudge(*small, ByteTokenizer(), words=("yes", "yonder"))


def test_the_odds_are_read_at_the_end_of_each_text(small):
    model, params = small
    tokens = jnp.array([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]], jnp.int32)
    valid = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)

    @compiled
    def both(params):
        return yes_no_score(model, params, tokens, valid, 7, 9), model.apply(params, tokens)[0]

    scores, logits = both(params)
    last = np.array([logits[0, 2], logits[1, 4]])
    odds = last[:, 7] - last[:, 9]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-odds)), atol=1e-6)
    assert scores[0] != scores[1]
