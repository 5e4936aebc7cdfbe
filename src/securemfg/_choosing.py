"""Which of the settings' credentials a step, or code outside one, means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from securemfg.errors import ConfigError, nearest

if TYPE_CHECKING:
    from securemfg.config import Config
    from securemfg.context import StepContext


def check_declared(here: StepContext, name: str) -> None:
    """Raises ConfigError for a credential that the step does not declare."""
    if name not in here.credentials:
        raise ConfigError(
            f"step {here.name!r} does not declare credential {name!r}: add it to credentials=[...]"
            f"{nearest(name, here.credentials)}"
        )


def by_name_or_path(config: Config, name: str) -> str:
    """The credential that the settings call `name`, or whose Vault path is `name`. Raises ConfigError."""
    known = config.settings.credentials
    if name in known:
        return name
    for candidate, settings in known.items():
        if settings.vault is not None and (settings.vault == name or settings.vault.partition("/")[2] == name):
            return candidate
    raise ConfigError(
        f"no credential of the settings is called {name!r} or has that path "
        f"({config.source or 'no settings file found'}){nearest(name, known)}"
    )


def sts_credential(config: Config, here: StepContext, service: str, credential: str | None) -> str:
    """The STS credential that a client for `service` is made with: the one named, or the step's only one.

    Raises ConfigError.
    """
    known = config.settings.credentials
    candidates = [name for name in here.credentials if name in known and known[name].sts is not None]
    if credential is None:
        if len(candidates) != 1:
            have = ", ".join(candidates) or "none"
            raise ConfigError(
                f"step.aws({service!r}) needs one STS credential and the step declares {have}: "
                "declare one in credentials=[...], or name it with credential="
            )
        return candidates[0]
    if credential not in candidates:
        raise ConfigError(
            f"{credential!r} is not an STS credential that this step declares{nearest(credential, candidates)}"
        )
    return credential


def session_tags(here: StepContext) -> dict[str, str]:
    """What STS is told of the step: session tags, for policies and CloudTrail."""
    tags = {"Stage": str(here.stage), "Sensitivity": str(here.sensitivity)}
    return {**tags, "Role": here.role} if here.role else tags
