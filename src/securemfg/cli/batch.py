"""One call of `encrypt` or `decrypt`: many files or one pipe, its keys, and what the trail says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from securemfg.cli.outcome import Outcome
from securemfg.cli.output import Bar, Exit, Speaker, encodable, progress
from securemfg.cli.paths import PIPE, SUFFIX, Found, Given, Skipped, find, key_here, make_folders, settle
from securemfg.cli.sharing import share
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, KeyUnavailable, SecureMfgError

if TYPE_CHECKING:
    from securemfg.cli.piping import Outlet
    from securemfg.encryption.keys import Key
    from securemfg.encryption.stream import Message
    from securemfg.workflow import Workflow

_SMALL: Final = 4 << 20  # bytes: from here on one file is worth several threads of its own


@dataclass
class Batch:
    """One call: what is to be done how, and what became of each file."""

    speaker: Speaker
    encrypting: bool
    context: dict[str, str]
    force: bool
    as_json: bool
    keys: Sequence[Key] = ()
    outcome: Outcome = field(default_factory=Outcome)

    def run(self, arguments: Sequence[str], key: Sequence[str] | None, output: str | None, workers: int | None) -> None:
        if PIPE in arguments or output == PIPE:
            self._pipe(arguments, key, output)
            return
        given = find(arguments, suffix="" if self.encrypting else SUFFIX)
        if self.encrypting:
            given = _without_messages(given)
        pairs = settle(given, output, self._name(output, given), overwrite=self.force)
        if pairs:
            self._open(key)
            if output is not None and not given.single:
                make_folders(output, (target for _, target in pairs))
            with _protected(self.workflow, self.keys):
                self._all(pairs, workers or _cores())
        self._tell(given)

    def _tell(self, given: Given) -> None:
        outcome = self.outcome
        if given.single:  # its failure is the whole answer
            for error in (outcome.stopped, *outcome.failed.values()):
                if isinstance(error, SecureMfgError):
                    raise error
        verb = "encrypt" if self.encrypting else "decrypt"
        outcome.report(self.speaker, given, verb, as_json=self.as_json)

    @property
    def workflow(self) -> Workflow:
        from securemfg.workflow import default_workflow

        return default_workflow()

    def _name(self, output: str | None, given: Given) -> Callable[[Found], str]:
        def name(found: Found) -> str:
            own = found.source.name
            if self.encrypting:
                return own + SUFFIX
            if own.endswith(SUFFIX) and own != SUFFIX:
                return own.removesuffix(SUFFIX)
            if output is None or not given.single:
                raise ConfigError(f"{found.source} does not end in {SUFFIX}: name the target with -o")
            return own

        return name

    def _open(self, texts: Sequence[str] | None) -> None:
        keys = self.workflow.keys
        if texts:
            self.keys = [keys.open(key_here(text), origin="--key") for text in texts]
        elif self.encrypting:
            self.keys = [one for group in keys.for_assets(()).values() for one in group]
        else:
            self.keys = keys.for_reading()
        if not self.encrypting and self.workflow.config.read_suites:
            self.workflow.tell_weakenings()

    # -- files ------------------------------------------------------------------------------------------------------

    def _all(self, pairs: Sequence[tuple[Found, Path]], workers: int) -> None:
        """Do every file, until something stops it."""
        sizes = {found.source: _size(found.source) for found, _ in pairs}
        small = [pair for pair in pairs if sizes[pair[0].source] < _SMALL]
        what = "encrypting" if self.encrypting else "decrypting"
        with progress(what, len(pairs), sum(sizes.values()), as_json=self.as_json) as bar:

            def one(found: Found, target: Path) -> None:
                self._one(found.source, target)
                bar.done(sizes[found.source])

            try:
                share(one, small, workers)
                for found, target in pairs:
                    if sizes[found.source] >= _SMALL:
                        self._large(found, target, sizes[found.source], bar)
            except (KeyboardInterrupt, SecureMfgError) as stopped:
                self.outcome.stopped = stopped

    def _large(self, found: Found, target: Path, count: int, bar: Bar) -> None:
        with bar.large(count):
            self._one(found.source, target)
        bar.done(count)

    def _one(self, source: Path, target: Path) -> None:
        from securemfg.encryption.stream import decrypt_file, encrypt_file

        try:
            if self.encrypting:
                message = encrypt_file(source, target, key=self.keys, context=self.context, overwrite=self.force)
            else:
                suites = self.workflow.config.read_suites
                message = decrypt_file(
                    source, target, key=self.keys, context=self.context, overwrite=self.force, suites=suites
                )
        except KeyUnavailable:
            raise  # it is the same for every file
        except EncryptionError as error:
            self._refused(str(source), error)
            self.outcome.failed[source] = error
            return
        self._audited(str(source), message)
        self.outcome.finished(source, str(target), message)

    # -- pipes ------------------------------------------------------------------------------------------------------

    def _pipe(self, arguments: Sequence[str], key: Sequence[str] | None, output: str | None) -> None:
        from securemfg.cli import piping

        if len(arguments) > 1 or Path(arguments[0]).is_dir():
            raise ConfigError("a pipe holds one message: give - or one file, alone")
        (source,) = arguments
        to_file = output is not None and output != PIPE
        out = None
        try:
            with piping.target_of(output, force=self.force, as_json=self.as_json) as out:
                self._open(key)
                with _protected(self.workflow, self.keys):
                    message = self._piped(source, out, Path(output).parent if output and to_file else None)
        except EncryptionError as error:
            self._refused(source, error)
            raise
        except (BrokenPipeError, KeyboardInterrupt) as error:
            if out is not None and out.written and not to_file and not self.encrypting:
                self._cut_short(source, out.written)
            if isinstance(error, BrokenPipeError):
                raise
            self._interrupted(error)
        self._audited(source, message)
        if to_file:
            self.outcome.finished(Path(source), str(output), message)
            self._tell(Given())

    def _interrupted(self, error: KeyboardInterrupt) -> NoReturn:
        if self.as_json:
            self.outcome.stopped = error
            self._tell(Given())
        self.speaker.note("interrupted")
        raise typer.Exit(int(Exit.INTERRUPTED)) from error

    def _piped(self, source: str, out: Outlet, folder: Path | None) -> Message:
        from securemfg.cli import piping

        if self.encrypting:
            return piping.encrypt_pipe(
                source, out, keys=self.keys, context=self.context, speaker=self.speaker, as_json=self.as_json
            )
        return piping.decrypt_pipe(
            source,
            out,
            keys=self.keys,
            context=self.context,
            suites=self.workflow.config.read_suites,
            folder=folder,
            speaker=self.speaker,
            as_json=self.as_json,
        )

    # -- what is told -----------------------------------------------------------------------------------------------

    def _audited(self, source: str, message: Message) -> None:
        self.workflow.audit(
            "artifact.encrypted" if self.encrypting else "artifact.decrypted",
            resource=encodable(source),
            kind="file",
            detail={"bytes": message.plaintext_length, "suite": f"0x{message.suite:04x}", "key": message.recipients[0]},
        )

    def _refused(self, source: str, error: EncryptionError) -> None:
        if isinstance(error, DecryptionError):
            self.workflow.audit(
                "artifact.refused",
                resource=encodable(source),
                kind="file",
                outcome="failure",
                reason=encodable(str(error)),
            )

    def _cut_short(self, source: str, count: int) -> None:
        """Plaintext went out, if not all of it: the trail says so."""
        self.workflow.audit(
            "artifact.decrypted",
            resource=encodable(source),
            kind="file",
            outcome="failure",
            reason="it went out to a pipe only in part",
            detail={"bytes": count},
        )


def _without_messages(given: Given) -> Given:
    """`given` without what is encrypted already. Raises EncryptionError when that is the one file named."""
    from securemfg.encryption.stream import inspect_file

    files, skipped = [], list(given.skipped)
    for found in given.files:
        try:
            inspect_file(found.source)
        except EncryptionError:  # what cannot be read at all fails when its turn comes
            files.append(found)
            continue
        if given.single:
            raise EncryptionError(
                f"{found.source} is an encrypted message already; to wrap it once more: encrypt - < {found.source}"
            )
        skipped.append(Skipped(found.source, "a message already"))
    return Given(files, skipped, given.single)


@contextmanager
def _protected(workflow: Workflow, keys: Sequence[Key]) -> Iterator[None]:
    """TLS enforcement while keys of a service are asked."""
    if not any(getattr(key, "remote", False) for key in keys):
        yield
        return
    workflow.enforce_tls()
    try:
        yield
    finally:
        workflow.release_tls()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
