"""The client's side of SCRAM-SHA-256 (RFC 5802, 7677)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

MIN_ITERATIONS = 4096
MAX_ITERATIONS = 1_000_000


class ScramError(ValueError):
    """The server cannot prove that it knows the password, or speaks something else."""


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


class Keys:
    """Salted passwords of one login: costly to make, the same for each of its connections."""

    def __init__(self, login: str, password: str) -> None:
        self.login = login
        self._password = password.encode()
        self._salted: dict[tuple[bytes, int], bytes] = {}

    def salted(self, salt: bytes, iterations: int) -> bytes:
        found = self._salted.get((salt, iterations))
        if found is None:
            found = hashlib.pbkdf2_hmac("sha256", self._password, salt, iterations)
            self._salted = {(salt, iterations): found}
        return found


class Exchange:
    """One conversation: send first(), hand the answer to second() and send that, verify()."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.nonce = base64.b64encode(secrets.token_bytes(24))
        name = keys.login.replace("=", "=3D").replace(",", "=2C").encode()
        self._bare = b"n=" + name + b",r=" + self.nonce
        self._proof_of_server = b""

    def first(self) -> bytes:
        return b"n,," + self._bare

    def second(self, answer: bytes) -> bytes:
        try:
            parts = dict(part.split(b"=", 1) for part in answer.split(b","))
            nonce, salt, iterations = parts[b"r"], parts[b"s"], int(parts[b"i"])
            salted_with = base64.b64decode(salt)
        except (ValueError, KeyError):
            raise ScramError("the server's answer cannot be read") from None
        if not nonce.startswith(self.nonce) or not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise ScramError("the server's answer is not one to ours")
        salted = self.keys.salted(salted_with, iterations)
        bare = b"c=biws,r=" + nonce
        signed = b",".join((self._bare, answer, bare))
        client = _hmac(salted, b"Client Key")
        signature = _hmac(hashlib.sha256(client).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client, signature, strict=True))
        self._proof_of_server = base64.b64encode(_hmac(_hmac(salted, b"Server Key"), signed))
        return bare + b",p=" + base64.b64encode(proof)

    def verify(self, answer: bytes) -> None:
        """ScramError unless the server has proved that it knows the password."""
        if not hmac.compare_digest(answer, b"v=" + self._proof_of_server):
            raise ScramError("the server does not know the password")
