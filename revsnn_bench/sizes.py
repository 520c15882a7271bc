"""Sizes in bytes as people write them: `4 MiB`, `1.5 GiB`, `4096`."""

import re

UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_size(text: str | int) -> int:
    """Bytes of a size with a binary unit.

    Raises:
        ValueError: no number, or a unit other than B, KiB, MiB, GiB and TiB; MB is refused because it is read as both.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None or match[2] not in UNITS:
        raise ValueError(
            f"`size` must be a number with B, KiB, MiB, GiB or TiB; got {text!r}. Units of 1000 and of 1024 are "
            'easily confused. Pass for example "64 MiB".'
        )
    return int(float(match[1]) * UNITS[match[2]])
