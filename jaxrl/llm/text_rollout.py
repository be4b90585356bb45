"""Conversations with environments of text on the host: what `learn` of GRPO takes, from tools that are plain Python.

A turn of the agent is one call of a compiled program; the environments answer in between. The tokens that were sampled
are kept as they were sampled; only what tools say is encoded, as the tokens that a template adds for it. Contexts are
padded to a few lengths, so that there are few programs.

Planning with the tools of `envs_jax.text.local_tools` by a checkpoint of the Qwen3 class and LoRA (the extra `hf`)::

    config, base = llm.load_hf("a/checkpoint/folder", dtype="bfloat16")
    settings = GRPOConfig(num_groups=4, group_size=8, max_length=8192, model=config, lora=LoraConfig(rank=16))
    agent, data = make_grpo(settings, TokenSpaces(config.vocab_size, 8192)), Data(frozen={"base": base})
    hparams = make_hparams({"learning_rate": 1e-5, "clip_high": 0.28}, GRPOHParams)
    state = jax.jit(agent.init)(jax.random.key(0), hparams, data)
    learn = jax.jit(agent.learn, donate_argnums=0)
    play = TextRollout(
        TransformerLM(config, "bfloat16", "bfloat16"), llm.HFTokenizer("a/checkpoint/folder"), LocalTools,
        make_reward(RuleJudge(), ToolUseReward(), group_size=8),
        max_length=8192, max_turn_tokens=512, settings={"enable_thinking": False},
    )
    tasks = generate_tasks("train")
    for i in range(300):
        chosen = [task for task in random.Random(i).sample(tasks, 4) for _ in range(8)]  # group by group
        talk, trajectories = play(agent.policy(state, data), chosen, jax.random.key(i))
        state, metrics = learn(state, hparams, talk, data)

The sampling must be that of `hparams.temperature`, without filters. A model from scratch or one that has never seen the
format starts from demonstrations: `TextRollout.demonstrate` plays a scripted planner into the same `Conversations`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from envs_jax.core import Environment, EnvParams
from envs_jax.spaces import Discrete, MultiDiscrete
from jaxrl.llm.chat import ROLES, encode_pieces, render
from jaxrl.llm.generation import generate
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import Params
from jaxrl.llm.rollout import Conversations
from jaxrl.llm.sampling import Sampling, make_sampling
from jaxrl.llm.tokenizers import Message, Rendered, Tokenizer, check_tokenizer

Array = jax.Array
_MARK = "jaxrl-agent-text"  # stands for the agent's words where a template is asked what follows them


class Answer(Protocol):
    """What an environment of text says to a turn."""

    @property
    def messages(self) -> Sequence[Message]: ...

    @property
    def done(self) -> bool: ...


class TextEnvironment(Protocol):
    """One conversation at a time, such as `envs_jax.text.local_tools.LocalTools`."""

    trajectory: Any  # what was done, with `stop`: how it ended

    def reset(self, task: Any) -> tuple[Sequence[Message], Sequence[dict[str, Any]]]: ...

    def step(self, text: str) -> Answer: ...

    def cut(self) -> Answer: ...


class TokenSpaces(Environment[None, EnvParams]):
    """The two spaces of a conversation of at most `max_length` tokens, for algorithms that only learn; not played."""

    def __init__(self, vocab_size: int, max_length: int):
        self.vocab_size, self.max_steps = vocab_size, max_length - 1

    @property
    def default_params(self) -> EnvParams:
        return EnvParams()

    def observation_space(self, params: EnvParams) -> MultiDiscrete:
        return MultiDiscrete((self.vocab_size, 2))

    def action_space(self, params: EnvParams) -> Discrete:
        return Discrete(self.vocab_size)


class _Reply(NamedTuple):
    tokens: Sequence[int]
    log_probs: Sequence[float]
    behaviour_log_probs: Sequence[float]
    ended: bool  # by the mark that ends a turn, which is the last token


@dataclasses.dataclass
class _Talk:
    """One conversation under way."""

    env: TextEnvironment
    tokens: list[int]
    roles: list[int]
    log_probs: list[float]
    behaviour_log_probs: list[float]
    done: bool = False

    def add(self, tokens: Sequence[int], roles: Sequence[int]) -> None:
        self.tokens += tokens
        self.roles += roles
        self.log_probs += [0.0] * len(tokens)
        self.behaviour_log_probs += [0.0] * len(tokens)


class TextRollout:
    """Plays conversations between a model and environments of text.

    Args:
        model: the agent.
        tokenizer: with a chat template.
        make_env: builds an environment; one per conversation of a batch, kept from batch to batch.
        reward: finished trajectories -> their rewards, which come with the last token; see `jaxrl.rewards`.
        max_length: T, tokens of a conversation; one that would need more is cut.
        max_turn_tokens: of the agent, in one turn; a turn that is longer is cut and ends the conversation.
        sampling: how the agent's tokens are drawn.
        block: contexts are padded to this length times a power of two.
        settings: for the template, such as {"thinking": False} of jaxrl's `chatml`.
        tell_tools: tell the schemas of the tools in the prompt.

    Raises:
        ValueError: tokenizer, model and lengths do not fit.
    """

    def __init__(
        self,
        model: TransformerLM,
        tokenizer: Tokenizer,
        make_env: Callable[[], TextEnvironment],
        reward: Callable[[Sequence[Any]], Sequence[float]],
        *,
        max_length: int,
        max_turn_tokens: int = 512,
        sampling: Sampling | None = None,
        block: int = 256,
        settings: dict[str, Any] | None = None,
        tell_tools: bool = True,
    ):
        check_tokenizer(tokenizer, model.config)
        if not tokenizer.has_template:
            raise ValueError("the tokenizer has no chat template: conversations need one")
        if not 0 < max_turn_tokens < max_length or block < 1:
            raise ValueError(f"0 < max_turn_tokens < max_length and block > 0 are needed, got {max_turn_tokens}, {max_length}, {block}")  # fmt: skip  # noqa: E501
        self.model, self.tokenizer, self.make_env, self.reward = model, tokenizer, make_env, reward
        self.max_length, self.max_turn_tokens, self.block = max_length, max_turn_tokens, block
        self.sampling = make_sampling() if sampling is None else sampling
        self.settings, self.tell_tools = settings or {}, tell_tools
        self._envs: list[TextEnvironment] = []
        self._generate = jax.jit(self._continue)

    def __call__(self, params: Params, tasks: Sequence[Any], key: Array) -> tuple[Conversations, list[Any]]:
        """One conversation per task.

        Args:
            params: of the whole model, adapters attached: `agent.policy(state, data)`.
            tasks: B; equal ones side by side make a group.
            key: consumed.

        Returns:
            `Conversations` `[B, T]`, and the finished trajectories.

        Raises:
            ValueError: a prompt leaves no room for a turn.
        """
        return self._play(tasks, lambda talks, turn: self._speak(params, talks, jax.random.fold_in(key, turn)))

    def demonstrate(self, tasks: Sequence[Any], planner: Callable[[Any], str]) -> tuple[Conversations, list[Any]]:
        """The same with a scripted planner, trajectory -> text of the next turn; log-probabilities are 0."""

        def speak(talks: Sequence[_Talk], turn: int) -> list[_Reply]:
            del turn
            replies = []
            for talk in talks:
                tokens = [] if talk.done else self.tokenizer.encode(planner(talk.env.trajectory))
                tokens = [*tokens, self.tokenizer.eos_ids[0]]
                ended = len(tokens) <= self.max_turn_tokens
                zeros = [0.0] * len(tokens)
                replies.append(_Reply(tokens[: self.max_turn_tokens], zeros, zeros, ended))
            return replies

        return self._play(tasks, speak)

    def _play(
        self, tasks: Sequence[Any], speak: Callable[[Sequence[_Talk], int], list[_Reply]]
    ) -> tuple[Conversations, list[Any]]:
        while len(self._envs) < len(tasks):
            self._envs.append(self.make_env())
        talks = [self._begin(env, task) for env, task in zip(self._envs, tasks)]
        turn = 0
        while not all(talk.done for talk in talks):
            for talk, reply in zip(talks, speak(talks, turn)):
                if not talk.done:
                    self._hear(talk, reply)
            turn += 1
        trajectories = [talk.env.trajectory for talk in talks]
        return self._conversations(talks, self.reward(trajectories)), trajectories

    def _begin(self, env: TextEnvironment, task: Any) -> _Talk:
        messages, tools = env.reset(task)
        tokens, roles = opening_tokens(self.tokenizer, messages, tools if self.tell_tools else None, **self.settings)
        if len(tokens) + self.max_turn_tokens > self.max_length:
            raise ValueError(
                f"a prompt of {len(tokens)} tokens leaves no room for a turn of {self.max_turn_tokens} in max_length = "
                f"{self.max_length}"
            )
        talk = _Talk(env, [], [], [], [])
        talk.add(tokens, roles)
        return talk

    def _hear(self, talk: _Talk, reply: _Reply) -> None:
        """Takes a turn of the agent and what its environment says to it."""
        count = len(reply.tokens)
        talk.tokens += reply.tokens
        talk.roles += [ROLES.index("agent")] * count
        talk.log_probs += reply.log_probs[:count]
        talk.behaviour_log_probs += reply.behaviour_log_probs[:count]
        if not reply.ended:
            talk.env.cut()
            talk.done = True
            return
        # A model may have more tokens than its tokenizer has words.
        words = [token for token in reply.tokens[:-1] if token < self.tokenizer.vocab_size]
        answer = talk.env.step(self.tokenizer.decode(words))
        talk.done = answer.done
        if answer.done:
            return
        tokens, roles = result_tokens(self.tokenizer, answer.messages, **self.settings)
        if len(talk.tokens) + len(tokens) + self.max_turn_tokens > self.max_length:
            talk.env.cut()
            talk.done = True
        else:
            talk.add(tokens, roles)

    def _speak(self, params: Params, talks: Sequence[_Talk], key: Array) -> list[_Reply]:
        # In the place of a conversation that is over, one that is not is continued twice: it takes no step more.
        live = [i for i, talk in enumerate(talks) if not talk.done]
        rows = [live[0] if talk.done else i for i, talk in enumerate(talks)]
        contexts = [talks[row].tokens for row in rows]
        length = self.block
        while length < max(map(len, contexts)):
            length *= 2
        length = min(length, self.max_length)
        tokens = np.full((len(rows), length), self.tokenizer.pad_id, np.int32)
        valid = np.zeros(tokens.shape, bool)
        for row, context in enumerate(contexts):
            tokens[row, length - len(context) :], valid[row, length - len(context) :] = context, True
        made = jax.device_get(self._generate(params, tokens, valid, key, np.array(rows), self.sampling))
        replies = []
        for row, count in enumerate(made.lengths):
            said, log_probs, behaviour = (
                leaf[row, :count].tolist() for leaf in (made.tokens, made.log_probs, made.behaviour_log_probs)
            )
            replies.append(_Reply(said, log_probs, behaviour, said[-1] in self.tokenizer.eos_ids))
        return replies

    def _continue(
        self, params: Params, tokens: Array, valid: Array, key: Array, rows: Array, sampling: Sampling
    ) -> Any:
        return generate(
            *(self.model, params, tokens, jax.vmap(jax.random.fold_in, (None, 0))(key, rows)),
            max_new=self.max_turn_tokens,
            sampling=sampling,
            valid=valid,
            stop_ids=self.tokenizer.eos_ids,
            pad_id=self.tokenizer.pad_id,
            driver="while",
        )

    def _conversations(self, talks: Sequence[_Talk], rewards: Sequence[float]) -> Conversations:
        if len(rewards) != len(talks):
            raise ValueError(f"the reward function gave {len(rewards)} rewards for {len(talks)} trajectories")

        def padded(rows: Sequence[Sequence[Any]], fill: Any, dtype: Any) -> np.ndarray:
            out = np.full((len(rows), self.max_length), fill, dtype)
            for i, row in enumerate(rows):
                out[i, : len(row)] = row
            return out

        roles = padded([talk.roles for talk in talks], ROLES.index("pad"), np.int32)
        last = [[0.0] * (len(talk.tokens) - 1) + [float(reward)] for talk, reward in zip(talks, rewards)]
        fields = {
            "tokens": padded([talk.tokens for talk in talks], self.tokenizer.pad_id, np.int32),
            "valid": roles != ROLES.index("pad"),
            "mask": roles == ROLES.index("agent"),
            "roles": roles,
            "log_probs": padded([talk.log_probs for talk in talks], 0.0, np.float32),
            "behaviour_log_probs": padded([talk.behaviour_log_probs for talk in talks], 0.0, np.float32),
            "rewards": padded(last, 0.0, np.float32),
            "terminated": np.array([talk.env.trajectory.stop != "max_tokens" for talk in talks]),
        }
        return Conversations(**jax.device_put(fields))


def opening_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, **settings: Any
) -> tuple[list[int], list[int]]:
    """Tokens and roles of a prompt, up to where the agent speaks first."""
    if isinstance(tokenizer, Rendered) and tokenizer.template is not None:
        return encode_pieces(tokenizer, render(tokenizer.template, messages, tools, **settings))  # type: ignore[arg-type]
    tokens = tokenizer.apply_chat(messages, tools, **settings)
    return tokens, [ROLES.index("prompt")] * len(tokens)


def result_tokens(tokenizer: Tokenizer, messages: Sequence[Message], **settings: Any) -> tuple[list[int], list[int]]:
    """Tokens and roles of what follows the end mark of an agent's turn: messages of tools, and its next turn's begin.

    They are what a template adds to a short conversation in which the agent has just spoken: a template that writes the
    agent's earlier turns anew is asked for none of those.

    Raises:
        ValueError: the template of a checkpoint does not show the agent's words, so that their end is not found.
    """
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    if isinstance(tokenizer, Rendered) and tokenizer.template is not None:
        pieces = render(tokenizer.template, [*said, *messages], **settings)
        end = max(i for i, piece in enumerate(pieces) if piece.role == "agent")
        return encode_pieces(tokenizer, pieces[end + 1 :])  # type: ignore[arg-type]
    # A mark of the template in a result must not become one: such a result is not shown.
    shown = [
        message
        if tokenizer.encode(message["content"]) == tokenizer.encode(message["content"], specials=True)
        else {**message, "content": "error: the result holds marks of the chat format"}
        for message in messages
    ]
    text = tokenizer.chat_text([*said, *shown], add_generation_prompt=True, **settings)  # type: ignore[attr-defined]
    _, found, after = text.partition(_MARK)
    end_mark = next((mark for mark in map(_text_of(tokenizer), tokenizer.eos_ids) if after.startswith(mark)), None)
    if not found or end_mark is None:
        raise ValueError("the chat template does not end the agent's words with the tokenizer's end mark")
    tokens = tokenizer.encode(after[len(end_mark) :], specials=True)
    return tokens, [ROLES.index("tool")] * len(tokens)


def _text_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    return lambda token: tokenizer.decode([token])
