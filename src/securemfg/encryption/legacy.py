"""Message format version 1: suites that do not commit to their key, read only when a setting names them.

Source: AWS Encryption SDK specification, data-format/message-header (header 1.0) and framework/algorithm-suites.
AES-GCM alone lets whoever makes a message choose it so that it opens to different plaintexts under different keys. So
these suites are refused unless they are asked for, and never written.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securemfg.errors import DecryptionError

VERSION: Final = 1
TYPE: Final = 0x80  # customer authenticated encrypted data: the only one
MESSAGE_ID_LENGTH: Final = 16  # bytes


@dataclass(frozen=True, slots=True)
class LegacySuite:
    """What a suite of version 1 says. All are AES-GCM with 12-byte IVs and 16-byte tags."""

    key_length: int  # bytes, of the data key and of the derived key
    kdf: HashAlgorithm | None = None  # of HKDF; None: the data key itself encrypts
    curve_bits: int = 0  # of the ECDSA signature; 0: none

    @property
    def name(self) -> str:
        parts = [f"AES-{self.key_length * 8}-GCM"]
        parts.append(f"HKDF-SHA-{self.kdf.digest_size * 8}" if self.kdf else "no key derivation")
        parts.append("no key commitment")
        if self.curve_bits:
            parts.append(f"ECDSA P-{self.curve_bits}")
        return ", ".join(parts)

    def derive(self, data_key: bytes, message_id: bytes, suite: int) -> bytes:
        """The key that encrypts, from the data key (RFC 5869, without salt)."""
        if self.kdf is None:
            return data_key
        info = struct.pack(">H", suite) + message_id
        return HKDF(algorithm=self.kdf, length=self.key_length, salt=None, info=info).derive(data_key)


# the ids are repeated in `settings`, which must not load cryptography; a test holds them together
SUITES: Final[Mapping[int, LegacySuite]] = MappingProxyType(
    {
        0x0014: LegacySuite(16),
        0x0046: LegacySuite(24),
        0x0078: LegacySuite(32),
        0x0114: LegacySuite(16, SHA256()),
        0x0146: LegacySuite(24, SHA256()),
        0x0178: LegacySuite(32, SHA256()),
        0x0214: LegacySuite(16, SHA256(), 256),
        0x0346: LegacySuite(24, SHA384(), 384),
        0x0378: LegacySuite(32, SHA384(), 384),
    }
)


def check_allowed(suite: int, suites: Collection[int]) -> None:
    """Raise DecryptionError unless `suites`, what the settings allow, names a known suite without commitment."""
    if suite not in SUITES:
        raise DecryptionError(f"algorithm suite 0x{suite:04x} is none of version {VERSION} of the message format")
    if suite not in suites:
        raise DecryptionError(
            f"algorithm suite 0x{suite:04x} of version {VERSION} has no key commitment: such a message could open to "
            "different plaintexts under different keys, so it is refused. If you trust whoever wrote it, allow it with "
            f'[tool.securemfg.encryption] read_suites = ["0x{suite:04x}"], then encrypt it again'
        )


def check_layout(reserved: bytes, iv_length: int, expected: int) -> None:
    """Check the fields that only version 1 has. Raises DecryptionError."""
    if any(reserved):
        raise DecryptionError(f"the header's reserved bytes are {reserved.hex()}, not zero")
    if iv_length != expected:
        raise DecryptionError(f"the header claims IVs of {iv_length} bytes, not {expected}")
