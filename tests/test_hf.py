"""The engine on transformers against naive computations with full logits."""

import json

import models
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from opd.dist import HeadDist, TopDist
from opd.engines.hf import HFModel, common_vocab, load_model, load_tokenizer, same_tokenizer
from opd.engines.sampling import truncate
from opd.errors import DataError, ModelError, SettingError
from opd.protocols import Want
from opd.rollout import End, Problem, Rollout, Sampling, continued

PROMPTS = ("12+7", "a longer prompt =", "x", "7-2+3")
PLAIN = Sampling()
KINDS = ("llama", "qwen3", "gpt2")


def ask(*texts: str, model: HFModel) -> list[np.ndarray]:
    return [model.render([{"role": "user", "content": text}]) for text in texts]


def rollouts(model: HFModel, sampling: Sampling = PLAIN, samples: int = 2, texts=PROMPTS) -> list[Rollout]:
    prompts = ask(*texts, model=model)
    pieces = model.write(prompts, sampling, [[10 * i + s for s in range(samples)] for i in range(len(prompts))])
    return [
        continued(prompt, piece, Problem(text, text), sampling, author=1)
        for text, prompt, own in zip(texts, prompts, pieces, strict=True)
        for piece in own
    ]


def naive(model: HFModel, context: Rollout) -> torch.Tensor:
    """[n, V] logits of the rows, one sequence at a time, no cache, no padding."""
    logits = model.model(input_ids=torch.from_numpy(context.tokens)[None].long()).logits[0, :, : model.vocab]
    return logits[torch.from_numpy(context.positions - 1)]


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_text_is_that_of_transformers(tmp_path, kind):
    model = models.engine(tmp_path, kind, seed=3)
    prompts = ask(*PROMPTS, model=model)
    pieces = model.write(prompts, Sampling(temperature=0), [[0]] * 4)
    for prompt, (piece,) in zip(prompts, pieces, strict=True):
        ids = torch.from_numpy(prompt)[None].long()
        expected = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert piece.tokens.tolist() == expected[0, len(prompt) :].tolist()
        assert not piece.behaviour.any() and (piece.untruncated < 0).all()
        assert piece.end == (End.STOP if piece.tokens[-1] == 2 else End.LENGTH)


def test_long_text_with_sequences_leaving_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(HFModel, "stops", frozenset())
    model = models.engine(tmp_path, "llama", context=256)
    stop = (40,)
    prompts = ask(*PROMPTS, model=model)
    pieces = model.write(prompts, Sampling(max_new=150, stop=stop), [[5, 6, 7]] * 4)
    assert max(len(piece.tokens) for own in pieces for piece in own) > 80
    for prompt, (_, piece, _) in zip(prompts, pieces, strict=True):
        (alone,) = model.write([prompt], Sampling(max_new=150, stop=stop), [[6]])[0]
        assert np.array_equal(alone.tokens, piece.tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sampling",
    [PLAIN, Sampling(0.6), Sampling(top_k=4), Sampling(top_p=0.7), Sampling(1.4, 0.9, 20, 0.05), Sampling(0)],
)
def test_recorded_logprobs_are_those_of_a_fresh_forward(tmp_path, kind, sampling):
    model = models.engine(tmp_path, kind)
    for rollout in rollouts(model, sampling):
        logits = naive(model, rollout)
        chosen = torch.from_numpy(rollout.decisions).long()[:, None]
        untruncated = logits.log_softmax(-1).gather(1, chosen).squeeze(1)
        drawn = torch.zeros(rollout.n) if sampling.greedy else truncate(logits, sampling).gather(1, chosen).squeeze(1)
        np.testing.assert_allclose(rollout.columns["behaviour"], drawn.detach(), atol=1e-10)
        np.testing.assert_allclose(rollout.columns["untruncated"], untruncated.detach(), atol=1e-10)


def test_first_tokens_follow_the_exact_distribution(tmp_path):
    model = models.engine(tmp_path, "llama")
    (prompt,) = ask("1+1", model=model)
    sampling = Sampling(top_k=6, max_new=1)
    (pieces,) = model.write([prompt], sampling, [list(range(4000))])
    logits = model.model(input_ids=torch.from_numpy(prompt)[None].long()).logits[:, -1]
    expected = 4000 * truncate(logits, sampling)[0].exp()
    count = torch.bincount(torch.tensor([int(piece.tokens[0]) for piece in pieces]), minlength=models.VOCAB)
    alive = expected > 0
    assert not count[~alive].any() and int(alive.sum()) == 6
    assert float(((count - expected)[alive] ** 2 / expected[alive]).sum()) < 25.7  # chi-square, 5 degrees, 1e-4


def test_same_seed_same_piece_whatever_the_neighbours(tmp_path):
    model = models.engine(tmp_path, "qwen3")
    prompts = ask(*PROMPTS, model=model)
    together = model.write(prompts, Sampling(), [[1, 2], [3], [1], []])
    model.max_sequences = 1
    (alone,) = model.write(prompts[:1], Sampling(), [[2]])
    assert np.array_equal(together[0][1].tokens, alone[0].tokens)
    np.testing.assert_allclose(together[0][1].behaviour, alone[0].behaviour, atol=1e-12)
    assert [len(own) for own in together] == [2, 1, 1, 0]
    assert not np.array_equal(together[0][0].tokens, together[0][1].tokens)
    again = model.write(prompts, Sampling(), [[1, 2], [3], [1], []])  # now in batches of one prompt
    assert [[p.tokens.tolist() for p in own] for own in together] == [[p.tokens.tolist() for p in own] for own in again]


def test_samples_share_one_reading_of_the_prompt(tmp_path):
    model = models.engine(tmp_path, "llama")
    shapes: list[tuple[int, ...]] = []
    note = lambda _module, _args, kw: shapes.append(tuple(kw["input_ids"].shape))
    model.decoder.register_forward_pre_hook(note, with_kwargs=True)
    prompts = ask("abc", "12345", model=model)
    model.write(prompts, Sampling(max_new=3), [[1, 2, 3], [4, 5, 6]])
    assert shapes == [(2, 5), (6, 1), (6, 1)]


def test_sequences_that_ended_leave_the_batch(tmp_path):
    model = models.engine(tmp_path, "llama", max_new=40)
    sizes: list[int] = []
    model.decoder.register_forward_pre_hook(lambda _m, _a, kw: sizes.append(len(kw["input_ids"])), with_kwargs=True)
    pieces = model.write(ask("abc", model=model), Sampling(stop=tuple(range(3, 13))), [list(range(32))])[0]
    assert sizes[1] == 32 and sizes[-1] < 8 and sizes[1:] == sorted(sizes[1:], reverse=True)
    assert all((piece.tokens[-1] in (2, *range(3, 13))) == (piece.end == End.STOP) for piece in pieces)
    assert all(not set(piece.tokens[:-1].tolist()) & {2, *range(3, 13)} for piece in pieces)


def test_the_context_bounds_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(HFModel, "stops", frozenset())
    model = models.engine(tmp_path, "gpt2", context=10)
    prompts = ask("123456", "12", model=model)
    short, long = (own[0] for own in model.write(prompts, Sampling(max_new=50, temperature=0), [[0], [1]]))
    assert len(short.tokens) == 4 and len(long.tokens) == 8 and short.end == long.end == End.LENGTH
    with pytest.raises(
        DataError, match="sequence 1 does not fit the context of student: got 10 tokens, expected 1 to 9"
    ):
        model.write(ask("12", "1234567890", model=model), Sampling(), [[0], [0]])
    with pytest.raises(DataError, match="got 0 tokens"):
        model.write([np.zeros(0, np.int32)], Sampling(), [[0]])
    with pytest.raises(DataError, match="a token that student does not have"):
        model.write([np.array([1, 500])], Sampling(), [[0]])


def test_padded_vocabulary_is_never_sampled_and_has_no_probability(tmp_path):
    model = models.engine(tmp_path, "llama", vocab=models.VOCAB + 19)
    assert model.vocab == models.VOCAB and model.head.shape[0] == models.VOCAB + 19
    with torch.no_grad():
        model.head[models.VOCAB :] = 5 * model.head[:19]  # padding that would win
    written = rollouts(model, samples=20)
    assert max(int(rollout.decisions.max()) for rollout in written) < models.VOCAB
    answer = model.read(written, Want(topk=models.VOCAB, dist=True))
    assert isinstance(answer.dist, HeadDist) and answer.dist.logprobs().shape[1] == models.VOCAB
    torch.testing.assert_close(answer.dist.logprobs().exp().sum(-1), torch.ones(len(answer.dist)).double())
    recorded = np.concatenate([r.columns["untruncated"] for r in written])
    np.testing.assert_allclose(answer.dist.chosen, recorded, atol=1e-10)


# -- text -------------------------------------------------------------------------------------------------------------


def test_render_with_and_without_a_chat_template(tmp_path):
    plain = models.engine(tmp_path / "plain")
    two = [{"role": "system", "content": "add"}, {"role": "user", "content": "1+1"}]
    assert plain.decode(plain.render(two)) == "add?1+1"  # the tokenizer of the test reads a line break as ?
    models.folder(tmp_path / "chat", chat=True)
    chat = HFModel(load_model(str(tmp_path / "chat")), load_tokenizer(str(tmp_path / "chat")), "chat")
    ids = chat.render([{"role": "user", "content": "1+1"}])
    assert ids.dtype == np.int32 and ids[0] == 1 and chat.decode(ids) == "1+1="
    with pytest.raises(DataError, match="without any token"):
        plain.render([{"role": "user", "content": ""}])


# -- passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_trunk_are_those_of_full_logits(tmp_path, kind, tied, checkpointing):
    model = models.engine(tmp_path, kind, tied=tied, gradient_checkpointing=checkpointing)
    written = rollouts(model)
    weights = torch.linspace(-1, 1, sum(r.n for r in written)).double()
    tokens = torch.from_numpy(np.concatenate([r.decisions for r in written])).long()

    loss = torch.cat([naive(model, r) for r in written]).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1) @ weights
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}
    model.model.zero_grad()

    out = model.trunk([r.tokens for r in written], [r.positions for r in written], (1, -1))
    assert out.head is model.model.get_output_embeddings().weight
    (HeadDist(out.hidden, out.head, tokens, model.vocab).chosen @ weights).backward()
    for name, p in model.model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected.pop(name), rtol=0, atol=1e-12 * (1 + float(p.grad.abs().max())))
    assert not expected


def test_recomputed_activations_also_with_adapters_and_while_writing(tmp_path):
    """Writing keeps its cache, and gradients of the adapters are those without recomputation."""
    gradients = []
    for checkpointing in (False, True):
        model = models.engine(tmp_path / str(checkpointing), lora=2, gradient_checkpointing=checkpointing)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
        widths: list[int] = []
        note = lambda _module, _args, kw, widths=widths: widths.append(kw["input_ids"].shape[1])
        hook = model.decoder.register_forward_pre_hook(note, with_kwargs=True)
        written = rollouts(model)
        hook.remove()
        assert set(widths[1:]) == {1}
        out = model.trunk([r.tokens for r in written], [r.positions for r in written])
        loss = model.dist(out.hidden, torch.zeros(len(out.hidden), dtype=torch.long)).chosen.sum()
        gradients.append(torch.autograd.grad(loss, model.parameters()))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_block_outputs_after_the_token(tmp_path, kind):
    model = models.engine(tmp_path, kind, layers=3)
    written = rollouts(model)
    out = model.trunk([r.tokens for r in written], [r.positions for r in written], (1, 2, 3, -1))
    read = model.read(written, Want(layers=(1, 2, 3, -1))).dist
    assert read is not None
    norm = model.decoder.ln_f if kind == "gpt2" else model.decoder.norm
    parts: dict[int, list[torch.Tensor]] = {1: [], 2: [], 3: []}
    for r in written:
        hidden = model.model(input_ids=torch.from_numpy(r.tokens)[None].long(), output_hidden_states=True).hidden_states
        for layer in (1, 2, 3):
            parts[layer].append(hidden[layer][0, torch.from_numpy(r.positions)])
    for layer in (1, 2):
        torch.testing.assert_close(out.states[layer], torch.cat(parts[layer]), rtol=0, atol=1e-12)
        torch.testing.assert_close(read.inner[layer], torch.cat(parts[layer]), rtol=0, atol=1e-12)
    torch.testing.assert_close(norm(out.states[3]), torch.cat(parts[3]), rtol=0, atol=1e-10)
    assert torch.equal(out.states[3], out.states[-1]) and out.states[1].requires_grad
    assert list(model.trunk([written[0].tokens], [written[0].positions], (0,)).states) == [1, 2, 3]
    for wrong in (4, -4):
        with pytest.raises(ModelError, match=rf"no such layer: got \[{wrong}\], expected 1 to 3"):
            model.trunk([written[0].tokens], [written[0].positions], (wrong,))


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_answers_are_those_of_full_logits_whatever_the_batching(tmp_path, budget, monkeypatch):
    model = models.engine(tmp_path, "qwen3", micro_tokens=budget)
    monkeypatch.setattr("opd.engines.hf.CHUNK", 3 * model.vocab)
    rng = np.random.default_rng(0)
    written = [r.with_columns(ids=rng.integers(0, model.vocab, (r.n, 3))) for r in rollouts(model)]
    logprobs = torch.cat([naive(model, r) for r in written]).log_softmax(-1).detach()
    tokens = torch.from_numpy(np.concatenate([r.decisions for r in written])).long()
    ids = torch.from_numpy(np.concatenate([r.columns["ids"] for r in written]))

    answer = model.read(written, Want(chosen=True, topk=5, gather="ids"))
    assert isinstance(answer.dist, TopDist) and answer.chosen is not None and answer.gathered is not None
    near = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(answer.chosen, logprobs.gather(1, tokens[:, None]).squeeze(1), **near)
    torch.testing.assert_close(answer.gathered, logprobs.gather(1, ids), **near)
    torch.testing.assert_close(answer.dist.values, logprobs.topk(5).values, **near)
    assert torch.equal(answer.dist.ids, logprobs.topk(5).indices)
    assert torch.equal(answer.dist.chosen, answer.chosen) and torch.equal(answer.dist.tokens, tokens)

    whole = model.read(written, Want(chosen=True, topk=5, gather="ids", dist=True, layers=(1,)))
    assert isinstance(whole.dist, HeadDist)
    assert not whole.dist.hidden.requires_grad and not whole.dist.head.requires_grad
    torch.testing.assert_close(whole.dist.logprobs(), logprobs, **near)
    torch.testing.assert_close(whole.chosen, answer.chosen, **near)
    assert list(whole.dist.inner) == [1] and len(whole.dist.inner[1]) == len(tokens)
    none = model.read(written, Want(chosen=True))
    assert none.dist is None and model.read([], Want(chosen=True)).chosen is None


def test_distributions_survive_the_next_update(tmp_path):
    """The head that learns is changed in place; what was read before must not change with it."""
    model = models.engine(tmp_path, "llama")
    dist = model.read(rollouts(model), Want(dist=True)).dist
    assert dist is not None
    before = dist.index(torch.arange(3)).logprobs().clone()
    with torch.no_grad():
        model.head.mul_(1.5)
    assert torch.equal(dist.index(torch.arange(3)).logprobs(), before)


def test_views_with_another_prompt(tmp_path):
    model = models.engine(tmp_path, "llama")
    written = rollouts(model)
    shown = [r.reworded(ask("the answer is 7", model=model)[0]) for r in written]
    answer = model.read(shown, Want(chosen=True))
    expected = [naive(model, r).log_softmax(-1).gather(1, torch.from_numpy(r.decisions).long()[:, None]) for r in shown]
    torch.testing.assert_close(answer.chosen, torch.cat(expected).squeeze(1).detach(), rtol=0, atol=1e-10)
    assert not torch.allclose(answer.chosen, model.read(written, Want(chosen=True)).chosen)


def test_rows_need_not_be_contiguous(tmp_path):
    """Two turns with given tokens between them."""
    model = models.engine(tmp_path, "llama")
    tokens, author = np.arange(3, 15, dtype=np.int32), np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0], np.int8)
    rollout = Rollout(tokens, author, Problem("a", "a"))
    expected = naive(model, rollout).log_softmax(-1)[torch.arange(5), torch.from_numpy(rollout.decisions).long()]
    torch.testing.assert_close(model.read([rollout], Want(chosen=True)).chosen, expected.detach(), rtol=0, atol=1e-12)


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_adapters(tmp_path, kind):
    """They start as nothing, learn alone, can be switched off to the bit, and are merged into a plain folder."""
    plain = models.engine(tmp_path / "plain", kind, dtype=torch.float32)
    written = rollouts(plain)
    initial = plain.read(written, Want(chosen=True)).chosen
    model = HFModel(load_model(str(tmp_path / "plain")), plain.tokenizer, "student", lora=2)
    assert torch.equal(model.read(written, Want(chosen=True)).chosen, initial)
    assert all(".lora_" in name for name in model.weights()) and model.parameters()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(2):
        out = model.trunk([r.tokens for r in written], [r.positions for r in written])
        model.dist(out.hidden, torch.zeros(len(out.hidden), dtype=torch.long)).chosen.sum().backward()
        optimizer.step()
    learnt = model.read(written, Want(chosen=True)).chosen
    assert not torch.allclose(learnt, initial)
    with model.bare():
        assert torch.equal(model.read(written, Want(chosen=True)).chosen, initial)
    assert torch.equal(model.read(written, Want(chosen=True)).chosen, learnt)
    assert all(p.requires_grad for p in model.parameters()) and model.parameters()

    model.save(tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*"))
    merged = HFModel(load_model(str(tmp_path / "merged")), load_tokenizer(str(tmp_path / "merged")), "merged")
    torch.testing.assert_close(merged.read(written, Want(chosen=True)).chosen, learnt, rtol=0, atol=1e-4)
    assert torch.equal(model.read(written, Want(chosen=True)).chosen, learnt)


def test_lora_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(SettingError, match=r"pip install 'opd\[lora\]'"):
        models.engine(tmp_path, lora=2)


# -- loading and saving -----------------------------------------------------------------------------------------------


def test_save_and_load_again(tmp_path):
    model = models.engine(tmp_path / "a", tied=True)
    written = rollouts(model)
    model.save(tmp_path / "b")
    again = HFModel(load_model(str(tmp_path / "b"), dtype=torch.float64), load_tokenizer(str(tmp_path / "b")), "again")
    assert torch.equal(again.read(written, Want(chosen=True)).chosen, model.read(written, Want(chosen=True)).chosen)
    assert again.dtype == torch.float64 and again.stops == {2} and not list((tmp_path / "b").glob("*.bin"))


def test_weights_are_restored_exactly(tmp_path):
    model = models.engine(tmp_path)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.head.zero_()
    model.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError, match="saved weights do not fit"):
        model.load_state_dict({"other": torch.zeros(1)})


def test_missing_folder_never_asks_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    for path in (str(tmp_path / "nothing"), "./nothing", str(tmp_path / "a" / "b" / "c")):
        with pytest.raises(ModelError, match=r"there is no model folder .* got nothing there, expected a folder"):
            load_model(path)
        with pytest.raises(ModelError):
            load_tokenizer(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model"):
        load_model(str(tmp_path / "empty"))


@pytest.mark.parametrize("harm", ["cut", "part", "no tokenizer"])
def test_damaged_folders_are_refused(tmp_path, harm):
    here = models.folder(tmp_path)
    weights = here / "model.safetensors"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ModelError, match="no causal language model could be loaded"):
            load_model(str(here))
    elif harm == "part":
        state = load_file(weights)
        state.pop("model.norm.weight")
        save_file(state, weights, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"weights are missing .* got none for 'model.norm.weight'"):
            load_model(str(here))
    else:
        for file in here.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ModelError, match="no tokenizer could be loaded"):
            load_tokenizer(str(here))


def test_pickled_weights_are_refused(tmp_path):
    models.folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled.* got pytorch_model.bin, expected \*.safetensors"):
        load_model(str(tmp_path))


def test_a_model_that_brings_code_is_refused(tmp_path):
    models.folder(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"brings its own code: got model type 'mine'.*trust_remote_code"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("change", ["bias", "softcap", "shift"])
def test_a_head_that_is_not_linear_is_refused(tmp_path, change):
    here = models.folder(tmp_path)
    model = load_model(str(here))
    if change == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.ones(models.VOCAB))
    elif change == "softcap":
        model.config.final_logit_softcapping = 30.0
    else:
        model.lm_head.register_forward_hook(lambda _m, _i, out: out + 1)
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        HFModel(model, load_tokenizer(str(here)), "student")


def test_a_constant_factor_on_the_logits_is_kept(tmp_path):
    """Granite divides its logits by a number; forgetting it changes every probability."""
    from transformers import GraniteConfig, GraniteForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=models.VOCAB, logits_scaling=0.25, num_key_value_heads=1, eos_token_id=2, **shape)
    model = HFModel(GraniteForCausalLM(config).double(), models.tokenizer(), "granite", max_new=6)
    for rollout in rollouts(model):
        logprobs = naive(model, rollout).log_softmax(-1).detach()
        expected = logprobs[torch.arange(rollout.n), torch.from_numpy(rollout.decisions).long()]
        np.testing.assert_allclose(rollout.columns["behaviour"], expected, atol=1e-10)
        torch.testing.assert_close(model.read([rollout], Want(chosen=True)).chosen, expected, rtol=0, atol=1e-10)


def test_a_model_that_sees_the_future_is_refused():
    from transformers import BertConfig, BertLMHeadModel

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertLMHeadModel(BertConfig(vocab_size=models.VOCAB, **shape))
    with pytest.raises(ModelError):
        HFModel(model, models.tokenizer(), "bert")


# -- tokenizers -------------------------------------------------------------------------------------------------------


def test_padding_does_not_make_a_tokenizer_different(tmp_path):
    one = models.engine(tmp_path / "a", vocab=models.VOCAB + 3)
    two = models.engine(tmp_path / "b", vocab=models.VOCAB + 8, name="teacher")
    assert same_tokenizer(one, two) == common_vocab(one, two) == models.VOCAB


def test_more_tokens_on_one_side_are_masked_on_both(tmp_path):
    one = models.engine(tmp_path / "a", letters=models.LETTERS + "!", vocab=models.VOCAB + 1)
    two = models.engine(tmp_path / "b", name="teacher")
    assert one.vocab == models.VOCAB + 1 and common_vocab(one, two) == models.VOCAB
    assert one.vocab == models.VOCAB


def test_different_tokenizers_are_refused_with_the_first_difference(tmp_path):
    one = models.engine(tmp_path / "a")
    two = models.engine(tmp_path / "b", letters="0123456789bacdefghijklmnopqrstuvwxyz +-=.?", name="teacher")
    with pytest.raises(ModelError, match=r"first at id 13: got 'b' in teacher, expected 'a' as in student"):
        same_tokenizer(one, two)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=f"more tokens than the model: got {models.VOCAB}, expected at most 40"):
        models.engine(tmp_path, vocab=40)
