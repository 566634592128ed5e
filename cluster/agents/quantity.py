"""CPU and memory as Kubernetes writes them ("1000m", "2Gi"), parsed once to milli-CPU and bytes.

Grammar: an unsigned decimal number and a suffix (`m`; `k M G T P E`; `Ki Mi Gi Ti Pi Ei`; or none). Left out on purpose,
each with an error that says what to write instead: signs, exponents, blanks, suffixes below a thousandth, and memory in
thousandths of a byte, which is always a slip of the pen for megabytes.
"""

from __future__ import annotations

import re
from typing import Final

_QUANTITY = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?([A-Za-z]{0,2})")
_SUFFIX_MILLI: Final = {
    "m": 1,
    "": 1000,
    **{s: 1000 * 1000**i for i, s in enumerate("kMGTPE", start=1)},
    **{f"{s}i": 1000 * 1024**i for i, s in enumerate("KMGTPE", start=1)},
}
# The grammar for whoever writes a body by our schema; what parses is `_QUANTITY`.
QUANTITY_PATTERN: Final = rf"^[0-9]{{1,18}}(\.[0-9]{{1,9}})?({'|'.join(s for s in _SUFFIX_MILLI if s)})?$"
# More than any machine has; a number above is a mistake, and sums of them still fit 64 bits.
MAX_CPU_MILLI: Final = 1_024_000
MAX_MEMORY_BYTES: Final = 64 << 40


def parse_cpu(quantity: str | int) -> int:
    """Return the milli-CPU of `quantity` ("1000m", "0.5", "2", or a whole number of CPUs), 1 to 1,024,000.

    Raises ValueError with a sentence that says what is wrong.
    """
    milli = _parse_milli(quantity, 'CPU such as "500m" or "2"')
    if milli is None:
        raise ValueError(f"{_shown(quantity)} is finer than one thousandth of a CPU; the least is 1m")
    if milli == 0:
        raise ValueError("must be more than 0")
    if milli > MAX_CPU_MILLI:
        raise ValueError(f"{_shown(quantity)} is more than {MAX_CPU_MILLI // 1000} CPUs")
    return milli


def parse_memory(quantity: str | int) -> int:
    """Return the bytes of `quantity` ("2Gi", "512Mi", "1G", or a whole number of bytes), 1 to 64Ti.

    Raises ValueError with a sentence that says what is wrong.
    """
    if isinstance(quantity, str) and quantity.endswith("m"):
        raise ValueError(f"{_shown(quantity)} would be thousandths of a byte; write M (10^6) or Mi (2^20)")
    milli = _parse_milli(quantity, 'memory such as "512Mi" or "2Gi"')
    if milli is None or milli % 1000:
        raise ValueError(f"{_shown(quantity)} is not a whole number of bytes")
    if milli == 0:
        raise ValueError("must be more than 0")
    if milli > MAX_MEMORY_BYTES * 1000:
        raise ValueError(f"{_shown(quantity)} is more than 64Ti")
    return milli // 1000


def format_cpu(cpu_milli: int) -> str:
    """Return the shortest quantity that `parse_cpu` reads as `cpu_milli`."""
    return str(cpu_milli // 1000) if cpu_milli % 1000 == 0 else f"{cpu_milli}m"


def format_memory(memory_bytes: int) -> str:
    """Return the shortest binary quantity that `parse_memory` reads as `memory_bytes`."""
    for power, suffix in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if memory_bytes and memory_bytes % (1 << power) == 0:
            return f"{memory_bytes >> power}{suffix}"
    return str(memory_bytes)


def _parse_milli(quantity: str | int, example: str) -> int | None:
    """Return thousandths of the unit, exactly; None when there are digits below a thousandth."""
    # True is an int to Python, and must not become one CPU.
    if isinstance(quantity, bool) or not isinstance(quantity, str | int):
        raise ValueError(f"must be {example}, as text")  # noqa: TRY004  # pydantic reports ValueErrors by field
    text = str(quantity) if isinstance(quantity, str) or -(10**18) < quantity < 10**18 else ""
    match = _QUANTITY.fullmatch(text)
    if not match or match[3] not in _SUFFIX_MILLI:
        raise ValueError(f"must be {example}: no sign, blank or exponent; got {_shown(quantity)}")
    fraction = match[2] or ""
    scaled = int(match[1] + fraction) * _SUFFIX_MILLI[match[3]]
    milli, rest = divmod(scaled, 10 ** len(fraction))
    return None if rest else milli


def _shown(quantity: str | int) -> str:
    # A number of thousands of digits can't even be printed.
    if isinstance(quantity, int) and abs(quantity) >= 10**18:
        return "a number of more than 18 digits"
    return repr(str(quantity)[:40])
