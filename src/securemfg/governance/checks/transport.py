"""What the trail shows about connections (SC-8, SC-13, SC-23)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from securemfg.governance.checks.reading import at, ids, listed, many, number, observed_only, text
from securemfg.governance.findings import Coverage, Event, Evidence, Finding, State

_VERSION = re.compile(r"TLSv1(?:\.\d)?|SSLv\d", re.IGNORECASE)
_UNPROTECTED = "none"  # how a connection without TLS is listed among the versions


def tls_only(evidence: Evidence) -> Iterator[Finding]:
    """Every connection seen was TLS 1.3; what was refused or excepted is named.

    At most partial: native stacks and plain sockets other than HTTP are not seen.
    """
    ended = [e for e in evidence.having("step.finished", "step.failed") if number(e, "detail", "tls_connections")]
    refusals = evidence.having("tls.refused")
    exceptions = evidence.having("tls.exception_used")
    let_through = [e for e in refusals if observed_only(e)]
    below = [e for e in ended if _below(e)]
    outside = [e for e in exceptions if not _local(e)]
    if bad := [*below, *let_through, *outside]:
        parts = [
            f"{many(len(below), 'step')} used TLS below 1.3" if below else "",
            f"{many(len(let_through), 'refusal')} only observed, the connection was made" if let_through else "",
            f"{many(len(outside), 'exception')} used, to {_targets(outside)}" if outside else "",
        ]
        yield Finding(
            control="SMFG-TLS",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement="; ".join(part for part in parts if part) + ".",
            event_ids=ids(bad),
            remedy="Move these endpoints to TLS 1.3, then remove their entries from tls.allow "
            "and set mode = 'enforce'.",
        )
        return
    if unclear := [e for e in ended if not _versions(e) and "none" not in text(e, "detail", "tls_versions")]:
        yield Finding(
            control="SMFG-TLS",
            state=State.NOT_ASSESSED,
            coverage=Coverage.PARTIAL,
            statement=f"{many(len(unclear), 'step')} made connections whose TLS version was not recorded.",
            event_ids=ids(unclear),
        )
        return
    good = [e for e in ended if "TLSv1.3" in _versions(e)]
    if not good and not refusals:
        seen = f"; {many(len(exceptions), 'local connection')} carried no TLS" if exceptions else ""
        seen += _configured(evidence)
        yield Finding(
            control="SMFG-TLS",
            state=State.NOT_ASSESSED,
            coverage=Coverage.NONE,
            statement=f"No connection with TLS was observed{seen}.",
            event_ids=ids(exceptions),
            remedy="Run a step that reaches a service, then make the report again.",
        )
        return
    connections = sum(number(e, "detail", "tls_connections") for e in good)
    parts = [
        f"{many(len(good), 'step')} made {many(connections, 'connection')}, all of them TLS 1.3" if good else "",
        f"{many(len(refusals), 'connection')} refused ({_targets(refusals)})" if refusals else "",
        f"{many(len(exceptions), 'local connection')} on this machine, local and not protected" if exceptions else "",
    ]
    yield Finding(
        control="SMFG-TLS",
        state=State.PASS,
        coverage=Coverage.PARTIAL if good else Coverage.EVIDENCE_ONLY,
        statement="; ".join(part for part in parts if part) + _configured(evidence) + ".",
        event_ids=ids([*good, *refusals, *exceptions]),
    )


def _configured(evidence: Evidence) -> str:
    """The exceptions that the settings hold, none of which was used."""
    hosts = [w.value for w in evidence.weakenings if w.setting == "tls.allow"]
    return f"; {many(len(hosts), 'exception')} configured and not used ({listed(hosts)})" if hosts else ""


def _versions(event: Event) -> set[str]:
    return {"TLSv" + found[4:] for found in _VERSION.findall(text(event, "detail", "tls_versions"))}


def _below(event: Event) -> bool:
    """Whether a connection of the step was below TLS 1.3. Plain loopback is counted as an exception."""
    return bool(_versions(event) - {"TLSv1.3"})


def _local(event: Event) -> bool:
    """Whether the exception is the one for this machine, which is decided by the connected peer's address."""
    return "loopback" in {
        text(event, "detail", "entry"),
        text(event, "detail", "host"),
        at(event, "detail", "allow"),
    }


def _targets(events: Iterable[Event]) -> str:
    return listed(text(event, "resource", "id") for event in events) or "unnamed endpoints"
