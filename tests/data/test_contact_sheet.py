import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image

from tests.data.edits import picture, row, rows
from wordbrush.data.contact_sheet import make_sheet, sample
from wordbrush.data.rows import Row, encode_png


class Reader(HTMLParser):
    """Collects tags, texts and addresses, and checks that every element that is opened is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_everything_is_shown_inside_the_page():
    found = Reader(make_sheet("my edits", rows(5), 1234))
    assert found.tags.count("article") == 5
    assert found.tags.count("img") == 12  # two masks
    assert all(link.startswith("data:image/jpeg;base64,") for link in found.links)
    assert "5 of 1,234 edits" in found.texts
    for text in ("my edits", "make it 4", "“cat”,", "unit 00001", "turn 1", "0.80", "change as captioned"):
        assert any(text in part for part in found.texts), text


def test_texts_and_pictures_cannot_break_out():
    evil = '</h2><script>alert("1")</script><img src=x onerror=alert(2)>'
    hostile = [
        row(1, edit_prompt=evil, source_caption=evil, target_caption=f"no {evil}", task=evil, unit=evil),
        row(2, input_image=b"<script>alert(3)</script>", mask=b"\x89PNG\r\n\x1a\n<svg onload=alert(4)>"),
    ]
    page = make_sheet(evil, hostile, 2)
    found = Reader(page)
    assert "script" not in found.tags and found.tags.count("img") == 3
    assert evil in found.texts
    assert "script" not in page.replace("&lt;script", "").replace("&lt;/script", "")
    assert "default-src 'none'" in page


def test_a_broken_picture_is_shown_as_its_reason():
    found = Reader(make_sheet("edits", [row(1, edited_image=b"junk")], 1))
    assert any("not a picture" in text for text in found.texts)


def test_large_pictures_become_small_and_lose_their_metadata():
    large = Image.new("RGB", (2000, 500), "red")
    (link, *_) = Reader(make_sheet("edits", [row(1, input_image=encode_png(large))], 1)).links
    with Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))) as shown:
        assert shown.size == (320, 80) and "exif" not in shown.info
        pixel = shown.convert("RGB").getpixel((5, 5))
    assert isinstance(pixel, tuple) and pixel[0] > 250 and max(pixel[1:]) < 5


def test_what_changed_in_a_caption_is_marked():
    page = make_sheet("edits", [row(1, source_caption="a red car", target_caption="a blue car")], 1)
    assert re.search(r"a <del>red</del> car</dd>.*a <ins>blue</ins> car</dd>", page)


def test_unknown_things_are_left_out():
    plain = Row(input_image=encode_png(picture(0)), edit_prompt="x", edited_image=encode_png(picture(1)))
    found = Reader(make_sheet("edits", [plain], 1))
    assert not {"dl", "b", "li"} & set(found.tags)


def test_a_sample_is_a_fair_draw_in_order():
    data = rows(30)
    drawn, total = sample(iter(data), 10, seed=0)
    assert total == 30 and len(drawn) == 10
    numbers = [data.index(r) for r in drawn]
    assert numbers == sorted(set(numbers))
    assert sample(iter(data), 10, seed=0)[0] == drawn != sample(iter(data), 10, seed=1)[0]
    assert sample(iter(data[:4]), 10, seed=0) == (data[:4], 4)
    counts = [0] * 30
    for seed in range(600):
        for r in sample(data, 10, seed)[0]:
            counts[data.index(r)] += 1
    assert all(150 < count < 250 for count in counts)
