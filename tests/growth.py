"""How work grows with what it is given: what a test may ask on a machine of any speed."""

import time


def seconds_of(work):
    """Of this process's processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def times_longer(few, many):
    """How much longer the work ``many`` takes than ``few``, which is tried three times."""
    return seconds_of(many) / min(seconds_of(few) for _ in range(3))
