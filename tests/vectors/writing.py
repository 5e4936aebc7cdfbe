"""Writes messages after docs/format.md, byte by byte, with nothing of securemfg: a second implementation to test the first.

Everything is drawn from a seed by name, so the same call gives the same bytes. That is for vectors only: a real writer
draws its data keys, message ids and wrapping IVs at random. What the format leaves no choice in needs no seed: the frame
IVs are the sequence numbers, the header's is zero.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MIB = 1 << 20
SUITE = 0x0478
NO_COMMITMENT = 0x0178  # AES-256-GCM, HKDF-SHA-256, no commitment, no signature; only in headers of version 1
Pairs = Sequence[tuple[str, str]]


def drawn(name: str, count: int = 32) -> bytes:
    """`count` bytes that look random and are always the same: SHA-256("securemfg-vector/" + name + "/" + 0, 1, ...)."""
    blocks = range((count + 31) // 32)
    return b"".join(hashlib.sha256(f"securemfg-vector/{name}/{block}".encode()).digest() for block in blocks)[:count]


def u16(*parts: bytes) -> bytes:
    """Each part after its length in 16 bits."""
    return b"".join(struct.pack(">H", len(part)) + part for part in parts)


def serialized(pairs: Pairs, *, in_order: bool = True) -> bytes:
    """A context's bytes. `in_order=False` leaves the pairs as they stand, which no reader should take."""
    encoded = [(key.encode(), value.encode()) for key, value in pairs]
    ordered = sorted(encoded) if in_order else encoded
    return struct.pack(">H", len(ordered)) + b"".join(u16(*pair) for pair in ordered) if ordered else b""


# -- recipients -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aes:
    """A raw AES wrapping key."""

    provider: str
    name: str
    key: bytes

    def wrap(self, data_key: bytes, context: bytes, draw: str) -> tuple[bytes, bytes, bytes]:
        iv = drawn(f"{draw}/iv/{self.name}", 12)
        info = self.name.encode() + struct.pack(">II", 128, 12) + iv
        return self.provider.encode(), info, AESGCM(self.key).encrypt(iv, data_key, context)


def local(name: str) -> Aes:
    """A local key, named after its bytes."""
    key = drawn(f"key/{name}")
    return Aes("securemfg", hashlib.sha256(b"securemfg-key" + key).hexdigest()[:16], key)


@dataclass(frozen=True)
class Rsa:
    """An RSA escrow key. OAEP is written out here, because no library takes the seed from its caller."""

    name: str
    private: RSAPrivateKey

    def wrap(self, data_key: bytes, context: bytes, draw: str) -> tuple[bytes, bytes, bytes]:
        numbers = self.private.public_key().public_numbers()
        size = (numbers.n.bit_length() + 7) // 8
        seed = drawn(f"{draw}/oaep/{self.name}", 32)
        block = hashlib.sha256(b"").digest() + bytes(size - len(data_key) - 66) + b"\x01" + data_key
        masked = _xor(block, _mgf1(seed, len(block)))
        padded = b"\x00" + _xor(seed, _mgf1(masked, 32)) + masked
        wrapped = pow(int.from_bytes(padded), numbers.e, numbers.n).to_bytes(size)
        return b"securemfg-rsa", self.name.encode(), wrapped


@dataclass(frozen=True)
class Other:
    """A recipient that nobody at hand can open: a key of a service, or a damaged field."""

    provider: str
    info: bytes
    length: int = 64

    def wrap(self, data_key: bytes, context: bytes, draw: str) -> tuple[bytes, bytes, bytes]:
        return self.provider.encode(), self.info, drawn(f"{draw}/other/{self.provider}", self.length)


Recipient = Aes | Rsa | Other


def _mgf1(seed: bytes, length: int) -> bytes:
    blocks = range((length + 31) // 32)
    return b"".join(hashlib.sha256(seed + struct.pack(">I", block)).digest() for block in blocks)[:length]


def _xor(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, two, strict=True))


# -- messages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """A message's parts, so that a vector can change one and leave the others right."""

    data_key: bytes
    message_id: bytes
    commitment: bytes
    derived_key: bytes
    header: bytes  # without its tag
    frames: tuple[bytes, ...]  # the last one is the final one
    tag: bytes

    @property
    def message(self) -> bytes:
        return self.header + self.tag + b"".join(self.frames)


def derive(data_key: bytes, message_id: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA512(), length=32, salt=message_id, info=info).derive(data_key)


def tagged(derived_key: bytes, header: bytes) -> bytes:
    return AESGCM(derived_key).encrypt(bytes(12), b"", header)


def framed(derived_key: bytes, message_id: bytes, sequence: int, part: bytes, *, final: bool) -> bytes:
    """One frame, with its IV the sequence number."""
    label = b"AWSKMSEncryptionClient Final Frame" if final else b"AWSKMSEncryptionClient Frame"
    iv = sequence.to_bytes(12)
    aad = message_id + label + struct.pack(">IQ", sequence, len(part))
    start = struct.pack(">I", sequence) + iv
    if final:
        start = b"\xff\xff\xff\xff" + start + struct.pack(">I", len(part))
    return start + AESGCM(derived_key).encrypt(iv, part, aad)


def write(
    draw: str,
    plaintext: bytes,
    recipients: Sequence[Recipient],
    *,
    context: Pairs = (),
    frame_length: int = MIB,
    raw_context: bytes | None = None,
    commitment: bytes | None = None,
    claimed_frame_length: int | None = None,
    empty_final: bool = False,
) -> Draft:
    """A message. The last four arguments are for what a writer must not do, or for what other writers do."""
    data_key, message_id = drawn(f"{draw}/data key"), drawn(f"{draw}/message id")
    bound = serialized(context) if raw_context is None else raw_context
    derived = derive(data_key, message_id, struct.pack(">H", SUITE) + b"DERIVEKEY")
    own = derive(data_key, message_id, b"COMMITKEY")
    header = b"".join(
        (
            struct.pack(">BH", 2, SUITE),
            message_id,
            u16(bound),
            struct.pack(">H", len(recipients)),
            *(u16(*one.wrap(data_key, bound, f"{draw}/{n}")) for n, one in enumerate(recipients)),
            struct.pack(">BI", 2, claimed_frame_length or frame_length),
            own if commitment is None else commitment,
        )
    )
    whole = max(0, (len(plaintext) - 1) // frame_length) + empty_final
    parts = [plaintext[n * frame_length : (n + 1) * frame_length] for n in range(whole)]
    parts.append(plaintext[whole * frame_length :])
    return Draft(
        data_key=data_key,
        message_id=message_id,
        commitment=own,
        derived_key=derived,
        header=header,
        frames=tuple(
            framed(derived, message_id, n, part, final=n == len(parts)) for n, part in enumerate(parts, start=1)
        ),
        tag=tagged(derived, header),
    )


def write_without_commitment(draw: str, plaintext: bytes, recipients: Sequence[Recipient]) -> bytes:
    """A sound message of version 1, suite 0x0178: what a reader refuses for its suite and for nothing else."""
    data_key, message_id = drawn(f"{draw}/data key"), drawn(f"{draw}/message id", 16)
    suite = struct.pack(">H", NO_COMMITMENT)
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=suite + message_id).derive(data_key)
    header = b"".join(
        (
            b"\x01\x80",
            suite,
            message_id,
            u16(b""),
            struct.pack(">H", len(recipients)),
            *(u16(*one.wrap(data_key, b"", f"{draw}/{n}")) for n, one in enumerate(recipients)),
            struct.pack(">B4xBI", 2, 12, 4096),
        )
    )
    return header + bytes(12) + tagged(derived, header) + framed(derived, message_id, 1, plaintext, final=True)


def plaintext_of_zeros(draw: str, length: int, tail: bytes) -> bytes:
    """A plaintext whose first frame of `length` bytes has a ciphertext of zeros, so that a vector can state it shortly.

    The plaintext is then AES-256-CTR's key stream: as GCM counts, from 2 after the 96-bit IV.
    """
    derived = derive(drawn(f"{draw}/data key"), drawn(f"{draw}/message id"), struct.pack(">H", SUITE) + b"DERIVEKEY")
    counter = modes.CTR((1).to_bytes(12) + (2).to_bytes(4))
    stream = Cipher(algorithms.AES(derived), counter).encryptor()
    return stream.update(bytes(length)) + tail
