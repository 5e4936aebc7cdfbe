"""securemfg: existing training and inference code becomes compliant in place.

    import securemfg
    from securemfg import Stage

    @securemfg.step(Stage.TRAINING, assets=["production_sensor_data"], role="MLResearcher")
    def train(): ...

Every name here loads on first use: importing the package brings in no cloud, HTTP or MLflow library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from securemfg import context as _context
from securemfg import errors as _errors

if TYPE_CHECKING:
    from securemfg import artifacts, audit, encryption, tls
    from securemfg._secret import Secret
    from securemfg._step import Step, step
    from securemfg.errors import (
        AccessDenied,
        AuditError,
        CatalogError,
        ConfigError,
        CredentialDenied,
        CredentialError,
        CredentialExpired,
        DecryptionError,
        EncryptionError,
        EvidenceError,
        KeyUnavailable,
        PlaintextRefused,
        SecureMfgError,
        TlsRefused,
        TransportError,
    )
    from securemfg.labels import Sensitivity, Stage
    from securemfg.workflow import Workflow, authorize, aws_session, current, secret

__version__: Final = "0.1.0"

_HOMES: Final = {
    "Secret": "_secret",
    "Sensitivity": "labels",
    "Stage": "labels",
    "Step": "_step",
    "Workflow": "workflow",
    "authorize": "workflow",
    "aws_session": "workflow",
    "current": "workflow",
    "secret": "workflow",
    "step": "_step",
}
_MODULES: Final = ("artifacts", "audit", "encryption", "tls")

__all__ = [
    "AccessDenied",
    "AuditError",
    "CatalogError",
    "ConfigError",
    "CredentialDenied",
    "CredentialError",
    "CredentialExpired",
    "DecryptionError",
    "EncryptionError",
    "EvidenceError",
    "KeyUnavailable",
    "PlaintextRefused",
    "Secret",
    "SecureMfgError",
    "Sensitivity",
    "Stage",
    "Step",
    "TlsRefused",
    "TransportError",
    "Workflow",
    "__version__",
    "artifacts",
    "audit",
    "authorize",
    "aws_session",
    "current",
    "encryption",
    "secret",
    "step",
    "tls",
]


def _default_workflow() -> Any:
    make = importlib.import_module("securemfg.workflow").default_workflow
    _context.provide(make)  # from now on directly
    return make()


_context.provide(_default_workflow)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    home = "errors" if name in _errors.__all__ else _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # found once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
