"""What a stock vLLM server says of itself and of a text: the ground that the teacher and the sampler stand on."""

import pytest
import torch

from opd.engines.hf import load_model


@pytest.mark.parametrize("name", ["untied", "tied"])
def test_log_probs_of_a_prompt_are_those_of_the_model(name, request):
    server = request.getfixturevalue(name)
    ids = [4, 5, 13, 6, 7, 14, 30]
    answer = server.post(
        "/v1/completions", model=server.name, prompt=ids, max_tokens=1, prompt_logprobs=0, return_token_ids=True
    )
    (choice,) = answer.json()["choices"]
    assert choice["prompt_token_ids"] == ids and choice["prompt_logprobs"][0] is None
    theirs = [row[str(token)]["logprob"] for row, token in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)]
    with torch.no_grad():
        logits = load_model(str(server.folder), torch.float32, "cpu")(torch.tensor([ids])).logits[0]
    ours = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    assert (ours - torch.tensor(theirs)).abs().max() < 1e-5
