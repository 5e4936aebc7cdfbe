"""The AWS Encryption SDK message format, version 2: headers, encryption contexts, frames and derived keys.

Source: AWS Encryption SDK specification, data-format (message header, message body) and framework (algorithm
suites). Written: suite 0x0478 (AES-256-GCM, HKDF-SHA-512, key commitment, no signature), framed. Read as well: suite
0x0578, the same with an ECDSA signature; bodies without frames up to 64 MiB; and the suites of version 1 that a setting
names (`legacy`).

Everything here works on bytes; `stream` does the input and output. Every limit is checked before
memory is taken: lengths in a header are an attacker's choice until the header's tag has been verified.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securemfg.encryption import legacy
from securemfg.errors import DecryptionError, EncryptionError

Context: TypeAlias = Mapping[str, str]

VERSION: Final = 2
SUITE: Final = 0x0478
SIGNED_SUITE: Final = 0x0578
FRAME_LENGTH: Final = 1 << 20  # bytes of plaintext per frame, as written
MAX_FRAME_LENGTH: Final = 1 << 26  # bytes, as read: it sizes buffers
MAX_RECIPIENTS: Final = 64  # encrypted data keys in one header
MAX_HEADER: Final = 1 << 18  # bytes
MESSAGE_ID_LENGTH: Final = 32
IV_LENGTH: Final = 12
TAG_LENGTH: Final = 16
KEY_LENGTH: Final = 32
FRAME_OVERHEAD: Final = 4 + IV_LENGTH + TAG_LENGTH
FINAL_OVERHEAD: Final = 4 + FRAME_OVERHEAD + 4
FINAL_MARK: Final = b"\xff\xff\xff\xff"
UNFRAMED_OVERHEAD: Final = IV_LENGTH + 8 + TAG_LENGTH
MAX_UNFRAMED: Final = 1 << 26  # bytes: such a body is held in memory until its one tag has been verified
MAX_SIGNATURE: Final = 256  # bytes; DER of ECDSA P-384 takes at most 104
MAX_FRAMES: Final = 0xFFFFFFFE  # sequence numbers 1 .. 2^32 - 2; the marker is not one

RESERVED_CONTEXT: Final = "aws-crypto-"
_UNFRAMED: Final = 1
_FRAMED: Final = 2
_LABEL_FRAME: Final = b"AWSKMSEncryptionClient Frame"
_LABEL_FINAL: Final = b"AWSKMSEncryptionClient Final Frame"
_LABEL_SINGLE: Final = b"AWSKMSEncryptionClient Single Block"
_HEADER_IV: Final = bytes(IV_LENGTH)
_SHOWN: Final = 200  # characters of a header's text in a message for people


@dataclass(frozen=True, slots=True)
class EncryptedDataKey:
    """A message's data key, wrapped for one recipient. `provider` and `info` say for which."""

    provider: str
    info: bytes
    ciphertext: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """`info` as people read it: without the wrapping IV that a raw-AES keyring appends to the name."""
        raw_aes = 8 + IV_LENGTH
        tail = self.info[-raw_aes:-IV_LENGTH]
        text = self.info[:-raw_aes] if tail == struct.pack(">II", 128, IV_LENGTH) else self.info
        return text.decode("utf-8", "backslashreplace")

    @property
    def shown(self) -> str:
        """provider/name for people. A header's text is anyone's choice: no control characters, no endless line."""
        text = f"{self.provider}/{self.name}"
        if len(text) <= _SHOWN and text.isprintable():
            return text
        safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_SHOWN])
        return safe if len(text) <= _SHOWN else f"{safe}..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A parsed message header. Nothing in it is true before `MessageKey.open` has verified its tag."""

    suite: int
    message_id: bytes
    context: Context
    encrypted_data_keys: tuple[EncryptedDataKey, ...]
    frame_length: int  # bytes of plaintext per frame; 0: the body has no frames
    commitment: bytes  # empty: the suite has none
    body: bytes = field(repr=False)  # as read: what the tag covers
    tag: bytes = field(repr=False)
    iv: bytes | None = field(default=None, repr=False)  # of the tag, where the message holds it: version 1

    @property
    def curve_bits(self) -> int:
        """The size of the curve of the signature that follows the body; 0: none does."""
        old = legacy.SUITES.get(self.suite)
        if old is not None:
            return old.curve_bits
        return 384 if self.suite == SIGNED_SUITE else 0

    @property
    def signed(self) -> bool:
        """Whether a signature follows the body."""
        return self.curve_bits > 0

    @property
    def length(self) -> int:
        """Bytes from the start of the message to its first frame."""
        return len(self.body) + len(self.iv or b"") + TAG_LENGTH


class Truncated(DecryptionError):
    """The message ends inside its header. More bytes may complete it."""


def serialize_context(context: Context) -> bytes:
    """The context's canonical bytes: pairs sorted by key, empty for none. Also the AAD of every key wrap.

    Raises EncryptionError for more than fits the format's 16-bit lengths, or text that is not UTF-8.
    """
    if not context:
        return b""
    try:
        pairs = sorted((key.encode(), value.encode()) for key, value in context.items())
    except (UnicodeEncodeError, AttributeError) as error:
        raise EncryptionError(f"the encryption context must be UTF-8 text to text: {error}") from error
    if any(len(key) > 0xFFFF or len(value) > 0xFFFF for key, value in pairs) or len(pairs) > 0xFFFF:
        raise EncryptionError("the encryption context is too long: at most 65,535 bytes in all")
    parts = [struct.pack(">H", len(pairs))]
    for key, value in pairs:
        parts += (struct.pack(">H", len(key)), key, struct.pack(">H", len(value)), value)
    serialized = b"".join(parts)
    if len(serialized) > 0xFFFF:
        raise EncryptionError("the encryption context is too long: at most 65,535 bytes in all")
    return serialized


def check_context(context: Context) -> Context:
    """`context`, refusing keys that the format reserves. Raises EncryptionError."""
    for key in context:
        if str(key).startswith(RESERVED_CONTEXT):
            raise EncryptionError(f"context key {key!r} is reserved: the format keeps '{RESERVED_CONTEXT}' keys")
        if not key:
            raise EncryptionError("a context key must not be empty")
    return context


class _Reader:
    """Reads a header's fields from bytes, refusing to go past their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Truncated(f"the header is cut off at byte {len(self.data)}")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def u16(self) -> int:
        return int.from_bytes(self.take(2))

    def u32(self) -> int:
        return int.from_bytes(self.take(4))

    def field(self) -> bytes:
        """A 16-bit length and as many bytes: most of a header."""
        start = self.at + 2
        end = start + int.from_bytes(self.data[self.at : start])
        if end > len(self.data) or start > len(self.data):
            raise Truncated(f"the header is cut off at byte {len(self.data)}")
        self.at = end
        return self.data[start:end]


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise DecryptionError(f"{what} is not UTF-8") from error


def parse_context(data: bytes) -> Context:
    """A serialized context. Raises DecryptionError on duplicate or unsorted keys, bad UTF-8, or slack bytes."""
    if not data:
        return MappingProxyType({})
    reader = _Reader(data)
    context: dict[str, str] = {}
    previous = b""
    try:
        count = reader.u16()
        if count == 0:
            raise DecryptionError("the encryption context has a length but no pairs")
        for _ in range(count):
            key, value = reader.field(), reader.field()
            name = _text(key, "a context key")
            if name in context:
                raise DecryptionError(f"the encryption context has key {key[:_SHOWN]!r} twice")
            if not name.startswith(RESERVED_CONTEXT):  # some writers put the format's own keys at the end
                if key < previous:
                    raise DecryptionError(f"the encryption context has key {key[:_SHOWN]!r} out of order")
                previous = key
            context[name] = _text(value, "a context value")
    except Truncated:
        raise DecryptionError("the encryption context's lengths do not add up") from None
    if reader.at != len(data):
        raise DecryptionError("the encryption context has bytes left over")
    return MappingProxyType(context)


def looks_like_message(start: bytes) -> bool:
    """Whether a file's first bytes could be a message that this module reads."""
    return start[:3] == struct.pack(">BH", VERSION, SUITE)


def suite_name(suite: int) -> str:
    """A known suite's algorithms, for people."""
    old = legacy.SUITES.get(suite)
    if old is not None:
        return old.name
    return "AES-256-GCM, HKDF-SHA-512, key commitment" + (", ECDSA P-384" if suite == SIGNED_SUITE else "")


def _parse_suite(reader: _Reader, suites: Collection[int]) -> int:
    """The suite, which must be one of the message's version and allowed."""
    version = reader.take(1)[0]
    if version not in {VERSION, legacy.VERSION} or (version == legacy.VERSION and reader.take(1)[0] != legacy.TYPE):
        raise DecryptionError(f"this is not a version {VERSION} message (not an encrypted message)")
    suite = reader.u16()
    if version == legacy.VERSION:
        legacy.check_allowed(suite, suites)
    elif suite not in {SUITE, SIGNED_SUITE}:
        raise DecryptionError(
            f"algorithm suite 0x{suite:04x} is not read in version {VERSION} of the message format: only those that "
            f"commit to their key, 0x{SUITE:04x} and 0x{SIGNED_SUITE:04x}"
        )
    return suite


def parse_header(data: bytes, suites: Collection[int] = ()) -> Header:
    """The header at the start of `data` (which may go on beyond it). `suites`: those without commitment to be read.

    Raises Truncated when `data` ends first, DecryptionError when this is no header that is read here.
    """
    reader = _Reader(data)
    suite = _parse_suite(reader, suites)
    old = suite in legacy.SUITES
    message_id = reader.take(legacy.MESSAGE_ID_LENGTH if old else MESSAGE_ID_LENGTH)
    context = parse_context(reader.field())
    count = reader.u16()
    if not 1 <= count <= MAX_RECIPIENTS:
        raise DecryptionError(f"the header claims {count} recipients: 1 to {MAX_RECIPIENTS} are read")
    keys = []
    for _ in range(count):
        provider = _text(reader.field(), "a key provider's name")
        keys.append(EncryptedDataKey(provider, reader.field(), reader.field()))
        if reader.at > MAX_HEADER:
            raise DecryptionError(f"the header is longer than {MAX_HEADER} bytes")
    content_type = reader.take(1)[0]
    if content_type not in {_FRAMED, _UNFRAMED}:
        raise DecryptionError(f"content type {content_type} is neither framed (2) nor unframed (1)")
    if old:
        legacy.check_layout(reader.take(4), reader.take(1)[0], IV_LENGTH)
    frame_length = reader.u32()
    if content_type == _UNFRAMED:
        if frame_length != 0:
            raise DecryptionError(f"a body without frames has a frame length of {frame_length}")
    elif not 1 <= frame_length <= MAX_FRAME_LENGTH:
        raise DecryptionError(f"frame length {frame_length} is not between 1 and {MAX_FRAME_LENGTH} bytes")
    commitment = b"" if old else reader.take(KEY_LENGTH)
    body = data[: reader.at]
    iv = reader.take(IV_LENGTH) if old else None
    return Header(
        suite=suite,
        message_id=message_id,
        context=context,
        encrypted_data_keys=tuple(keys),
        frame_length=frame_length,
        commitment=commitment,
        body=body,
        tag=reader.take(TAG_LENGTH),
        iv=iv,
    )


def _derive(data_key: bytes, message_id: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA512(), length=KEY_LENGTH, salt=message_id, info=info).derive(data_key)


def _header_body(
    message_id: bytes, context: Context, recipients: Sequence[EncryptedDataKey], frame_length: int, commitment: bytes
) -> bytes:
    """A header's bytes before its tag, as they are written. Raises EncryptionError."""
    serialized = serialize_context(context)
    parts = [
        struct.pack(">BH", VERSION, SUITE),
        message_id,
        struct.pack(">H", len(serialized)),
        serialized,
        struct.pack(">H", len(recipients)),
    ]
    for edk in recipients:
        for value in (edk.provider.encode(), edk.info, edk.ciphertext):
            if len(value) > 0xFFFF:
                raise EncryptionError(f"the wrapped key for {edk.shown} is too long: 65,535 bytes per field")
            parts += (struct.pack(">H", len(value)), value)
    parts += (struct.pack(">BI", _FRAMED, frame_length), commitment)
    body = b"".join(parts)
    if len(body) > MAX_HEADER:
        raise EncryptionError(f"the header would be longer than {MAX_HEADER} bytes: fewer recipients, less context")
    return body


def header_length(context: Context, recipients: Sequence[EncryptedDataKey]) -> int:
    """Bytes of a header that would be written for these: no key is needed to know. Raises EncryptionError."""
    body = _header_body(bytes(MESSAGE_ID_LENGTH), context, recipients, FRAME_LENGTH, bytes(KEY_LENGTH))
    return len(body) + TAG_LENGTH


class MessageKey:
    """The keys derived for one message: seals and opens its header and frames.

    HKDF-SHA-512 with the message id as salt (RFC 5869; algorithm suite 0x0478), or as a `legacy` suite does. One object
    serves any number of threads: AESGCM holds no state between calls.
    """

    def __init__(self, data_key: bytes, message_id: bytes, suite: int = SUITE) -> None:
        old = legacy.SUITES.get(suite)
        expected = old.key_length if old else KEY_LENGTH
        if len(data_key) != expected:
            raise DecryptionError(f"the data key has {len(data_key)} bytes, not {expected}")
        self.suite = suite
        self.message_id = message_id
        if old:
            self.commitment = b""
            self.aead = AESGCM(old.derive(data_key, message_id, suite))
        else:
            self.commitment = _derive(data_key, message_id, b"COMMITKEY")
            self.aead = AESGCM(_derive(data_key, message_id, struct.pack(">H", suite) + b"DERIVEKEY"))

    @classmethod
    def open(cls, header: Header, data_key: bytes) -> MessageKey:
        """The keys of `header`, after its commitment and tag have been verified. Raises DecryptionError."""
        key = cls(data_key, header.message_id, header.suite)
        # both are empty for a suite without commitment, both have 32 bytes for any other: the suite decides, no input
        if not hmac.compare_digest(key.commitment, header.commitment):
            raise DecryptionError("the header does not commit to this key")
        try:
            key.aead.decrypt(header.iv or _HEADER_IV, header.tag, header.body)
        except InvalidTag:
            raise DecryptionError("the header was changed: its tag does not verify") from None
        return key

    def header(self, context: Context, encrypted_data_keys: Sequence[EncryptedDataKey], frame_length: int) -> Header:
        """A new header with its tag. Never made twice for one message id: the tag's nonce is fixed."""
        if self.suite != SUITE:
            raise EncryptionError(f"algorithm suite 0x{self.suite:04x} is not written: only 0x{SUITE:04x} is")
        if not 1 <= len(encrypted_data_keys) <= MAX_RECIPIENTS:
            raise EncryptionError(f"a message has 1 to {MAX_RECIPIENTS} recipients, not {len(encrypted_data_keys)}")
        body = _header_body(self.message_id, context, encrypted_data_keys, frame_length, self.commitment)
        return Header(
            suite=SUITE,
            message_id=self.message_id,
            context=context,
            encrypted_data_keys=tuple(encrypted_data_keys),
            frame_length=frame_length,
            commitment=self.commitment,
            body=body,
            tag=self.aead.encrypt(_HEADER_IV, b"", body),
        )

    def single_aad(self, length: int) -> bytes:
        """The AAD of a body without frames."""
        return self.message_id + _LABEL_SINGLE + struct.pack(">IQ", 1, length)

    def frame_aad(self, sequence: int, length: int, *, final: bool) -> bytes:
        """A frame's AAD: message id, label, sequence number, plaintext length (body AAD of the specification)."""
        label = _LABEL_FINAL if final else _LABEL_FRAME
        return self.message_id + label + struct.pack(">IQ", sequence, length)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the frames of a framed message lie, from its size alone. Proven only by the frames' own tags."""

    header_length: int
    frame_length: int
    frames: int  # regular frames before the final one
    final_length: int  # plaintext bytes in the final frame

    @classmethod
    def of(cls, header: Header, message_length: int) -> Geometry:
        """Raises DecryptionError when no whole message of these frames has that size."""
        return cls.fitting(header.length, header.frame_length, message_length)

    @classmethod
    def fitting(cls, header_length: int, frame_length: int, message_length: int) -> Geometry:
        """As `of`, without a header at hand."""
        rest = message_length - header_length - FINAL_OVERHEAD
        if rest < 0:
            raise DecryptionError("the message is cut off: it has no final frame")
        frames, final = divmod(rest, frame_length + FRAME_OVERHEAD)
        if final > frame_length:
            raise DecryptionError("the message is cut off or has bytes left over: its size fits no whole frames")
        if frames >= MAX_FRAMES:
            raise DecryptionError(f"the message has more than {MAX_FRAMES} frames")
        return cls(header_length, frame_length, frames, final)

    @classmethod
    def unframed(cls, header: Header, plaintext_length: int) -> Geometry:
        """A body without frames. Raises DecryptionError when it is too large to be held in memory."""
        if plaintext_length > MAX_UNFRAMED:
            raise DecryptionError(
                f"a body of {plaintext_length} bytes without frames is not read: at most {MAX_UNFRAMED}, since all of "
                "it has to be held until it is verified; encrypt it again with frames"
            )
        return cls(header.length, 0, 0, plaintext_length)

    @classmethod
    def plan(cls, header: Header, plaintext_length: int) -> Geometry:
        """How `plaintext_length` bytes are laid out. Raises EncryptionError when they are too many."""
        frames = max(0, (plaintext_length - 1) // header.frame_length)
        if frames >= MAX_FRAMES:
            raise EncryptionError("too large for the format's frame count: use longer frames")
        return cls(header.length, header.frame_length, frames, plaintext_length - frames * header.frame_length)

    @property
    def plaintext_length(self) -> int:
        return self.frames * self.frame_length + self.final_length

    @property
    def message_length(self) -> int:
        """Bytes of header and body; a signature comes after them."""
        if not self.frame_length:
            return self.header_length + UNFRAMED_OVERHEAD + self.final_length
        return (
            self.header_length + self.frames * (self.frame_length + FRAME_OVERHEAD) + FINAL_OVERHEAD + self.final_length
        )

    def offset(self, index: int) -> int:
        """Where frame `index` (from 0; `frames` is the final one) starts in the message."""
        return self.header_length + index * (self.frame_length + FRAME_OVERHEAD)
