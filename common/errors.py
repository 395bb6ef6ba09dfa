"""The one exception that a user, not a developer, is meant to read."""


class UserError(Exception):
    """Input that cannot be used as given. The message is one line: what is wrong, where, and what to do.

    The commands print it and exit with code 2; every other exception is a defect and keeps its traceback.
    """


def near(name: str, known) -> str:
    """`did you mean a, b?` for a misspelt `name`, or the list of `known` names when none is near."""
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
