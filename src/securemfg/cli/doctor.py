"""`securemfg doctor`: is everything that the settings name there, reachable and used as it should be?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer

from securemfg.cli.output import Exit, Json, ends_well
from securemfg.errors import ConfigError, SecureMfgError

if TYPE_CHECKING:
    from securemfg.settings import CredentialSettings
    from securemfg.workflow import Workflow

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"
SKIP: Final = "not set"


@dataclass(frozen=True, slots=True)
class Result:
    check: str
    state: str
    text: str


def add_to(root: typer.Typer) -> None:
    root.command("doctor")(doctor)


def doctor(
    endpoints: Annotated[
        list[str] | None, typer.Argument(help="More servers to look at, as HOST or HOST:PORT.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Check settings, keys, encryption, MLflow plugin, Vault, STS, CloudWatch and TLS. Ends with 1 on a failure."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.workflow import default_workflow

        workflow = default_workflow()
        results = list(_results(workflow, endpoints or []))
        if as_json:
            speaker.json(results)
        else:
            colours = {OK: "green", WARN: "yellow", FAIL: "red", SKIP: "dim"}
            from rich.markup import escape
            from rich.table import Table

            table = Table("check", "state", "what", box=None, pad_edge=False, header_style="bold")
            for result in results:
                table.add_row(escape(result.check), f"[{colours[result.state]}]{result.state}[/]", escape(result.text))
            speaker.out.print(table)
        if any(result.state == FAIL for result in results):
            raise typer.Exit(int(Exit.FINDINGS))


def _results(workflow: Workflow, endpoints: list[str]) -> Iterator[Result]:
    yield from _settings(workflow)
    yield from _guarded("keys", lambda: _keys(workflow))
    yield from _guarded("signed models", lambda: _signing(workflow))
    yield from _guarded("encryption", _encryption)
    yield from _guarded("mlflow plugin", lambda: _plugin(workflow))
    yield from _guarded("audit journal", lambda: _journal(workflow))
    workflow.enforce_tls()
    try:
        yield from _guarded("vault", lambda: _vault(workflow))
        yield from _guarded("sts", lambda: _sts(workflow))
        yield from _guarded("cloudwatch", lambda: _cloudwatch(workflow))
    finally:
        workflow.release_tls()
    for endpoint in endpoints:
        yield from _guarded(f"tls {endpoint}", lambda endpoint=endpoint: _tls(workflow, endpoint))  # type: ignore[misc]


def _guarded(check: str, look: Callable[[], Iterator[Result]]) -> Iterator[Result]:
    try:
        yield from look()
    except SecureMfgError as error:
        yield Result(check, FAIL, str(error))


def _settings(workflow: Workflow) -> Iterator[Result]:
    config = workflow.config
    source = f"from {config.source}" if config.source else "none found: the embedded default serves"
    yield Result("settings", OK, source)
    for weak in config.weakenings():
        yield Result("settings", WARN, f"{weak.setting} = {weak.value} ({weak.origin}): {weak.meaning}")
    try:
        catalog = workflow.catalog
    except SecureMfgError as error:
        yield Result("catalog", FAIL, str(error))
        return
    if catalog is None:
        yield Result("catalog", SKIP, "no catalog: a step's sensitivity is what its argument says")
    else:
        yield Result("catalog", OK, f"{len(catalog.assets)} assets in {catalog.path}")


def _keys(workflow: Workflow) -> Iterator[Result]:
    for one in workflow.keys.named():
        if one.problem is None:
            yield Result("keys", OK, f"{one.name}: {one.key!r} can be opened")
        else:
            yield Result("keys", WARN if workflow.config.embedded else FAIL, one.problem)


def _signing(workflow: Workflow) -> Iterator[Result]:
    signatures = workflow.signatures
    if not signatures.required:
        text = "models are not signed: who can read one can put another in its place; set artifacts.signer and .signers"
        yield Result("signed models", WARN, text)
    elif workflow.config.embedded:
        yield Result("signed models", OK, "signed with the embedded default's own key, made when it is first needed")
    else:
        pinned = signatures.pinned()
        signer = signatures.signer()
        names = ", ".join(f"{key.name} ({key.hint[:16]})" for key in pinned)
        yield Result("signed models", OK, f"pinned: {names}; " + (f"signs with {signer!r}" if signer else "signs none"))
        if signer is not None and not {key.hint for key in signer.verifying_keys()} & {key.hint for key in pinned}:
            yield Result("signed models", FAIL, f"{signer!r} is not among artifacts.signers: what it signs is refused")


def _encryption() -> Iterator[Result]:
    import cryptography
    from cryptography.hazmat.backends.openssl.backend import backend

    from securemfg.encryption.frames import parallel

    several = "parallel path, several threads for a large file (it releases the GIL)"
    how = several if parallel() else "one worker per file (older than 50, it holds the GIL: upgrade for speed)"
    fips = "in FIPS mode" if backend._fips_enabled else "not in FIPS mode; no validated module is claimed"
    yield Result(
        "encryption", OK, f"cryptography {cryptography.__version__}: {how}; {backend.openssl_version_text()}, {fips}"
    )


def _plugin(workflow: Workflow) -> Iterator[Result]:
    from importlib.util import find_spec

    if find_spec("mlflow") is None:
        yield Result("mlflow plugin", SKIP, "mlflow is not installed")
        return
    from importlib.metadata import entry_points

    found: dict[str, list[str]] = {}
    for entry in entry_points(group="mlflow.artifact_repository"):
        found.setdefault(entry.name, []).append(entry.value)
    for scheme in ("file", "s3", "mlflow-artifacts", "http", "https"):
        ours = [value for value in found.get(scheme, ()) if value.startswith("securemfg.")]
        others = [value for value in found.get(scheme, ()) if not value.startswith("securemfg.")]
        if others:
            yield Result("mlflow plugin", WARN, f"scheme {scheme} is also claimed by {', '.join(others)}")
        if not ours:
            yield Result("mlflow plugin", FAIL, f"scheme {scheme} has no securemfg entry point: reinstall the package")
    import mlflow  # noqa: F401  # the registry it makes is what is looked at

    from securemfg.artifacts.activation import deactivate, ownership

    workflow.activate_artifacts()
    try:
        owned = ownership()
    finally:
        deactivate()
    lost = sorted(scheme for scheme, ours in owned.items() if not ours)
    if lost:
        yield Result("mlflow plugin", FAIL, f"while active, MLflow would bypass securemfg for: {', '.join(lost)}")
    else:
        yield Result("mlflow plugin", OK, f"while active, all {len(owned)} schemes of MLflow go through securemfg")


def _journal(workflow: Workflow) -> Iterator[Result]:
    folder = workflow.config.home / "journal"
    if not folder.is_dir():
        yield Result("audit journal", SKIP, f"none yet in {folder}")
        return
    from securemfg.audit.verification import verify

    found = verify(folder)
    state = OK if found.ok else FAIL
    text = f"{found.events} events, {found.strength}" if found.ok else "; ".join(p.text for p in found.problems[:3])
    yield Result("audit journal", state, text)


def _vault(workflow: Workflow) -> Iterator[Result]:
    settings = workflow.config.settings.vault
    if settings.address is None:
        yield Result("vault", SKIP, "vault.address is not set")
        return
    parts = urlsplit(settings.address)
    if parts.scheme == "https":
        yield from _tls(workflow, parts.netloc, check="vault", ca_file=settings.ca_file)
    from securemfg.credentials.sources import check_vault

    yield Result("vault", OK, check_vault(workflow.config))


def _sts(workflow: Workflow) -> Iterator[Result]:
    roles = {name: one for name, one in workflow.config.settings.credentials.items() if one.sts is not None}
    if not roles:
        yield Result("sts", SKIP, "no credential uses STS")
        return
    from securemfg.credentials.sts import identity

    yield Result("sts", OK, f"this is {identity(_region(roles))}; roles to assume: {', '.join(roles)}")


def _region(roles: Mapping[str, CredentialSettings]) -> str | None:
    """The first region that a role's settings name; None: the environment's."""
    return next((one.region for one in roles.values() if one.region is not None), None)


def _cloudwatch(workflow: Workflow) -> Iterator[Result]:
    cloudwatch = workflow.config.settings.audit.cloudwatch
    if cloudwatch is None:
        yield Result("cloudwatch", SKIP, "audit.cloudwatch is not set: the trail stays in the local journal")
        return
    from securemfg.audit.cloudwatch import check

    yield Result("cloudwatch", OK, check(cloudwatch.log_group, cloudwatch.region, create=cloudwatch.create))


def _tls(
    workflow: Workflow, endpoint: str, *, check: str | None = None, ca_file: Path | None = None
) -> Iterator[Result]:
    from securemfg.transport.probe import probe

    host, _, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", "443")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{endpoint!r} must be HOST or HOST:PORT")
    found = probe(host.strip("[]"), int(port), ca_file=ca_file or workflow.config.settings.tls.ca_file)
    if found.ok:
        text = f"{endpoint}: {found.version}, {found.cipher}, certificate valid for {found.days_left} days"
        yield Result(check or "tls", OK, text)
    else:
        yield Result(check or "tls", FAIL, f"{endpoint}: {found.reason}")
