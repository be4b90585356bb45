"""A judge behind an address: any server that speaks OpenAI's chat completions. The standard library suffices."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from envs_jax.text.local_tools.trajectory import Trajectory
from jaxrl.llm.config import one_of
from jaxrl.rewards.judge_prompt import MODES, PROMPT, judge_prompt, read_verdict, trajectory_key

_REFUSALS = (400, 401, 403, 404, 422)  # the settings are wrong: asking again does not help
_MAX_PARTS = 1000  # of 64 KiB


class JudgeError(RuntimeError):
    """The judge refuses to answer at all: a wrong address, key or model."""


class ApiJudge:
    """A strong language model as the judge; see `jaxrl.rewards.judge_prompt` for what it is asked.

    Each trajectory is judged `votes` times and scored by the mean. A vote that cannot be had (no connection in time, a
    reply that cannot be read) is asked for once more, then left out; without any vote the score is None, which
    `jaxrl.rewards.tool_use.group_rewards` makes neutral. `failures` counts the votes left out.

    Args:
        url: of the service, up to and without "/chat/completions".
        model: its name there.
        key: sent as the bearer token; it is stored nowhere.
        votes: V.
        temperature: of the judge's sampling.
        mode: "fraction" of the needs, or "strict": all of them.
        timeout: seconds that one request may take.
        max_tokens: of a reply.
        cache: a file that remembers scores across runs, one JSON line each; None: only in this object.
        num_workers: requests at a time.

    Raises:
        JudgeError: the service refuses the request for good (a wrong key, model or address).
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        *,
        votes: int = 3,
        temperature: float = 0.7,
        mode: str = "fraction",
        timeout: float = 60.0,
        max_tokens: int = 2048,
        cache: str | Path | None = None,
        num_workers: int = 8,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        for name, value in (("votes", votes), ("max_tokens", max_tokens), ("num_workers", num_workers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if timeout <= 0.0:
            raise ValueError(f"timeout must be positive, got {timeout}")
        one_of("mode", mode, MODES)
        self.url, self.model, self.votes, self.temperature, self.mode = url, model, votes, temperature, mode
        self.timeout, self.max_tokens, self.num_workers = timeout, max_tokens, num_workers
        self.cache, self.failures = Path(cache) if cache else None, 0
        self._key = key
        # What a score depends on besides the trajectory; a new wording of the prompt is another judge.
        wording = hashlib.sha256(PROMPT.encode()).hexdigest()[:16]
        self._settings = (url, model, votes, temperature, mode, max_tokens, wording)
        self._scores: dict[str, float] = self._remembered()

    def __call__(self, trajectories: Sequence[Trajectory], /) -> list[float | None]:
        keys = [trajectory_key(trajectory, *self._settings) for trajectory in trajectories]
        new = {key: trajectory for key, trajectory in zip(keys, trajectories) if key not in self._scores}
        jobs = [(key, trajectory) for key, trajectory in new.items() for _ in range(self.votes)]
        with ThreadPoolExecutor(self.num_workers) as pool:
            scores = list(pool.map(self._vote, (trajectory for _, trajectory in jobs)))
        for place, key in enumerate(new):
            votes = scores[place * self.votes : (place + 1) * self.votes]
            given = [vote for vote in votes if vote is not None]
            self.failures += len(votes) - len(given)
            if given:
                self._remember(key, math.fsum(given) / len(given))
        return [self._scores.get(key) for key in keys]

    def _vote(self, trajectory: Trajectory) -> float | None:
        """One verdict's score; None where two attempts gave none."""
        prompt = judge_prompt(trajectory)
        for _ in range(2):
            text = self._ask(prompt)
            verdict = None if text is None else read_verdict(text, trajectory)
            if verdict is not None:
                return verdict.score(self.mode)
        return None

    def _ask(self, prompt: str) -> str | None:
        """The text of one reply; None where there is none in time."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            return json.loads(self._read(request))["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _REFUSALS:
                    reason = error.read(500).decode(errors="replace")
                    raise JudgeError(f"{address} refuses the judge's request: {error.code} {reason}") from error
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError):
            pass  # not in time, or no chat completion
        return None

    def _read(self, request: urllib.request.Request) -> bytes:
        """The whole reply. The library bounds each wait; the sum of them is bounded here."""
        deadline, parts = time.monotonic() + self.timeout, []
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            while part := response.read1(65_536):
                parts.append(part)
                if time.monotonic() > deadline or len(parts) > _MAX_PARTS:
                    raise TimeoutError
        return b"".join(parts)

    def _remember(self, key: str, score: float) -> None:
        self._scores[key] = score
        if self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.cache.open("a") as file:
                file.write(json.dumps({"key": key, "score": score}) + "\n")

    def _remembered(self) -> dict[str, float]:
        """The scores in the cache's file; a line that was cut short is passed over."""
        scores: dict[str, float] = {}
        if self.cache is not None and self.cache.is_file():
            for line in self.cache.read_text().splitlines():
                try:
                    row = json.loads(line)
                    scores[row["key"]] = float(row["score"])
                except (ValueError, KeyError, TypeError):
                    continue
        return scores
