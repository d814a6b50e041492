"""What a server takes at most, and the sentence with which it refuses the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from opd.serve.wire import Reading, Writing


class Refusal(Exception):
    """A request that is not served: a status of HTTP, one sentence, and the seconds after which to come back."""

    def __init__(self, status: int, sentence: str, retry_after: int = 0) -> None:
        self.status, self.sentence, self.retry_after = status, sentence, retry_after
        super().__init__(sentence)


@dataclass(frozen=True)
class Limits:
    """Of one request, but for `queue` and `per_client`, which are of all that wait."""

    bytes: int = 2**26  # of a question
    answer_bytes: int = 2**28
    tokens: int = 2**18  # prompts and texts, or what may be written
    k: int = 1024  # ids per position, named or most probable
    queue: int = 64  # requests that wait or are being answered
    per_client: int = 16  # of these

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def check_size(self, size: int) -> None:
        if size > self.bytes:
            raise Refusal(413, f"The request has more than {self.bytes} bytes; send less at a time.")

    def check(self, question: Reading | Writing, width: int, depth: int, size: int) -> int:
        """The tokens of a question; width, depth and size (bytes per number) are those of the model."""
        if isinstance(question, Writing):
            most = question.sampling.max_new or 0
            texts = sum(map(len, question.seeds))
            tokens = sum(map(len, question.prompts)) + texts * most
            answer, k = texts * most * 24, 0
        else:
            want, rows = question.want, sum(context.n for context in question.contexts)
            tokens = sum(len(context.tokens) for context in question.contexts)
            named = question.contexts[0].columns[want.gather].shape[1] if want.gather else 0
            layers = depth if 0 in want.layers else len(want.layers)
            k = max(named, want.topk)
            answer = rows * (8 + size * width * (want.dist + layers) + 8 * named + 12 * want.topk)
        for what, got, most in (("tokens", tokens, self.tokens), ("ids per position", k, self.k)):
            if got > most:
                raise Refusal(413, f"The request has {got} {what}, and this server takes {most}; ask for less.")
        if answer > self.answer_bytes:
            raise Refusal(
                413, f"The answer would have {answer} bytes, and this server gives {self.answer_bytes}; ask in parts."
            )
        return tokens
