"""The page of a run, looked at as a person would: opened from disk in Chromium, without a network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_run import HOSTILE, write_run

from opd.errors import SettingError
from opd.metrics import sentence
from opd.report import embedded, figures, inside, marks, reading, result, write

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium and chromedriver here: apt-get install chromium chromium-driver"
)


# ---- in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with hostile texts, notes and a baseline."""
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder / "gkd", texts=(HOSTILE, "First,\n\tadd them. Then go home."))
    (run / "notes.json").write_text(json.dumps({"title": HOSTILE, "table": {"columns": ["a"], "rows": [[HOSTILE]]}}))
    return write(run, [write_run(folder / "sft", method="sft", end=0.6)])


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--force-prefers-reduced-motion",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    browser.set_window_size(1400, 900)
    browser.get(page.as_uri())
    return browser


def find(browser, css):
    return browser.find_elements("css selector", css)


def press(browser, element):
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def visible_problems(browser):
    return [element.get_attribute("id") for element in find(browser, ".problem")]


@needs_browser
def test_the_page_opens_from_disk_and_asks_for_nothing(opened, page):
    assert page.as_uri().startswith("file://") and page.stat().st_size < 5e6
    assert opened.get_log("browser") == []
    messages = [json.loads(line["message"])["message"] for line in opened.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in requests if not url.startswith("data:")} == {page.as_uri()}
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", page.read_text(encoding="utf-8"))


@needs_browser
def test_the_result_stands_first(opened):
    change = find(opened, "h1 .change")[0].text
    assert re.fullmatch(r"\d+\.\d%\s*→\s*\d+\.\d%", change.replace("\n", ""))
    roles = [row.get_attribute("class") for row in find(opened, ".result tbody tr")]
    assert roles == ["before", "run", "baseline", "teacher"]
    assert "sft at the same 60 steps" in find(opened, ".beside")[0].text


@needs_browser
def test_what_a_model_wrote_is_inert(opened):
    assert opened.title == "gkd on sums"
    assert find(opened, "img, iframe, object") == []
    assert len(find(opened, "script")) == 2
    find(opened, '[name="text"]')[0].send_keys("</script>")
    assert HOSTILE in find(opened, ".problem .prompt")[0].text
    assert find(opened, "#notes h2")[0].text == HOSTILE


@needs_browser
def test_pointing_at_a_word_shows_what_both_models_would_write(opened):
    from selenium.webdriver import ActionChains

    word = find(opened, ".text .t.k6")[0]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", word)
    assert not find(opened, "#tip")[0].is_displayed()
    ActionChains(opened).move_to_element(word).perform()
    tip = find(opened, "#tip")[0]
    assert tip.is_displayed()
    assert "97%" in tip.text and "61%" in tip.text and "nats of reverse KL" in tip.text
    assert [heading.text for heading in find(opened, "#tip h5")] == ["Teacher would write", "Student would write"]


@needs_browser
def test_the_keyboard_walks_from_word_to_word(opened):
    from selenium.webdriver import Keys

    first, second = find(opened, ".text")[0].find_elements("css selector", ".t")[:2]
    press(opened, first)
    first.send_keys(Keys.ARROW_RIGHT)
    assert opened.switch_to.active_element == second
    assert find(opened, "#tip")[0].is_displayed()
    second.send_keys(Keys.ESCAPE)
    assert not find(opened, "#tip")[0].is_displayed()


@needs_browser
def test_filters_search_and_sort(opened):
    def choose(value):
        opened.execute_script(f"document.querySelector('[name=show][value={value}]').click()")

    assert find(opened, "output")[0].text == "14 of 14 drafts"
    choose("wrong")
    latest = [
        side[-1].text for side in ([*p.find_elements("css selector", ".grade")] for p in find(opened, ".problem"))
    ]
    assert set(latest) == {"wrong"}
    choose("right")
    assert 1 < len(visible_problems(opened)) < 14 and find(opened, ".problem .side:last-child .is-right")
    choose("all")
    press(opened, find(opened, "#more")[0])
    assert len(visible_problems(opened)) == 14
    opened.execute_script(
        "const f = document.getElementById('controls'); f.sort.value = 'task'; f.dispatchEvent(new Event('input'))"
    )
    assert visible_problems(opened)[:2] == ["draft-0", "draft-1"]
    find(opened, '[name="text"]')[0].send_keys("go home")
    assert visible_problems(opened) == ["draft-13"]


@needs_browser
def test_the_worst_words_lead_to_their_drafts(opened):
    find(opened, '[name="text"]')[0].send_keys("nothing is called this")
    assert visible_problems(opened) == []
    press(opened, find(opened, "#worst button")[0])
    shown = find(opened, ".t.is-shown")
    assert len(shown) == 1 and "k6" in shown[0].get_attribute("class")
    assert find(opened, "#tip")[0].is_displayed()


@needs_browser
def test_white_space_can_be_seen(opened):
    find(opened, '[name="text"]')[0].send_keys("go home")
    text = opened.execute_script("return document.querySelector('.side .text').textContent")
    assert "↵" in text and "⇥" in text and "␣" in text


@needs_browser
def test_every_figure_is_drawn(opened):
    drawn = [
        len(figure.find_elements("css selector", "canvas")) for figure in find(opened, "#curves > .figures figure")
    ]
    assert len(drawn) >= 9 and set(drawn) == {1}


@needs_browser
def test_inside_the_run_every_figure_is_drawn_and_explained(opened):
    boxes = find(opened, "#inside [data-figures] figure")
    assert len(boxes) == 5, "no curve for loops, which never were"
    assert {len(box.find_elements("css selector", "canvas")) for box in boxes} == {1}
    assert all(box.find_element("css selector", ".about").text.endswith(".") for box in boxes)
    place, kinds = find(opened, "#inside .means")
    labels = [cell.text for cell in place.find_elements("css selector", "tbody th")]
    assert labels == ["token 1", "2 to 3", "4 to 7", "8 to 15"]
    widths = [bar.size["width"] for bar in place.find_elements("css selector", "i.start")]
    assert widths == sorted(widths) and widths[0] > 0
    assert kinds.find_element("css selector", "tbody th").text == "digits 60.0%"


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
@pytest.mark.parametrize("missing", ["everything", "distributions", "grades"])
def test_missing_parts_are_no_errors(browser, tmp_path, missing):
    run = write_run(tmp_path, distributions=missing != "distributions", graded=missing != "grades")
    if missing == "everything":
        for name in ("summary.json", "before.json", "metrics.jsonl"):
            (run / name).unlink()
        shutil.rmtree(run / "drafts")
    browser.get(write(run).as_uri())
    assert browser.get_log("browser") == []
    body = find(browser, "body")[0].text
    expected = {
        "everything": ["has not been examined yet", "no marked-up drafts", "No step has been recorded"],
        "distributions": ["one number per token", "log-ratio"],
        "grades": ["Reverse KL", "not graded"],
    }
    assert all(sentence in body for sentence in expected[missing])
    assert "nan" not in body.lower() and "undefined" not in body.lower()


# ---- without one


def test_means_by_place_and_kind_at_both_ends_of_a_run(tmp_path):
    place, kinds = inside.bars(reading.read(write_run(tmp_path)))
    assert (place.first, place.last) == ("first 6 steps", "last 6 steps")
    assert [bar.label for bar in kinds.bars] == ["digits", "words", "special"]
    digits, words, special = kinds.bars
    assert special.first == pytest.approx(6 * digits.first) and special.first < special.last < 0
    (low, high), _ = special.spans
    assert (low, high) == (0.0, pytest.approx(kinds.zero)), "what is negative ends at zero"
    assert words.spans[0] == (pytest.approx(kinds.zero), 1.0)
    assert place.about == sentence("ratio.at.*")


def test_a_run_that_measured_nothing_in_passing_has_no_such_part(tmp_path):
    run = write_run(tmp_path, passing=False)
    assert inside.bars(reading.read(run)) == [] and inside.curves(reading.read(run)) == []
    assert 'id="inside"' not in write(run).read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder, said in ((tmp_path / "nowhere", "no such run folder"), (tmp_path, "no run folder")):
        with pytest.raises(SettingError, match=said) as caught:
            write(folder)
        assert all(word in str(caught.value) for word in ("got", "expected"))
    with pytest.raises(SettingError):
        write(write_run(tmp_path / "run"), [tmp_path])


def test_an_unfinished_run_says_so(tmp_path):
    text = write(write_run(tmp_path, finished=False)).read_text(encoding="utf-8")
    assert "not finished: 30 of 60 steps are done" in text
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            '{"step": 30, "eval.sampled": 0.5, "eval.sampled.low": 0.4, "eval.sampled.high": 0.6}\n{"step": 31, "lo'
        )
    text = write(tmp_path).read_text(encoding="utf-8")
    assert "so far, after 30 of 60 steps" in text and "50.0%" in text


def test_files_of_another_shape_are_left_out(tmp_path):
    run = write_run(tmp_path)
    (run / "summary.json").write_text("[1, 2")
    (run / "notes.json").write_text("7")
    (run / "drafts" / "step-000000.json").write_text("{}")
    assert "not finished" in write(run).read_text(encoding="utf-8")


def test_differences_are_paired_and_modest(tmp_path):
    exam = {"greedy": None, "kl": None, "problems": 40}

    def row(role, right):
        grades = {str(n): float(n < right) for n in range(40)}
        share = {"value": right / 40, "low": 0.0, "high": 1.0}
        return result.Row(
            role, role, "", result.from_json(exam | {"sampled": {"accuracy": share, "by_problem": grades}})
        )

    clear, unclear = result.sentences([row("before", 10), row("run", 30), row("baseline", 29)])
    assert "+50.0 points" in clear and "too few" not in clear
    assert "+2.5 points" in unclear and "too few" in unclear


def test_runs_of_one_method_are_told_apart(tmp_path):
    hot = write_run(tmp_path / "hot", settings={"parameters": {"temperature": 1.5}})
    cold = write_run(tmp_path / "cold", settings={"parameters": {"temperature": 1.0}})
    runs = [reading.read(each) for each in (hot, cold, write_run(tmp_path / "sft", method="sft"))]
    assert [run.label for run in reading.labelled(runs)] == ["gkd, temperature 1.5", "gkd, temperature 1.0", "sft"]
    twins = reading.labelled([runs[0], runs[0]])
    assert [run.label for run in twins] == ["gkd (hot)", "gkd (hot)"]


def test_a_long_run_fits(tmp_path):
    run = write_run(tmp_path, steps=1500, texts=["word " * 4000] * 4)
    file = write(run)
    assert file.stat().st_size < 5e6
    assert "the page holds no more" in file.read_text(encoding="utf-8")
    folder = reading.read(run)
    assert all(len(figure.x) <= figures.MOST for figure in figures.training(folder))
    shown = marks.marks(folder)
    assert shown and shown.shown < shown.written


def test_embedded_json_ends_no_script():
    text = embedded({"a": HOSTILE})
    assert "<" not in text and json.loads(text) == {"a": HOSTILE}


def test_markdown_notes_bring_no_html_and_no_request(tmp_path):
    run = write_run(tmp_path)
    (run / "notes.md").write_text("# Why\n\n<b>bold</b> ![x](http://example.org/x.png)\n\n| a |\n|---|\n| 1 |\n")
    text = write(run).read_text(encoding="utf-8").partition('id="notes"')[2].partition("</section>")[0]
    assert "<h1>Why</h1>" in text and "<table>" in text and "<img" not in text and "<b>" not in text
