"""What a judge is asked about a plan, and how its answer is read. The plan alone is shown, never a final answer.

Two steps in one prompt: first what is needed, from the query alone; then whether the calls obtained it. That a strong
language model judges the sequence of calls is our reading of RLTR (arXiv 2508.19598); wording and scale are ours.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

from envs_jax.text.local_tools.trajectory import Trajectory, numbered_calls
from envs_jax.text.requirements import canonical

MODES = ("fraction", "strict")
MAX_OBSERVATION = 400  # characters that are shown of each
STATUSES = ("yes", "no", "na")

PROMPT = """You check whether a planner has gathered all the information that a query needs. The planner only calls \
tools; somebody else writes the answer later, so do not expect one.

# Query
{query}

# Tools that the planner had
{tools}

# Step 1: comprehension
Before you read on, list each single piece of information that is needed to answer the query, steps in between \
included. Do not list what the query itself says.

# Calls that the planner made, with their results
{calls}

# Step 2: verification
For each item of your list decide:
- "yes": a call obtained it. Give that call's number. A call with an error obtains nothing.
- "no": no call obtained it, though these tools could have.
- "na": these tools cannot obtain it.

Reply with one JSON object and nothing else:
{{"needs": [{{"need": "<what>", "status": "yes" | "no" | "na", "call": <number or null>}}], "complete": true | false}}
"""


class Verdict(NamedTuple):
    statuses: tuple[str, ...]  # of STATUSES, one per need, after the checks
    complete: bool

    def score(self, mode: str) -> float:
        """ "fraction": the share of needs obtained of those obtainable, 1 where none is; "strict": 1 if complete."""
        if mode == "strict":
            return float(self.complete)
        yes, no = self.statuses.count("yes"), self.statuses.count("no")
        return yes / (yes + no) if yes + no else 1.0


def judge_prompt(trajectory: Trajectory) -> str:
    """The whole prompt about a trajectory."""
    tools = "\n".join(f"- {name}: {about.splitlines()[0] if about else ''}" for name, about in trajectory.tools.items())
    calls = numbered_calls(trajectory, MAX_OBSERVATION)
    return PROMPT.format(query=trajectory.query, tools=tools or "(none)", calls=calls)


def read_verdict(text: str, trajectory: Trajectory) -> Verdict | None:
    """What a judge replied, None where it cannot be read.

    The object may stand among other text. A need counts as obtained only by the number of a call that exists and is no
    error; where that fails it counts as not obtained, and the plan as incomplete.
    """
    given = _last_object(text)
    if given is None or not isinstance(given.get("needs"), list) or not isinstance(given.get("complete"), bool):
        return None
    calls, statuses = trajectory.calls, []
    for need in given["needs"]:
        if not isinstance(need, dict) or not isinstance(need.get("need"), str) or need.get("status") not in STATUSES:
            return None
        number, status = need.get("call"), need["status"]
        if isinstance(number, bool) or not isinstance(number, int | None):
            return None
        if status == "yes" and (number is None or not 1 <= number <= len(calls) or calls[number - 1].error):
            status = "no"
        statuses.append(status)
    return Verdict(tuple(statuses), given["complete"] and "no" not in statuses)


def trajectory_key(trajectory: Trajectory, *settings: Any) -> str:
    """A hash of the query, the canonical calls with their results, and whatever else a verdict depends on."""
    calls = [[call.signature, call.content.strip(), call.error] for call in trajectory.calls]
    return hashlib.sha256(canonical([trajectory.query, calls, list(settings)]).encode(errors="replace")).hexdigest()


def _last_object(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text that holds "needs"."""
    decoder = json.JSONDecoder()
    found = None
    for match in re.finditer(r"\{(?=\s*\"(?:needs|complete)\")", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and "needs" in value:
            found = value
    return found
