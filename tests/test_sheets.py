"""Sheets show every picture in its place."""

from PIL import Image

from spectral_diffusion.sheets import contact_sheet, grid_sheet


def test_a_sheet_shows_every_picture_once_in_its_place_and_leaves_blanks():
    cells = {
        (x, y): Image.new("RGB", (32, 24), (80 * i, 120 * j, 9))
        for i, x in enumerate("abc")
        for j, y in enumerate("de")
    }
    missing = cells.pop(("b", "e"))
    sheet = grid_sheet(cells, list("abc"), list("de"), "a title")
    counts = dict((colour, count) for count, colour in sheet.getcolors(1 << 20))
    assert all(counts[image.getpixel((0, 0))] == 32 * 24 for image in cells.values())
    assert missing.getpixel((0, 0)) not in counts
    contacts = contact_sheet(list(cells.values()), [f"{x}{y}" for x, y in cells])
    assert contacts.width > 32 * 2 and contacts.height > 24 * 2
