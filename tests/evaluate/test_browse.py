"""The page of a result: what it holds, and in a real browser, where there is one, what it shows."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmframe.tasks
from mmframe.cli.evaluate_browse import main
from mmframe.errors import UserError
from mmframe.evaluate.browse import browse_page

from .drawn import EVIL, DrawnTask, draw, drawn_result
from .made import answer, result, write

Drawn = tuple[Path, DrawnTask]


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    folder, task = drawn_result(tmp_path, 8)
    monkeypatch.setattr(mmframe.tasks, "load_task", lambda name, data=None: task, raising=False)
    return folder, task


def part(page: str, name: str) -> Any:
    """JSON that the page holds."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def rows_of(page: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in part(page, "data")["rows"]}


def test_every_example_is_there_with_its_state(drawn: Drawn, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = drawn
    assert main([str(folder)]) == 0
    assert f"evaluate browse: {folder / 'browse.html'} (" in capsys.readouterr().out
    page = (folder / "browse.html").read_text(encoding="utf-8")
    rows = rows_of(page)
    assert list(rows) == [*(f"q{n}" for n in range(8)), "evil", "broken"], "in the order of the task"
    assert [rows[f"q{n}"]["state"] for n in range(4)] == ["right", "wrong", "partly", "wrong"]
    assert rows["broken"]["state"] == "error" and rows["broken"]["error"] == "the picture is cut off"
    assert [key for key, row in rows.items() if row["unmatched"]] == ["q3", "q7"]
    assert rows["q0"]["reference"] == [["reference", "red  (x 8)\nbright red\nball"]]
    assert rows["q1"]["facts"] == [["chosen", "It is green,"]] and rows["q1"]["category"] == "shape"
    facts = dict(part(page, "data")["facts"])
    assert (
        facts["prompt"] == "p1"
        and facts["data"] == "data of drawn_val"
        and facts["metric"] == "vqa_accuracy, version 1"
    )


def test_pictures_lie_in_the_page_small_and_each_once(drawn: Drawn) -> None:
    folder, task = drawn
    task.examples[1] = task.examples[0].__class__("q1", task.examples[1].turns, task.examples[0].images)
    page, notes = browse_page(folder, side=100)
    pictures, rows = part(page, "pictures"), rows_of(page)
    assert len(pictures) == 7, "two examples share one; one file is gone"
    assert rows["q0"]["images"][0]["picture"] == rows["q1"]["images"][0]["picture"] >= 0
    uri, width, height = pictures[rows["q0"]["images"][0]["picture"]]
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert (width, height) == (480, 320) and image.size == (100, 67)
    centre = image.convert("RGB").getpixel((45, 33))
    assert isinstance(centre, tuple) and centre[0] > 180 > 100 > centre[2], "the red ball"
    assert "there is no such file" in rows["evil"]["images"][0]["why"]
    assert notes == ["Pictures not in this page: 1; in their places it says why."]


def test_the_limit_keeps_the_pictures_of_wrong_answers(drawn: Drawn) -> None:
    page, notes = browse_page(drawn[0], limit=4)
    rows = rows_of(page)
    shown = [key for key, row in rows.items() if any(image["picture"] >= 0 for image in row["images"])]
    assert shown == ["q1", "q3", "q5", "q7"] and len(rows) == 10
    assert rows["q0"]["images"][0]["why"] == "not in this page: it holds the first 4 pictures (--limit)"
    assert notes == ["Pictures not in this page: 5; in their places it says why. --limit allows more."]


def test_without_the_task_the_page_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, task = drawn_result(tmp_path, 4)

    def refuse(name: str, data: Path | None = None) -> None:
        raise UserError(f"no task {name} in {data}")

    monkeypatch.setattr(mmframe.tasks, "load_task", refuse, raising=False)
    page, notes = browse_page(folder, data=Path("somewhere"))
    rows = rows_of(page)
    assert notes == [
        "The task's pictures were not found: no task drawn_val in somewhere. --task and --data say where they are."
    ]
    assert rows["q0"]["images"][0]["picture"] >= 0, "its name is a file here"
    assert rows["evil"]["images"][0] == {"name": "gone.png", "picture": -1, "why": "no task drawn_val in somewhere"}
    task.data_fingerprint = "later"
    monkeypatch.setattr(mmframe.tasks, "load_task", lambda name, data=None: task, raising=False)
    assert "are not those that were asked (data fingerprint later, then data of drawn_val)" in browse_page(folder)[1][0]


def test_another_example_s_picture_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = draw(tmp_path / "pictures" / "x.png", "red", (28, 28))
    rows = [answer("x", images=[str(file)])]
    folder = write(tmp_path, result("drawn_val"), rows)
    task = DrawnTask([], "data of drawn_val")
    monkeypatch.setattr(mmframe.tasks, "load_task", lambda name, data=None: task, raising=False)
    page, _ = browse_page(folder)
    assert rows_of(page)["x"]["images"][0]["why"] == "the task has no such example"


def test_an_answer_with_markup_stays_text(drawn: Drawn) -> None:
    page, _ = browse_page(drawn[0])
    assert rows_of(page)["evil"]["answer"] == EVIL, "every character of it"
    assert page.count("<script") == 3 and page.count("</script>") == 3 and "<img src=x" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']|url\(|@import""", page), "nothing is loaded"
    assert "http:" not in page and "https:" not in page and "default-src 'none'" in page


def test_options_have_their_likelihoods(tmp_path: Path) -> None:
    rows = [
        answer("a", {"accuracy": 1.0}, images=[], answer=[[-1.0, 2], [-2.0, 1]], options=[" x", " y"],
               reference={"answer": 0, "options": ["x", "y"], "category": "c"}),
        answer("b", {"accuracy": 0.0, "unmatched": True}, images=[], answer=[[math.nan, 2], [-2.0, 1]],
               reference={"answer": 1, "options": ["x", "y"]}),
        {"id": "c", "images": [], "prompt": "text", "answer": 4.25, "reference": {"tokens": 3}, "score": {"nll": 4.25}},
    ]  # fmt: skip
    made = result("mmlu_test", "likelihood_choice", headline="accuracy", figures={"accuracy": 50.0, "x": math.nan})
    page, notes = browse_page(write(tmp_path, made, rows))
    shown = rows_of(page)
    first = shown["a"]["options"]
    assert [option["text"] for option in first] == [" x", " y"]
    assert [option["share"] for option in first] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    assert (first[0]["right"], first[0]["chosen"], first[1]["chosen"]) == (True, True, False)
    second = shown["b"]["options"]
    assert second[0]["nats"] is None and not any(option["chosen"] for option in second) and shown["b"]["unmatched"]
    assert shown["a"]["state"] == "right" and shown["a"]["reference"] == [] and shown["b"]["state"] == "wrong"
    assert shown["c"]["answer"] == "4.250 nats" and shown["c"]["state"] == "unscored" and notes == []


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result.json; `mmframe evaluate` writes it"):
        main([str(tmp_path)])
    folder = write(tmp_path, result("mme", "mme_score"))
    (folder / "answers.jsonl").unlink()
    with pytest.raises(UserError, match="no answers.jsonl beside the record"):
        main([str(folder)])
    with pytest.raises(UserError, match="evaluate browse: unknown flag --limits; did you mean '--limit'"):
        main([str(folder), "--limits=3"])
    assert not (folder / "browse.html").exists()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Debian's chromium, headless."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1000"),
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.mark.slow
def test_in_a_browser_filters_search_keys_and_ten_thousand_rows(
    tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaves runs/browse.png in the working tree, to be looked at."""
    folder, task = drawn_result(tmp_path, 10_000)
    monkeypatch.setattr(mmframe.tasks, "load_task", lambda name, data=None: task, raising=False)
    main([str(folder)])

    def script(text: str) -> Any:
        return browser.execute_script(f"return {text}")

    def ids() -> list[str]:
        return script("[...document.querySelectorAll('article .top .soft')].map(e => e.innerText)")

    def wait(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, browser.get_log("browser")
            time.sleep(0.05)

    def press(keys: str) -> None:
        browser.find_element("tag name", "body").send_keys(keys)

    browser.get_log("performance")  # what the empty tab at the start did
    browser.get((folder / "browse.html").as_uri())
    wait(lambda: ids()[:2] == ["q0", "q1"])
    assert len(ids()) < 400, "cards are made as they are needed"
    wait(lambda: script("document.querySelector('article img').naturalWidth") == 448)
    shots = Path(__file__).parents[2] / "runs"
    shots.mkdir(exist_ok=True)
    browser.save_screenshot(str(shots / "browse.png"))
    buttons = script("[...document.querySelectorAll('#filters button')].map(b => b.innerText)")
    assert [text.split()[-1] for text in buttons] == ["10,002", "5,001", "2,500", "2,500", "1", "2,500"]
    script("document.querySelector('[data-filter=unmatched]').click()")
    assert (
        ids()[:3] == ["q3", "q7", "q11"] and script("document.getElementById('count').innerText") == "2,500 of 10,002"
    )
    before = len(ids())
    script("scrollTo(0, document.body.scrollHeight)")
    wait(lambda: len(ids()) > before)
    press("jjj")
    assert script("[...document.querySelectorAll('article')].indexOf(document.querySelector('.at'))") == 2
    press("k")
    assert script("document.querySelector('.at .top .soft').innerText") == "q7"
    press("/")
    press_into = browser.switch_to.active_element
    press_into.send_keys("ball 9999?")
    wait(lambda: ids() == ["q9999"])
    press_into.clear()
    script("document.querySelector('[data-filter=all]').click()")
    press_into.send_keys("onerror")
    wait(lambda: ids() == ["evil"])
    assert script("document.querySelector('.answer').innerText").strip() == EVIL
    assert script("document.title") == "drawn_val - ours", "nothing in an answer ran"
    assert not script("document.querySelector('img[src=x]')")
    asked = re.findall(r'"url":"(\w+:/*[^/"]*)', str([entry["message"] for entry in browser.get_log("performance")]))
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "about"}, (
        f"{set(asked)}: nothing was loaded from anywhere"
    )
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
