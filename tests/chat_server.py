"""A small server that speaks OpenAI's chat language and answers with a model of its own; it misbehaves on request."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opd.cast import located
from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.rollout import End, Sampling


class Chat:
    """`faults`: what becomes of the next requests, one each. `key`: what a caller must show. `pause`: s per answer."""

    def __init__(self, model: str = "embedded:teacher") -> None:
        where = located(model)
        self.engine = HFModel(load_model(where, torch.float32, "cpu"), load_tokenizer(where), model, max_new=32)
        self.faults = deque[str]()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.at: list[float] = []
        self.key, self.pause, self.text = "", 0.0, ""
        self.busy = self.busiest = 0
        self.lock, self.turn = threading.Lock(), threading.Lock()
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        with self.lock:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.at.append(time.monotonic())
            fault = self.faults.popleft() if self.faults else ""
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            shown = request.headers.get("authorization", "nothing")
            return JSONResponse({"error": {"message": f"Incorrect API key provided: {shown}"}}, 401)
        name, _, detail = fault.partition(":")
        match name:
            case "status":
                code, _, after = detail.partition(":")
                headers = {"retry-after": after} if after else {}
                return JSONResponse({"error": {"message": "not now"}}, int(code), headers)
            case "cut":  # half of what was announced
                return Response(b'{"choices": [{"mess', headers={"content-length": "4000"})
            case "garbage":
                return Response(b"<html>502</html>", media_type="text/html")
            case "filtered":
                return JSONResponse(reply("", "content_filter"))
        return JSONResponse(await run_in_threadpool(self.answer, body))

    def answer(self, body: dict) -> dict:
        with self.lock:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        time.sleep(self.pause)
        try:
            with self.turn:
                return self.written(body)
        finally:
            with self.lock:
                self.busy -= 1

    def written(self, body: dict) -> dict:
        prompt = self.engine.render(body["messages"])
        if self.text:
            return reply(self.text, "stop", len(prompt), 7)
        sampling = Sampling(body["temperature"], body.get("top_p", 1.0), max_new=body["max_tokens"])
        ((piece,),) = self.engine.write([prompt], sampling, [[body.get("seed", 0)]])
        why = "stop" if piece.end == End.STOP else "length"
        return reply(self.engine.decode(np.asarray(piece.tokens)), why, len(prompt), len(piece.tokens))


def reply(text: str, why: str, read: int = 0, written: int = 0) -> dict:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": why}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


@contextlib.contextmanager
def serving(chat: Chat) -> Iterator[str]:
    """The base URL of a running server."""
    config = uvicorn.Config(chat.app, host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
