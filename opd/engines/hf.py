"""One transformers model in this process: it writes, it reads, and it can be differentiated down to its hidden states.

Axes: B sequences, T positions, N rows, K support, V vocabulary, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from opd.dist import HeadDist
from opd.engines import hf_lora, hf_shared, hf_turns, hf_write
from opd.engines.answered import answered
from opd.engines.hf_load import blocks_of, head_of, load_model, load_tokenizer, probe, real_tokens, same_tokens
from opd.engines.hf_text import Speaker
from opd.errors import DataError, ModelError
from opd.protocols import Answer, Ended, Forward, Want, resolve_layers
from opd.rollout import Array, Piece, Rollout, Sampling

__all__ = ["HFModel", "common_vocab", "load_model", "load_tokenizer", "same_tokenizer"]

CHUNK = 2**24  # logits that exist at one time while answers are computed: 64 MiB in float32


class HFModel(Speaker):
    """A causal language model of transformers as student, or as the engine of a teacher.

    Dropout is always off. `vocab` counts real tokens: what lies beyond is never sampled and never in a log-prob.
    `micro_tokens` bounds the padded tokens of one pass of `read`, `max_sequences` the sequences written together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        max_new: int = 128,
        micro_tokens: int = 16384,
        max_sequences: int = 256,
        gradient_checkpointing: bool = False,
        lora: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.max_new, self.micro_tokens, self.max_sequences = max_new, micro_tokens, max_sequences
        self.decoder: nn.Module = model.get_decoder()
        self.config = model.config.get_text_config(decoder=True)
        head, self.scale = head_of(model)
        self.vocab = real_tokens(tokenizer, head)
        self.dtype = torch.float64 if head.dtype == torch.float64 else torch.float32
        probe(model, self.decoder, self.vocab)
        self.lora = lora
        if lora is not None:
            hf_lora.add(model, lora)
        self._checkpointed = _enable_checkpointing(model) if gradient_checkpointing else []
        self._worn = False

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def head(self) -> Tensor:
        """[V, D] the live parameter, padding included."""
        return self.model.get_output_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess, reportReturnType]

    @property
    def width(self) -> int:
        """Of the last hidden state."""
        return self.head.shape[1]

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, sought only when states are asked for."""
        return blocks_of(self.decoder, self.config.num_hidden_layers)

    @property
    def context(self) -> int:
        """The longest sequence that the model was made for."""
        return int(getattr(self.config, "max_position_embeddings", None) or 2**31)

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a text: those of the tokenizer and of the generation settings."""
        found: list[Any] = []
        for ids in (self.tokenizer.eos_token_id, getattr(self.model.generation_config, "eos_token_id", None)):
            found += ids if isinstance(ids, list) else [ids]
        return frozenset(i for i in found if i is not None)

    def weights(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.weights().values())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.weights().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = self.weights()
        if odd := sorted(set(weights) ^ set(state)):
            raise ModelError(f"saved weights do not fit {self.name}", got=f"{len(odd)} odd names, first {odd[0]!r}")
        for name, p in weights.items():
            p.copy_(state[name])

    def save(self, folder: str | Path) -> None:
        """A plain Hugging Face folder, safetensors only, that any tool loads; adapters are merged into a copy."""
        if self.lora is None:
            self.model.save_pretrained(folder)
        else:
            hf_lora.save_merged(self.model, folder)
        self.tokenizer.save_pretrained(folder)

    @contextmanager
    def wearing(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The model with other values for what learns; the values are borrowed, not copied."""
        own = {name: (p, p.data) for name, p in self.weights().items()}
        before, self._worn = self._worn, True
        try:
            for name, (p, data) in own.items():
                p.data = weights[name].to(data)
            yield
        finally:
            self._worn = before
            for p, data in own.values():
                p.data = data

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model without its adapters: what a LoRA student was before it learnt anything."""
        with hf_lora.switched_off(self.model):
            yield

    # -- text ---------------------------------------------------------------------------------------------------------

    def write(self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]) -> list[list[Piece]]:
        """For prompt i one piece per seed in seeds[i]; the stop token is a decision and part of the piece."""
        return self.write_aloud(prompts, sampling, seeds, None)

    def write_aloud(
        self, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]], ended: Ended | None
    ) -> list[list[Piece]]:
        """As `write`; `ended` is told of every text, once, when it leaves the batch, which depends on texts alone."""
        self.check(prompts, room=1)
        return hf_write.write(self, prompts, sampling, seeds, ended)

    def take_turns(
        self, teacher: Any, share: float, prompts: Sequence[Array], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Piece]]:
        """As `write`, but before every token a coin gives it to the teacher with probability `share`."""
        self.check(prompts, room=1)
        return hf_turns.take_turns(self, teacher, share, prompts, sampling, seeds)

    def reading(self, prompts: Sequence[Array], steps: int) -> hf_write.Reader:
        """The prompts are read; what then comes, at most `steps` tokens each, can be read one by one."""
        self.check(prompts, room=1)
        return hf_write.Reader(self, prompts, steps)

    # -- passes -------------------------------------------------------------------------------------------------------

    def trunk(self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...] = ()) -> Forward:
        """One differentiable pass; rows are the positions of each sequence, concatenated.

        hidden: the state at position - 1, from which the row's token is predicted. states[layer]: the output of
        transformer block `layer` (1..L, -1 for L, 0 for every one), before the final norm, at the position itself,
        hence after the row's token was read.
        """
        for block in self._checkpointed:
            block.training = True  # asks for recomputation; its children stay in eval mode, so dropout stays off
        try:
            hidden, states = self._states(tokens, positions, layers)
        finally:
            for block in self._checkpointed:
                block.training = False
        return Forward(hidden, self.head, states)

    @torch.no_grad()
    def read(self, contexts: Sequence[Rollout], want: Want) -> Answer:
        """All answers from one pass per context; logits exist for a chunk of rows at a time."""
        if not contexts:
            return Answer()
        starts = np.cumsum([0, *(c.n for c in contexts)])
        answers: dict[Any, Tensor] = {}
        for batch, parts in self.answers(contexts, want):
            rows = self.column([np.arange(starts[i], starts[i + 1]) for i in batch])
            for key, part in parts.items():
                if key not in answers:
                    answers[key] = part.new_empty(int(starts[-1]), *part.shape[1:])
                answers[key][rows] = part
        return self._answer(answers, self.column([c.decisions for c in contexts]), want)

    @torch.no_grad()
    def answers(
        self, contexts: Sequence[Rollout], want: Want, share: bool = False
    ) -> Iterator[tuple[list[int], dict[Any, Tensor]]]:
        """Batch by batch the numbers of its contexts, and what is wanted about their rows as [n, ...] by name.

        Names: chosen, gathered, top, ids, hidden, and the layers. With `share` a prompt of several contexts is read
        once, which changes last bits; states of layers are always read with whole sequences.
        """
        self.check([c.tokens for c in contexts])
        alone: Sequence[int] = range(len(contexts))
        if share and not want.layers and hf_shared.sharable(self):
            together, alone = hf_shared.split(contexts, self.micro_tokens)
            for batch in together:
                own = [contexts[i] for i in batch]
                yield batch, self._answers(own, want, hf_shared.states(self, own), {})
        for batch in _by_length([len(contexts[i].tokens) for i in alone], self.micro_tokens):
            own = [contexts[alone[i]] for i in batch]
            hidden, states = self._states([c.tokens for c in own], [c.positions for c in own], want.layers)
            yield [alone[i] for i in batch], self._answers(own, want, hidden, states)

    def dist(self, hidden: Tensor, tokens: Tensor, head: Tensor | None = None) -> HeadDist:
        return HeadDist(hidden, self.head if head is None else head, tokens, self.vocab)

    def check(self, tokens: Sequence[Array], room: int = 0) -> None:
        """Refuse sequences that are empty, too long for the model, or hold ids that it does not have."""
        for number, ids in enumerate(tokens):
            if not 0 < len(ids) <= self.context - room:
                raise DataError(
                    f"sequence {number} does not fit the context of {self.name}",
                    got=f"{len(ids)} tokens",
                    expected=f"1 to {self.context - room}",
                    remedy="Drop or shorten that problem" if len(ids) else "Give every prompt at least one token",
                )
            if int(ids.max()) >= self.head.shape[0] or int(ids.min()) < 0:
                raise DataError(
                    f"sequence {number} holds a token that {self.name} does not have",
                    got=f"ids {int(ids.min())} to {int(ids.max())}",
                    expected=f"0 to {self.head.shape[0] - 1}",
                )

    def _states(
        self, tokens: Sequence[Array], positions: Sequence[Array], layers: tuple[int, ...]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """[N, D] the state before each row, and per layer the state after it.

        Sequences are padded on the right and no mask is passed: a causal model cannot see what comes after.
        """
        ids = torch.zeros(len(tokens), max(len(t) for t in tokens), dtype=torch.int64)
        for b, sequence in enumerate(tokens):
            ids[b, : len(sequence)] = torch.from_numpy(np.asarray(sequence))
        b = self.column([np.full(len(own), number) for number, own in enumerate(positions)])
        t = self.column(positions)
        states: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for key, block in self._resolved(layers).items():
                hooks.enter_context(self._listen(block, lambda state, key=key: states.update({key: state[b, t]})))
            last = self.decoder(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
        return self.scaled(last[b, t - 1]), states

    def _resolved(self, layers: tuple[int, ...]) -> dict[int, int]:
        return resolve_layers(layers, len(self.blocks), self.name) if layers else {}

    def column(self, parts: Sequence[Array]) -> Tensor:
        """Integers of several sequences, one after the other, on the model's device."""
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(self.device)

    def scaled(self, hidden: Tensor) -> Tensor:
        """hidden such that the logits are hidden @ head.T, also for models with a constant factor on their logits."""
        return hidden if self.scale == 1 else hidden * self.scale

    @contextmanager
    def _listen(self, block: int, hear: Any) -> Iterator[None]:
        hook = self.blocks[block - 1].register_forward_hook(
            lambda _module, _inputs, output: hear(output[0] if isinstance(output, tuple) else output)
        )
        try:
            yield
        finally:
            hook.remove()

    def _answers(
        self, contexts: Sequence[Rollout], want: Want, hidden: Tensor, found: Mapping[int, Tensor]
    ) -> dict[Any, Tensor]:
        """Whatever is wanted about the rows of one batch, as [N, ...] tensors by name; states by layer number."""
        answers: dict[Any, Tensor] = {**found}
        if want.dist:
            answers["hidden"] = hidden
        if not (want.chosen or want.topk or want.gather):
            return answers
        tokens = self.column([c.decisions for c in contexts])
        ids = self.column([c.columns[want.gather] for c in contexts]) if want.gather else tokens
        parts: list[dict[Any, Tensor]] = []
        size = max(1, CHUNK // self.vocab)
        for own, token, wanted in zip(hidden.split(size), tokens.split(size), ids.split(size), strict=True):
            dist, part = self.dist(own, token), dict[Any, Tensor]()
            if want.chosen:
                part["chosen"] = dist.chosen
            if want.gather:
                part["gathered"] = dist.at(wanted)
            if want.topk:
                part["top"], part["ids"] = dist.logprobs().topk(min(want.topk, self.vocab), dim=-1)
            parts.append(part)
        return answers | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _answer(self, answers: dict[Any, Tensor], decided: Tensor, want: Want) -> Answer:
        def whole(hidden: Tensor, states: dict[int, Tensor]) -> HeadDist:
            # The next optimizer step changes a head that learns under the feet of these states, so they get their own.
            learns = self.head.requires_grad and not self._worn
            head = self.head.detach().clone() if learns else self.head.detach()
            return HeadDist(hidden, head, decided, self.vocab, states=states)

        return answered(answers, decided, want, self._resolved(want.layers), self.dtype, whole)


class Counting(Protocol):
    """A model here or elsewhere, with its tokenizer and the number of tokens that its log-probs are over."""

    name: str
    vocab: int
    tokenizer: PreTrainedTokenizerBase


def same_tokenizer(student: Counting, teacher: Counting) -> int:
    """The number of common tokens, or an error that names the first id on which the two disagree."""
    common = same_tokens(student.tokenizer, teacher.tokenizer, (student.name, teacher.name))
    return min(student.vocab, teacher.vocab, common)


def common_vocab(student: Counting, *teachers: Counting) -> int:
    """Give all models the vocabulary that they share, so that every log-prob is over the same tokens."""
    common = min([student.vocab, *(same_tokenizer(student, teacher) for teacher in teachers)])
    for model in (student, *teachers):
        model.vocab = common
    return common


def _enable_checkpointing(model: PreTrainedModel) -> list[nn.Module]:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        if isinstance(getattr(block, "dropout", None), float):
            block.dropout = 0.0  # pyright: ignore[reportArgumentType]
    if not blocks:
        raise ModelError(
            f"{type(model).__name__} cannot recompute activations", remedy="Set gradient_checkpointing = false"
        )
    return blocks  # pyright: ignore[reportReturnType]


def _by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of sequences in batches of similar length whose padded size stays within the budget of tokens."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
