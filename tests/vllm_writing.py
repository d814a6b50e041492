"""A server that answers as vLLM does, from a model in this process: for what can be tested without one."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from opd.dist import HeadDist
from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.rollout import Sampling

Fault = Callable[[str, dict[str, Any]], tuple[int, Any] | None]  # path, body -> what is answered instead


class StandIn:
    """Serves the folder from which it starts, and whatever it is told to load.

    raw: log-probs at temperature 1 whatever it draws with; keeps: names of weights that a load does not change; noise:
    how far its weights are from those that it was given; dev: without, weights cannot be pushed; fault: see Fault.
    """

    def __init__(self, folder: Path, context: int = 512, raw: bool = False, dev: bool = True) -> None:
        self.folder, self.context, self.raw, self.dev = folder, context, raw, dev
        self.keeps: tuple[str, ...] = ()
        self.noise = 0.0
        self.fault: Fault = lambda path, body: None
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.restart()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def restart(self, folder: Path | None = None) -> None:
        """As a server that was killed and came back, with the weights in its folder or in another one."""
        source = str(folder or self.folder)
        self.version = "default"
        self.model = HFModel(load_model(source, torch.float32, "cpu"), load_tokenizer(source), "stand-in")

    @torch.no_grad()
    def load(self, folder: str) -> None:
        found = load_file(f"{folder}/model.safetensors")
        state = self.model.model.state_dict()
        assert set(found) == set(state)
        for number, (name, p) in enumerate(state.items()):
            if name not in self.keeps:
                noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
                p.copy_(found[name] + self.noise * noise * found[name].square().mean().sqrt())

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            self.asked[path] += 1
            if (instead := self.fault(path, body)) is not None:
                return instead
            if path in ("/collective_rpc", "/weight_info", "/update_weight_version") and not self.dev:
                return 404, {"error": {"message": "Not Found"}}
            match path:
                case "/v1/models":
                    return 200, {"data": [{"id": "m", "root": str(self.folder), "max_model_len": self.context}]}
                case "/collective_rpc":
                    try:
                        self.load(body["kwargs"]["weights_path"])
                    except (RuntimeError, AssertionError) as error:
                        return 500, {"error": {"message": str(error)}}
                    return 200, {"results": [None]}
                case "/reset_prefix_cache":
                    return 200, {"success": True}
                case "/update_weight_version":
                    self.version = body["new_version"]
                    return 200, {"success": True}
                case "/weight_info":
                    return 200, {"weight_version": self.version}
                case "/v1/completions":
                    return 200, {"choices": [self.read(body) if "prompt_logprobs" in body else self.write(body)]}
            return 404, {"error": {"message": "Not Found"}}

    @torch.no_grad()
    def read(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = np.array(body["prompt"], np.int32)
        forward = self.model.trunk([ids], [np.arange(1, len(ids))])
        dist = HeadDist(forward.hidden, forward.head, torch.from_numpy(ids[1:]).long(), forward.head.shape[0])
        rows = zip(ids[1:].tolist(), dist.chosen.tolist(), strict=True)
        return {"prompt_logprobs": [None, *({str(i): {"logprob": x}} for i, x in rows)]}

    def write(self, body: dict[str, Any]) -> dict[str, Any]:
        self.model.vocab = self.model.head.shape[0] - len(body["logit_bias"] or {})
        sampling = Sampling(
            body["temperature"], body["top_p"], max(body["top_k"], 0), body["min_p"], body["max_tokens"],
            tuple(body["stop_token_ids"]),
        )  # fmt: skip
        prompt = np.array(body["prompt"], np.int32)
        ((piece,),) = self.model.write([prompt], sampling, [[body["seed"]]])
        told = piece.untruncated if self.raw or sampling.greedy else piece.behaviour
        return {"token_ids": piece.tokens.tolist(), "logprobs": {"token_logprobs": told.astype(float).tolist()}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body leave together: no 40 ms of waiting in between

            def do_GET(self) -> None:
                self.respond({})

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("content-length", 0)))
                self.respond(json.loads(text) if text else {})

            def respond(self, body: dict[str, Any]) -> None:
                status, found = stand_in.answer(self.path, body)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

            def log_message(self, *_: object) -> None: ...

        return Handler
