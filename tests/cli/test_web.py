"""The chat page: its handlers without a browser; and in a real one, where there is one."""

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmframe.engine import Engine
from mmframe.images import open_image
from mmframe.loading import load
from mmframe.sampling import SamplingParams

from .conftest import ROOT
from .served import picture, tiny_model

LONG = 300  # tokens of an answer in the browser: long enough to be seen growing, and to be stopped


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), image_size=32)


def test_without_gradio_it_says_how_to_get_it(fails, monkeypatch):
    monkeypatch.setattr("mmframe.cli.web.find_spec", lambda name: None)
    line = fails("web", "--model=nowhere")
    assert "gradio is not installed; run: pip install 'mmframe[web]'" in line


def test_a_port_that_is_taken_is_told_before_anything_loads(fails, monkeypatch):
    monkeypatch.setattr("mmframe.cli.web.find_spec", lambda name: name)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        line = fails("web", "--model=nowhere", f"--port={other.getsockname()[1]}")
    assert "web: cannot listen at 127.0.0.1:" in line and "take another --port" in line
    assert "--port or --host" in fails("web", "--model=nowhere", "--port=70000")


@pytest.fixture
def page(model):
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'mmframe[web]')")
    from mmframe.cli.serving import Served
    from mmframe.cli.web_page import Page

    loaded = load(model)
    served = Served("toy", loaded, Engine(loaded.net, loaded.processor), 6)
    return Page(served, SamplingParams(max_new_tokens=24))


def said(model, turns):
    loaded = load(model)
    chat = Engine(loaded.net, loaded.processor).chat(max_tiles=6)
    return ["".join(chat.say(text, images, SamplingParams(max_new_tokens=24))) for text, images in turns]


def ask(page, visit, messages, text, files=(), **options):
    settings = {"temperature": 0, "longest": 24} | options
    return list(page.answer({"text": text, "files": [str(f) for f in files]}, messages, visit, **settings))


def test_an_answer_streams_with_its_tiles_and_numbers(page, model, elsewhere):
    file = picture(elsewhere / "a.png", 90, 60)
    visit = page.enter()
    steps = ask(page, visit, [], "what is it?", [file])
    expected = said(model, [("what is it?", [open_image(file)]), ("and now?", [])])
    messages = steps[-1][0]
    assert [m["role"] for m in messages] == ["user", "user", "assistant"]
    assert messages[0]["content"] == {"path": str(file)} and messages[2]["content"] == expected[0]
    assert len(steps) > 10  # piece by piece
    seen = next(step[3] for step in steps if isinstance(step[3], str))
    assert seen.count("<img src=") == 7 and "90 x 60 px: 3 x 2 tiles + thumbnail" in seen
    assert "7 x 64 = <b>448 tokens</b>" in seen
    cells = re.findall(r"<b>([^<]*)</b><span>([^<]*)</span>", steps[-1][4])
    shown = {name: value for value, name in cells}
    assert (shown["tokens of the answer"], shown["tokens of new pictures"]) == ("24", "448")
    assert shown["to the first token"].endswith(" s") and float(shown["tokens a second"]) > 0
    again = ask(page, visit, messages, "and now?")
    assert again[-1][0][-1]["content"] == expected[1]  # the conversation is kept


def test_a_mistake_gives_the_entry_back_and_changes_nothing(page, model, elsewhere):
    broken = elsewhere / "broken.png"
    broken.write_bytes(picture(elsewhere / "a.png").read_bytes()[:50])
    visit = page.enter()
    for text, files, part in (("what?", [broken], "broken.png"), ("", [], "empty"), ("x" * 9000, [], "context")):
        with pytest.warns(UserWarning, match=part):
            (step,) = ask(page, visit, [], text, files)[-1:]
        assert step[0] == [] and step[1].value["text"] == text
    assert ask(page, visit, [], "hello")[-1][0][-1]["content"] == said(model, [("hello", [])])[0]


def test_stop_and_a_new_conversation(page, model):
    visit = page.enter()
    steps = page.answer({"text": "hello", "files": []}, [], visit, 0, 500)
    for _ in range(4):
        next(steps)
    page.stop(visit)
    rest = list(steps)
    assert len(rest) <= 2 and 0 < len(rest[-1][0][-1]["content"]) < 100
    assert visit.chat.history[-1] == {"from": "gpt", "value": rest[-1][0][-1]["content"]}
    messages, _, fresh, seen, _ = page.reset(visit)
    assert messages == [] and fresh is not visit and "<img" not in seen
    assert ask(page, fresh, [], "hello")[-1][0][-1]["content"] == said(model, [("hello", [])])[0]


def test_two_visitors_do_not_meet(page, model):
    one, other = page.enter(), page.enter()
    ask(page, one, [], "a secret")
    assert ask(page, other, [], "hello")[-1][0][-1]["content"] == said(model, [("hello", [])])[0]


def test_the_page_builds_and_sends_nothing(page):
    built = page.build()
    config = built.get_config_file()
    assert config["analytics_enabled"] is False and "toy" in config["title"]
    assert {"talk", "entry", "seen", "numbers", "fresh"} <= {c["props"].get("elem_id") for c in config["components"]}
    assert "http" not in repr([c["props"].get("value") for c in config["components"]])


def serve(model, folder, port):
    """`mmframe web` as a process; waits until it says where it is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mmframe", "web", "--model", str(model), f"--port={port}",
         "--max-tiles=6", f"--max-new-tokens={LONG}"],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    deadline, seen = time.monotonic() + 200, ""
    while "Ctrl-C ends it" not in seen:
        assert time.monotonic() < deadline and process.poll() is None, seen
        if select.select([process.stdout], [], [], 0.5)[0]:
            seen += os.read(process.stdout.fileno(), 4096).decode()
    return process, seen


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def browser(tmp_path):
    """Debian's chromium, headless, that fetches nothing for itself."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra: test)")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--window-size=1400,900", f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.mark.slow
def test_in_a_browser_upload_ask_stream_and_look(model, browser, elsewhere):
    """Leaves runs/web.png in the working tree, to be looked at."""
    pytest.importorskip("gradio")
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    file = scene(elsewhere / "scene.png")
    port = free_port()
    process, told = serve(model, elsewhere, port)
    try:
        browser.get(f"http://127.0.0.1:{port}")

        def find(css):
            return wait(lambda: browser.find_elements(By.CSS_SELECTOR, css), css)[-1]

        def wait(condition, what, seconds=120):
            deadline = time.monotonic() + seconds
            while not (value := condition()):
                assert time.monotonic() < deadline, f"{what}: {browser.get_log('browser')}"
                time.sleep(0.1)
            return value

        def act(css, do):
            """Does something with an element; once more if the page has just put another in its place."""

            def done():
                try:
                    do(find(css))
                    return True
                except StaleElementReferenceException:
                    return False

            wait(done, css)

        def ask(text):
            act("#entry textarea", lambda entry: entry.send_keys(text, Keys.ENTER))

        def texts(css):
            # in one script: the page changes between two calls
            return browser.execute_script(f"return [...document.querySelectorAll('{css}')].map(e => e.innerText)")

        def tokens():
            return int((texts("#numbers div:first-child > b")[0]).replace("-", "0"))

        def answers():
            return texts("#talk .bot.message")

        act("#entry input[type=file]", lambda upload: upload.send_keys(str(file)))
        wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#entry .thumbnail-image, #entry img"), "the upload")
        ask("What do you see in this picture?")
        wait(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#seen .picture img")) == 7, "the tiles")
        grew: list[str] = []

        def finished():
            grew.extend(answers()[-1:])
            return tokens() == LONG

        wait(finished, "the answer")
        assert len(set(grew)) > 3  # it came in pieces
        assert "448 tokens" in texts("#seen .facts")[0]
        (expected,) = said(model, [("What do you see in this picture?", [open_image(file)])])
        shown, wanted = (re.sub("[^A-Za-z0-9]", "", text) for text in (answers()[-1], expected))  # markdown eats some
        assert shown.startswith(wanted[:8]) and len(shown) > LONG / 3
        ask("And now?")
        wait(lambda: len(answers()) == 2 and len(answers()[-1]) > LONG / 3 and finished(), "the second answer")
        time.sleep(1)
        (ROOT / "runs").mkdir(exist_ok=True)
        browser.save_screenshot(str(ROOT / "runs" / "web.png"))
        asked = re.findall(r'"url":"(https?://[^/"]+)', str([e["message"] for e in browser.get_log("performance")]))
        assert {host for host in asked if "127.0.0.1" not in host and "localhost" not in host} == set()
        ask("Go on")
        wait(lambda: len(answers()) == 3 and len(answers()[-1]) > 3, "the third answer")
        act("#entry .stop-button", lambda button: button.click())
        wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#entry .submit-button"), "the stop")
        assert 0 < tokens() < LONG
        act("#fresh", lambda button: button.click())
        wait(lambda: not answers(), "a new conversation")
        browser.set_window_size(500, 900)
        time.sleep(1)
        browser.save_screenshot(str(ROOT / "runs" / "web_narrow.png"))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait(timeout=60)


def scene(path: Path) -> Path:
    """A picture with something to see in every tile."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (960, 640), (135, 190, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 430, 960, 640), fill=(90, 150, 70))
    draw.ellipse((720, 60, 860, 200), fill=(250, 215, 80))
    draw.rectangle((180, 270, 460, 500), fill=(190, 90, 70))
    draw.polygon([(150, 270), (490, 270), (320, 130)], fill=(110, 60, 50))
    draw.rectangle((290, 380, 350, 500), fill=(80, 50, 40))
    draw.rectangle((640, 380, 670, 520), fill=(100, 70, 40))
    draw.ellipse((560, 230, 750, 410), fill=(50, 110, 60))
    image.save(path)
    return path
