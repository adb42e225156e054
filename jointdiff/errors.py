"""The one exception that means "the input is wrong", as opposed to "jointdiff is wrong"."""


class InputError(ValueError):
    """A user's mistake, told in one line that names the file, the band and the number.

    Scripts print the message and exit with status 2; anything else keeps its traceback.
    """
