"""What the core refuses, each naming the thing. A refused event has changed nothing."""


class CoreError(ValueError):
    """Base of everything the core refuses."""


class ClockError(CoreError):
    """Time went backwards."""


class UnknownIdError(CoreError):
    """An event names something the scheduler has not been told about."""


class DuplicateIdError(CoreError):
    """An id that is in use was introduced again."""


class RangeError(CoreError):
    """A number that cannot be meant."""


class LifecycleError(CoreError):
    """A move that is not in the tables of ``model``."""


class InvariantError(AssertionError):
    """A law of ``invariants`` does not hold; carries the story of the last events."""
