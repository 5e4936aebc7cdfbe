"""Yes or no for one connection, under every policy that holds: the strictest wins.

Guard, choke point and clients ask here, so that all of them say the same.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence

from securemfg.errors import PlaintextRefused
from securemfg.settings import AllowEntry
from securemfg.transport.observation import (
    LOCAL,
    UNPROTECTED,
    Activation,
    Connection,
    endpoint,
    note_refusal,
    note_tolerated,
    note_use,
    record,
)
from securemfg.transport.policy import TlsPolicy, allowed, is_loopback, is_possible
from securemfg.transport.reasons import version_name

__all__ = ["floor_of", "judge_plaintext", "judge_plaintext_early", "judge_version", "refuse_redirect"]


def judge_plaintext(
    activations: Sequence[Activation],
    *,
    host: str,
    port: int | None,
    peer_address: str | None,
    count: bool = True,
) -> None:
    """Whether plain http may go to the connected peer. Call before the first byte.

    `peer_address` is where the socket leads (`UNIX` for AF_UNIX), None when that is not the host (a proxy).
    `count=False` where this connection is in the counts already. Raises PlaintextRefused.
    """
    verdicts = [
        (a, allowed(a.policy, host=host, port=port, peer_address=peer_address, plaintext=True)) for a in activations
    ]
    denied = [a for a, entry in verdicts if entry is None and a.policy.enforcing]
    if denied:
        raise _refused(denied, host, port, peer_address)
    version = LOCAL if is_loopback(peer_address) else UNPROTECTED
    if count:
        record(Connection(host=host, port=port, version=version))
    for activation, entry in verdicts:
        if entry is not None:
            note_use(activation, entry, host=host, port=port, version=version)
        else:
            why = _plain_why(activation.policy, host, port, peer_address)
            note_tolerated(activation, host=host, port=port, code="plaintext", why=why)


def judge_plaintext_early(
    activations: Sequence[Activation], *, host: str, port: int | None, local: Callable[[str], bool]
) -> None:
    """Refuse before connecting what no peer could make right, so that it fails clearly and at once.

    `local` says whether a name may mean this machine. Raises PlaintextRefused.
    """
    denied = [
        a for a in activations if a.policy.enforcing and not is_possible(a.policy, host=host, port=port, local=local)
    ]
    if denied:
        raise _refused(denied, host, port, None)


def refuse_redirect(activation: Activation, *, host: str, port: int | None) -> None:
    """A redirect from https to http: refused whatever the allow-list says. In observe it is only audited."""
    why = f"a redirect leads from https to plain http at {endpoint(host, port)}"
    if not activation.policy.enforcing:
        note_tolerated(activation, host=host, port=port, code="redirect", why=why)
        return
    suffix = note_refusal(activation, host=host, port=port, code="redirect", why=why)
    raise PlaintextRefused(
        f"{why}, which is refused: mend the redirect at the server, or call the https address{suffix}"
    )


def floor_of(
    policy: TlsPolicy, *, host: str, port: int | None, peer_address: str | None
) -> tuple[ssl.TLSVersion, AllowEntry | None]:
    """The lowest TLS version for this host, and the exception that lowered it."""
    if policy.floor > ssl.TLSVersion.TLSv1_2:
        entry = allowed(policy, host=host, port=port, peer_address=peer_address, plaintext=False)
        if entry is not None:
            return ssl.TLSVersion.TLSv1_2, entry
    return policy.floor, None


def judge_version(
    activations: Sequence[Activation],
    *,
    host: str,
    port: int | None,
    peer_address: str | None,
    version: str,
    side: str = "client",
    count: bool = True,
) -> str | None:
    """What the handshake came to. Returns why it must not be used, already audited; None when it may.

    Raises what the audit trail raises when the use of an exception cannot be recorded.
    """
    negotiated = getattr(ssl.TLSVersion, version.replace(".", "_"), None)
    verdicts = [(a, *floor_of(a.policy, host=host, port=port, peer_address=peer_address)) for a in activations]
    low = [(a, floor) for a, floor, _ in verdicts if negotiated is None or negotiated < floor]
    denied = [(a, floor) for a, floor in low if a.policy.enforcing]
    if denied:
        suffix = ""
        for activation, floor in denied:
            why = _version_why(version, host, port, floor, activation.policy)
            suffix = note_refusal(activation, host=host, port=port, code="tls_version", why=why) or suffix
        activation, floor = denied[0]
        return f"{_version_why(version, host, port, floor, activation.policy)}{suffix}"
    if count:
        record(Connection(host=host, port=port, version=version, side=side))
    for activation, floor in low:
        why = _version_why(version, host, port, floor, activation.policy)
        note_tolerated(activation, host=host, port=port, code="tls_version", why=why)
    for activation, floor, entry in verdicts:
        if entry is not None and negotiated is not None and floor <= negotiated < activation.policy.floor:
            note_use(activation, entry, host=host, port=port, version=version)
    return None


def _refused(denied: Sequence[Activation], host: str, port: int | None, peer_address: str | None) -> PlaintextRefused:
    suffix = ""
    for activation in denied:
        why = _plain_why(activation.policy, host, port, peer_address)
        suffix = note_refusal(activation, host=host, port=port, code="plaintext", why=why) or suffix
    policy = denied[0].policy
    text = (
        f"{_plain_why(policy, host, port, peer_address)}: use https, or add "
        f'{{ host = "{host}", reason = "..." }} to tls.allow ({policy.origin}){suffix}'
    )
    return PlaintextRefused(text)


def _plain_why(policy: TlsPolicy, host: str, port: int | None, peer_address: str | None) -> str:
    name = endpoint(host, port)
    if host.rstrip(".").lower().endswith("localhost") and peer_address is not None and not is_loopback(peer_address):
        return f"plain http to {name} is refused: it leads to {peer_address}, which is not this machine"
    if is_loopback(peer_address) or is_loopback(host):
        return f"plain http to {name} is refused: tls.allow has no entry for loopback"
    past = [e for e in policy.allow if e.floor is None and e.expires is not None and _same(policy, e, host, port)]
    if past:
        return f"plain http to {name} is refused: its entry in tls.allow ended on {past[0].expires}"
    return f"plain http to {name} is refused: everything on it could be read and changed on the way"


def _same(policy: TlsPolicy, entry: AllowEntry, host: str, port: int | None) -> bool:
    """Whether `entry` would cover the host if its date did not matter."""
    undated = TlsPolicy(allow=(entry.model_copy(update={"expires": None}),), now=policy.now)
    return allowed(undated, host=host, port=port, peer_address=None, plaintext=True) is not None


def _version_why(version: str, host: str, port: int | None, floor: ssl.TLSVersion, policy: TlsPolicy) -> str:
    return (
        f"the connection with {endpoint(host, port)} would be {version}, "
        f"and {version_name(floor)} is required (tls.floor, {policy.origin})"
    )
