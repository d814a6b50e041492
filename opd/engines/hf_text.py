"""From messages to ids and from ids to text: what a tokenizer of transformers is asked, with or without its model.

Axes: T positions, n tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from opd.errors import DataError
from opd.rollout import Array, Message


class Speaker:
    """Whoever has a tokenizer, and ids that end its texts."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a text."""
        raise NotImplementedError

    def render(self, messages: Sequence[Message]) -> Array:
        """The tokenizer's chat template, ready for the answer. Without a template: the contents, one per line, and
        nothing else but a begin-of-text token if the tokenizer itself puts one."""
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer.encode(text, add_special_tokens=False)  # pyright: ignore[reportArgumentType]
        else:
            ids = self.tokenizer.encode("\n".join(message["content"] for message in messages))
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]  # a tokenizer that closes every text would have the student continue a closed one
        if not ids:
            raise DataError("a prompt without any token", got=repr(list(messages)), expected="at least one token")
        return np.asarray(ids, np.int32)

    def encode(self, text: str) -> Array:
        """The ids of a whole answer, ended as the model ends its own."""
        ends = [] if not self.stops else [self.tokenizer.eos_token_id or min(self.stops)]
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False) + ends, np.int32)

    def decode(self, tokens: Array) -> str:
        """Text without special tokens."""
        text = self.tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def decode_token(self, token: int) -> str:
        """One token as a person should see it, special ones by their name."""
        return self.tokenizer.decode([token])  # pyright: ignore[reportReturnType]
