"""The photo demo as a reader meets it: in JupyterLab and as Voila's page, in a real browser without a window.

Screenshots of what was seen go to build/screens.
"""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import nbformat
import numpy as np
import photos
import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import book  # noqa: E402
import demo  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser, pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt install chromium"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `test`)")
for needed in ("jupyterlab", "voila"):
    pytest.importorskip(needed, reason=f"{needed} is not installed (the extra `course`)")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream"]
SCREENS = ROOT / "build" / "screens"
PATIENCE = 120_000  # milliseconds: a busy machine takes its time to load TensorFlow
NAME = "Été 🌞 照片"
SAVE_WIDGETS = {"@jupyter-widgets/jupyterlab-manager": {"plugin": {"saveState": True}},
                "@jupyterlab/apputils-extension": {"notification": {"fetchNews": "false", "checkForUpdates": False}}}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module", params=["lab", "voila"])
def page(request, browser, tmp_path_factory):
    """The demo, ready for photographs: in JupyterLab after "Run all", or as Voila serves it."""
    if request.param == "voila" and metadata.version("ipywidgets").startswith("7."):
        pytest.skip("the pages of Voila 0.5 speak with ipywidgets 8 only")
    folder = tmp_path_factory.mktemp(request.param)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder / "config"),
                   "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "FAG_WORK": str(folder / "work")}
    if request.param == "lab":
        write_notebook(folder)
        command = ["-m", "jupyterlab", "--no-browser", f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}",
                   "--IdentityProvider.token=", "--ServerApp.allow_root=True"]
        address = f"http://localhost:{port}/lab/tree/demo.ipynb"
    else:
        command = [str(ROOT / "tools" / "demo.py"), "--no-browser", f"--port={port}"]
        address = f"http://localhost:{port}/"
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log,
                                  start_new_session=True)
    try:
        wait_for(f"http://localhost:{port}/{'api' if request.param == 'lab' else 'voila/static/'}", server, log.name)
        context = browser.new_context(viewport={"width": 1300, "height": 1500}, permissions=["camera"],
                                      accept_downloads=True)
        opened = context.new_page()
        opened.set_default_timeout(PATIENCE)
        opened.goto(address)
        if request.param == "lab":
            run_all(opened)
        opened.locator(".fag-drop").wait_for()
        opened.kind, opened.folder = request.param, folder
        yield opened
        context.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def run_all(page):
    """"Run all cells" in JupyterLab, again until the demo is there: what a starting kernel is asked can be lost."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    running, demo_there = page.locator(".jp-InputPrompt", has_text="[*]"), page.locator(".fag-drop")
    dialog = page.locator(".jp-Dialog .jp-mod-accept")  # on a busy machine one may ask which kernel to use
    for _ in range(20):
        if dialog.count():
            dialog.first.click()
        page.locator(".lm-MenuBar-item", has_text="Run").first.click()
        page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
        for step in range(200):  # a minute at most, a few seconds if nothing runs
            page.wait_for_timeout(300)
            if demo_there.count():
                return
            if step > 10 and not running.count():
                break
    raise AssertionError("JupyterLab does not run the notebook")


def write_notebook(folder):
    """The cells of the demo as a notebook, and settings under which widgets are saved with it, too."""
    nbformat.write(demo.only_the_demo(book.read(demo.NOTEBOOK)), folder / "demo.ipynb")
    for extension, settings in SAVE_WIDGETS.items():
        place = folder / "settings" / extension
        place.mkdir(parents=True)
        for plugin, values in settings.items():
            (place / f"{plugin}.jupyterlab-settings").write_text(json.dumps(values))


def wait_for(address, server, log):
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            assert server.poll() is None, Path(log).read_text()[-2000:]
            time.sleep(0.5)
    raise AssertionError("the server did not start:\n" + Path(log).read_text()[-2000:])


def upload(page, **files):
    """Choose these files (name=bytes) together; the card of each, when it is there."""
    page.set_input_files(".fag-input", [{"name": name, "mimeType": "application/octet-stream", "buffer": content}
                                        for name, content in files.items()])
    cards = {}
    for name in files:
        cards[name] = page.locator(".fag-card", has=page.locator("h3", has_text=name)).first
        cards[name].wait_for()
    return cards


def screenshot(page, name):
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / f"{page.kind} {name}.png")


def rows(card):
    """The table of a card: a dict for each face."""
    names = card.locator("th").all_inner_texts()
    cells = [row.locator("td").all_inner_texts() for row in card.locator("tbody tr").all()]
    return [dict(zip(names, row, strict=True)) for row in cells]


def shown_size(card):
    """Size in pixels of the annotated picture that the browser has decoded."""
    image = card.locator(".fag-view img")
    page = image.page
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    return tuple(image.evaluate("image => [image.naturalWidth, image.naturalHeight]"))


def test_a_jpeg_is_shown_with_its_face_and_a_click_opens_it(page):
    name = "astronaut.jpg"
    card = upload(page, **{name: photos.encoded(data.astronaut(), "JPEG", quality=92)})[name]
    (face,) = rows(card)
    assert 18 <= int(face["age"]) <= 65 and face["gender"] == "woman"
    low, high = map(int, face["80 % interval"].split(" to "))
    assert low <= int(face["age"]) <= high
    assert face["mask"] == "no"
    assert shown_size(card) == (512, 512)
    picture, hot = card.locator(".fag-view img").bounding_box(), card.locator(".fag-hot").bounding_box()
    middle = [(hot[a] + hot[b] / 2 - picture[a]) / picture[b] for a, b in (("x", "width"), ("y", "height"))]
    assert abs(middle[0] - 224 / 512) < 0.05 and abs(middle[1] - 115 / 512) < 0.06, "the place to click is the face"
    card.locator(".fag-hot").click()
    card.locator(".fag-words").wait_for()
    words = card.locator(".fag-words").inner_text()
    assert "Mirrored:" in words and words.count("woman") == 3
    assert card.locator(".fag-crop img").evaluate("image => image.naturalWidth") == 62
    assert card.locator(".fag-belief img").evaluate("image => image.naturalWidth") > 500
    screenshot(page, "jpeg")


def test_a_heic_with_a_name_in_all_scripts(page):
    name = f"{NAME}.heic"
    card = upload(page, **{name: photos.encoded(photos.scene(), "HEIF", quality=90)})[name]
    assert len(rows(card)) == 4
    assert card.locator("h3").inner_text() == name
    screenshot(page, "heic")


def test_a_photograph_of_15_megabytes(page):
    picture, middles = photos.group(3000, 4000, [100, 150, 200, 250] * 2 + [300, 60])
    noise = np.random.default_rng(0).integers(-14, 15, picture.shape, "int16")
    file = photos.encoded((picture + noise).clip(0, 255).astype("uint8"), "JPEG", quality=98, subsampling=0)
    assert len(file) > 15e6
    card = upload(page, **{"large.jpg": file})["large.jpg"]
    assert len(rows(card)) == len(middles)
    assert shown_size(card) == (1280, 960)
    screenshot(page, "large")


def test_broken_files_are_answered_with_a_sentence_and_the_next_one_is_read(page):
    whole = photos.encoded(data.astronaut(), "JPEG", quality=92)
    cards = upload(page, **{"text.jpg": b"Buy milk.", "half.jpg": whole[: len(whole) // 2], "whole.jpg": whole})
    assert "not a picture" in cards["text.jpg"].locator(".fag-error").inner_text()
    assert "Save it as JPEG or PNG" in cards["text.jpg"].inner_text()
    assert "breaks off" in cards["half.jpg"].locator(".fag-note").inner_text()
    assert len(rows(cards["half.jpg"])) == len(rows(cards["whole.jpg"])) == 1
    screenshot(page, "broken")


def test_a_picture_without_a_face_says_what_to_do(page):
    page.locator(".fag-sample", has_text="A cat").click()
    card = page.locator(".fag-card", has_text="A cat").first
    card.wait_for()
    assert "No face was found. Try" in card.inner_text()
    assert card.locator("table").count() == 0


def test_picture_and_table_can_be_saved(page):
    card = upload(page, **{"save me.png": photos.encoded(photos.scene())})["save me.png"]
    with page.expect_download() as download:
        card.locator(".fag-save-picture").click()
    assert download.value.suggested_filename == "save me annotated.jpg"
    saved = Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))
    assert saved.size == (1046, 512)
    assert np.abs(np.asarray(saved, float) - photos.scene()).mean() > 1, "boxes are drawn"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save table").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert lines[0].startswith("file,face,age,")
    assert sum(line.startswith("save me.png,") for line in lines) == 4


def test_a_snapshot_from_the_camera(page):
    page.locator(".fag-camera").click()
    page.locator(".fag-shoot").click()
    card = page.locator(".fag-card", has_text="camera.jpg").first
    card.wait_for()
    assert "No face was found" in card.inner_text(), "the camera of the test shows a green field"
    assert page.locator(".fag-live").count() == 0, "and it is switched off again"


@pytest.mark.parametrize("fault, advice", [("NotAllowedError", "Allow it for this page"),
                                           ("NotFoundError", "Connect one")])
def test_without_a_camera_the_page_says_why(page, fault, advice):
    page.evaluate("""name => navigator.mediaDevices.getUserMedia =
                     () => Promise.reject(new DOMException("no", name))""", fault)
    page.locator(".fag-camera").click()
    page.locator(".fag-trouble", has_text=advice).wait_for()


def test_nothing_of_a_picture_is_saved(page):
    """In JupyterLab the notebook is saved with the state of its widgets; Voila must leave no file behind."""
    if page.kind == "lab":
        saved = page.folder / "demo.ipynb"
        before = saved.stat().st_mtime
        page.locator(".jp-Cell").first.click()
        page.keyboard.press("Control+s")
        for _ in range(100):
            if saved.stat().st_mtime > before:
                break
            page.wait_for_timeout(200)
        text = saved.read_text(encoding="utf-8")
        state = json.loads(text)["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
        assert any("FloatSlider" in model["model_name"] for model in state.values()), "the state is saved"
        for word in ("astronaut.jpg", "照片", "\\u7167", "save me", "large.jpg", "/9j/", "iVBOR"):
            assert word not in text, word
        assert len(text) < 200_000
    pictures = {".jpg", ".jpeg", ".png", ".heic", ".csv"}
    assert not [path for path in page.folder.rglob("*") if path.suffix.lower() in pictures]
    assert not [path for path in (ROOT / "notebooks").iterdir() if path.suffix.lower() in pictures]


def test_forget_all_pictures(page):
    page.get_by_role("button", name="Forget all pictures").click()
    page.locator(".fag-status", has_text="forgotten").wait_for()
    assert page.locator(".fag-card").count() == 0


def test_voila_shows_no_code(page):
    text = page.locator("body").inner_text()
    assert "Your photographs" in text
    assert ("photo_demo()" in text) == (page.kind == "lab")


# --- the mask demo: its page alone, and between it and the program the test in place of Jupyter


@pytest.fixture
def mask_page(browser):
    from fag_utils import widgets

    made = widgets.MaskDemo(networks=["mobilefacenet_075_62"])
    context = browser.new_context(viewport={"width": 1000, "height": 520})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.set_content(f"<style>{widgets.MaskStage._css}</style><main></main>")

    def to_page(message, buffers=()):
        page.evaluate("([message, bytes]) => window.receive(message, bytes.map(part => new Uint8Array(part)))",
                      [message, [list(part) for part in buffers]])

    made.stage.send = to_page
    page.add_script_tag(type="module", content=widgets.MaskStage._esm + """
        window.sent = [];
        const model = {send: message => window.sent.push(message), off() {}, on: (_, act) => window.receive = act};
        render({model, el: document.querySelector("main")});""")

    def answer():
        """Let the program answer what the page has said; how many messages that were."""
        number = 0
        while messages := page.evaluate("window.sent.splice(0)"):
            for message in messages:
                made.stage._handle_custom_msg(message, [])
            number += len(messages)
        return number

    page.wait_for_function("window.sent?.length")
    answer()
    page.demo, page.answer, page.kind = made, answer, "alone"
    yield page
    context.close()


def ages(page):
    return [float(row.locator("td").nth(2).inner_text()) for row in page.locator("tbody tr").all()]


def test_a_mask_is_dragged_and_both_estimates_are_there(mask_page):
    page = mask_page
    first = ages(page)
    assert len(first) == 2
    box = page.locator(".fag-mask-view img").bounding_box()
    assert round(box["width"]) == round(box["height"]) == 360
    x, y = box["x"] + 180, box["y"] + 240
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 8):
        page.mouse.move(x, y - 12 * step)
    assert page.answer() == 2, "while the program draws, only the last place waits"
    page.mouse.up()
    assert page.demo._place == pytest.approx((0, -84 / 360), abs=0.01)
    second = ages(page)
    assert second[0] == first[0] and second[1] != first[1]
    screenshot(page, "mask dragged")
    page.locator(".fag-mask-view").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
        page.answer()
    assert page.demo._place == pytest.approx((0.02, 0.04 - 84 / 360), abs=0.01)
    page.demo.back.click()
    assert ages(page) == first
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 36, y)
    page.answer()
    page.mouse.up()
    assert page.demo._place == pytest.approx((0.1, 0), abs=0.01), "it is dragged from where the program put it"
    screenshot(page, "mask")
