"""Shipping under faults that moto cannot make: a client handed in loses replies, throttles, refuses, rejects.

Its errors are botocore's own, its limits are those CloudWatch documents.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from securemfg.audit import Journal, Shipper
from securemfg.audit.cursor import Cursor
from securemfg.errors import AuditError
from tests.parts import until
from tests.unit.audit.parts import TAGS, raw_lines

NOW = 1_800_000_000_000_000_000  # ns
HOUR = 3_600_000_000_000  # ns
DAY = 24 * HOUR


def refusal(code: str, operation: str = "PutLogEvents") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 400}}, operation
    )


class Logs:
    """CloudWatch Logs with its documented limits. `faults` are raised one per put; `poison` is refused."""

    def __init__(self) -> None:
        self.batches: list[list[dict]] = []
        self.faults: list[Exception | None] = []
        self.lose_reply = 0
        self.poison: bytes | None = None
        self.reject = None
        self.refuse_all = False
        self.beyond = 0  # batches of several events that break a limit

    def create_log_group(self, **_):
        return {}

    def create_log_stream(self, **_):
        return {}

    def put_log_events(self, *, logEvents, **_):  # noqa: N803 - the service's name
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        times = [event["timestamp"] for event in logEvents]
        size = sum(len(event["message"].encode()) + 26 for event in logEvents)
        valid = times == sorted(times) and times[-1] - times[0] < 24 * 3600 * 1000
        within = valid and size <= 1_048_576 and 1 <= len(logEvents) <= 10_000
        self.beyond += not within and len(logEvents) > 1
        if not within or self.refuse_all:
            raise refusal("InvalidParameterException")
        if self.poison and any(
            self.poison in event["message"].encode() and b'"marker"' not in event["message"].encode()
            for event in logEvents
        ):
            raise refusal("InvalidParameterException")
        self.batches.append(logEvents)
        if self.lose_reply:
            self.lose_reply -= 1
            raise EndpointConnectionError(endpoint_url="https://logs")
        return {"rejectedLogEventsInfo": self.reject(logEvents)} if self.reject else {}

    @property
    def messages(self) -> list[bytes]:
        return [event["message"].encode() for batch in self.batches for event in batch]

    def of_kind(self, key: str) -> list[dict]:
        return [record for record in map(json.loads, self.messages) if key in record]


def events(logs: Logs) -> list[bytes]:
    return sorted((m for m in logs.messages if b'"schema_version"' in m), key=lambda m: json.loads(m)["seq"])


@pytest.fixture
def logs() -> Logs:
    return Logs()


def shipper_of(journal: Journal, logs: Logs, *, now=NOW, **options) -> Shipper:
    return Shipper(journal.folder, lambda: logs, "g", backoff=(0.001, 0.002), now=lambda: now, **options)


def written(folder: Path, resources, *, times=None, close=True) -> Journal:
    """A journal with one event for each of `resources`, at `times` (ns)."""
    journal = Journal(folder / "journal", now=lambda: NOW)
    for number, resource in enumerate(resources):
        journal.append(TAGS, "a", resource=resource, at=times[number] if times else None)
    if close:
        journal.close(10)
    return journal


@pytest.mark.parametrize(
    "fault",
    [
        refusal("ThrottlingException"),
        refusal("ServiceUnavailableException"),
        refusal("AccessDeniedException"),
        refusal("ExpiredTokenException"),
        refusal("ResourceNotFoundException"),
        EndpointConnectionError(endpoint_url="https://logs"),
        NoCredentialsError(),
        OSError("network is down"),
    ],
    ids=lambda fault: getattr(fault, "response", {}).get("Error", {}).get("Code") or type(fault).__name__,
)
def test_a_passing_fault_delays_and_loses_nothing(tmp_path, logs, fault):
    journal = written(tmp_path / "site", map(str, range(20)))
    logs.faults = [fault] * 4
    done = shipper_of(journal, logs).ship_pending(30)
    assert (done.events, done.pending, done.problem) == (22, 0, None)
    assert events(logs) == raw_lines(journal)


def test_expired_credentials_make_a_new_client(tmp_path, logs):
    journal = written(tmp_path / "site", ["a"])
    logs.faults = [refusal("ExpiredTokenException")]
    made = []
    shipper = Shipper(journal.folder, lambda: made.append(1) or logs, "g", backoff=(0.001, 0.002), now=lambda: NOW)
    shipper.ship_pending(30)
    assert len(made) == 2


def test_a_lasting_fault_is_given_back_and_not_raised(tmp_path, logs):
    journal = written(tmp_path / "site", ["a"])
    logs.faults = [refusal("ThrottlingException")] * 1000
    done = shipper_of(journal, logs).ship_pending()
    assert (done.events, done.pending) == (0, 3)
    assert "ThrottlingException" in (done.problem or "")
    with_deadline = shipper_of(journal, logs).ship_pending(0.05)
    assert with_deadline.pending == 3


def test_a_lost_reply_sends_the_batch_again_with_the_same_bytes(tmp_path, logs):
    journal = written(tmp_path / "site", map(str, range(5)))
    logs.lose_reply = 2
    assert shipper_of(journal, logs).ship_pending(30).events == 7
    assert len(events(logs)) == 21
    assert sorted(set(events(logs)), key=lambda m: json.loads(m)["seq"]) == raw_lines(journal)


def test_a_poison_event_is_found_by_halving_marked_lost_and_the_rest_arrives(tmp_path, logs):
    journal = written(tmp_path / "site", ["ok"] * 500 + ["poison"] + ["ok"] * 500 + ["poison"])
    logs.poison = b'"poison"'
    shipper = shipper_of(journal, logs)
    done = shipper.ship_pending(30)
    assert (done.events, done.pending, done.problem) == (1002, 0, None)
    assert shipper.account(journal.writer_ids[0]) == (1002, 2)
    lines = raw_lines(journal)
    assert events(logs) == [line for line in lines if b'"poison"' not in line]
    (marker,) = [m for m in logs.of_kind("marker") if m["marker"] == "lost" and len(m["events"]) == 1][:1]
    assert marker["events"][0]["seq"] == 501
    marked = {event["seq"] for m in logs.of_kind("marker") if m["marker"] == "lost" for event in m["events"]}
    assert marked == {501, 1002}


def test_a_service_that_refuses_everything_is_ill_and_no_event_is_marked_lost(tmp_path, logs):
    journal = written(tmp_path / "site", map(str, range(10)))
    logs.refuse_all = True
    shipper = shipper_of(journal, logs)
    done = shipper.ship_pending()
    assert (done.events, done.pending) == (0, 12)
    assert shipper.account(journal.writer_ids[0]) == (0, 0)
    logs.refuse_all = False
    assert shipper.ship_pending(30).events == 12


def test_a_batch_never_spans_24_hours_and_stays_in_order_of_time(tmp_path, logs):
    times = [NOW - 9 * DAY + step * HOUR * (7 if step % 2 else 5) for step in range(30)]
    journal = written(tmp_path / "site", map(str, range(30)), times=times)
    assert shipper_of(journal, logs).ship_pending(30).events == 32
    assert events(logs) == raw_lines(journal)
    assert len(logs.batches) > 5
    assert logs.beyond == 0


def test_a_batch_is_never_above_one_mebibyte_or_ten_thousand_events(tmp_path, logs):
    large = written(tmp_path / "large", ["x" * 7000] * 400)
    assert shipper_of(large, logs).ship_pending(30).events == 402
    assert len(logs.batches) >= 3
    assert logs.beyond == 0
    assert events(logs) == raw_lines(large)
    for size in (1_048_576 - 26, 1_048_576 - 26 + 1):
        mine = Logs()
        journal = written(tmp_path / f"exact-{size}", ["a"])
        (segment,) = journal.folder.glob("*/*.jsonl")
        filler = b'{"schema_version":1,"seq":3,"x":"' + b"y" * (size - 35) + b'"}'
        assert len(filler) == size
        with segment.open("ab") as file:
            file.write(filler + b"\n")
        shipper = shipper_of(journal, mine)
        shipper.ship_pending(30)
        fits = size <= 1_048_576 - 26
        assert shipper.account(journal.writer_ids[0]) == ((4, 0) if fits else (3, 1))
        assert (filler in mine.messages) is fits


def test_many_small_events_are_split_at_ten_thousand(tmp_path, logs):
    journal = written(tmp_path / "site", ["a"])
    (segment,) = journal.folder.glob("*/*.jsonl")
    with segment.open("ab") as file:
        file.write(b"".join(b'{"schema_version":1,"seq":%d}\n' % seq for seq in range(3, 25_003)))
    assert shipper_of(journal, logs).ship_pending(60).events == 25_003
    assert max(map(len, logs.batches)) == 10_000
    assert logs.beyond == 0


def test_events_the_service_would_take_for_too_old_are_filed_now_with_a_marker(tmp_path, logs):
    times = [NOW - 15 * DAY, NOW - DAY, NOW + 5 * HOUR]
    journal = written(tmp_path / "site", ["old", "fine", "ahead"], times=times)
    assert shipper_of(journal, logs).ship_pending(30).events == 5
    filed = {json.loads(e["message"]).get("seq"): e["timestamp"] for batch in logs.batches for e in batch}
    now_ms = NOW // 1_000_000
    assert (filed[1], filed[2], filed[3]) == (now_ms, (NOW - DAY) // 1_000_000, now_ms)
    assert events(logs) == raw_lines(journal)
    markers = logs.of_kind("marker")
    assert {marker["marker"] for marker in markers} == {"filed late"}
    assert [event["seq"] for marker in markers for event in marker["events"]] == [1, 3]


def test_events_the_service_rejects_are_counted_lost_and_marked(tmp_path, logs):
    journal = written(tmp_path / "site", map(str, range(8)), times=[NOW - (8 - n) * HOUR for n in range(8)])
    first = iter([{"tooOldLogEventEndIndex": 2, "expiredLogEventEndIndex": 3}])
    logs.reject = lambda _: next(first, None)
    shipper = shipper_of(journal, logs)
    done = shipper.ship_pending(30)
    assert (done.events, done.pending) == (7, 0)
    assert shipper.account(journal.writer_ids[0]) == (7, 3)
    (marker,) = [m for m in logs.of_kind("marker") if m["marker"] == "lost"]
    assert marker["count"] == 3
    assert "too old" in marker["reason"]


def test_a_torn_tail_is_not_shipped(tmp_path, logs):
    journal = written(tmp_path / "site", ["a"])
    (segment,) = journal.folder.glob("*/*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"schema_version":1,"seq":3')
    assert shipper_of(journal, logs).ship_pending(30).events == 3
    assert len(events(logs)) == 3


def test_a_cursor_the_disk_refuses_does_not_send_the_batch_again(tmp_path, logs, monkeypatch):
    journal = written(tmp_path / "site", map(str, range(5)))
    save = Cursor.save
    failing = [True] * 3

    def refuse(self, folder):
        if failing:
            failing.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, folder)

    monkeypatch.setattr(Cursor, "save", refuse)
    shipper = shipper_of(journal, logs)
    shipper.ship_pending(30)
    assert shipper.pending() == 0
    assert events(logs) == raw_lines(journal)  # each once
    assert shipper.account(journal.writer_ids[0]) == (7, 0)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"segment":"../../etc/passwd","offset":0}', b"\xff", b'{"offset":-1}']
)
def test_a_damaged_cursor_is_named_and_the_other_writers_go_on(tmp_path, logs, content):
    journal = written(tmp_path / "site", ["a"])
    journal.append(TAGS, "b")
    journal.close(5)
    cursor = journal.folder / journal.writer_ids[0] / "cursor"
    cursor.write_bytes(content)
    shipper = shipper_of(journal, logs)
    with pytest.raises(AuditError, match="damaged"):
        shipper.pending()
    shipper.start()
    until(lambda: len(events(logs)) == 3, what="the other writer shipped")
    shipper.stop(0.1)


def test_every_call_is_made_inside_the_guard(tmp_path, logs):
    journal = written(tmp_path / "site", ["a"])
    inside = []

    @contextmanager
    def guard():
        inside.append(True)
        yield
        inside.append(False)

    before = logs.put_log_events

    def put(**arguments):
        assert inside[-1] is True
        return before(**arguments)

    logs.put_log_events = put
    shipper_of(journal, logs, guard=guard).ship_pending(30)
    assert inside == [True, False]


def test_the_thread_survives_an_error_nobody_foresaw_and_goes_on(tmp_path, logs):
    journal = written(tmp_path / "site", ["a"])
    logs.faults = [RuntimeError("surprise"), MemoryError("surprise")]
    shipper = shipper_of(journal, logs, interval=timedelta(milliseconds=5))
    shipper.start()
    until(lambda: shipper.account(journal.writer_ids[0]) == (3, 0), what="shipped after all")
    shipper.stop(1)
