from typing import Any, final

@final
class Change:
    kind: str
    source: str
    event: str
    record_json: bytes | None
    old_json: bytes | None
    partial: bool
    lsn: int
    sequence: int
    def __init__(
        self,
        kind: str,
        source: str,
        event: str,
        record: dict[str, Any] | None = None,
        old: dict[str, Any] | None = None,
        record_json: bytes | None = None,
        old_json: bytes | None = None,
        position: str = "",
        partial: bool = False,
    ) -> None: ...
    @property
    def record(self) -> dict[str, Any] | None: ...
    @property
    def old(self) -> dict[str, Any] | None: ...
    @property
    def position(self) -> str: ...

@final
class Publish:
    channel: str
    event: str
    payload_json: bytes
    lsn: int
    sequence: int
    def __init__(
        self, channel: str, event: str, payload_json: bytes, position: str = ""
    ) -> None: ...
    @property
    def position(self) -> str: ...
