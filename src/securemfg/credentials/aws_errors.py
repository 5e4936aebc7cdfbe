"""What AWS refuses, told in our words: once, at the edge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from securemfg.credentials.grant import Wanted
from securemfg.errors import CredentialDenied, CredentialError

_OWN_IDENTITY: Final = {
    "ExpiredToken": "the process's own AWS credentials have expired",
    "ExpiredTokenException": "the process's own AWS credentials have expired",
    "InvalidClientTokenId": "the process's own AWS credentials are not valid",
    "UnrecognizedClientException": "the process's own AWS credentials are not valid",
    "InvalidAccessKeyId": "the process's own AWS credentials are not valid",
    "SignatureDoesNotMatch": "the process's own AWS secret key is wrong, or this machine's clock is",
    "RequestExpired": "this machine's clock is wrong",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
}
_REFUSED: Final = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ResourceNotFoundException",
        "MalformedPolicyDocument",
        "PackedPolicyTooLarge",
        "RegionDisabledException",
        "ValidationError",
        "ValidationException",
        "InvalidParameterValue",
        "InvalidParameterException",
        "InvalidRequestException",
        "DecryptionFailure",
    }
)


def translated(wanted: Wanted, what: str, remedy: str) -> AbstractContextManager[None]:
    """Raise CredentialDenied for what asking again will not change, CredentialError for the rest."""
    return told(f"credential {wanted.name!r} ({wanted.origin})", f"{what} {wanted.target!r}", remedy)


@contextmanager
def told(subject: str, what: str, remedy: str) -> Iterator[None]:
    """As `translated`, for `subject` in words: `what` was asked for it, `remedy` helps when that is refused."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        said = " ".join(str(error.response.get("Error", {}).get("Message", "")).split())[:300]
        if code in _OWN_IDENTITY:
            raise CredentialDenied(f"AWS refused {subject}: {_OWN_IDENTITY[code]} ({code}); mend that first") from error
        if code in _REFUSED:
            raise CredentialDenied(f"AWS refused {what} for {subject}: {code}: {said}; {remedy}") from error
        raise CredentialError(f"AWS could not give {subject}: {code}: {said}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise CredentialDenied(
            f"{subject} needs an AWS identity to start from, and the process has none: give it one (an instance or "
            "pod role, or AWS_PROFILE)"
        ) from error
    except ParamValidationError as error:
        raise CredentialDenied(f"AWS would not take the settings of {subject}: {error}") from error
    except BotoCoreError as error:
        raise CredentialError(
            f"AWS could not be reached for {subject}: {error}; check the network and region"
        ) from error
