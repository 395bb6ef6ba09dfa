"""The one exception that a user, not a developer, is meant to read."""

from difflib import get_close_matches


class UserError(Exception):
    """Input that cannot be used as given. The message is one line: what is wrong, where, and what to do.

    The commands print it and exit with code 2; every other exception is a defect and keeps its traceback.
    What the message quotes from files and their names is made printable here, once for all.
    """

    def __init__(self, message):
        super().__init__(printable(str(message)))


def near(name: str, known) -> str:
    """`did you mean a?` for a misspelt `name`, or the list of `known` names when none is near."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def printable(text: str) -> str:
    """Text from outside as it may go to a terminal and into UTF-8 files: control characters are shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
