"""CloudWatch Logs, as the shipper needs it: one stream per writer, put_log_events with the journal's exact bytes.

Rights needed: logs:PutLogEvents and logs:CreateLogStream on the group, and logs:CreateLogGroup when the settings
let it be made. botocore's own retries are off: the shipper retries, with its own backoff and without an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from securemfg.errors import AuditError, EvidenceError

__all__ = [
    "BATCH_BYTES",
    "BATCH_EVENTS",
    "BATCH_SPAN_MS",
    "BatchRefused",
    "CloudWatchLogs",
    "Rejected",
    "check",
    "logs_client",
]

BATCH_BYTES: Final = 1_048_576  # a batch: the messages' UTF-8 and the overhead of each
BATCH_EVENTS: Final = 10_000
BATCH_SPAN_MS: Final = 24 * 3600 * 1000
EVENT_OVERHEAD: Final = 26  # bytes
OLDEST_MS: Final = 14 * 24 * 3600 * 1000 - 3600 * 1000  # 14 days, less an hour for the way there
NEWEST_MS: Final = 2 * 3600 * 1000 - 600 * 1000  # 2 hours ahead, less ten minutes

_REFUSED: Final = frozenset({"InvalidParameterException", "SerializationException", "RequestEntityTooLarge", "413"})
_SIGNED_OUT: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
    }
)


class BatchRefused(AuditError):
    """The service refuses the batch's content: sending it again as it is will not help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Positions in a batch that the service did not keep although it accepted the rest."""

    positions: frozenset[int]
    reason: str


def logs_client(region: str | None = None, **options: Any) -> Any:
    """A CloudWatch Logs client: connect in 3 s, read in 10 s, no retries of its own. `options` go to boto3."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1, "mode": "standard"})
    return boto3.client("logs", region_name=region, config=config, **options)


def check(group: str, region: str | None = None, *, create: bool = True, client: Any = None) -> str:
    """What the service says of the log group: whether it is there and how long it keeps events, in one line.

    Needs logs:DescribeLogGroups. Raises EvidenceError when the service cannot be asked, or when the group is not there
    and `create` (as the settings say) leaves it to others.
    """
    wanted: dict[str, Any] = {"logGroupNamePrefix": group}
    try:
        logs = client or logs_client(region)
        while True:
            page = logs.describe_log_groups(**wanted)
            found = next((one for one in page["logGroups"] if one["logGroupName"] == group), None)
            if found is not None or not page.get("nextToken"):
                break
            wanted["nextToken"] = page["nextToken"]
    except Exception as error:
        raise EvidenceError(
            f"CloudWatch Logs could not be asked about {group!r}: "
            f"{_code(error) or f'{type(error).__name__}: {error}'}; check the region, the "
            "endpoint, the credentials and the right logs:DescribeLogGroups"
        ) from error
    if found is None:
        if not create:
            raise EvidenceError(f"the log group {group!r} is not there: make it, or set audit.cloudwatch.create = true")
        return f"log group {group} is not there yet: the first shipment makes it, keeping events for ever"
    days = found.get("retentionInDays")
    return f"log group {group} keeps events {f'{days} days' if days else 'for ever'}"


class CloudWatchLogs:
    """A log group. `factory` makes the client, on first use and again when its credentials have run out."""

    def __init__(
        self,
        factory: Callable[[], Any],
        group: str,
        *,
        create: bool = True,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.group = group
        self._factory = factory
        self._create = create
        self._guard = guard
        self._client: Any = None
        self._streams: set[str] = set()

    def put(self, stream: str, events: Sequence[tuple[int, str]]) -> Rejected | None:
        """Send (milliseconds since 1970, message) pairs in order of time, at most one batch.

        Returns which ones the service did not keep. Raises BatchRefused, or AuditError when trying again may help.
        """
        with self._guard():
            self.prepare(stream)
            answer = self._call(
                "put_log_events",
                logGroupName=self.group,
                logStreamName=stream,
                logEvents=[{"timestamp": moment, "message": message} for moment, message in events],
            )
        return _rejected((answer or {}).get("rejectedLogEventsInfo"), len(events))

    def prepare(self, stream: str) -> None:
        """Make the group (as the settings say) and the stream, once. Raises AuditError."""
        if stream in self._streams:
            return
        if self._create and not self._streams:
            try:
                self._call("create_log_group", logGroupName=self.group)
            except AuditError as error:
                if _code(error.__cause__) not in {"AccessDeniedException", "AccessDenied"}:
                    raise
                # without that right the group may still be there: making the stream will tell
        self._call("create_log_stream", logGroupName=self.group, logStreamName=stream)
        self._streams.add(stream)

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            if self._client is None:
                self._client = self._factory()
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except Exception as error:
            code = _code(error)
            if code in {"ResourceAlreadyExistsException", "DataAlreadyAcceptedException"}:
                return None
            if code == "ResourceNotFoundException":
                self._streams.clear()  # made again before the next attempt
            if code in _SIGNED_OUT or not code:
                self._client = None  # fresh credentials, fresh connections
            refused = code in _REFUSED and operation == "put_log_events"
            raise (BatchRefused if refused else AuditError)(
                f"CloudWatch Logs {operation} on {self.group!r} failed: {code or type(error).__name__}; "
                "check the endpoint, the credentials and the rights named in the reference"
            ) from error
        return answer


def _code(error: BaseException | None) -> str:
    """The AWS error code, or nothing when the service did not answer."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def _rejected(info: dict[str, int] | None, count: int) -> Rejected | None:
    if not info:
        return None
    old = max(info.get("tooOldLogEventEndIndex", 0), info.get("expiredLogEventEndIndex", 0))
    new = info.get("tooNewLogEventStartIndex", count)
    positions = frozenset(range(min(old, count))) | frozenset(range(new, count))
    if not positions:
        return None
    reasons = [name for name, hit in (("too old or expired", old > 0), ("too new", new < count)) if hit]
    return Rejected(positions=positions, reason=" and ".join(reasons))
