"""Where the body, its final frame and a signature lie in a message, and whether the signature holds.

Source: AWS Encryption SDK specification, message body and message footer. A signed message ends with the length of its
signature and the signature: ECDSA on P-384 with SHA-384 (suite 0x0214: P-256, SHA-256) over all that stands before, by
the public key in the context. It shows that the message is whole and from whoever made its context; not who that was.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, Hash, HashAlgorithm

from securemfg.encryption.message import (
    FINAL_MARK,
    IV_LENGTH,
    MAX_SIGNATURE,
    Geometry,
    Header,
)
from securemfg.errors import DecryptionError

PUBLIC_KEY: Final = "aws-crypto-public-key"
_CHUNK: Final = 1 << 20  # bytes
_FINAL_LENGTH: Final = 4 + 4 + IV_LENGTH  # where a final frame says its length: after mark, sequence number and IV
_SIGNING: Final[Mapping[int, tuple[ec.EllipticCurve, HashAlgorithm]]] = MappingProxyType(
    {256: (ec.SECP256R1(), SHA256()), 384: (ec.SECP384R1(), SHA384())}  # by the curve's bits
)

ReadAt = Callable[[int, int], bytes]  # offset, count -> bytes; fewer at the end


def lay_out(header: Header, size: int, read: ReadAt) -> tuple[Geometry, bytes | None]:
    """The geometry of a message of `size` bytes, and its signature if its suite has one. Raises DecryptionError."""
    if not header.frame_length:
        geometry = Geometry.unframed(header, int.from_bytes(read(header.length + IV_LENGTH, 8)))
        footer = read(geometry.message_length, MAX_SIGNATURE + 3)
        if not header.signed:
            if footer or size < geometry.message_length:
                raise DecryptionError("the message is cut off or has bytes left over")
            return geometry, None
        return geometry, _signature(footer)
    if not header.signed:
        return Geometry.of(header, size), None
    # A signature's length stands before it, so it is found from the end: by the one length that fits everything.
    start = max(header.length, size - MAX_SIGNATURE - 2)
    tail = read(start, MAX_SIGNATURE + 2)
    for at in range(len(tail) - 2):
        if int.from_bytes(tail[at : at + 2]) != len(tail) - at - 2:
            continue
        try:
            geometry = Geometry.of(header, start + at)
        except DecryptionError:
            continue
        # its length too: ciphertext in the final frame that looks like a signature's length comes after the same mark
        final = read(geometry.offset(geometry.frames), _FINAL_LENGTH + 4)
        if final[:4] == FINAL_MARK and int.from_bytes(final[_FINAL_LENGTH:]) == geometry.final_length:
            return geometry, tail[at + 2 :]
    raise DecryptionError("the message is cut off or has bytes left over: no signature fits its size")


def check_end(geometry: Geometry, read: ReadAt) -> None:
    """Raise DecryptionError unless the final frame says that it is one and ends where the message does."""
    if geometry.frame_length:
        final = read(geometry.offset(geometry.frames), _FINAL_LENGTH + 4)
        if final[:4] != FINAL_MARK or int.from_bytes(final[_FINAL_LENGTH:]) != geometry.final_length:
            raise DecryptionError("the message is cut off or has bytes left over: it does not end with its final frame")


def _signature(footer: bytes) -> bytes:
    if len(footer) < 2 or int.from_bytes(footer[:2]) != len(footer) - 2 or len(footer) > MAX_SIGNATURE + 2:
        raise DecryptionError("the message is cut off or has bytes left over: no signature fits its size")
    return footer[2:]


def verify_signature(header: Header, signature: bytes, length: int, read: ReadAt) -> None:
    """Check the signature over the message's first `length` bytes. Raises DecryptionError."""
    curve, algorithm = _SIGNING[header.curve_bits]
    text = header.context.get(PUBLIC_KEY)
    if text is None:
        raise DecryptionError(f"the message is signed, but its context has no {PUBLIC_KEY!r}")
    try:
        point = base64.b64decode(text, validate=True)
        public = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except (ValueError, binascii.Error) as error:
        raise DecryptionError(f"the message's {PUBLIC_KEY!r} is no P-{header.curve_bits} key") from error
    digest = Hash(algorithm)
    for part in _parts(length, read):
        digest.update(part)
    try:
        public.verify(signature, digest.finalize(), ec.ECDSA(Prehashed(algorithm)))
    except InvalidSignature:
        raise DecryptionError("the message was changed: its signature does not verify") from None


def _parts(length: int, read: ReadAt) -> Iterator[bytes]:
    for offset in range(0, length, _CHUNK):
        yield read(offset, min(_CHUNK, length - offset))
