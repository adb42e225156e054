"""Seeds: one per purpose, so that no two streams of random numbers are the same."""

import hashlib


def seed_of(*parts: object) -> int:
    """A seed from what it is for: a purpose, a run's seed, a rank, a number …; the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
