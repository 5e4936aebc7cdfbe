"""What became of each file of one call of `encrypt` or `decrypt`, told to people or programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from securemfg.cli.output import Exit, Speaker, exit_code, fail, size, told
from securemfg.cli.paths import Given, Skipped
from securemfg.errors import SecureMfgError

if TYPE_CHECKING:
    from securemfg.encryption.stream import Message

_SHOWN: Final = 10  # of the files skipped for one reason


@dataclass
class Outcome:
    """By source. Filled by several threads, each with files of its own."""

    done: dict[Path, dict[str, object]] = field(default_factory=dict)
    failed: dict[Path, SecureMfgError] = field(default_factory=dict)
    stopped: BaseException | None = None  # what ended it before the last file

    def finished(self, source: Path, target: str, message: Message) -> None:
        self.done[source] = {
            "source": str(source),
            "target": target,
            "bytes": message.plaintext_length,
            "recipients": list(message.recipients),
        }

    def report(self, speaker: Speaker, given: Given, verb: str, *, as_json: bool) -> None:
        """Tell all of it, and end with the exit code it deserves."""
        files = [found.source for found in given.files] or list(self.done)
        done = [self.done[path] for path in files if path in self.done]
        failed = [(path, self.failed[path]) for path in files if path in self.failed]
        if as_json:
            whole: dict[str, object] = {
                "done": done,
                "failed": [{"source": str(path), "error": str(error)} for path, error in failed],
                "skipped": [{"source": str(one.source), "why": one.why} for one in given.skipped],
            }
            if isinstance(self.stopped, SecureMfgError):
                whole["error"] = told(self.stopped, exit_code(self.stopped))
            elif self.stopped is not None:
                whole["interrupted"] = True
            speaker.json(whole)
        else:
            for row in done:
                speaker.say(f"{row['source']} -> {row['target']} ({size(int(str(row['bytes'])))})")
            tell_skipped(speaker, given.skipped)
            for _, error in failed:
                speaker.note(f"failed: {error}")
            if not files:
                speaker.note(f"nothing to {verb} there")
            if self.stopped is not None:
                speaker.note(f"{len(done)} of {len(files)} files done; the others are as they were")
            if isinstance(self.stopped, SecureMfgError):
                fail(self.stopped, exit_code(self.stopped), as_json=False)
            if self.stopped is not None:
                speaker.note("interrupted")
        if self.code is not Exit.CLEAN:
            raise typer.Exit(int(self.code))

    @property
    def code(self) -> Exit:
        if isinstance(self.stopped, SecureMfgError):
            return exit_code(self.stopped)
        if self.stopped is not None:
            return Exit.INTERRUPTED
        return Exit.FINDINGS if self.failed else Exit.CLEAN


def tell_skipped(speaker: Speaker, skipped: Sequence[Skipped]) -> None:
    for why in dict.fromkeys(one.why for one in skipped):
        those = [one for one in skipped if one.why == why]
        for one in those[:_SHOWN]:
            speaker.note(f"skipped {one.source}: {why}")
        if len(those) > _SHOWN:
            speaker.note(f"skipped {len(those) - _SHOWN} more: {why} (--json lists them)")
