"""Judges: how complete is a plan? By rules, by rules with errors, by a language model of our own.

A judge is a function of finished trajectories that gives each a score in [0, 1], or None where it came to none. The
judge behind an address is in `jaxrl.rewards.api_judge`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.text.local_tools.trajectory import Trajectory
from envs_jax.text.requirements import completeness
from jaxrl.llm.config import one_of
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params
from jaxrl.llm.tokenizers import Tokenizer
from jaxrl.rewards.judge_prompt import MODES, judge_prompt, trajectory_key
from jaxrl.rewards.tool_use import rule_completeness

Array = jax.Array


class Judge(Protocol):
    def __call__(self, trajectories: Sequence[Trajectory], /) -> list[float | None]: ...


class RuleJudge:
    """The task's own formula."""

    def __call__(self, trajectories: Sequence[Trajectory], /) -> list[float | None]:
        return [rule_completeness(trajectory) for trajectory in trajectories]


class NoisyJudge:
    """The rules with errors: whether something was found out is told wrongly with given probabilities.

    In mode "fraction" each clause of the formula is an own verdict, in mode "strict" the whole formula is one. Equal
    trajectories get equal verdicts, as from a judge with a memory.

    Args:
        false_positive: probability that "no" becomes "yes".
        false_negative: probability that "yes" becomes "no".
        mode: "fraction" or "strict".
        seed: of the errors.
    """

    def __init__(self, false_positive: float, false_negative: float, mode: str = "fraction", seed: int = 0):
        for name, value in (("false_positive", false_positive), ("false_negative", false_negative)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        one_of("mode", mode, MODES)
        self.false_positive, self.false_negative, self.mode, self.seed = false_positive, false_negative, mode, seed

    def __call__(self, trajectories: Sequence[Trajectory], /) -> list[float | None]:
        return [self._score(trajectory) for trajectory in trajectories]

    def _score(self, trajectory: Trajectory) -> float:
        requirement = trajectory.task.requirement
        if requirement is None:
            raise ValueError("a noisy judge needs tasks with a requirement")
        rng = random.Random(trajectory_key(trajectory, self.seed))
        if self.mode == "strict":
            strict = dataclasses.replace(requirement, mode="strict", weights=())
            labels = [completeness(strict, trajectory.events) == 1.0]
        else:
            labels = [number is not None for number in requirement.satisfied_by(trajectory.events)]
        wrong = [rng.random() < (self.false_negative if label else self.false_positive) for label in labels]
        verdicts = [label != flipped for label, flipped in zip(labels, wrong)]
        return sum(verdicts) / len(verdicts) if verdicts else 1.0


def yes_no_score(model: TransformerLM, params: Params, tokens: Array, valid: Array, yes: int, no: int) -> Array:
    """How much rather a model says "yes" than "no" after a text: sigmoid(log p(yes) - log p(no)), in any program.

    Args:
        model: a language model, frozen or fine-tuned.
        params: its parameters.
        tokens: i32 `[B, T]`, padded on the right.
        valid: bool `[B, T]`; False at padding. At least the first of each row is True.
        yes: token of "yes".
        no: token of "no".

    Returns:
        f32 `[B]`.
    """
    hidden, _ = model.apply(params, tokens, valid=valid, return_hidden=True)
    last = jnp.sum(valid, axis=1, dtype=jnp.int32) - 1
    logits = model.logits(params, jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])
    return jax.nn.sigmoid(logits[:, yes] - logits[:, no])


class LMJudge:
    """A jaxrl model asked whether a plan is complete; its score is the odds of "yes" over "no" as the first token.

    Args:
        model: the judge.
        params: its parameters.
        tokenizer: of the model; with a chat template the question is a user's message.
        batch_size: trajectories of one call; the last batch is filled up.
        block: lengths are rounded up to powers of two times this: few programs.
        words: what says yes and no; the first token of each must differ.
    """

    QUESTION = "\n\nDo not reply as above. Is everything obtained that the query needs? Reply with yes or no."

    def __init__(
        self,
        model: TransformerLM,
        params: Params,
        tokenizer: Tokenizer,
        batch_size: int = 8,
        block: int = 256,
        words: tuple[str, str] = ("yes", "no"),
    ):
        self.params, self.tokenizer, self.batch_size, self.block = params, tokenizer, batch_size, block
        yes, no = (tokenizer.encode(word)[0] for word in words)
        if yes == no:
            raise ValueError(f"{words[0]!r} and {words[1]!r} begin with the same token {yes}: choose other words")
        self._score = jax.jit(lambda params, tokens, valid: yes_no_score(model, params, tokens, valid, yes, no))

    def __call__(self, trajectories: Sequence[Trajectory], /) -> list[float | None]:
        scores: list[float | None] = []
        for start in range(0, len(trajectories), self.batch_size):
            batch = [self._tokens(trajectory) for trajectory in trajectories[start : start + self.batch_size]]
            length = self.block
            while length < max(map(len, batch)):
                length *= 2
            tokens = np.full((self.batch_size, length), self.tokenizer.pad_id, np.int32)
            valid = np.zeros(tokens.shape, bool)
            valid[:, 0] = True  # also in the rows that fill the batch up
            for row, text in enumerate(batch):
                tokens[row, : len(text)], valid[row, : len(text)] = text, True
            scores += [float(score) for score in np.asarray(self._score(self.params, tokens, valid))[: len(batch)]]
        return scores

    def _tokens(self, trajectory: Trajectory) -> list[int]:
        text = judge_prompt(trajectory) + self.QUESTION
        if self.tokenizer.has_template:
            return self.tokenizer.apply_chat([{"role": "user", "content": text}])
        return self.tokenizer.encode(text)
