"""What verification finds, and what it openly cannot find."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from securemfg.audit import Journal, Strength, read_events, verify
from securemfg.audit.events import GENESIS, encode
from securemfg.errors import AuditError
from tests.unit.audit.parts import TAGS, writer_lines


@pytest.fixture
def root(tmp_path) -> Path:
    """A sealed journal of one writer: opened, 20 events, closed."""
    return sealed(tmp_path / "site" / "journal")


def sealed(root: Path, events: int = 20) -> Path:
    journal = Journal(root)
    for number in range(events):
        journal.append(TAGS, "model.predicted", resource=f"m{number}")
    journal.close(5)
    return root


def only(root: Path) -> Path:
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def rewrite(folder: Path, change) -> None:
    (segment,) = folder.glob("*.jsonl")
    lines = segment.read_bytes().split(b"\n")[:-1]
    segment.write_bytes(b"".join(line + b"\n" for line in change(lines)))


def rechained(lines: list[bytes]) -> list[bytes]:
    """What a forger who can write the file does: number and chain everything anew."""
    previous, out = GENESIS, []
    for seq, line in enumerate(lines):
        data = encode(json.loads(line) | {"seq": seq, "prev": previous})
        previous = sha256(data).hexdigest()
        out.append(data)
    return out


def kinds(result) -> set[tuple[str, int | None]]:
    return {(problem.kind, problem.seq) for problem in result.problems}


def test_an_untouched_journal_is_signed_on_this_host(root):
    result = verify(root)
    assert result.ok
    assert (result.events, result.tail, result.torn, result.strength) == (22, 0, 0, Strength.SIGNED)


def test_an_empty_root_has_nothing_wrong(tmp_path):
    result = verify(tmp_path / "nowhere")
    assert result.ok
    assert result.events == 0
    assert result.strength is Strength.CONSISTENT


def test_a_changed_event_is_found_with_its_number(root):
    rewrite(only(root), lambda lines: [line.replace(b'"m6"', b'"m9"') for line in lines])
    result = verify(root)
    assert kinds(result) == {("changed", 7)}
    assert result.strength is Strength.CONSISTENT


@pytest.mark.parametrize("before", range(5, 9))
def test_a_change_is_named_once_wherever_a_checkpoint_ends(tmp_path, before):
    journal = Journal(tmp_path / "site" / "journal")
    for number in range(10):
        if number == before:
            journal.checkpoint()
        journal.append(TAGS, "a", resource=f"m{number}")
    journal.close(5)
    rewrite(only(journal.folder), lambda lines: [line.replace(b'"m6"', b'"m9"') for line in lines])
    assert kinds(verify(journal.folder)) == {("changed", 7)}


def test_a_changed_last_event_is_found_by_the_checkpoint(root):
    rewrite(only(root), lambda lines: [*lines[:-1], lines[-1].replace(b"journal.closed", b"journal.cloned")])
    assert kinds(verify(root)) == {("changed", None)}


def test_one_changed_byte_anywhere_is_found(root):
    folder = only(root)
    (segment,) = folder.glob("*.jsonl")
    good = segment.read_bytes()
    for position in range(0, len(good), 37):
        flipped = bytearray(good)
        flipped[position] ^= 1
        segment.write_bytes(flipped)
        assert not verify(root).ok, position
    segment.write_bytes(good)
    assert verify(root).ok


def test_an_inserted_event_is_found(root):
    rewrite(only(root), lambda lines: [*lines[:5], lines[4].replace(b'"m3"', b'"mX"'), *lines[5:]])
    assert ("inserted", 4) in kinds(verify(root))


def test_a_repeated_event_is_found(root):
    rewrite(only(root), lambda lines: [*lines[:5], lines[2], *lines[5:]])
    assert ("inserted", 2) in kinds(verify(root))


def test_reordered_events_are_found(root):
    rewrite(only(root), lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]])
    assert kinds(verify(root)) == {("reordered", 5)}


def test_a_checkpoint_that_ends_inside_a_swap_adds_nothing_to_what_is_said_about_it(tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    for number in range(5):
        journal.append(TAGS, "a", resource=f"m{number}")
    journal.checkpoint()
    for number in range(5):
        journal.append(TAGS, "b", resource=f"m{number}")
    journal.close(5)
    rewrite(only(journal.folder), lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]])
    assert kinds(verify(journal.folder)) == {("reordered", 5)}


def test_removed_events_are_found_in_the_middle_at_the_start_and_at_the_sealed_end(root):
    folder = only(root)
    copy = (folder / "000000000000.jsonl").read_bytes()
    rewrite(folder, lambda lines: [*lines[:5], *lines[8:]])
    found = verify(root)
    assert ("removed", 5) in kinds(found)
    assert "events 5 to 7 are missing" in {problem.text for problem in found.problems}
    (folder / "000000000000.jsonl").write_bytes(copy)
    rewrite(folder, lambda lines: lines[2:])
    assert ("removed", 0) in kinds(verify(root))
    (folder / "000000000000.jsonl").write_bytes(copy)
    rewrite(folder, lambda lines: lines[:-3])
    assert kinds(verify(root)) == {("removed", 19)}


def test_a_rechained_forgery_is_found_by_the_signed_checkpoint(root):
    rewrite(only(root), lambda lines: rechained([line.replace(b'"m6"', b'"m9"') for line in lines]))
    result = verify(root)
    assert not result.ok
    assert "covers" in result.problems[0].text


def test_removed_checkpoints_and_a_rechained_forgery_are_caught_only_by_an_anchor(tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    for number in range(20):
        journal.append(TAGS, "model.predicted", resource=f"m{number}")
    anchor = tmp_path / "elsewhere.note"
    anchor.write_text(journal.checkpoint(), encoding="utf-8")
    journal.close(5)
    rewrite(only(journal.folder), lambda lines: rechained([line.replace(b'"m6"', b'"m9"') for line in lines]))
    (only(journal.folder) / "checkpoints").unlink()

    alone = verify(journal.folder)
    assert alone.ok  # nothing on the host contradicts the forgery, and the strength says so
    assert alone.strength is Strength.CONSISTENT
    anchored = verify(journal.folder, anchor=anchor)
    assert not anchored.ok
    assert kinds(anchored) == {("changed", None)}


def test_an_anchor_that_holds_more_than_is_left_shows_the_removal(tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    for _ in range(9):
        journal.append(TAGS, "a")
    note = journal.checkpoint()
    journal.close(5)
    folder = only(journal.folder)
    rewrite(folder, lambda lines: lines[:5])
    (folder / "checkpoints").unlink()
    assert verify(journal.folder).ok
    assert kinds(verify(journal.folder, anchor=note)) == {("removed", 5)}
    shutil.rmtree(folder)
    assert [problem.kind for problem in verify(journal.folder, anchor=note).problems] == ["removed"]


def test_an_anchor_of_another_key_and_text_that_is_no_anchor_are_refused(root, tmp_path):
    other = Journal(tmp_path / "other" / "journal")
    other.append(TAGS, "a")
    note = other.checkpoint()
    other.close(5)
    assert {problem.kind for problem in verify(root, anchor=note).problems} == {"anchor", "removed"}
    with pytest.raises(AuditError, match="anchor"):
        verify(root, anchor="not a note\nat all\n")
    with pytest.raises(AuditError, match="cannot be read"):
        verify(root, anchor=tmp_path / "missing.note")


def test_an_event_added_behind_the_last_checkpoint_shows_as_an_unsealed_tail(root):
    rewrite(only(root), lambda lines: rechained([*lines, lines[3]]))
    (writer,) = verify(root).writers
    assert (writer.sealed, writer.tail) == (22, 1)


def test_a_torn_last_line_is_reported_and_is_no_problem_at_every_byte(root):
    folder = only(root)
    (segment,) = folder.glob("*.jsonl")
    good = segment.read_bytes()
    last = good[:-1].rfind(b"\n") + 1
    (folder / "checkpoints").write_text("")
    for end in range(last + 1, len(good)):
        segment.write_bytes(good[:end])
        (writer,) = verify(root).writers
        assert (writer.events, writer.torn, writer.problems) == (21, end - last, ())


def test_a_damaged_foreign_or_dropped_checkpoint_is_found(tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    journal.append(TAGS, "a")
    journal.checkpoint()
    for _ in range(19):
        journal.append(TAGS, "a")
    journal.close(5)
    root = journal.folder
    file = only(root) / "checkpoints"
    good = file.read_text()
    for bad in (
        good.replace("\n22\n", "\n21\n", 1),
        good.replace("time 2", "time 3", 1),
        good.replace("securemfg/2", "securemfg/3", 1),
        "\n\n".join(good.split("\n\n")[2:]),  # the first note is gone
    ):
        assert bad != good
        file.write_text(bad)
        assert "checkpoint" in {problem.kind for problem in verify(root).problems}, bad[:80]


def test_a_removed_writer_is_missed_by_the_one_that_came_after(tmp_path):
    root = sealed(tmp_path / "site" / "journal")
    first = only(root)
    sealed(root, events=1)
    assert verify(root).ok
    shutil.rmtree(first)
    (problem,) = verify(root).problems
    assert problem.writer == first.name
    assert "missing: expired by retention or removed" in problem.text


def test_a_writer_cut_short_or_rechained_behind_its_checkpoints_is_noticed_by_the_next_one(tmp_path):
    root = sealed(tmp_path / "site" / "journal")
    first = only(root)
    copy = (first / "000000000000.jsonl").read_bytes()
    sealed(root, events=1)
    (first / "checkpoints").write_text("")
    rewrite(first, lambda lines: lines[:-2])
    assert kinds(verify(root)) == {("removed", 20)}
    (first / "000000000000.jsonl").write_bytes(copy)
    rewrite(first, lambda lines: rechained([line.replace(b'"m6"', b'"m9"') for line in lines]))
    assert kinds(verify(root)) == {("changed", 21)}


def test_events_are_read_in_order_of_time_across_writers_that_ran_at_once(tmp_path):
    clock = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 1_000_000))
    root = tmp_path / "site" / "journal"
    journals = [Journal(root, now=lambda: next(clock)) for _ in range(3)]
    for number in range(30):
        journals[number % 3].append(TAGS, "a", resource=str(number))
    for journal in journals:
        journal.close(5)
    events = list(read_events(root))
    assert len(events) == 36
    assert [event["resource"]["id"] for event in events if event["action"] == "a"] == [str(n) for n in range(30)]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert len(list(read_events(root, writer=journals[0].writer_ids[0]))) == 12


def test_a_hostile_journal_is_data_and_never_a_crash(root):
    folder = only(root)
    (segment,) = folder.glob("*.jsonl")
    good = segment.read_bytes()
    for line in (b"[]", b"null", b'{"seq":1e999}', b"[" * 100_000, b"\xff\xfe", b"", b'{"seq":"0"}', b'{"seq":-5}'):
        segment.write_bytes(line + b"\n" + good)
        assert not verify(root).ok
        list(read_events(root))
    assert len(writer_lines(folder)) == 23
