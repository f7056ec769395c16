"""What is in force while the file is edited, broken, mended and lost. Time is a number here."""

import json
import os

import pytest

from lbd.core import entry
from lbd.core.observed import Observed
from lbd.host.store import Store
from lbd.intent import SECOND_LOOK, Intent

ONE = '[[service]]\nname = "web"\nlisten = "192.0.2.1:80"\nbackends = ["10.0.0.1"]\n'
TWO = ONE.replace("10.0.0.1", "10.0.0.2")
BAD = ONE.replace("10.0.0.1", "10.0.0.1:0")
WORSE = ONE.replace("backends", "back ends")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "lbd.toml"


@pytest.fixture
def intent(file, tmp_path):
    return Intent(file, Store(tmp_path / "state"))


def backend(intent):
    """The only backend of what is in force."""
    return str(intent.now.config.services[0].backends[0])


def ids(reading):
    return [told.message_id for told in reading.entries]


def test_path_that_is_no_text_is_a_path(tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.toml")
    file.write_text(ONE)
    intent = Intent(file, Store(tmp_path / "state"))
    assert ids(intent.read(0, patient=False)) == []
    assert ids(intent.keep()) == []
    file.write_text(BAD)
    again = Intent(file, Store(tmp_path / "state"))
    assert ids(again.read(1, patient=False)) == [entry.REFUSED]
    assert again.now.digest == intent.now.digest


def test_good_bad_good(intent, file):
    file.write_text(ONE)
    assert ids(intent.read(0, patient=False)) == []
    assert backend(intent) == "10.0.0.1"

    file.write_text(BAD)
    reading = intent.read(1, patient=False)
    assert ids(reading) == [entry.REFUSED]
    assert "the last good file stays in force" in reading.entries[0].message
    assert reading.again is None
    assert backend(intent) == "10.0.0.1"
    assert "port 0" in str(intent.refusal)

    file.write_text(TWO)
    assert ids(intent.read(2, patient=False)) == []
    assert backend(intent) == "10.0.0.2"
    assert intent.refusal is None


def test_same_refusal_is_told_once_and_another_again(intent, file):
    file.write_text(BAD)
    assert ids(intent.read(0, patient=False)) == [entry.REFUSED]
    assert ids(intent.read(1, patient=False)) == []
    file.write_text(WORSE)
    assert ids(intent.read(2, patient=False)) == [entry.REFUSED]
    file.write_text(ONE)
    intent.read(3, patient=False)
    file.write_text(WORSE)
    assert ids(intent.read(4, patient=False)) == [entry.REFUSED]


def test_patient_look_at_a_broken_file_asks_for_a_second_one(intent, file):
    file.write_text(ONE)
    intent.read(10, patient=True)
    file.write_text("")
    for now in (20.0, 20.5, 21.9):
        reading = intent.read(now, patient=True)
        assert reading.again == 20.0 + SECOND_LOOK
        assert not reading.entries
        assert intent.refusal is None
    reading = intent.read(20.0 + SECOND_LOOK, patient=True)
    assert ids(reading) == [entry.REFUSED]
    assert reading.again is None
    assert backend(intent) == "10.0.0.1"


def test_editor_that_truncates_first_is_never_refused(intent, file):
    file.write_text(ONE)
    intent.read(10, patient=True)
    for now in (20.0, 30.0):
        file.write_text("")
        assert intent.read(now, patient=True).again == now + SECOND_LOOK
        file.write_text(TWO)
        assert intent.read(now + 1, patient=True).entries == ()
    assert backend(intent) == "10.0.0.2"
    assert intent.refusal is None


def test_who_asks_for_a_verdict_gets_it_at_once(intent, file):
    file.write_text(ONE)
    intent.read(10, patient=True)
    file.write_text(BAD)
    assert intent.read(20, patient=True).again == 20 + SECOND_LOOK
    assert ids(intent.read(20.1, patient=False)) == [entry.REFUSED]
    # What is known to be bad needs no more patience.
    assert intent.read(20.2, patient=True).again is None


def test_vanished_file_is_refused_and_changes_nothing(intent, file):
    file.write_text(ONE)
    intent.read(0, patient=False)
    file.unlink()
    assert ids(intent.read(1, patient=False)) == [entry.REFUSED]
    assert backend(intent) == "10.0.0.1"


def test_only_words_changed_is_the_same_wish(intent, file):
    file.write_text(ONE)
    intent.read(0, patient=False)
    first, wish = intent.now, intent.wish(Observed())
    file.write_text(f"# a comment\n{ONE}")
    intent.read(1, patient=False)
    assert intent.wish(Observed()) is wish
    assert intent.now.digest != first.digest
    file.write_text(TWO)
    intent.read(2, patient=False)
    assert intent.wish(Observed()) is not wish


def test_only_what_is_observed_and_asked_for_is_another_wish_and_news(intent, file):
    file.write_text(ONE.replace('["10.0.0.1"]', '[{ address = "10.0.0.1", max_connections = 1 }]'))
    intent.read(0, patient=False)
    wish = intent.wish(Observed())
    assert intent.news() == ()
    # A share is for other schedulers.
    assert intent.wish(Observed(shares={("web", "10.0.0.1"): 7})) is wish
    assert intent.news() == ()
    assert intent.wish(Observed(full=frozenset({("web", "10.0.0.1")}))) != wish
    (news,) = intent.news()
    assert "as many connections as it may" in news
    assert intent.news() == ()


def test_drop_in_is_part_of_the_file(intent, file, tmp_path):
    file.write_text(f'include = ["more.toml"]\n{ONE}')
    intent.read(0, patient=False)
    before = intent.now.digest
    (tmp_path / "more.toml").write_text(TWO.replace("web", "more").replace(":80", ":81"))
    intent.read(1, patient=False)
    assert [service.name for service in intent.now.config.services] == ["web", "more"]
    assert intent.now.digest != before
    assert tmp_path / "more.toml" in intent.watched


def test_what_is_watched_follows_a_refused_file(intent, file, tmp_path):
    file.write_text(f'include = ["one.toml"]\n{ONE}')
    intent.read(0, patient=False)
    file.write_text(f'include = ["two.toml"]\n{BAD}')
    intent.read(1, patient=False)
    assert intent.refusal
    # The mistake may be mended there.
    assert tmp_path / "two.toml" in intent.watched


@pytest.mark.parametrize("text", [None, b"\xff", b"include = ["])
def test_what_is_watched_is_kept_when_the_file_cannot_be_read(intent, file, text):
    file.write_text(f'include = ["one.toml"]\n{ONE}')
    intent.read(0, patient=False)
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text)
    intent.read(1, patient=False)
    assert file in intent.watched


def restarted(intent):
    """The same director after a restart of the daemon."""
    return Intent(intent.path, intent.store)


def test_last_good_file_is_taken_at_start(intent, file):
    file.write_text(ONE)
    intent.read(0, patient=False)
    assert not intent.keep().entries
    file.write_text(BAD)

    later = restarted(intent)
    reading = later.read(0, patient=True)
    assert ids(reading) == [entry.REFUSED]
    assert "the last good file stays in force" in reading.entries[0].message
    assert backend(later) == "10.0.0.1"
    assert later.refusal

    file.write_text(TWO)
    later.read(1, patient=False)
    assert backend(later) == "10.0.0.2"
    assert later.refusal is None


def test_without_a_last_good_file_nothing_is_in_force(intent, file):
    file.write_text(BAD)
    reading = intent.read(0, patient=True)
    assert "nothing is in force" in reading.entries[0].message
    # There is nothing to be patient for: no state would be disturbed.
    assert reading.again is None
    assert intent.now is None
    assert not intent.keep().entries


def test_damaged_last_good_file_is_told_and_not_used(intent, file, tmp_path):
    file.write_text(ONE)
    intent.read(0, patient=False)
    intent.keep()
    kept = tmp_path / "state" / "last-good.json"
    kept.write_text(kept.read_text().replace("10.0.0.1", "10.0.0.9"))
    file.write_text(BAD)
    later = restarted(intent)
    reading = later.read(0, patient=False)
    assert ids(reading) == [entry.DEGRADED, entry.REFUSED]
    assert "checksum" in reading.entries[0].message
    assert later.now is None


def test_last_good_file_of_another_version_is_told_and_not_used(intent, file):
    file.write_text(ONE)
    intent.read(0, patient=False)
    sources = intent.now.sources
    intent.store.save_last_good([type(sources[0])(sources[0].path, WORSE)])
    file.write_text(BAD)
    later = restarted(intent)
    reading = later.read(0, patient=False)
    assert ids(reading) == [entry.DEGRADED, entry.REFUSED]
    assert "not good any more" in reading.entries[0].message
    assert later.now is None


def test_last_good_file_that_cannot_be_kept_is_told(file, tmp_path):
    (tmp_path / "state").write_text("not a directory")
    intent = Intent(file, Store(tmp_path / "state"))
    file.write_text(ONE)
    intent.read(0, patient=False)
    reading = intent.keep()
    assert ids(reading) == [entry.DEGRADED]
    assert "cannot be kept" in reading.entries[0].message


def test_last_good_file_is_what_was_written(intent, file, tmp_path):
    file.write_text(f"# by hand\n{ONE}")
    intent.read(0, patient=False)
    intent.keep()
    kept = json.loads((tmp_path / "state" / "last-good.json").read_text())
    assert kept["body"] == [{"path": str(file), "text": f"# by hand\n{ONE}", "kind": "toml"}]


def test_lists_are_kept_with_the_file(intent, file, tmp_path):
    listed = tmp_path / "office.txt"
    listed.write_text("203.0.113.0/24\n")
    file.write_text(f'{ONE}allow = [{{ file = "office.txt" }}]\n')
    intent.read(0, patient=False)
    assert listed in intent.watched
    intent.keep()
    file.write_text(BAD)
    listed.unlink()
    later = restarted(intent)
    assert ids(later.read(0, patient=False)) == [entry.REFUSED]
    (allowed,) = later.now.config.services[0].allow.files
    assert list(map(str, allowed.prefixes)) == ["203.0.113.0/24"]


def many(count):
    one = '[[service]]\nname = "s{0}"\nlisten = "192.0.2.1:80{0:02}"\nbackends = []\n'
    return "".join(one.format(n) for n in range(1, count + 1))


def test_a_file_that_looks_like_an_accident_is_refused_until_it_is_meant(intent, file):
    file.write_text(many(10))
    intent.read(0, patient=False)
    file.write_text(many(4))
    (told,) = intent.read(1, patient=False).entries
    assert told.message_id == entry.REFUSED
    assert "6 of 10 services are gone at once" in told.message
    assert len(intent.now.config.services) == 10
    intent.meant = True
    assert ids(intent.read(2, patient=False)) == []
    assert len(intent.now.config.services) == 4
    assert intent.refusal is None
    # It was meant of that file alone.
    file.write_text(many(40))
    intent.read(3, patient=False)
    file.write_text(many(4))
    assert ids(intent.read(4, patient=False)) == [entry.REFUSED]


def test_an_accident_while_the_daemon_was_away_is_one_too(intent, file, tmp_path):
    file.write_text(many(10))
    intent.read(0, patient=False)
    intent.keep()
    file.write_text(many(4))
    again = Intent(file, Store(tmp_path / "state"))
    assert ids(again.read(0, patient=False)) == [entry.REFUSED]
    assert len(again.now.config.services) == 10
