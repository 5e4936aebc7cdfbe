"""Frames of a message, sealed and opened in memory, and the threads that share a file's frames among them."""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, cast

from cryptography import __version__ as cryptography_version
from cryptography.exceptions import InvalidTag

from securemfg.encryption.keys import GeneratingKey, Key
from securemfg.encryption.message import (
    FINAL_MARK,
    FRAME_LENGTH,
    IV_LENGTH,
    KEY_LENGTH,
    MESSAGE_ID_LENGTH,
    TAG_LENGTH,
    UNFRAMED_OVERHEAD,
    Context,
    Header,
    MessageKey,
    check_context,
)
from securemfg.errors import DecryptionError

PARALLEL_FROM: Final = 4 * FRAME_LENGTH  # bytes; below it a second thread costs more than it brings


@cache
def parallel() -> bool:
    """Whether this `cryptography` releases the GIL while it encrypts, so that threads help."""
    return int(cryptography_version.split(".", 1)[0]) >= 50


def workers_for(plaintext_length: int) -> int:
    """How many threads one file is worth."""
    if not parallel() or plaintext_length < PARALLEL_FROM:
        return 1
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def new_message(keys: Sequence[Key], context: Context, frame_length: int) -> tuple[MessageKey, Header]:
    check_context(context)
    first, *others = keys
    generating = cast("GeneratingKey", first) if hasattr(first, "generate") else None  # 10 us less than isinstance
    if generating is not None:  # its service makes the data key: one call instead of none and one
        data_key, wrapped = generating.generate(context)
    else:
        data_key = secrets.token_bytes(KEY_LENGTH)
        wrapped = first.wrap(data_key, context)
    message_key = MessageKey(data_key, secrets.token_bytes(MESSAGE_ID_LENGTH))
    recipients = [wrapped, *(key.wrap(data_key, context) for key in others)]
    return message_key, message_key.header(context, recipients, frame_length)


def seal(key: MessageKey, sequence: int, plaintext: memoryview, out: memoryview, *, final: bool) -> int:
    """Write one whole frame to `out`; return its length. Its IV is its sequence number, so it is used once."""
    number = sequence.to_bytes(4)
    iv = sequence.to_bytes(IV_LENGTH)
    length = len(plaintext)
    start = number + iv
    if final:
        start = FINAL_MARK + start + length.to_bytes(4)
    at = len(start)
    out[:at] = start
    end = at + length + TAG_LENGTH
    aad = key.frame_aad(sequence, length, final=final)
    if parallel():
        key.aead.encrypt_into(iv, plaintext, aad, out[at:end])
    else:
        out[at:end] = key.aead.encrypt(iv, plaintext, aad)
    return end


def open_frame(key: MessageKey, sequence: int, frame: memoryview, out: memoryview, *, final: bool) -> int:
    """Verify and decrypt one whole frame into `out`; return the plaintext's length. Raises DecryptionError."""
    at = 0
    if final:
        if bytes(frame[:4]) != FINAL_MARK:
            raise DecryptionError(f"frame {sequence} is not marked as the final one: cut off, or frames were moved")
        at = 4
    if int.from_bytes(frame[at : at + 4]) != sequence:
        raise DecryptionError(f"frame {sequence} has another sequence number: frames were moved or removed")
    iv = frame[at + 4 : at + 4 + IV_LENGTH]  # as stored: other implementations choose other IVs
    at += 4 + IV_LENGTH
    length = len(frame) - at - TAG_LENGTH
    if final:
        length -= 4
        if int.from_bytes(frame[at : at + 4]) != length:
            raise DecryptionError("the final frame's length is wrong: cut off, or bytes left over")
        at += 4
    aad = key.frame_aad(sequence, length, final=final)
    try:
        if parallel():
            key.aead.decrypt_into(iv, frame[at:], aad, out[:length])
        else:
            out[:length] = key.aead.decrypt(iv, frame[at:], aad)
    except InvalidTag:
        raise DecryptionError(f"frame {sequence} was changed: its tag does not verify") from None
    return length


def open_single(key: MessageKey, body: memoryview) -> bytes:
    """Verify and decrypt a body without frames. Raises DecryptionError."""
    iv, length = body[:IV_LENGTH], int.from_bytes(body[IV_LENGTH : IV_LENGTH + 8])
    if len(body) != length + UNFRAMED_OVERHEAD:
        raise DecryptionError("the message is cut off or has bytes left over")
    try:
        return key.aead.decrypt(iv, body[IV_LENGTH + 8 :], key.single_aad(length))
    except InvalidTag:
        raise DecryptionError("the body was changed: its tag does not verify") from None


def run_shared(work: Callable[[Callable[[], int | None]], None], count: int, workers: int) -> None:
    """Run `work` in `workers` threads, this one among them; each draws the next index until `count` or a failure."""
    indexes = itertools.count()
    failures: list[BaseException] = []

    def draw() -> int | None:
        index = next(indexes)
        return index if index < count and not failures else None

    def run() -> None:
        try:
            work(draw)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failures.append(error)

    threads: list[threading.Thread] = []
    try:
        for _ in range(workers - 1):
            thread = threading.Thread(target=run, name="securemfg-frames", daemon=True)
            threads.append(thread)  # before it starts: an interrupt inside start() must not lose it
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending: fewer do it too
                break
        run()
    except BaseException as error:  # noqa: BLE001 - an interrupt: raised below, once the others have ended
        failures.append(error)
    for thread in threads:
        while thread.is_alive():  # a thread that outlived this call would write to a descriptor's next owner
            try:
                thread.join()
            except BaseException as error:  # noqa: BLE001 - as above
                failures.append(error)
    if failures:
        raise failures[0]
