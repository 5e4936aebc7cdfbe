"""`securemfg artifacts`: work over every artifact of a store."""

from __future__ import annotations

import contextlib
import getpass
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securemfg.cli.interrupts import deferred
from securemfg.cli.output import Exit, Json, Speaker, ends_well, size
from securemfg.errors import ConfigError

if TYPE_CHECKING:
    from securemfg.artifacts.bulk import Job, Outcome, Summary
    from securemfg.artifacts.erasure import Erasure
    from securemfg.artifacts.stores import Stored
    from securemfg.workflow import Workflow

_SHOWN = 20  # failures in the text; --json has all

Uri = Annotated[str, typer.Argument(help="A folder or s3://BUCKET/PREFIX: an artifact root, or anything above.")]
RootOption = Annotated[
    str | None,
    typer.Option("--root", help="KIND:ID (run:ID, model:ID or trace:ID), for a place whose address has no id."),
]
Dask = Annotated[
    str | None, typer.Option("--dask", help="A cluster's scheduler, like tls://host:8786. Built in: threads here.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Threads here. Built in: one for each core.")]
KeepVersions = Annotated[
    bool, typer.Option("--keep-versions", help="Leave the old versions that a bucket keeps. Built in: destroy them.")
]


def add_to(root: typer.Typer) -> None:
    group = typer.Typer(
        help="Verify, sign, rewrap, reencrypt, encrypt, download, share or erase a store's artifacts.",
        no_args_is_help=True,
    )
    for verb in (verify, sign, rewrap, reencrypt, encrypt, download, share, erase):
        group.command(verb.__name__)(verb)
    root.add_typer(group, name="artifacts")


def verify(
    uri: Uri, *, root: RootOption = None, workers: Workers = None, dask: Dask = None, as_json: Json = False
) -> None:
    """Verify every artifact, every run key's record and every model's manifest. Exit 1 when anything is wrong."""
    with ends_well(as_json=as_json) as speaker:
        _work(speaker, "verify", uri, root, workers, dask, as_json=as_json)


def sign(
    uri: Annotated[str, typer.Argument(help="A folder, an s3:// prefix, or an address like models:/NAME/VERSION.")],
    *,
    as_json: Json = False,
) -> None:
    """Sign the models that are stored there, as they are now: whoever signs vouches for them.

    For what was logged without a signer, or encrypted anew. A registered version is pinned to its manifest.
    """
    with ends_well(as_json=as_json) as speaker:
        from securemfg.artifacts.signed_stores import sign_models
        from securemfg.workflow import default_workflow

        workflow = default_workflow()
        with _enforced(workflow):
            workflow.activate_artifacts()
            signed = sign_models(uri if _through_mlflow(uri) else _absolute(uri), workflow.protection)
        if as_json:
            rows = [
                {"model": m.name, "files": len(m.files), "manifest": m.pin, "signer": m.signed_by, "pinned": m.pinned}
                for m in signed
            ]
            speaker.json({"signed": rows})
        for one in () if as_json else signed:
            speaker.say(f"signed {one.name}: {len(one.files)} files, {one.pin}, by {one.signed_by}")
        unknown = [one.name for one in signed if one.pinned is False]
        if unknown:
            speaker.note(
                f"not pinned: MLflow's tracking store here knows no {', '.join(unknown[:5])}: where it is known, it "
                "stays pinned to its former manifest, and is refused; set MLFLOW_TRACKING_URI and sign again"
            )


def rewrap(
    uri: Uri,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the records that are for the right keys: after a key was rotated.")
    ] = False,
    keep_versions: KeepVersions = False,
    root: RootOption = None,
    workers: Workers = None,
    dask: Dask = None,
    as_json: Json = False,
) -> None:
    """Wrap every run key for the keys that the settings name today. Artifacts stay as they are.

    The old keys must still be in the settings, under any name. It takes the data from nobody who has read it.
    """
    with ends_well(as_json=as_json) as speaker:
        _work(speaker, "rewrap", uri, root, workers, dask, as_json=as_json, everything=everything,
              keep_versions=keep_versions)  # fmt: skip


def reencrypt(
    uri: Uri,
    *,
    retire: Annotated[
        bool, typer.Option("--retire", help="Then destroy the old run keys. Nobody may be writing to the store.")
    ] = False,
    keep_versions: KeepVersions = False,
    root: RootOption = None,
    workers: Workers = None,
    dask: Dask = None,
    as_json: Json = False,
) -> None:
    """Encrypt every artifact anew, under fresh keys: when a run key may be known to others."""
    with ends_well(as_json=as_json) as speaker:
        _work(speaker, "reencrypt", uri, root, workers, dask, as_json=as_json, keep_versions=keep_versions,
              retire=retire)  # fmt: skip


def encrypt(
    uri: Uri,
    *,
    asset: Annotated[
        list[str] | None, typer.Option("--asset", help="For this asset's keys; repeat for several.")
    ] = None,
    keep_versions: KeepVersions = False,
    root: RootOption = None,
    workers: Workers = None,
    dask: Dask = None,
    as_json: Json = False,
) -> None:
    """Encrypt a store that is in plaintext today, in place. What is encrypted already is left alone."""
    with ends_well(as_json=as_json) as speaker:
        _check_assets(asset or ())
        _work(speaker, "encrypt", uri, root, workers, dask, as_json=as_json, assets=tuple(asset or ()),
              keep_versions=keep_versions)  # fmt: skip


def download(
    uri: Uri,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to put it in.")],
    root: RootOption = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Decrypt artifacts into a folder. Also takes runs:/ and models:/ addresses."""
    with ends_well(as_json=as_json) as speaker:
        output.mkdir(parents=True, exist_ok=True)
        if _through_mlflow(uri):
            _download_through_mlflow(speaker, uri, output, as_json=as_json)
            return
        _work(speaker, "download", uri, root, workers, None, as_json=as_json, target=output.absolute())


def share(
    uri: Uri,
    *,
    key: Annotated[
        list[str], typer.Option("--key", help="Who the copy is for, like rsa:supplier.pem; repeat for several.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the copy, to hand over as it is.")],
    root: RootOption = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Make a copy for somebody else's keys, under fresh run keys: nobody is added to what is stored here."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.workflow import default_workflow

        for text in key:
            default_workflow().keys.open(text, origin="--key")
        output.mkdir(parents=True, exist_ok=True)
        _work(speaker, "share", uri, root, workers, None, as_json=as_json, target=output.absolute(),
              recipients=tuple(_absolute_key(text) for text in key))  # fmt: skip


def _absolute_key(text: str) -> str:
    """A key's text whose path means the same wherever it is opened."""
    scheme, _, rest = text.partition(":")
    return f"{scheme}:{Path(rest).expanduser().absolute()}" if scheme in {"local", "rsa"} else text


def _through_mlflow(uri: str) -> bool:
    return uri.split(":", 1)[0] in {"runs", "models", "mlflow-artifacts", "http", "https"}


def _download_through_mlflow(speaker: Speaker, uri: str, output: Path, *, as_json: bool) -> None:
    from securemfg.workflow import default_workflow

    workflow = default_workflow()
    with _enforced(workflow):
        workflow.activate_artifacts()
        import mlflow

        placed = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(output))
    speaker.json({"target": str(placed)}) if as_json else speaker.say(f"{uri} -> {placed}")


# -- the work ---------------------------------------------------------------------------------------------------------


def _work(
    speaker: Speaker,
    verb: str,
    uri: str,
    root: str | None,
    workers: int | None,
    dask: str | None,
    *,
    as_json: bool,
    retire: bool = False,
    **options: Any,
) -> None:
    from securemfg.artifacts.bulk import Job, JobLog, Verb, run
    from securemfg.artifacts.work import retire as retired
    from securemfg.workflow import default_workflow

    workflow = default_workflow()
    job = Job(verb=Verb(verb), uri=_absolute(uri), rules=workflow.rules, root=_root(root), **options)
    with (
        _enforced(workflow),
        JobLog(workflow.config.home, job) as log,
        _executor(workflow, dask) as (executor, threads),
        _progress(speaker, job, quiet=as_json) as (begun, watch),
        deferred() as stop,
    ):
        if log.resumed:
            speaker.note(f"going on where the last run stopped: {len(log.done)} files are done ({log.path})")
        summary = run(
            job, emit=workflow.audit, log=log, executor=executor, workers=workers or threads, begun=begun,
            watch=watch, stopped=stop.is_set,
        )  # fmt: skip
        ended: tuple[list[str], list[str]] = ([], [])
        if retire and not summary.failed and not stop.is_set():
            from dataclasses import replace

            ended = retired(replace(job, retired=log.retired or frozenset()), emit=workflow.audit, by=getpass.getuser())
    _say(speaker, summary, ended, as_json=as_json, retire=retire)
    if summary.failed:
        raise typer.Exit(int(Exit.FINDINGS))


def _check_assets(assets: Sequence[str]) -> None:
    """A name that is not known would quietly mean the default keys. Raises ConfigError, CatalogError."""
    from securemfg.workflow import default_workflow

    workflow = default_workflow()
    unknown = [name for name in assets if name not in workflow.config.settings.keys]
    if unknown:
        workflow.sensitivity_of(unknown)


def _absolute(uri: str) -> str:
    return uri if "://" in uri or uri.startswith("file:") else str(Path(uri).absolute())


def _root(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    kind, _, name = text.partition(":")
    if kind not in {"run", "model", "trace"} or not name or "/" in name:
        raise ConfigError(f"--root must be like run:ID, model:ID or trace:ID, got {text!r}")
    return kind, name


@contextlib.contextmanager
def _enforced(workflow: Workflow) -> Iterator[None]:
    """TLS rules hold for the store and the keys' services as they do in a step."""
    workflow.enforce_tls()
    try:
        yield
    finally:
        workflow.release_tls()


@contextlib.contextmanager
def _executor(workflow: Workflow, address: str | None) -> Iterator[tuple[Executor | None, int | None]]:
    dask = workflow.config.settings.dask
    address = address or dask.address
    if address is None:
        yield None, None
        return
    from securemfg.artifacts.cluster import ClusterTls, dask_executor

    if dask.ca_file is None or dask.cert_file is None or dask.key_file is None:
        raise ConfigError(
            f"a cluster's links need certificates: set ca_file, cert_file and key_file in [dask] "
            f"({workflow.config.source or 'no settings file found'})"
        )
    with dask_executor(
        address, ClusterTls(ca_file=dask.ca_file, cert_file=dask.cert_file, key_file=dask.key_file)
    ) as ready:
        yield ready


Watch = tuple["Callable[[int, int], None]", "Callable[[Stored, Outcome], None]"]


@contextlib.contextmanager
def _progress(speaker: Speaker, job: Job, *, quiet: bool) -> Iterator[Watch]:
    """A bar on stderr while people look; nothing in pipes and logs."""
    if quiet or not sys.stderr.isatty():
        yield (lambda _files, _bytes: None), (lambda _stored, _outcome: None)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(), console=speaker.err, transient=True,
    )  # fmt: skip
    with bar:
        files = bar.add_task(str(job.verb), total=None)
        yield (
            lambda count, _bytes: bar.update(files, total=count),
            lambda _stored, _outcome: bar.update(files, advance=1),
        )


def _say(
    speaker: Speaker, summary: Summary, ended: tuple[list[str], list[str]], *, as_json: bool, retire: bool
) -> None:
    if as_json:
        speaker.json(
            {
                "verb": summary.verb,
                "uri": summary.uri,
                "done": summary.done,
                "skipped": summary.skipped,
                "done_earlier": summary.earlier,
                "bytes": summary.bytes,
                "skipped_because": dict(summary.reasons),
                "failed": [{"address": one.address, "reason": one.reason} for one in summary.failed],
                "versions_remaining": summary.remaining,
                **({"run_keys_destroyed": ended[0], "run_keys_in_use": ended[1]} if retire else {}),
            }
        )
        return
    earlier = f", {summary.earlier} by an earlier run" if summary.earlier else ""
    speaker.say(
        f"{summary.verb} {summary.uri}: {summary.done} done ({size(summary.bytes)}){earlier}, "
        f"{summary.skipped} skipped, {len(summary.failed)} failed"
    )
    for reason, count in sorted(summary.reasons.items()):
        speaker.say(f"  skipped {count}: {reason}")
    for one in summary.failed[:_SHOWN]:
        speaker.note(f"  failed {one.address}: {one.reason}")
    if len(summary.failed) > _SHOWN:
        speaker.note(f"  and {len(summary.failed) - _SHOWN} more: --json lists them all")
    for fate in summary.remaining:
        speaker.note(f"  an old version is still there: {fate}")
    if retire:
        speaker.say(f"  destroyed {len(ended[0])} old run keys; {len(ended[1])} are still in use")


# -- erase ------------------------------------------------------------------------------------------------------------


def erase(
    uri: Annotated[
        str | None, typer.Argument(help="The run's (or any) folder or s3:// prefix.", show_default=False)
    ] = None,
    *,
    asset: Annotated[str | None, typer.Option("--asset", help="Destroy the asset's own keys instead.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why: it is audited, and readers are told.")],
    days: Annotated[int, typer.Option("--days", min=7, max=30, help="How long KMS waits.")] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Destroy the keys of runs, or of an asset, for good: what they encrypted cannot be read any more.

    Says of each key and copy: done, scheduled until a date, or not provable. Exit 1 when something is left.
    """
    with ends_well(as_json=as_json) as speaker:
        from securemfg.artifacts.erasure import asset_texts, erase_asset, erase_runs, run_targets
        from securemfg.workflow import default_workflow

        if (uri is None) == (asset is None):
            raise ConfigError("name either a place or --asset, and not both")
        workflow = default_workflow()
        with _enforced(workflow):
            if asset is not None:
                texts = asset_texts(workflow.config, asset)
                _confirm(speaker, [f"{text}  (keys.{asset})" for text in texts], yes=yes, as_json=as_json)
                erasures = erase_asset(
                    asset, config=workflow.config, keys=workflow.keys, services=workflow.key_services,
                    emit=workflow.audit, by=getpass.getuser(), reason=reason, days=days,
                )  # fmt: skip
            else:
                place = _absolute(str(uri))
                targets = run_targets(place)
                if not targets:
                    raise ConfigError(f"no run key's record lies below {place}: nothing to erase")
                lines = [f"{one.address}  (for {', '.join(one.recipients)})" for one in targets]
                _confirm(speaker, lines, yes=yes, as_json=as_json)
                erasures = erase_runs(place, emit=workflow.audit, by=getpass.getuser(), reason=reason)
        _say_erasures(speaker, erasures, as_json=as_json)
        if not all(one.gone for one in erasures):
            raise typer.Exit(int(Exit.FINDINGS))


def _confirm(speaker: Speaker, lines: list[str], *, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here: repeat it with --yes, once you have seen what it would destroy")
    speaker.note("This destroys for good, and with it everything encrypted under:")
    for line in lines[:_SHOWN]:
        speaker.note(f"  {line}")
    if len(lines) > _SHOWN:
        speaker.note(f"  and {len(lines) - _SHOWN} more")
    if typer.prompt(f"Type the number of keys ({len(lines)}) to go on", default="") != str(len(lines)):
        raise ConfigError("not confirmed: nothing was destroyed")


def _say_erasures(speaker: Speaker, erasures: list[Erasure], *, as_json: bool) -> None:
    if as_json:
        speaker.json({"erased": [{"key": e.key, "place": e.place, "recipients": e.recipients, "gone": e.gone,
                                  "fates": e.fates} for e in erasures]})  # fmt: skip
        return
    rows = []
    for erasure in erasures:
        for fate in erasure.fates:
            state = f"{fate.state} until {fate.until:%Y-%m-%d}" if fate.until else str(fate.state)
            rows.append((erasure.key[:40], state, fate.what, fate.remark))
    speaker.table(("key", "state", "what", "remark"), rows)
    left = sum(not one.gone for one in erasures)
    speaker.say(f"{len(erasures)} keys: {len(erasures) - left} gone or scheduled, {left} still there")
