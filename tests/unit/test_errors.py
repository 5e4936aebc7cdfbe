"""The error tree: one root, grouped by who can mend it, and hints that name the nearest known word."""

from __future__ import annotations

import re

import pytest

from securemfg import errors
from securemfg.errors import nearest

TREE = {
    "ConfigError": "SecureMfgError",
    "CatalogError": "SecureMfgError",
    "AccessDenied": "SecureMfgError",
    "CredentialError": "SecureMfgError",
    "CredentialDenied": "CredentialError",
    "CredentialExpired": "CredentialError",
    "EncryptionError": "SecureMfgError",
    "KeyUnavailable": "EncryptionError",
    "DecryptionError": "EncryptionError",
    "TransportError": "SecureMfgError",
    "PlaintextRefused": "TransportError",
    "TlsRefused": "TransportError",
    "AuditError": "SecureMfgError",
    "EvidenceError": "SecureMfgError",
}


def test_tree_is_the_documented_one() -> None:
    assert {name: getattr(errors, name).__base__.__name__ for name in TREE} == TREE
    assert set(errors.__all__) == {*TREE, "SecureMfgError", "nearest"}
    documented = re.findall(r"^ +([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    assert set(documented) - {"Every"} == {*TREE, "SecureMfgError"}


def test_nothing_in_the_tree_is_an_error_of_the_operating_system() -> None:
    """`except OSError` in users' code must not swallow a refusal."""
    for kind in (getattr(errors, name) for name in [*TREE, "SecureMfgError"]):
        assert not issubclass(kind, OSError | ValueError | RuntimeError)
        assert kind.__doc__


@pytest.mark.parametrize(
    ("value", "known", "hint"),
    [
        ("catalogue", ["catalog", "mode"], "; did you mean 'catalog'?"),
        ("zzz", ["mode", "catalog"], "; known: catalog, mode"),
        ("zzz", [f"n{i}" for i in range(10)], "; known: n0, n1, n2, n3, n4, n5, n6, n7, ..."),
        ("zzz", [], ""),
        ("", ["mode"], "; known: mode"),
    ],
)
def test_hint_names_the_nearest_else_the_known(value: str, known: list[str], hint: str) -> None:
    assert nearest(value, known) == hint
