"""Text to tokens and back: bytes, and a table of words; those of Hugging Face are in `hf_tokenizers`.

Marks such as `<|im_end|>` become single tokens only where `specials` says so: what a user or a tool wrote can hold
their letters, never their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from envs_jax.registry import nearest
from jaxrl.llm.chat import SPECIALS, encode_pieces, render
from jaxrl.llm.config import LMConfig

Message = Mapping[str, Any]


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer."""

    pad_id: int
    eos_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int: ...

    @property
    def has_template(self) -> bool: ...

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The tokens of a text; with `specials` its marks are single tokens."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, marks included."""
        ...

    def apply_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **settings: Any,
    ) -> list[int]:
        """The tokens of a conversation."""
        ...


class Rendered:
    """Conversations by one of jaxrl's own templates."""

    template: str | None

    @property
    def has_template(self) -> bool:
        return self.template is not None

    def apply_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **settings: Any,
    ) -> list[int]:
        if self.template is None:
            raise ValueError("this tokenizer has no chat template: choose one of jaxrl.llm.chat.TEMPLATES")
        pieces = render(self.template, messages, tools, add_generation_prompt, **settings)
        return encode_pieces(self, pieces)[0]  # type: ignore[arg-type]


class ByteTokenizer(Rendered):
    """The 256 bytes of UTF-8, then one token per mark. Needs nothing and encodes everything."""

    def __init__(self, specials: Sequence[str] = ("<|pad|>", *SPECIALS["chatml"]), template: str | None = "chatml"):
        """The first mark is the padding; the last mark of the template's own, or of `specials`, ends a turn."""
        if not specials or len(set(specials)) != len(specials):
            raise ValueError(f"specials must be different marks, at least one, got {list(specials)}")
        self.specials = {mark: 256 + i for i, mark in enumerate(specials)}
        self.template = template
        self.pad_id = 256
        end = SPECIALS[template][-1] if template and SPECIALS[template] else specials[-1]
        if end not in self.specials:
            raise ValueError(f"the template {template!r} needs the mark {end!r}; specials are {list(specials)}")
        self.eos_ids = (self.specials[end],)
        self._marks = {number: mark for mark, number in self.specials.items()}

    @property
    def vocab_size(self) -> int:
        return 256 + len(self.specials)

    def encode(self, text: str, specials: bool = False) -> list[int]:
        if not specials:
            return list(text.encode())
        pattern = "(" + "|".join(re.escape(mark) for mark in sorted(self.specials, key=len, reverse=True)) + ")"
        parts = re.split(pattern, text)
        return [n for part in parts for n in ([self.specials[part]] if part in self.specials else part.encode())]

    def decode(self, tokens: Iterable[int]) -> str:
        """Bytes that are not UTF-8, such as a cut character's, become the replacement character."""
        text, run = "", bytearray()
        for token in tokens:
            if token < 256:
                run.append(token)
                continue
            if token not in self._marks:
                raise ValueError(f"token {token} is not below vocab_size = {self.vocab_size}")
            text += run.decode(errors="replace") + self._marks[token]
            run.clear()
        return text + run.decode(errors="replace")


class TableTokenizer(Rendered):
    """A closed vocabulary of words with blanks between them: what environments that speak in tokens use."""

    template = None

    def __init__(self, words: Sequence[str], pad: str, eos: Sequence[str] = ()):
        """`words[i]` is token i; `pad` and `eos` are among them."""
        self.words = tuple(words)
        self._numbers = {word: i for i, word in enumerate(self.words)}
        if len(self._numbers) != len(self.words):
            repeated = sorted({word for word in self.words if self.words.count(word) > 1})
            raise ValueError(f"words must be different, got twice: {', '.join(repeated)}")
        blank = [word for word in self.words if word.split() != [word]]
        if blank:
            raise ValueError(f"words must not be empty nor hold blanks, got {blank}")
        self.pad_id = self._number(pad)
        self.eos_ids = tuple(self._number(word) for word in eos)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str, specials: bool = False) -> list[int]:
        del specials  # every word is one token
        return [self._number(word) for word in text.split()]

    def decode(self, tokens: Iterable[int]) -> str:
        return " ".join(self.words[token] for token in tokens)

    def _number(self, word: str) -> int:
        if word not in self._numbers:
            raise ValueError(f"{word!r} is not in the vocabulary{nearest(word, self.words)}")
        return self._numbers[word]


def check_tokenizer(tokenizer: Tokenizer, config: LMConfig) -> None:
    """ValueError where a tokenizer cannot belong to a model: tokens without embeddings, or another end of a text."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is {config.vocab_size}"
        )
    if config.eos_ids and not set(tokenizer.eos_ids) & set(config.eos_ids):
        raise ValueError(
            f"the tokenizer ends texts with {tokenizer.eos_ids}, the model with eos_ids = {config.eos_ids}"
        )
