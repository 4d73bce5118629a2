"""A WebSocket client that behaves as the SDKs do: it reconnects and subscribes again."""

from __future__ import annotations

import asyncio
import json
import time

from picows import WSListener, WSMsgType, ws_connect


class Socket(WSListener):
    """One connection; its frames go to `frames` with the moment they came."""

    def __init__(self):
        self.frames = asyncio.Queue()
        self.gone = asyncio.Event()
        self.transport = None

    def on_ws_connected(self, transport):
        self.transport = transport

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.TEXT:
            self.frames.put_nowait((time.monotonic(), json.loads(frame.get_payload_as_bytes())))
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport):
        self.gone.set()

    def send(self, **frame):
        self.transport.send(WSMsgType.TEXT, json.dumps(frame).encode())

    async def next(self, seconds=60):
        """The next frame."""
        return (await asyncio.wait_for(self.frames.get(), seconds))[1]

    def close(self):
        if self.transport is not None:
            self.transport.disconnect()


async def open_socket(url, token):
    """url: of the project, http://..."""
    _, socket = await ws_connect(Socket, url.replace("http", "ws", 1) + "/realtime?token=" + token)
    return socket


async def subscribed(url, token, *tables, **more):
    """A socket with these subscriptions, all acknowledged."""
    socket = await open_socket(url, token)
    try:
        for number, table in enumerate(tables):
            socket.send(type="subscribe", ref=f"s{number}", kind="postgres", table=table, **more)
        for _ in tables:
            frame = await socket.next()
            assert frame["type"] == "subscribed", frame
    except BaseException:
        socket.close()
        raise
    return socket
