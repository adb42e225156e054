"""The one exception that means "the input is wrong", as opposed to "jointdiff is wrong"."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class InputError(ValueError):
    """A user's mistake, told in one line that names the file, the band and the number.

    Scripts print the message and exit with status 2; anything else keeps its traceback.
    """


def closest(word: str, valid: Iterable[str]) -> str:
    """The valid name most like ``word``, in whole or in its last part (a key put into the wrong section)."""

    def likeness(name: str) -> float:
        pairs = ((word, name), (word.split(".")[-1], name.split(".")[-1]))
        return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(valid, key=likeness)
