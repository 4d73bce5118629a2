"""Reads one replication connection in the event loop and hands on what it decodes.

The loop is never held longer than BUDGET: what remains waits for its next turn, and the server
waits for us. So memory stays bounded however large a transaction is.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import generators, pq
from psycopg.conninfo import make_conninfo

from ichicore.live.change import Change, Publish
from ichicore.live.pgoutput import Decoder
from server.base.guarded import OPTIONS

BUDGET = 0.002  # seconds of the loop that one turn may take
BATCH = 64  # messages decoded before what they hold is handed on
AGAIN_SECONDS = 0.001
REPORT_SECONDS = 2.0
REPORT_BYTES = 64 << 20  # of log, after which the server is told at once what it may forget
ASK_SECONDS = 10.0  # silence after which the server is asked whether it is there
DEAD_SECONDS = 30.0  # silence after which the connection is given up
EPOCH = 946_684_800  # 2000-01-01, from which Postgres counts
STATUS = struct.Struct(">cQQQqB")
# Text is the form from which to_json can be followed for every type; these make it unambiguous.
SETTINGS = (
    "-c datestyle=ISO,MDY -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex "
    "-c extra_float_digits=1 -c lock_timeout=0 -c statement_timeout=0 "
    "-c idle_in_transaction_session_timeout=0 -c wal_sender_timeout=60s"
)

Connection = psycopg.AsyncConnection[Any]


class StreamEnded(RuntimeError):
    """The stream broke off; the text says why, `sqlstate` where the server said so."""

    def __init__(self, text: str, sqlstate: str = "") -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


async def connect(dsn: str, *, replication: bool) -> Connection:
    """A connection of the feed's login, for the stream or for anything else."""
    options = {
        "application_name": "ichibase feed", "connect_timeout": "10", "client_encoding": "UTF8",
        "options": f"{OPTIONS} {SETTINGS}", "keepalives_idle": "15", "keepalives_interval": "5",
        "keepalives_count": "3", **({"replication": "database"} if replication else {}),
    }  # fmt: skip
    return await psycopg.AsyncConnection.connect(
        make_conninfo(dsn, **options), autocommit=True, prepare_threshold=None
    )


class Stream:
    """hand_over takes each change or message, or not: then it is offered again. It may not block.
    learn is called when types are missing; the stream goes on with resume(). altered is called
    after DDL."""

    def __init__(
        self,
        connection: Connection,
        decoder: Decoder,
        hand_over: Callable[[Change | Publish], bool],
        learn: Callable[[], None],
        altered: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.decoder = decoder
        self.hand_over = hand_over
        self.learn = learn
        self.altered = altered
        self.pending: deque[Change | Publish] = deque()
        self.handed_lsn = decoder.end_lsn
        self._loop = asyncio.get_running_loop()
        self._socket = -1
        self._pointer = 0
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False  # what is offered next was not taken a moment ago
        self._paused = False  # data waits in the socket, which is not watched meanwhile
        self._reported = 0
        self._heard = self._asked = time.monotonic()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def start(self, command: str) -> None:
        """Sends START_REPLICATION. psycopg.Error or StreamEnded when the server refuses."""
        pgconn = self.connection.pgconn
        pgconn.send_query(command.encode())
        results = await self.connection.wait(generators.fetch_many(pgconn))
        last = results[-1] if results else None
        if last is None or last.status != pq.ExecStatus.COPY_BOTH:
            raise _refusal(last, pgconn)
        pgconn.nonblocking = 1
        self._pointer = pgconn.pgconn_ptr or 0  # type: ignore[attr-defined]
        self._socket = pgconn.socket
        self._loop.add_reader(self._socket, self._readable)
        self._timer = self._loop.call_later(REPORT_SECONDS, self._tick)
        self._scheduled = self._loop.call_soon(self._turn)

    async def ended(self) -> None:
        """Waits for the end, hands over what was decoded before it, and raises it."""
        try:
            await self._ended
        except Exception:
            while self.pending:  # the decoder will not give it a second time
                if self.hand_over(self.pending[0]):
                    self.pending.popleft()
                else:
                    await asyncio.sleep(AGAIN_SECONDS)
            raise

    def close(self) -> None:
        """Reports what was handed over and lets go of the connection."""
        if self._socket >= 0:
            self._loop.remove_reader(self._socket)
            self._socket = -1
        if self._pointer and (not self._ended.done() or self._ended.cancelled()):
            self._report()
        self._ended.cancel()
        if not self._ended.cancelled():
            self._ended.exception()  # told to whoever waits for the end
        for handle in (self._scheduled, self._timer):
            if handle is not None:
                handle.cancel()
        self.connection.pgconn.finish()

    def resume(self) -> None:
        """Goes on after the missing types were added."""
        try:
            self.decoder.resume()
        except Exception as error:
            self.fail(error)
        else:
            self._schedule()

    def _schedule(self) -> None:
        if self._scheduled is None and not self._ended.done():
            if self._refused:
                self._scheduled = self._loop.call_later(AGAIN_SECONDS, self._turn)
                self._refused = False
            else:
                self._scheduled = self._loop.call_soon(self._turn)

    def fail(self, error: BaseException) -> None:
        """Ends the stream with this error."""
        if self._ended.done():
            return
        if self._socket >= 0:
            self._loop.remove_reader(self._socket)
        self._ended.set_exception(error)

    def _readable(self) -> None:
        if self._scheduled is not None or self.decoder.missing:
            # Whoever reads on is not stopped by a level that stays high: pause until then.
            self._loop.remove_reader(self._socket)
            self._paused = True
            return
        try:
            self.connection.pgconn.consume_input()
        except psycopg.Error as error:
            self.fail(StreamEnded(str(error).strip()))
            return
        self._turn()

    def _turn(self) -> None:
        """One turn of decoding and handing over."""
        self._scheduled = None
        if self._ended.done():
            return
        try:
            more = self._work(time.monotonic() + BUDGET)
        except Exception as error:
            self.fail(error)
            return
        if more:
            self._schedule()
            return
        if self._paused:
            self._paused = False
            self._loop.add_reader(self._socket, self._readable)

    def _work(self, until: float) -> bool:
        """Whether there is more to do before the socket is read again."""
        decoder, pending = self.decoder, self.pending
        while True:
            while pending:
                if not self.hand_over(pending[0]):
                    self._refused = True
                    return True
                pending.popleft()
                if time.monotonic() > until:
                    return True
            if decoder.missing:
                self.learn()
                return False
            messages = decoder.drain(self._pointer, BATCH)
            pending.extend(decoder.take())
            if decoder.schema_changed:
                decoder.schema_changed = False
                self.altered()
            if messages < 0:
                raise self._last_words()
            if messages:
                self._heard = time.monotonic()
                if self._heard > until:
                    return True
            elif not pending:
                break
        self.handed_lsn = decoder.end_lsn
        if decoder.reply_wanted or self.handed_lsn - self._reported > REPORT_BYTES:
            self._report()
        return False

    def _last_words(self) -> StreamEnded:
        pgconn = self.connection.pgconn
        result = None
        if not pgconn.is_busy():
            result = pgconn.get_result()
        return _refusal(result, pgconn, self.decoder.error)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._heard > DEAD_SECONDS and self._scheduled is None:
            self.fail(StreamEnded(f"the server was silent for {DEAD_SECONDS:.0f} s"))
            return
        ask = now - max(self._heard, self._asked) > ASK_SECONDS
        if ask or self.handed_lsn != self._reported:
            self._report(ask=ask)
        if not self._ended.done():
            self._timer = self._loop.call_later(REPORT_SECONDS, self._tick)

    def _report(self, *, ask: bool = False) -> None:
        """Tells the server up to where it may forget its log."""
        lsn = self.handed_lsn
        micros = int((time.time() - EPOCH) * 1_000_000)
        pgconn = self.connection.pgconn
        try:
            pgconn.put_copy_data(STATUS.pack(b"r", lsn, lsn, lsn, micros, int(ask)))
            pgconn.flush()
        except psycopg.Error as error:
            self.fail(StreamEnded(str(error).strip()))
            return
        self._reported = lsn
        self.decoder.reply_wanted = False
        if ask:
            self._asked = time.monotonic()


def _refusal(
    result: pq.abc.PGresult | None, pgconn: pq.abc.PGconn, otherwise: str | None = None
) -> StreamEnded:
    text, state = otherwise or "", ""
    if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
        text = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    if not text:
        text = pgconn.error_message.decode(errors="replace").strip()
    return StreamEnded(text or "the server ended the stream", state)
