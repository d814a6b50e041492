"""Every number that a run writes is explained, and the page of metrics is the table."""

from pathlib import Path

import pytest
from test_loop import training

from opd import recipes
from opd.cli.methods import toy_build
from opd.loop import train
from opd.metrics import METRICS, about, document, sentence


@pytest.mark.parametrize("name", recipes.names())
def test_every_number_of_a_step_is_explained(name):
    for batch in train(training(toy_build(name, {})(), steps=2)):
        assert [metric for metric in batch.metrics if about(metric) is None] == []


def test_every_number_of_an_examination_is_explained():
    from opd.record import exam_line

    draws = {"length": 1.0, "truncated": 0.0, "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    line = exam_line(0, {"greedy": draws, "sampled": draws, "kl": {"per_token": 0.1, "per_token_error": 0.01}})
    assert [metric for metric in line if metric != "step" and about(metric) is None] == []


def test_the_docs_are_the_table():
    assert (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8") == document()


def test_sentences():
    assert about("own.measure") is None and sentence("own.measure") == ""
    assert sentence("ratio.at.64") == sentence("ratio.at.1") != sentence("ratio")
    assert about("loops.teacher.inside") is METRICS["loops.teacher.inside"]
    for name in METRICS:
        text = sentence(name)
        assert text[0].isupper() or not text[0].isalpha()
        assert text.endswith("."), name
