"""The one exception of this package."""


class DataError(Exception):
    """The data cannot be used as given; the message says what, where and what to do."""
