"""Which code this is: what results of other code are told by."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_digest() -> str:
    """sha256 of the package's sources: a version number alone would not know of a change between releases."""
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    named = [f"{path.relative_to(package)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()
