"""A small JSON server over TLS 1.3, for demonstrations and tests on one machine."""

from __future__ import annotations

import json
import logging
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["JsonServer"]

Handler = Callable[[str, object], object]

_log = logging.getLogger(__name__)
_TIMEOUT: Final = 10.0  # seconds, for a handshake and for each read
_MOST: Final = 16 << 20  # bytes in one request


class JsonServer:
    """Answers each request with `handler(path, body)` as JSON, in a thread of its own, until the `with` ends.

    `context` is a server context (`contexts.server_context`); None serves plain http, for tests. `body` is
    the parsed JSON, None without one. The handler's LookupError becomes 404, ValueError 400, anything else
    500. Each handshake runs in its client's thread, so a client that stalls or fails holds up nobody.
    """

    def __init__(
        self, handler: Handler, context: ssl.SSLContext | None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._handler = handler
        self._context = context
        self._address = (host, port)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        if self._server is None:
            raise RuntimeError("the server is not running: use it in a 'with'")
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """`https://host:port`, by the address it listens on."""
        return f"{'http' if self._context is None else 'https'}://{self._address[0]}:{self.port}"

    def __enter__(self) -> Self:
        self._server = _Server(self._address, self._handler, self._context)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            name="securemfg-json",
            daemon=True,
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a stalled client does not hold up the end either
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: Handler, context: ssl.SSLContext | None) -> None:
        super().__init__(address, _Request)
        self.handler = handler
        self.context = context

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        request.settimeout(_TIMEOUT)
        if self.context is not None:
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except OSError as error:  # this client's affair; ssl has closed the socket
                _log.debug("handshake with %s failed: %s", client_address, error)
                request.close()
                return
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("request of %s broke off (%s)", client_address, type(request).__name__, exc_info=True)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    server_version = "securemfg"
    sys_version = ""

    def _answer(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= _MOST:
                self.close_connection = True
                self._send(413, {"error": f"at most {_MOST} bytes"})
                return
            data = self.rfile.read(length)
            body = json.loads(data) if data else None
            status, answer = 200, self.server.handler(self.path, body)
            text = json.dumps(answer)
        except LookupError as error:
            self._send(404, {"error": str(error)})
        except ValueError as error:
            self._send(400, {"error": str(error)})
        except Exception:  # noqa: BLE001 - whatever the handler does, this client gets an answer
            _log.exception("handler failed")
            self._send(500, {"error": "internal error"})
        else:
            self._send(status, text)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the names http.server calls

    def _send(self, status: int, answer: object) -> None:
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of http.server
        _log.debug(format, *args)
