"""`aws-kms:ARN`: data keys wrapped by AWS KMS, in the format of the specification's AWS KMS keyring.

Rights needed on the key: kms:GenerateDataKey to write, kms:Decrypt to read, kms:Encrypt to be a further recipient. The
encryption context is passed to KMS, so key policies and CloudTrail can speak about it (kms:EncryptionContext).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

from securemfg.encryption.fate import Fate
from securemfg.encryption.message import KEY_LENGTH, Context, EncryptedDataKey
from securemfg.errors import ConfigError, DecryptionError, KeyUnavailable

PROVIDER: Final = "aws-kms"
# What is behind an alias can change, and a key id says no account and region: only key ARNs are taken.
_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")

_REFUSED: Final = {
    "AccessDeniedException": "access is denied: the role needs {rights} on it",
    "DisabledException": "it is disabled: enable it in KMS",
    "KMSInvalidStateException": "its state forbids it (pending deletion, or its import has expired): see it in KMS",
    "NotFoundException": "it does not exist in that account and region, or was deleted",
    "ThrottlingException": "KMS is throttling: try again later, or ask for a higher request rate",
    "InvalidGrantTokenException": "a grant token is not valid",
    "KeyUnavailableException": "KMS says that it is not available: try again",
    "ExpiredTokenException": "the AWS credentials have expired",
    "UnrecognizedClientException": "the AWS credentials are not valid",
}
# Decrypt answers with these when ciphertext, context or key do not belong together.
_MISMATCH: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


def kms_client(region: str) -> Any:
    """A KMS client: connect in 3 s, read in 10 s, botocore's standard retries."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 4, "mode": "standard"})
    return boto3.client("kms", region_name=region, config=config)


class AwsKmsKey:
    """One KMS key, by its ARN. `client` makes the KMS client for a region, on first use."""

    remote: Final = True  # unwrapping asks the service

    def __init__(
        self,
        arn: str,
        *,
        origin: str = "argument",
        client: Callable[[str], Any] = kms_client,
        rights: str = "kms:GenerateDataKey and kms:Decrypt",  # for the message when KMS refuses
    ) -> None:
        match = _ARN.fullmatch(arn)
        if match is None:
            raise ConfigError(
                f"a KMS key is named by its key ARN, like 'aws-kms:arn:aws:kms:eu-central-1:123456789012:key/...', "
                f"got {arn!r} ({origin}); aliases and key ids are not taken: what they mean can change"
            )
        self.arn = arn
        self.recipient = f"{PROVIDER}/{arn}"
        self._region = match["region"]
        self._origin = origin
        self._rights = rights
        self._make = client
        self._client: Any = None

    def __repr__(self) -> str:
        return f"AwsKmsKey({self.arn})"

    def generate(self, context: Context) -> tuple[bytes, EncryptedDataKey]:
        """A new data key and its wrapping, in one call. Raises KeyUnavailable."""
        reply = self.call(
            "generate_data_key", KeyId=self.arn, NumberOfBytes=KEY_LENGTH, EncryptionContext=dict(context)
        )
        return self._plaintext(reply), self._wrapped(reply)

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:
        return self._wrapped(self.call("encrypt", KeyId=self.arn, Plaintext=data_key, EncryptionContext=dict(context)))

    def matches(self, edk: EncryptedDataKey) -> bool:
        return edk.provider == PROVIDER and edk.info == self.arn.encode()

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        reply = self.call(
            "decrypt", KeyId=self.arn, CiphertextBlob=edk.ciphertext, EncryptionContext=dict(context)
        )  # KeyId is given, so that KMS uses no other key than the one the settings name
        self._check_key(reply)
        return self._plaintext(reply)

    def destroy(self, *, days: int) -> list[Fate]:
        """Schedule its deletion, 7 to 30 days ahead; it can be used for nothing from now on, and still be cancelled.

        Rights needed besides: kms:DescribeKey, kms:ScheduleKeyDeletion.
        """
        known = self.call("describe_key", KeyId=self.arn)["KeyMetadata"]
        until = known.get("DeletionDate")
        if known.get("KeyState") not in {"PendingDeletion", "PendingReplicaDeletion"}:
            window = min(30, max(7, days))
            reply = self.call("schedule_key_deletion", KeyId=str(known["KeyId"]), PendingWindowInDays=window)
            until = reply.get("DeletionDate")
        fates = (
            [Fate.scheduled(self.arn, until, "KMS refuses its use already; 'kms cancel-key-deletion' stops it")]
            if until is not None
            else [Fate.not_provable(self.arn, "KMS waits for its replicas to be deleted before it names a date")]
        )
        replicas = known.get("MultiRegionConfiguration", {}).get("ReplicaKeys", ())
        fates += [
            Fate.failed(str(replica["Arn"]), "a replica in another region opens the same: schedule it there")
            for replica in replicas
        ]
        if known.get("Origin", "AWS_KMS") != "AWS_KMS":
            fates.append(
                Fate.not_provable(f"key material of {self.arn}", f"it came from outside KMS ({known.get('Origin')})")
            )
        return fates

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """KMS's reply. Raises KeyUnavailable, or DecryptionError where a ciphertext is at fault."""
        from botocore.exceptions import BotoCoreError, ClientError

        if self._client is None:
            self._client = self._make(self._region)
        try:
            reply: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            self._refused(operation, error)
        except BotoCoreError as error:
            raise KeyUnavailable(
                f"KMS cannot be reached for key {self.arn} ({self._origin}): {error}; check the network and the region"
            ) from error
        return reply

    def _refused(self, operation: str, error: Any) -> NoReturn:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if operation == "decrypt" and code in _MISMATCH:
            raise DecryptionError(f"key {self.arn} does not open it: changed, or another key or context") from error
        why = _REFUSED.get(code, f"KMS answered {code or error}").replace("{rights}", self._rights)
        raise KeyUnavailable(f"key {self.arn} cannot be used ({self._origin}): {why}") from error

    def _plaintext(self, reply: dict[str, Any]) -> bytes:
        data_key = bytes(reply.get("Plaintext", b""))
        if len(data_key) != KEY_LENGTH:
            raise KeyUnavailable(f"KMS gave a data key of {len(data_key)} bytes for {self.arn}, not {KEY_LENGTH}")
        return data_key

    def _wrapped(self, reply: dict[str, Any]) -> EncryptedDataKey:
        self._check_key(reply)
        return EncryptedDataKey(PROVIDER, self.arn.encode(), bytes(reply["CiphertextBlob"]))

    def _check_key(self, reply: dict[str, Any]) -> None:
        if reply.get("KeyId") != self.arn:
            raise KeyUnavailable(f"KMS answered for key {reply.get('KeyId')!r} when asked for {self.arn}")
