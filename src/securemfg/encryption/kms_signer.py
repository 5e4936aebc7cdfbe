"""`aws-kms:ARN` as a signer: an asymmetric key whose private half never leaves KMS.

Rights needed on the key: kms:Sign and kms:GetPublicKey to sign, kms:GetPublicKey to verify; verifying itself is local.
A message of at most 4096 bytes goes to KMS whole, of a longer one its digest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import Hash
from cryptography.hazmat.primitives.serialization import load_der_public_key

from securemfg.encryption.aws_kms import AwsKmsKey, kms_client
from securemfg.encryption.signers import VerifyingKey, checked
from securemfg.errors import KeyUnavailable

_MOST: Final = 4096  # bytes of a message that KMS takes raw
_ALGORITHMS: Final = {"sha256": "ECDSA_SHA_256", "sha384": "ECDSA_SHA_384"}


class AwsKmsSigner:
    """One asymmetric KMS key, by its ARN."""

    def __init__(self, arn: str, *, origin: str = "argument", client: Callable[[str], Any] = kms_client) -> None:
        self._kms = AwsKmsKey(arn, origin=origin, client=client, rights="kms:Sign and kms:GetPublicKey")
        self.arn = arn
        self._origin = origin
        self._lock = threading.Lock()
        self._public: VerifyingKey | None = None

    def __repr__(self) -> str:
        return f"AwsKmsSigner({self.arn})"

    def verifying_keys(self) -> Sequence[VerifyingKey]:
        return (self._verifying(),)

    def sign(self, message: bytes) -> tuple[bytes, VerifyingKey]:
        key = self._verifying()
        assert key.digest is not None
        if len(message) <= _MOST:
            given = {"Message": message, "MessageType": "RAW"}
        else:
            digest = Hash(key.digest)
            digest.update(message)
            given = {"Message": digest.finalize(), "MessageType": "DIGEST"}
        reply = self._kms.call("sign", KeyId=self.arn, SigningAlgorithm=_ALGORITHMS[key.digest.name], **given)
        self._check(reply)
        return checked(bytes(reply.get("Signature", b"")), message, key, self._origin)

    def _check(self, reply: Mapping[str, Any]) -> None:
        if reply.get("KeyId") not in {self.arn, self.arn.rpartition("/")[2]}:  # KMS gives the ARN, some like it the id
            raise KeyUnavailable(f"KMS answered for key {reply.get('KeyId')!r} when asked for {self.arn}")

    def _verifying(self) -> VerifyingKey:
        with self._lock:
            if self._public is None:
                reply = self._kms.call("get_public_key", KeyId=self.arn)
                self._check(reply)
                try:
                    public = load_der_public_key(bytes(reply.get("PublicKey", b"")))
                except (ValueError, UnsupportedAlgorithm):
                    public = None
                if reply.get("KeyUsage") != "SIGN_VERIFY" or not isinstance(public, ec.EllipticCurvePublicKey):
                    raise KeyUnavailable(
                        f"key {self.arn} ({self._origin}) cannot sign models: make one with key usage SIGN_VERIFY and "
                        "key spec ECC_NIST_P256 or ECC_NIST_P384"
                    )
                self._public = VerifyingKey(public, f"aws-kms:{self.arn}")
            return self._public
