"""A small server that answers token ids in vLLM's JSON form with a model of this process: tests without vLLM."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opd.engines.hf import load_model, load_tokenizer


class StandIn:
    """Serves the model in `folder` under `name` until it is stopped; on the same port when it starts again.

    best: its --max-logprobs. drift: nats that are added to what it says about a text that begins like an earlier one,
    as a faulty prefix cache might.
    """

    def __init__(self, folder: Path, name: str = "tiny", best: int = 20, context: int = 128) -> None:
        self.name, self.best, self.context, self.drift, self.port = name, best, context, 0.0, 0
        self.others: list[str] = []  # further models
        self.seen = set[tuple[int, ...]]()
        self.lock = threading.Lock()
        self.load(folder)
        self.start()

    def load(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.tokenizer = load_model(str(folder), torch.float32, "cpu"), load_tokenizer(str(folder))

    def start(self) -> None:
        routes = [
            Route("/version", lambda _: JSONResponse({"version": "0.0.stand-in"})),
            Route("/v1/models", self.models),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), host="127.0.0.1", port=self.port, log_level="critical", lifespan="off"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)

    def models(self, _: Request) -> Response:
        cards = [
            {"id": name, "root": str(self.folder), "max_model_len": self.context, "parent": None}
            for name in (self.name, *self.others)
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def detokenize(self, request: Request) -> Response:
        return JSONResponse({"prompt": self.tokenizer.decode((await request.json())["tokens"])})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        if body["model"] not in (self.name, *self.others):
            return refusal(f"The model `{body['model']}` does not exist.", 404)
        k = body.get("prompt_logprobs") or 0
        if k > self.best:
            return refusal(f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.best}", 400)
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        rows = self.model.config.vocab_size
        if any(token >= rows for prompt in prompts for token in prompt):
            return refusal("Token id is out of vocabulary", 400)
        if any(len(prompt) + body["max_tokens"] > self.context for prompt in prompts):
            return refusal(f"This model's maximum context length is {self.context} tokens", 400)
        return JSONResponse(await run_in_threadpool(self.answer, body, prompts))

    def answer(self, body: dict, prompts: list[list[int]]) -> dict:
        with self.lock, torch.no_grad():
            choices = [self.choice(i, prompt, body) for i, prompt in enumerate(prompts)]
        return {"object": "text_completion", "model": self.name, "choices": choices}

    def choice(self, index: int, prompt: list[int], body: dict) -> dict:
        tokens, log_probs, why = self.written(prompt, body)
        wanted = body.get("prompt_logprobs")
        return {
            "index": index,
            "text": self.tokenizer.decode(tokens),
            "finish_reason": why,
            "token_ids": tokens,
            "logprobs": {"token_logprobs": log_probs} if body.get("logprobs") is not None else None,
            "prompt_logprobs": None if wanted is None else self.of_prompt(prompt, wanted),
            "prompt_token_ids": prompt,
        }

    def of_prompt(self, prompt: list[int], k: int) -> list:
        """[T] of None for the first token, then id -> log-prob and rank: the token's own and the K best."""
        log_probs = self.log_probs(prompt)
        start = tuple(prompt[:16])
        log_probs = log_probs - (self.drift if len(prompt) > 16 and start in self.seen else 0.0)
        self.seen.add(start)
        found: list = [None]
        for row, token in zip(log_probs[:-1], prompt[1:], strict=True):
            best = row.topk(k)
            ranks = {token: int((row >= row[token]).sum())} | {int(i): n + 1 for n, i in enumerate(best.indices)}
            found.append(
                {str(i): {"logprob": float(row[i]), "rank": rank, "decoded_token": "x"} for i, rank in ranks.items()}
            )
        return found

    def log_probs(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def written(self, prompt: list[int], body: dict) -> tuple[list[int], list[float], str]:
        draw = torch.Generator().manual_seed(body.get("seed", 0))
        tokens, log_probs = list[int](), list[float]()
        while len(tokens) < body["max_tokens"]:
            row = self.log_probs([*prompt, *tokens])[-1]
            temperature = body.get("temperature", 1.0)
            drawn = (row / temperature).softmax(-1) if temperature else (row == row.max()).float()
            tokens.append(int(torch.multinomial(drawn, 1, generator=draw)))
            log_probs.append(float(row[tokens[-1]]))
            if tokens[-1] == self.tokenizer.eos_token_id:
                return tokens, log_probs, "stop"
        assert all(map(math.isfinite, log_probs))
        return tokens, log_probs, "length"


def refusal(message: str, status: int) -> Response:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)
