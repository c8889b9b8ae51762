"""The ledger's file is readable, keeps reading its first version, and is refused whenever it is contradictory."""

import json

import pytest

from spectral_diffusion.errors import DamagedFile
from spectral_diffusion.ledger import Ledger, Slice
from spectral_diffusion.ledger_file import Entry, Page, page_text, read_page

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path, FINGERPRINT, 64, "toybox")


DAMAGES = {
    "not JSON": lambda c: "{" + c,
    "empty": lambda c: "",
    "a list": lambda c: "[]",
    "unknown version": lambda c: c.replace('"version": 2', '"version": 9'),
    "another base": lambda c: c.replace(FINGERPRINT, FINGERPRINT[:12]),
    "overlap": lambda c: c.replace('"start": 4', '"start": 3'),
    "outside": lambda c: c.replace('"start": 4', '"start": 62'),
    "twice the name": lambda c: c.replace("mia", "rex"),
    "bad state": lambda c: c.replace("training", "lost"),
    "bad name": lambda c: c.replace("mia", "../mia"),
    "name no text": lambda c: c.replace('"mia"', "7"),
    "width no number": lambda c: c.replace('"width": 64', '"width": "64"'),
    "width too small": lambda c: c.replace('"width": 64', '"width": 7'),
    "width of another base": lambda c: c.replace('"width": 64', '"width": 65'),
    "name of the base no text": lambda c: c.replace('"toybox"', "[]"),
    "version no number": lambda c: c.replace('"version": 2', '"version": []'),
    "renamed from a name that is there": lambda c: c.replace(
        '"name": "mia",', '"name": "mia", "was": "rex",'
    ),
    "renamed from itself": lambda c: c.replace('"name": "mia",', '"name": "mia", "was": "mia",'),
    "renamed from no name": lambda c: c.replace('"rank": 4,', '"rank": 4, "was": "../x",', 1),
    "key missing": lambda c: c.replace('"width": 64,', ""),
    "extra key": lambda c: c.replace('"rank": 4', '"rank": 4, "x": 1'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_never_used_nor_overwritten(ledger, damage):
    ledger.take("rex", 4)
    ledger.take("mia", 4)
    damaged = DAMAGES[damage](ledger.path.read_text())
    ledger.path.write_text(damaged)
    for use in (ledger.entries, lambda: ledger.take("bo", 4), lambda: ledger.free("rex")):
        with pytest.raises(DamagedFile, match=str(ledger.path.name)):
            use()
    assert ledger.path.read_text() == damaged


def test_the_file_is_readable_by_people(ledger):
    ledger.take("rex", 4)
    assert json.loads(ledger.path.read_text())["entries"] == [
        {"name": "rex", "start": 0, "rank": 4, "state": "training"}
    ]
    assert ledger.path.name == "ledger-0123456789ab.json"


def test_a_page_is_read_back_as_it_was_written(tmp_path):
    entries = (Entry("rex", Slice(0, 4), "done", "max"), Entry("mia", Slice(6, 2), "reserved"))
    for page in (Page(FINGERPRINT, "toybox", 64, entries), Page(FINGERPRINT, None, None, ())):
        (tmp_path / "ledger.json").write_text(page_text(page))
        assert read_page(tmp_path / "ledger.json") == page


FIRST_VERSION = """{
 "version": 1,
 "base": "%s",
 "entries": [
  {"name": "rex", "start": 0, "rank": 4, "state": "done"},
  {"name": "mia", "start": 4, "rank": 2, "state": "training"}
 ]
}
"""


def test_the_first_version_is_read_and_becomes_the_second_with_the_next_change(ledger):
    ledger.path.write_text(FIRST_VERSION % FINGERPRINT)
    assert [(e.name, e.slice, e.state) for e in ledger.entries()] == [
        ("rex", Slice(0, 4), "done"),
        ("mia", Slice(4, 2), "training"),
    ]
    assert ledger.path.read_text() == FIRST_VERSION % FINGERPRINT, "reading changes nothing"
    alone = Ledger.at(ledger.path)
    assert (alone.fingerprint, alone.base_name, alone.width) == (FINGERPRINT, None, None)
    ledger.reserve("bo", 4)
    alone = Ledger.at(ledger.path)
    assert (alone.base_name, alone.width) == ("toybox", 64)
    assert json.loads(ledger.path.read_text())["version"] == 2
    assert alone.next_free(2) == Slice(10, 2)
