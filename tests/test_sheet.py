from PIL import Image

from wordbrush.sheet import Cell, draw_sheet


def test_every_picture_is_in_its_place():
    red, blue = Image.new("RGB", (300, 150), "red"), Image.new("RGBA", (100, 50), "blue")
    sheet = draw_sheet([[Cell(red, "one"), Cell(None, "none")], [Cell(blue, "two\nlines", framed=True)]])
    colours = {colour: number for number, colour in sheet.getcolors(1 << 20) or []}
    assert colours[(255, 0, 0)] == 256 * 128 and colours[(0, 0, 255)] == 100 * 50
    assert colours[(236, 236, 238)] == 256 * 256
    assert sheet.width > 2 * 256 and sheet.height > 2 * 256
