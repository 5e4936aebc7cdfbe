"""Whether a journal still says what was written: per writer, and against checkpoints kept elsewhere.

Three strengths (trust rule 9). *Consistent*: every event follows from the one before; whoever can write the files
can make that so again. *Signed on this host*: the key beside the journal signed it; whoever runs as that user can
sign. *Anchored*: a checkpoint kept out of the host's reach says the same up to its size; only that is proof
against the host's own user.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from securemfg.audit import segments
from securemfg.audit.checkpoint import KEY_NAME, Checkpoint, Verifier, notes, parse
from securemfg.audit.events import GENESIS, decode
from securemfg.audit.merkle import EMPTY_ROOT, Frontier
from securemfg.errors import AuditError

__all__ = ["Problem", "Strength", "Verification", "WriterReport", "read_events", "verify"]

_NAMED_GAPS: Final = 10_000  # missing sequence numbers kept one by one


class Strength(StrEnum):
    """How much a clean result proves, weakest first."""

    CONSISTENT = "consistent"
    SIGNED = "signed on this host"
    ANCHORED = "anchored"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is not as it was written."""

    writer: str
    kind: str  # changed, inserted, reordered, removed, checkpoint, anchor, unreadable
    text: str
    seq: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchored:
    """Up to where an anchor speaks for a writer."""

    seq: int  # the last event it covers
    time: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterReport:
    """One writer's result."""

    writer: str
    events: int
    sealed: int  # covered by a checkpoint that verifies
    torn: int  # bytes of an unfinished last line: never acknowledged, not a problem
    live: bool
    closed: bool
    strength: Strength
    anchored: Anchored | None
    problems: tuple[Problem, ...]

    @property
    def tail(self) -> int:
        """Events behind the last checkpoint: their removal would not be noticed."""
        return self.events - self.sealed


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The whole journal's result. `strength` is the weakest writer's."""

    root: Path
    writers: tuple[WriterReport, ...]
    problems: tuple[Problem, ...]
    strength: Strength

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def events(self) -> int:
        return sum(writer.events for writer in self.writers)

    @property
    def tail(self) -> int:
        return sum(writer.tail for writer in self.writers)

    @property
    def torn(self) -> int:
        return sum(writer.torn for writer in self.writers)


def verify(
    root: Path, *, anchor: Path | str | None = None, key: Verifier | str | None = None, keys: Path | None = None
) -> Verification:
    """Check every writer below `root` (NIST AU-9, AU-10).

    `anchor` is a checkpoint note, or a file of notes, kept elsewhere. `key` is the verifier key the notes must be
    signed with; without it the `.pub` in `keys` (built in: `keys` beside `root`) serves. Raises AuditError when
    the journal, the anchor or the key cannot be read.
    """
    verifier = _verifier(key, (keys or root.parent / "keys") / f"{KEY_NAME}.pub")
    anchors, problems = _anchors(anchor, verifier)
    folders = segments.writers(root)
    walks = {folder.name: _Walk(folder, verifier, anchors.pop(folder.name, [])).run() for folder in folders}
    problems += [
        Problem(writer=writer, kind="removed", text="the anchor names this writer, and it is missing")
        for writer in anchors
    ]
    problems += _missing_predecessors(walks)
    reports = tuple(walk.report() for walk in walks.values())
    order = list(Strength)
    return Verification(
        root=root,
        writers=reports,
        problems=(*(problem for report in reports for problem in report.problems), *problems),
        strength=min((report.strength for report in reports), key=order.index, default=Strength.CONSISTENT),
    )


def _verifier(key: Verifier | str | None, beside: Path) -> Verifier | None:
    if isinstance(key, Verifier):
        return key
    if key is not None:
        return Verifier.parse(key)
    try:
        return Verifier.parse(beside.read_text(encoding="ascii"), str(beside))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"the verifier key {beside} cannot be read: {error}; name another") from error


def _anchors(anchor: Path | str | None, verifier: Verifier | None) -> tuple[dict[str, list[Checkpoint]], list[Problem]]:
    if anchor is None:
        return {}, []
    content = anchor if isinstance(anchor, str) and "\n" in anchor else _read_anchor(Path(anchor))
    found: dict[str, list[Checkpoint]] = {}
    problems = []
    for note in notes(content.rstrip("\n") + "\n\n"):
        try:
            checkpoint = parse(note)
        except ValueError as error:
            raise AuditError(f"the anchor is not a checkpoint note: {error}") from error
        if verifier is None or not verifier.accepts(note):
            text = (
                "the anchor is not signed with the key given"
                if verifier
                else "no key was found to check the anchor with"
            )
            problems.append(Problem(writer=checkpoint.writer, kind="anchor", text=text))
        found.setdefault(checkpoint.writer, []).append(checkpoint)
    if not found:
        raise AuditError("the anchor holds no checkpoint note: give a note as printed by the journal's checkpoint")
    return found, problems


def _read_anchor(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"the anchor {path} cannot be read: {error}") from error


def _missing_predecessors(walks: dict[str, _Walk]) -> list[Problem]:
    problems = []
    for walk in walks.values():
        named = walk.predecessor
        if named is None:
            continue
        writer, size, head = named
        earlier = walks.get(writer)
        if earlier is None:
            who = f"with {size} events; {walk.folder.name} names it"
            text = f"writer {writer} missing: expired by retention or removed ({who})"
            problems.append(Problem(writer=writer, kind="removed", text=text))
        elif earlier.count < size:
            text = f"{walk.folder.name} saw {size} events here; {earlier.count} are left"
            problems.append(Problem(writer=writer, kind="removed", text=text, seq=earlier.count))
        else:
            earlier.expect(size, head, walk.folder.name)
    for walk in walks.values():
        walk.check_expected()
    return problems


@dataclass
class _Walk:
    """One pass over a writer's events, holding the Merkle frontier and not the events."""

    folder: Path
    verifier: Verifier | None
    anchors: list[Checkpoint]
    count: int = 0
    torn: int = 0
    sealed: int = 0
    closed: bool = False
    anchored: Anchored | None = None
    predecessor: tuple[str, int, str] | None = None
    problems: list[Problem] = field(default_factory=list)
    _expected: dict[int, tuple[str, str]] = field(default_factory=dict)  # size -> (head, who says so)
    _mismatches: dict[str, Checkpoint] = field(default_factory=dict)  # the first of each kind

    def run(self) -> _Walk:
        found = self._checkpoints()
        due: dict[int, list[tuple[Checkpoint, bool]]] = {}
        for checkpoint in found:
            due.setdefault(checkpoint.size, []).append((checkpoint, False))
        for checkpoint in self.anchors:
            due.setdefault(checkpoint.size, []).append((checkpoint, True))
        tree, head = Frontier(), GENESIS
        for number, (data, problems) in enumerate(self._events(), start=1):
            head = sha256(data).hexdigest()
            tree.append(bytes.fromhex(head))
            self.problems += problems
            for checkpoint, anchored in due.pop(number, ()):
                self._compare(checkpoint, tree.root(), head, anchored=anchored)
        self.count = tree.size
        self._name_mismatches()
        for size in sorted(due):
            for checkpoint, anchored in due[size]:
                if size == 0 and checkpoint.root == EMPTY_ROOT:
                    continue
                what = "the anchor" if anchored else "a checkpoint"
                text = f"{what} of {checkpoint.time} covers {size} events; {self.count} are left"
                self._problem("removed", text, self.count)
        self._live = segments.is_live(self.folder)
        return self

    def expect(self, size: int, head: str, who: str) -> None:
        """Another writer saw `head` here after `size` events."""
        self._expected[size] = (head, who)

    def check_expected(self) -> None:
        """Compare with what other writers saw: a second pass, made only when there is something to compare."""
        if not self._expected or any(problem.kind != "checkpoint" for problem in self.problems):
            return
        last = max(self._expected)
        number = 0
        for segment in segments.segments(self.folder):
            for line in segments.lines(segment):
                number += 1
                seen = self._expected.get(number)
                if seen and sha256(line.data).hexdigest() != seen[0]:
                    self._problem("changed", f"writer {seen[1]} saw another event here", number - 1)
                if number >= last:
                    return

    def _problem(self, kind: str, text: str, seq: int | None = None) -> None:
        self.problems.append(Problem(writer=self.folder.name, kind=kind, text=text, seq=seq))

    def _events(self) -> Iterator[tuple[bytes, list[Problem]]]:
        """Every event's bytes with what is wrong at it: position, chain, place."""
        chain = _Chain(self.folder.name)
        files = segments.segments(self.folder)
        for segment in files:
            if segment.name != segments.segment_name(chain.expected):
                self._problem("removed", f"segment {segment.name} does not follow", chain.expected)
            for line in segments.lines(segment):
                record = decode(line.data)
                problems = chain.step(line.data, record)
                if record is not None:
                    self._note(record)
                yield line.data, problems
            torn = segments.torn_bytes(segment)
            if torn and segment != files[-1]:
                self._problem("changed", f"segment {segment.name} ends in the middle of an event", chain.expected)
            elif torn:
                self.torn = torn
        self.problems += chain.gaps()

    def _note(self, record: dict[str, Any]) -> None:
        action, detail = record.get("action"), record.get("detail")
        self.closed = action == "journal.closed"
        if action == "journal.opened" and record.get("seq") == 0 and isinstance(detail, dict):
            writer, size, head = (detail.get(f"previous_{name}") for name in ("writer", "size", "head"))
            if isinstance(writer, str) and isinstance(size, int) and isinstance(head, str):
                self.predecessor = (writer, size, head)

    def _checkpoints(self) -> list[Checkpoint]:
        try:
            content = (self.folder / segments.CHECKPOINTS).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        found: list[Checkpoint] = []
        previous, size = GENESIS, 0
        for number, note in enumerate(notes(content), start=1):
            try:
                checkpoint = parse(note)
            except ValueError as error:
                self._problem("checkpoint", f"checkpoint {number} is damaged: {error}")
                continue
            if checkpoint.writer != self.folder.name:
                self._problem("checkpoint", f"checkpoint {number} is of another writer, {checkpoint.writer}")
            elif self.verifier is not None and not self.verifier.accepts(note):
                self._problem("checkpoint", f"checkpoint {number} is not signed with this host's key")
            elif checkpoint.previous != previous or checkpoint.size < size:
                self._problem("checkpoint", f"checkpoint {number} does not follow the one before it")
            else:
                found.append(checkpoint)
            previous, size = checkpoint.digest, checkpoint.size
        return found

    def _compare(self, checkpoint: Checkpoint, root: bytes, head: str, *, anchored: bool) -> None:
        if checkpoint.root == root and checkpoint.head == head:
            if anchored:
                self.anchored = Anchored(seq=checkpoint.size - 1, time=checkpoint.time)
            elif self.verifier is not None:
                self.sealed = checkpoint.size
            return
        self._mismatches.setdefault("the anchor" if anchored else "the checkpoint", checkpoint)

    def _name_mismatches(self) -> None:
        """Once the whole writer was read: a checkpoint's objection that no event's own problem explains."""
        at = [problem.seq for problem in self.problems if problem.seq is not None]
        for what, checkpoint in self._mismatches.items():
            if not any(seq < checkpoint.size for seq in at):
                text = f"the first {checkpoint.size} events are not those that {what} of {checkpoint.time} covers"
                self._problem("changed", text)

    def report(self) -> WriterReport:
        strength = Strength.CONSISTENT
        if self.anchored is not None:
            strength = Strength.ANCHORED
        elif self.sealed:
            strength = Strength.SIGNED
        return WriterReport(
            writer=self.folder.name,
            events=self.count,
            sealed=max(self.sealed, self.anchored.seq + 1 if self.anchored else 0),
            torn=self.torn,
            live=self._live,
            closed=self.closed,
            strength=strength if not self.problems else Strength.CONSISTENT,
            anchored=self.anchored,
            problems=tuple(self.problems),
        )

    _live: bool = False


class _Chain:
    """Follows seq and prev from event to event, and names what does not follow."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self.expected = 0
        self._head: str | None = GENESIS
        self._missing: dict[int, None] = {}
        self._more_missing = 0

    def step(self, data: bytes, record: dict[str, Any] | None) -> list[Problem]:
        digest = sha256(data).hexdigest()
        seq = record.get("seq") if record else None
        if record is None or type(seq) is not int or record.get("writer") != self.writer:
            found = [self._problem("changed", "this is not an event of this writer", self.expected)]
            self.expected += 1
            self._head = None  # the next event's prev cannot be compared
            return found
        problems: list[Problem] = []
        if seq < self.expected:
            if seq in self._missing:
                del self._missing[seq]
                return [self._problem("reordered", "this event stands behind later ones", seq)]
            return [self._problem("inserted", "an event with this number was already there", seq)]
        if seq > self.expected:
            self._miss(self.expected, seq)
        elif self._head is not None and record.get("prev") != self._head:
            at = max(0, seq - 1)
            problems.append(self._problem("changed", "the event after it was written behind a different one", at))
        self.expected = seq + 1
        self._head = digest
        return problems

    def _miss(self, start: int, end: int) -> None:
        kept = min(end, start + max(0, _NAMED_GAPS - len(self._missing)))
        self._missing.update(dict.fromkeys(range(start, kept)))
        self._more_missing += end - kept

    def gaps(self) -> list[Problem]:
        """One problem for each run of numbers that never came."""
        found = []
        run: list[int] = []
        for seq in [*sorted(self._missing), -1]:
            if run and seq != run[-1] + 1:
                span = f"event {run[0]} is missing" if len(run) == 1 else f"events {run[0]} to {run[-1]} are missing"
                found.append(self._problem("removed", span, run[0]))
                run = []
            run.append(seq)
        if self._more_missing:
            found.append(self._problem("removed", f"{self._more_missing} more events are missing", None))
        return found

    def _problem(self, kind: str, text: str, seq: int | None) -> Problem:
        return Problem(writer=self.writer, kind=kind, text=text, seq=seq)


def read_events(root: Path, *, writer: str | None = None) -> Iterator[dict[str, Any]]:
    """Every complete event below `root`, in order of time across writers. Reading is not verifying.

    A line that is no event is left out: `verify` reports it. A writer is opened only when its start is due.
    """
    waiting = [folder for folder in segments.writers(root) if writer in {None, folder.name}]
    waiting.reverse()
    running: list[tuple[str, int, dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]] = []
    opened = 0
    while waiting or running:
        if waiting and (not running or _start(waiting[-1]) <= running[0][0]):
            stream = _in_order(waiting.pop())
        else:
            _, _, event, stream = heapq.heappop(running)
            yield event
        following = next(stream, None)
        if following is not None:
            opened += 1
            heapq.heappush(running, (following[0], opened, following[1], stream))


def _in_order(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    latest = ""
    for segment in segments.segments(folder):
        for line in segments.lines(segment):
            record = decode(line.data)
            if record is not None:
                moment = record.get("time")
                latest = max(latest, moment if isinstance(moment, str) else "")  # a clock that stepped back
                yield latest, record


def _start(folder: Path) -> str:
    """A writer's start, from its name, as RFC 3339 text that compares with an event's time."""
    text = folder.name.partition("-")[0]
    if len(text) < 21:
        return ""
    return f"{text[:4]}-{text[4:6]}-{text[6:11]}:{text[11:13]}:{text[13:15]}.{text[15:21]}"
