"""Powers of ten as the encoder of floats (csrc/pgjson_number.c) needs them."""

from __future__ import annotations

from collections.abc import Iterator


def table(low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Of each exponent from low to high: itself, and the upper and lower half of its power as a
    128-bit number with the top bit set, rounded up."""
    for exponent in range(low, high + 1):
        if exponent >= 0:
            power = 10**exponent
            shift = power.bit_length() - 128
            scaled = -(-power >> shift) if shift > 0 else power << -shift
        else:
            power = 10**-exponent
            shift = power.bit_length() + 127
            scaled = -(-(1 << shift) // power)
            if scaled.bit_length() > 128:
                scaled = -(-(1 << (shift - 1)) // power)
        yield exponent, scaled >> 64, scaled & 0xFFFFFFFFFFFFFFFF
