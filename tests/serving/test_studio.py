"""The studio in a real browser: Chromium without a window, as a visitor uses it."""

import re
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.serving import studios
from tests.tasked import teach
from wordbrush.editors.session_file import load_session
from wordbrush.provenance import read_provenance
from wordbrush.safety import Safety
from wordbrush.serving.visits import Visits

api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -c constraints.txt playwright"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""A camera that shows a test picture, to whoever asks."""


@pytest.fixture(scope="module")
def studio(tiny_checkpoint: Path) -> Iterator[tuple[str, Visits]]:
    with studios.running(tiny_checkpoint, steps=2) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *_CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, studio: tuple[str, Visits]) -> Iterator[Any]:
    yield from _open(browser, studio[0], DESKTOP)


@pytest.fixture
def phone(browser: Any, studio: tuple[str, Visits]) -> Iterator[Any]:
    yield from _open(browser, studio[0], PHONE)


def _open(browser: Any, url: str, viewport: dict[str, int]) -> Iterator[Any]:
    """A page that may ask nobody but its own server for anything."""
    page = browser.new_page(viewport=viewport, permissions=["camera", "clipboard-read", "clipboard-write"])
    page.set_default_timeout(30_000)
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url))
    page.goto(url)
    is_ready(page)
    yield page
    page.close()
    assert [asked for asked in elsewhere if not asked.startswith((url, "data:", "blob:"))] == []


@pytest.fixture
def photo(tmp_path: Path, picture: Image.Image) -> Path:
    picture.save(tmp_path / "dog.png")
    return tmp_path / "dog.png"


def is_ready(page: Any) -> None:
    """A new picture can be given: studio.js listens, and the file chooser is there."""
    page.locator("#theme[aria-label]").wait_for()
    page.locator("#drop input[type=file]").wait_for(state="attached")


def begin(page: Any, file: Path) -> None:
    page.locator("#drop input[type=file]").set_input_files(file)
    page.locator("#view img").wait_for()


def edit(page: Any, instruction: str) -> None:
    """By the keyboard."""
    page.get_by_label("What should change?").fill(instruction)
    page.keyboard.press("Enter")
    page.locator("#notice", has_text=re.compile(rf"“{instruction}” · seed")).wait_for()
    page.locator("#run").wait_for()


def turns(page: Any) -> list[str]:
    return [text.replace("\n", " ") for text in page.locator("#history .turn").all_inner_texts()]


def download(page: Any, name: str, folder: Path) -> Path:
    with page.expect_download() as found:
        page.get_by_role("button", name=name).click()
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


def test_from_upload_to_download_and_nothing_is_left(page: Any, studio: Any, photo: Path, tmp_path: Path):
    begin(page, photo)
    edit(page, "make it night")
    api.expect(page.locator("#slider img")).to_have_count(2)
    path = download(page, "Download", tmp_path)
    assert path.name == "dog-edited.png" and Image.open(path).size == (48, 32)
    record = read_provenance(path)
    assert record["settings"]["instruction"] == "make it night" and record["settings"]["steps"] == 2
    assert record["source_sha256"]
    [visit] = [visit for visit in studio[1] if visit.begun]
    assert visit.home.is_dir()
    page.goto("about:blank")
    page.wait_for_timeout(500)
    for _ in range(40):
        if not visit.home.exists():
            break
        page.wait_for_timeout(250)
    assert not visit.home.exists()


def test_three_turns_undo_branch_and_a_session_that_is_shared(page: Any, photo: Path, tmp_path: Path):
    begin(page, photo)
    for instruction in ("make it night", "let it snow", "make it sunset"):
        edit(page, instruction)
    assert [line.split()[0] for line in turns(page)] == ["Original", "make", "let", "make"]
    page.locator("#undo").click()
    page.locator("#notice", has_text="turn 2").wait_for()
    edit(page, "haz que nieve")
    assert "as “make it snow”" in page.locator("#notice").inner_text()
    assert any("4 · from 2" in line for line in turns(page))
    page.get_by_role("button", name="Edit turn 1 again").click()
    page.locator("#notice", has_text="The original").wait_for()
    assert page.get_by_label("What should change?").input_value() == "make it night"
    path = download(page, "Save session", tmp_path)
    saved = load_session(path)
    assert [turn.parent for turn in saved.turns] == [0, 1, 2, 2] and saved.current == 0
    page.get_by_role("button", name="New picture").click()
    page.locator("#drop").wait_for()
    page.locator("#header input[type=file]").set_input_files(path)
    page.locator("#view img").wait_for()
    assert len(turns(page)) == 5


def test_escape_cancels_and_the_next_edit_works(page: Any, photo: Path):
    begin(page, photo)
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("number input for Steps").fill("80")
    page.get_by_role("button", name="More").first.click()
    page.get_by_label("Size").fill("96")
    page.get_by_label("What should change?").fill("make it night")
    page.keyboard.press("Enter")
    page.locator("#live progress[value]").wait_for()
    page.keyboard.press("Escape")
    page.locator("#notice", has_text="Cancelled").wait_for()
    page.get_by_role("button", name="Edit", exact=True).wait_for()
    page.get_by_label("number input for Steps").fill("2")
    page.get_by_label("Size").fill("")
    edit(page, "make it night")


def test_a_clicked_and_a_brushed_mask_keep_the_rest(page: Any, tmp_path: Path):
    scene = Image.new("RGB", (96, 64), "steelblue")
    scene.paste("gold", (0, 0, 32, 64))
    scene.save(tmp_path / "scene.png")
    begin(page, tmp_path / "scene.png")
    page.get_by_role("tab", name="Mask").click()
    canvas = page.locator("#painter canvas")
    canvas.click(position={"x": 20, "y": 50})  # the gold third
    page.locator("#mask-note", has_text=re.compile("only 3[0-9]%")).wait_for()
    page.get_by_label("Brush", exact=True).check()
    page.locator("#painter canvas[data-width='0.1']").wait_for()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] - 30, steps=5)
    page.mouse.up()
    page.locator("#mask-note", has_text=re.compile("only 4[0-9]%")).wait_for()
    edit(page, "make it night")
    path = download(page, "Download", tmp_path)
    before, after = (np.asarray(Image.open(p).convert("RGB")) for p in (tmp_path / "scene.png", path))
    assert (before[:, 72:] == after[:, 72:]).all()
    assert "mask_sha256" in read_provenance(path)["settings"]


def test_a_bad_file_is_one_clear_line(page: Any, photo: Path, tmp_path: Path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    page.locator("#drop input[type=file]").set_input_files(bad)
    line = page.get_by_text("bad.png: not a picture in a known format")
    line.wait_for()
    assert str(tmp_path) not in line.inner_text() and "gradio" not in line.inner_text()
    page.reload()
    begin(page, photo)


def test_a_withheld_result_is_a_notice_and_nothing_of_it_is_shown(
    browser: Any, tiny_checkpoint: Path, photo: Path, tmp_path: Path
):
    check = tiny.classifier(tmp_path / "strict", ["sfw", "nsfw"], leaning=1)
    with studios.running(tiny_checkpoint, safety=Safety(nsfw_check=str(check)), steps=2) as (url, visits):
        opened = _open(browser, url, DESKTOP)
        page = next(opened)
        begin(page, photo)
        page.get_by_label("What should change?").fill("make it night")
        page.keyboard.press("Enter")
        page.get_by_text("withheld: strict finds the result not safe for work").wait_for()
        page.locator("#run").wait_for()
        assert len(turns(page)) == 1  # the original
        [visit] = [visit for visit in visits if visit.begun]
        assert [file.name for file in visit.home.glob("*.png")] == ["original.png"]
        assert next(opened, None) is None


def test_variations_are_chosen_from(page: Any, photo: Path):
    begin(page, photo)
    page.get_by_role("tab", name="Settings").click()
    page.get_by_label("number input for Variations").fill("2")
    page.get_by_label("number input for Variations").press("Tab")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("What should change?").fill("make it night")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.locator("#variations img").nth(1).click()
    page.locator("#notice", has_text="turn 2 · seed 6").wait_for()


def test_a_phone_shows_everything_in_its_width(phone: Any, photo: Path):
    begin(phone, photo)
    edit(phone, "make it night")
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    run = phone.locator("#run").bounding_box()
    assert run["height"] >= 40 and run["x"] >= 0 and run["x"] + run["width"] <= PHONE["width"]


def test_everything_that_can_be_pressed_has_a_name(page: Any, photo: Path):
    begin(page, photo)
    edit(page, "make it night")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, img')]
            .filter(e => e.offsetParent && !e.innerText && !e.labels?.length
                && !['aria-label', 'title', 'alt', 'aria-labelledby'].some(a => e.hasAttribute(a)))
            .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_a_picture_is_pasted(page: Any, photo: Path):
    page.evaluate(
        """async data => {
            const blob = await (await fetch(data)).blob();
            await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        f"data:image/png;base64,{b64encode(photo.read_bytes()).decode()}",
    )
    for _ in range(2):  # and again
        page.keyboard.press("Control+V")
        page.locator("#view img").wait_for()
        edit(page, "make it night")
        page.get_by_role("button", name="New picture").click()
        is_ready(page)


def test_a_picture_is_taken_by_the_camera(page: Any):
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("() => document.querySelector('#drop video')?.videoWidth > 0")  # it films
    page.get_by_role("button", name="capture photo").click()
    page.locator("#view img").wait_for()
    assert page.locator("#view img").evaluate("image => image.naturalWidth") >= 640


def test_a_task_is_found_and_can_be_chosen(browser: Any, tmp_path: Path, photo: Path):
    model = teach(tiny.save("sd1", tmp_path / "tasks"))
    with studios.running(model, first="emu-edit", steps=1) as (url, _):
        for page in _open(browser, url, DESKTOP):
            begin(page, photo)
            edit(page, "make it night")
            assert re.search(r"Taken as: \w+ \(\d+%\), \w+ \(", page.locator("#notice").inner_text())
            page.get_by_role("tab", name="Settings").click()
            page.get_by_label("Task").fill("depth")
            page.keyboard.press("Enter")
            edit(page, "make it day")
            assert "Taken as: depth (100%)" in page.locator("#notice").inner_text()
            page.get_by_role("tab", name="History").click()
            page.get_by_role("button", name="Edit turn 1 again").click()
            page.locator("#notice", has_text="The original").wait_for()
            page.get_by_role("tab", name="Settings").click()
            assert page.get_by_label("Task").input_value() == "found from the words"


def test_what_the_keyboard_is_at_is_seen(page: Any, photo: Path):
    begin(page, photo)
    page.locator("#theme").focus()
    seen = set[str]()
    for _ in range(25):
        page.keyboard.press("Tab")
        name, width = page.evaluate(
            """() => {
                const at = document.activeElement;
                const ring = at.closest("#go") && at.tagName === "TEXTAREA" ? null : getComputedStyle(at);
                const shadow = getComputedStyle(document.getElementById("go")).boxShadow;
                return [at.outerHTML.slice(0, 160),
                        ring ? parseFloat(ring.outlineWidth) * (ring.outlineStyle !== "none")
                             : 3 * shadow.includes("3px")];
            }"""
        )
        if not name.startswith("<body"):  # between the last and the first
            assert width >= 2, name
            seen.add(name)
    assert len(seen) > 12


CONTRASTS = """() => {
    const numbers = text => {
        const [r, g, b, a = 1] = text.match(/[0-9.]+/g).map(Number);
        return text.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
    };
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) =>
        0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const ground = element => {
        const layers = [];
        for (let at = element; at; at = at.parentElement)
            layers.push(numbers(getComputedStyle(at).backgroundColor));
        return layers.reduceRight(
            (below, [r, g, b, a]) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]), [255, 255, 255]
        );
    };
    const letters = /[\\p{L}\\p{N}]/u;
    const says = e => e.value || [...e.childNodes].some(n => n.nodeType === 3 && letters.test(n.data));
    return [...document.querySelectorAll(".gradio-container *")]
        .filter(e => e.checkVisibility({opacityProperty: true, visibilityProperty: true}))
        .filter(e => !e.closest("script, style, svg, [disabled]") && says(e))
        .map(e => {
            const [one, other] = [light(numbers(getComputedStyle(e).color)), light(ground(e))];
            const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            return [ratio, e.outerHTML.slice(0, 120)];
        });
}"""
"""WCAG 2's contrast of every text that is seen, with the element."""


def test_texts_can_be_read_in_the_light_and_in_the_dark(page: Any, photo: Path):
    grounds = list[str]()
    for _ in range(2):
        grounds.append(page.locator(".gradio-container").evaluate("e => getComputedStyle(e).backgroundColor"))
        assert [found for found in page.evaluate(CONTRASTS) if found[0] < 4.5] == []
        begin(page, photo)
        edit(page, "make it night")
        for tab in ("History", "Settings", "Explore"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(300)
            found = page.evaluate(CONTRASTS)
            assert len(found) > 10 and [pair for pair in found if pair[0] < 4.5] == []
        page.get_by_role("button", name="New picture").click()
        page.locator("#drop").wait_for()
        page.locator("#theme").click()
        page.wait_for_timeout(500)  # colours change little by little
    assert grounds[0] != grounds[1]


def test_the_page_stands_in_the_middle_of_a_wide_window(browser: Any, studio: tuple[str, Visits]):
    for page in _open(browser, studio[0], {"width": 1920, "height": 900}):
        box = page.locator("#header").bounding_box()
        assert box["x"] + box["width"] / 2 == pytest.approx(960, abs=8)


@pytest.mark.long
def test_explored_edits_are_made_when_chosen_and_advice_is_heeded(page: Any, photo: Path):
    begin(page, photo)
    page.get_by_label("What should change?").fill("make it night")
    page.get_by_role("tab", name="Explore").click()
    page.locator("#explore").click()
    page.locator("#found img").first.wait_for()
    assert page.locator("#found img").count() == 9
    page.locator("#found img").nth(3).click()
    page.locator("#notice", has_text=re.compile("“make it night” · seed")).wait_for()
    page.locator("#run").wait_for()
    assert len(turns(page)) == 2
    page.locator("#heed").click()  # random weights leave little of a picture
    page.locator("#history .turn").nth(2).wait_for(state="attached")
    assert "2 · from 0" in turns(page)[2]
