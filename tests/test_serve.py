"""opd serve: what it answers, whom it refuses, and that it ends well. Processes are real."""

import concurrent.futures
import json
import re
import signal
import socket
import time

import httpx
import models
import numpy as np
import pytest
import safetensors.numpy
import torch
from serving import TOKEN, Serve, blocks, state_folder

from opd.cli.main import main
from opd.engines.hf import HFModel, load_model, load_tokenizer
from opd.engines.hf_shared import split
from opd.errors import SettingError, TeacherError
from opd.protocols import Want
from opd.rollout import Problem, Rollout, Sampling
from opd.serve import bearer, wire
from opd.serve.counters import Counters
from opd.serve.desk import Desk
from opd.serve.limits import Limits, Refusal
from opd.serve.wire import Malformed
from opd.serve.work import Engine

RNG = np.random.default_rng(0)


def text(prompt, answer, gaps=()):
    author = np.array([0] * len(prompt) + [1] * len(answer), np.int8)
    author[[len(prompt) + gap for gap in gaps]] = 0
    return Rollout(np.array([*prompt, *answer], np.int32), author, Problem("p", ""))


def some(vocab=models.VOCAB):
    """Texts of several prompts, one of them alone, one with given tokens inside, one of a single token."""
    ids = lambda n: RNG.integers(3, vocab, n).tolist()
    first, second = ids(30), ids(22)
    return [
        *(text(first, ids(n)) for n in (9, 1, 14)),
        text(ids(5), ids(20)),
        *(text(second, ids(n)) for n in (12, 7)),
        text(second, ids(10), gaps=(3, 4)),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.folder(tmp_path_factory.mktemp("model"), layers=3, width=32)


@pytest.fixture(scope="module")
def model(folder):
    return HFModel(load_model(str(folder), dtype=torch.float32, device="cpu"), load_tokenizer(str(folder)), "local")


@pytest.fixture(scope="module")
def server(folder):
    options = ("--port", "0", "--request-mb", "1", "--request-tokens", "20000", "--k", "16", "--queue", "6")
    served = Serve(str(folder), *options, "--per-client", "4", "--threads", "1")
    assert served.url, served.lines
    yield served
    served.kill()


def asked(contexts, want, vocab=models.VOCAB):
    return wire.reading(contexts, want, vocab)


def answer_of(response, contexts):
    """name -> [N, ...] of a whole answer, the texts in their order."""
    assert response.status_code == 200, response.text
    *parts, last = blocks(response.content)
    assert json.loads(last[8 : 8 + int.from_bytes(last[:8], "little")])["__metadata__"] == {"end": "1"}
    rows, found = [], {}
    for part in map(safetensors.numpy.load, parts):
        places = [(t, i) for t in part.pop("texts") for i in range(contexts[t].n)]
        rows += places
        for name, x in part.items():
            found.setdefault(name, []).append(x)
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    return {name: np.concatenate(x)[order] for name, x in found.items()}


# ---- the format


def test_a_question_arrives_as_it_was_sent():
    contexts = [c.with_columns(mine=RNG.integers(0, 40, (c.n, 3))) for c in some()]
    want = Want(chosen=True, topk=5, gather="mine", dist=True, layers=(1, -1))
    body = asked(contexts, want, 40)
    found = wire.read_reading(body, models.VOCAB)
    assert found.vocab == 40 and found.want == Want(True, 5, wire.IDS, True, layers=(1, -1))
    for ours, theirs in zip(contexts, found.contexts, strict=True):
        assert (ours.tokens == theirs.tokens).all() and (ours.author == theirs.author).all()
        assert (ours.columns["mine"] == theirs.columns[wire.IDS]).all()
    prompts = safetensors.numpy.load(body)["prompt"]
    assert len(prompts) == 30 + 5 + 22  # every different one once


def test_a_request_to_write_arrives_as_it_was_sent():
    sampling = Sampling(0.7, 0.9, 5, 0.01, 17, (3, 4))
    body = wire.writing([np.array([3, 4]), np.array([5])], sampling, [[2**64 - 1, 0], [7]], 45)
    found = wire.read_writing(body, 45)
    assert found.sampling == sampling and found.seeds == [[2**64 - 1, 0], [7]] and found.vocab == 45
    assert [prompt.tolist() for prompt in found.prompts] == [[3, 4], [5]]


def changed(said=None, **tensors):
    """A good question with something changed; None takes a tensor out."""
    body = asked([text([3, 4], [5, 6, 7]), text([3], [8])], Want(chosen=True))
    found = {**safetensors.numpy.load(body), **tensors}
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
    return safetensors.numpy.save({k: v for k, v in found.items() if v is not None}, {**header, **(said or {})})


I32 = lambda *x: np.array(x, np.int32)
MALFORMED = {
    "no file": (b"garbage", "no safetensors"),
    "cut off": (changed()[:-3], "no safetensors"),
    "no text": (changed(text=None), "no tensor 'text'"),
    "lengths that do not add up": (changed(**{"text.lengths": I32(3, 3)}), "'text' must be int32 [6]"),
    "negative lengths": (changed(**{"text.lengths": I32(5, -1)}), "text.lengths"),
    "lengths that overflow": (changed(**{"text.lengths": I32(2**31 - 1, 2**31 - 1)}), "'text' must be"),
    "floats": (changed(text=np.ones(4, np.float32)), "must be int32"),
    "a prompt that is not there": (changed(of=I32(0, 2)), "'of' names"),
    "an empty text": (changed(**{"text.lengths": I32(4, 0)}), "empty"),
    "marks of another length": (changed(rows=np.ones(3, np.uint8)), "'rows' must be"),
    "a text that begins with a given token": (changed(rows=np.array([0, 1, 1, 1], np.uint8)), "belongs to the prompt"),
    "ids for fewer rows": (changed(ids=np.zeros((3, 2), np.int32)), "'ids' must be int32 [4, K]"),
    "ids that no token has": (changed(ids=np.full((4, 1), 45, np.int32)), "from 0 to 44"),
    "nothing asked": (changed({"chosen": "0"}), "nothing is asked"),
    "K above the vocabulary": (changed({"topk": "46"}), "'topk' must be from 0 to 45"),
    "K that is a word": (changed({"topk": "many"}), "'topk'"),
    "K of a thousand digits": (changed({"topk": "9" * 1000}), "'topk'"),
    "a vocabulary of none": (changed({"vocab": "0"}), "'vocab'"),
    "layers that are words": (changed({"layers": "1,x"}), "'layers'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_question_is_refused_with_a_sentence(name):
    body, sentence = MALFORMED[name]
    with pytest.raises(Malformed, match=re.escape(sentence)):
        wire.read_reading(body, models.VOCAB)


@pytest.mark.parametrize("fault", [{"temperature": "nan"}, {"top_p": "2"}, {"max_new": "None"}, {"stop": "a"}])
def test_a_malformed_request_to_write_is_refused(fault):
    body = wire.writing([np.array([3])], Sampling(max_new=3), [[1]], 45)
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
    with pytest.raises(Malformed, match=next(iter(fault))):
        wire.read_writing(safetensors.numpy.save(safetensors.numpy.load(body), {**header, **fault}), 45)


def test_blocks_survive_any_cuts():
    whole = [wire.Block({"x": torch.arange(5)}, {"a": "b"}), wire.Block(said={"end": "1"})]
    stream = wire.ALIVE.join([wire.packed(block) for block in whole])
    for size in (1, 3, 7, 1000):
        parser = wire.Blocks(10**6)
        found = [b for i in range(0, len(stream), size) for b in parser.feed(stream[i : i + size])]
        assert [b.said for b in found] == [{"a": "b"}, {"end": "1"}] and found[0].tensors["x"].tolist() == [
            0,
            1,
            2,
            3,
            4,
        ]
    with pytest.raises(Malformed):
        list(wire.Blocks(10).feed(stream))


# ---- a prompt is read once


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("budget", [40, 120, 10**6])
def test_shared_prompts_give_the_same_numbers(tmp_path, kind, budget):
    engine = models.engine(tmp_path, kind, layers=3, micro_tokens=budget)
    contexts = [c.with_columns(mine=RNG.integers(0, 45, (c.n, 3))) for c in some()]
    want, starts = Want(chosen=True, topk=4, gather="mine", dist=True), np.cumsum([0, *(c.n for c in contexts)])

    def read(share):
        found = {}
        for batch, parts in engine.answers(contexts, want, share):
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
            for name, x in parts.items():
                found.setdefault(name, torch.full((int(starts[-1]), *x.shape[1:]), -99, dtype=x.dtype))[rows] = x
        return found

    plain, shared = read(False), read(True)
    for name, x in plain.items():
        assert torch.allclose(x.double(), shared[name].double(), rtol=0, atol=1e-12), name
    batches, alone = split(contexts, budget)
    assert sorted([*(i for batch in batches for i in batch), *alone]) == list(range(7)) and 3 in alone and batches


# ---- answers over HTTP


def test_answers_are_those_of_the_model(server, model):
    contexts = [c.with_columns(mine=RNG.integers(0, 45, (c.n, 3))) for c in some()]
    want = Want(chosen=True, topk=4, gather="mine", dist=True, layers=(2,))
    expected = model.read(contexts, want)
    for path, own in {
        "score": Want(chosen=True),
        "topk": Want(topk=4),
        "gather": Want(gather="mine"),
        "hidden": Want(dist=True, layers=(2,)),
    }.items():
        found = answer_of(server.post(f"/v1/{path}", asked(contexts, own)), contexts)
        for name, x in found.items():
            ours = {
                "chosen": expected.chosen,
                "gathered": expected.gathered,
                "hidden": expected.dist.hidden,
                "2": expected.dist.states[2],
                "ids": expected.dist.top(4),
                "top": expected.dist.at(expected.dist.top(4)),
            }[name]
            assert np.abs(x - ours.numpy()).max() < 1e-5, (path, name)
    assert set(answer_of(server.post("/v1/score", asked(contexts, want)), contexts)) == {
        "chosen", "gathered", "hidden", "ids", "top", "2",
    }  # fmt: skip


def test_a_smaller_vocabulary_is_what_probabilities_sum_over(server, model):
    contexts = some(30)
    model.vocab = 30
    try:
        expected = model.read(contexts, Want(chosen=True)).chosen.numpy()
    finally:
        model.vocab = models.VOCAB
    found = answer_of(server.post("/v1/score", asked(contexts, Want(chosen=True), 30)), contexts)["chosen"]
    assert np.abs(found - expected).max() < 1e-5


def test_refusals_have_a_status_and_a_sentence(server):
    good = asked(some(), Want(chosen=True))

    def refused(response, status, *words):
        assert response.status_code == status
        sentence = response.json()["error"]
        assert sentence.endswith(".") and "Traceback" not in sentence and all(word in sentence for word in words)

    assert server.get("/v1/health", token="none").json()["ok"]
    for path in ("/v1/info", "/v1/head", "/v1/tokenizer", "/metrics"):
        refused(server.get(path, token="wrong"), 401, "token")
    refused(server.post("/v1/score", good, authorization="Bearer x"), 401, "token")
    refused(server.post("/v1/score", b"garbage"), 400, "safetensors")
    refused(server.post("/v1/topk", good), 400, "topk")
    refused(server.post("/v1/score", good, content_type="application/json"), 415, "content type")
    refused(server.post("/v1/score", good, opd_model="another"), 409, "Another model")
    refused(server.post("/v1/score", b"x" * 2**21), 413, "bytes")
    refused(server.post("/v1/topk", asked(some(), Want(topk=17))), 413, "17 ids per position", "16")
    refused(server.post("/v1/hidden", asked(some(), Want(layers=(4,)))), 400, "layer")
    refused(server.post("/v1/score", asked([text([3], [5] * 200)], Want(chosen=True))), 400, "context")
    refused(
        server.post("/v1/score", asked([text([44], [5])], Want(chosen=True)).replace(b"\x2c\0\0\0", b"\x2d\0\0\0")),
        400,
        "45",
    )
    long = wire.writing([np.array([3])], Sampling(max_new=20001), [[1]], 45)
    refused(server.post("/v1/text", long), 413, "tokens")
    refused(server.get("/v2"), 404, "docs/serving.md")
    refused(server.get("/v1/score"), 405)


def test_metrics_are_for_prometheus(server):
    lines = server.get("/metrics").text.splitlines()
    assert all(
        re.fullmatch(r'# (HELP|TYPE) opd_\w+ .+|opd_\w+({path="[^"]+",status="\d+"})? [\d.e+-]+', line)
        for line in lines
    )
    assert any(
        line.startswith('opd_requests_total{path="/metrics"') for line in server.get("/metrics").text.splitlines()
    )


def long_writing(n=8):
    """A tenth of a second of work on a quiet machine, a second on a busy one."""
    return wire.writing([np.array([3])], Sampling(max_new=120, stop=()), [list(range(n * 20))], 45)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_flood_is_refused_and_others_are_still_served(server):
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        flood = [pool.submit(server.post, "/v1/text", long_writing(), opd_client="flood") for _ in range(10)]
        time.sleep(0.3)
        start = time.perf_counter()
        other = server.post("/v1/score", asked(some(), Want(chosen=True)), opd_client="other")
        waited = time.perf_counter() - start
        statuses = [answer.result().status_code for answer in flood]
        total = time.perf_counter() - start
    assert other.status_code == 200 and set(statuses) == {200, 429} and statuses.count(200) >= 4
    assert waited < total
    refused = next(answer.result() for answer in flood if answer.result().status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1 and "This client" in refused.json()["error"]


def test_a_client_that_disappears_harms_nobody(server):
    host, port = server.url.removeprefix("http://").split(":")
    body = long_writing()
    head = f"POST /v1/text HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nopd-client: gone\r\n"
    head += f"content-type: application/x-opd-question\r\ncontent-length: {len(body)}\r\n\r\n"
    for sent in (body, body[:20]):  # one leaves while its text is written, one in the middle of its question
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + sent)
            time.sleep(0.02)  # less than the writing takes
    assert server.post("/v1/score", asked(some(), Want(chosen=True))).status_code == 200
    until(lambda: not server.get("/v1/health").json()["waiting"])
    until(lambda: "opd_gone_total 2" in server.get("/metrics").text)


# ---- the desk


class Slow:
    """An engine that is asked nothing here."""


def test_clients_take_turns_and_what_is_too_much_is_refused():
    import asyncio

    question = wire.read_reading(asked(some(), Want(chosen=True)), models.VOCAB)

    async def accept():
        desk = Desk(Slow(), Limits(queue=5, per_client=3), Counters())
        for client in "aaab":
            desk.accept(client, question, 10)
        with pytest.raises(Refusal) as found:
            desk.accept("a", question, 10)
        assert found.value.status == 429 and found.value.retry_after >= 1
        desk.accept("c", question, 10)
        with pytest.raises(Refusal) as found:
            desk.accept("d", question, 10)
        assert found.value.status == 503
        return [desk._next()[0].client for _ in range(5)]

    assert asyncio.run(accept()) == ["a", "b", "c", "a", "a"]


def test_merged_questions_are_answered_as_alone(tmp_path):
    engine = Engine(models.engine(tmp_path), share=True)
    first, second = (wire.read_reading(asked(some(), Want(chosen=True, topk=3)), 45) for _ in range(2))
    assert engine.alike(first, second)
    assert not engine.alike(first, wire.read_reading(asked(some(), Want(chosen=True)), 45))
    alone = [list(engine.answer([question])) for question in (first, second)]
    merged = list(engine.answer([first, second]))
    for number, question in enumerate((first, second)):
        total = lambda parts: sum(float(b.tensors["top"].sum() + b.tensors["chosen"].sum()) for _, b in parts)
        own = [pair for pair in merged if pair[0] == number]
        assert sum(len(b.tensors["texts"]) for _, b in own) == len(question.contexts)
        assert abs(total(own) - total(alone[number])) < 1e-9


# ---- the token, start and end


def test_a_token_is_made_once_and_kept_for_oneself(tmp_path):
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    token, where = bearer.of_server("", environment)
    place = bearer.kept_at(environment)
    assert str(place) == where and place.stat().st_mode & 0o777 == 0o600 and len(token) > 40
    assert bearer.of_server("", environment)[0] == token == bearer.of_client(True, environment)
    assert bearer.of_client(False, environment) == ""  # a user's own token is not shown to other machines
    assert bearer.of_client(False, {**environment, bearer.CLIENT: TOKEN}) == TOKEN
    place.chmod(0o644)
    with pytest.raises(SettingError, match="chmod 600"):
        bearer.of_server("", environment)
    with pytest.raises(SettingError, match="16 or more"):
        bearer.of_server("", {**environment, bearer.SERVER: "short"})
    with pytest.raises(SettingError, match="both set"):
        bearer.of_server("", {**environment, bearer.SERVER: TOKEN, bearer.SERVER_FILE: str(place)})


def test_starts_that_cannot_be_are_refused_before_a_model_is_loaded(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def refused(*words):
        assert main(["serve", "no-such-model", *words]) == 2
        return capsys.readouterr().err

    assert "a token" in refused("--no-token", "--host", "0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port" in refused("--port", str(taken.getsockname()[1]))
    monkeypatch.setattr("opd.cli.serving.util.find_spec", lambda name: None)
    assert "pip install 'opd[serve]'" in refused("--port", "0")


def test_a_server_finishes_what_it_accepted(folder, tmp_path):
    """Its token is its own; Ctrl-C in the middle of an answer ends it with 0, and the answer is whole."""
    served = Serve(str(folder), "--port", "0", "--threads", "1", environment=state_folder(tmp_path))
    token = (tmp_path / "opd" / "serve-token").read_text().strip()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.post, "/v1/text", long_writing(), authorization=f"Bearer {token}")
        until(lambda: served.get("/v1/health").json()["waiting"])
        assert not answer.done()
        assert served.stop() == 0
        content = answer.result().content
    assert len(wire.read_pieces(next(iter(wire.Blocks(10**9).feed(content))), [160])[0]) == 160
    assert served.lines[-1] == "stopped" and not any("Traceback" in line for line in served.lines)
    assert any(re.match(r"\d\d:\d\d:\d\d  1 requests", line) for line in served.lines)


def test_a_second_ctrl_c_ends_a_server_at_once(folder):
    """What was accepted is given up: nobody gets a whole answer that had not one already."""
    served = Serve(str(folder), "--port", "0", "--threads", "1")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(served.post, "/v1/text", long_writing(100)) for _ in range(4)]
        until(lambda: served.get("/v1/health").json()["waiting"])
        served.process.send_signal(signal.SIGINT)
        until(lambda: any("again to stop at once" in line for line in served.lines))
        assert served.stop() == 130
        failed = [answer.exception() for answer in answers]
    assert any(isinstance(fault, httpx.TransportError) for fault in failed)
    assert served.lines[-1] == "stopped" and not any("Traceback" in line for line in served.lines)


def test_a_number_that_is_not_finite_is_not_sent(tmp_path):
    broken = models.engine(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        broken.head[7] = float("inf")
    question = wire.read_reading(asked(some(), Want(chosen=True)), 45)
    with pytest.raises(TeacherError, match="not finite"):
        list(Engine(broken, share=False).answer([question]))
    assert broken.vocab == models.VOCAB
