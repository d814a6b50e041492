"""The page of a comparison, looked at as a person would: opened from disk in Chromium, without a network."""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from fake_comparison import comparison, contest
from fake_run import HOSTILE
from test_report import browser, find, needs_browser  # noqa: F401  # the fixture is used by its name

from opd.compare import course

METHODS = ["sampled_token", "shuffled", "gkd:lam=1", "gkd:lam=0.5,beta=0.1", "local_support:k=4"]
ACCURACIES = dict(zip(METHODS, (0.55, 0.5, 0.9, 0.32, 0.7), strict=True))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Five methods, three seeds, two rates, a control, a broken run whose error is hostile."""
    made = contest(tmp_path_factory.mktemp("versus"), *METHODS, rates=(1e-3, 3e-3))
    course.write(comparison(made, ACCURACIES, {"local_support:k=4, lr 0.001, seed 1": HOSTILE}))
    return made.out / "comparison.html"


@pytest.fixture
def opened(browser, written):  # noqa: F811
    browser.set_window_size(1400, 900)
    browser.get(written.as_uri())
    return browser


@needs_browser
def test_it_opens_from_disk_and_asks_for_nothing(opened, written):
    assert opened.get_log("browser") == [] and written.stat().st_size < 5e6
    messages = [json.loads(line["message"])["message"] for line in opened.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in requests if not url.startswith("data:")} == {written.as_uri()}


@needs_browser
def test_the_table_stands_first_and_verdicts_follow_in_words(opened):
    assert find(opened, "h1")[0].text == "gkd:lam=1 is better than sampled_token."
    rows = [row.text for row in find(opened, ".result tbody th")]
    assert [row.split("\n")[0] for row in rows] == ["student before", *METHODS, "teacher"]
    assert "baseline" in rows[1] and "control" in rows[2] and "2 seeds" in rows[5]
    said = [item.text for item in find(opened, "#verdicts li")]
    assert any(text.startswith("gkd:lam=1 beats the control shuffled") for text in said)
    assert any(text.startswith("gkd:lam=0.5,beta=0.1 does not beat the control shuffled") for text in said)
    assert len(find(opened, "#differences li")) == 3 * (len(METHODS) - 1)


@needs_browser
def test_an_error_is_text(opened):
    assert opened.title == "5 methods on sums" and find(opened, "img, iframe") == []
    assert len(find(opened, "script")) == 2
    assert any(HOSTILE in cell.text for cell in find(opened, "#runs .error"))


@needs_browser
def test_every_figure_is_drawn_with_a_name_per_method(opened):
    figures = find(opened, "#curves figure")
    assert len(figures) == 6 and all(len(f.find_elements("css selector", "canvas")) == 1 for f in figures)
    keys = [key.text for key in figures[0].find_elements("css selector", ".key")]
    assert [re.sub(r" [\d.]+%?$", "", key) for key in keys] == [*METHODS, "teacher"]


@needs_browser
def test_runs_lead_to_their_own_pages(opened, written):
    links = [link.get_attribute("href") for link in find(opened, "#runs a")]
    files = [Path(unquote(urlparse(link).path)) for link in links]
    assert len(files) == 14 and all(file.is_file() and written.parent in file.parents for file in files)
    opened.get(links[0])
    assert "on sums" in opened.title


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_does_not_scroll_sideways(opened, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_nothing_finished_is_no_error(browser, tmp_path):  # noqa: F811
    made = contest(tmp_path, "sft", "gkd", seeds=1)
    broken = {f"{label}, lr 0.001, seed 0": "no memory" for label in ("sft", "gkd")}
    course.write(comparison(made, {}, broken))
    browser.get((tmp_path / "comparison.html").as_uri())
    assert browser.get_log("browser") == []
    assert "No run has finished" in find(browser, "body")[0].text
