"""What the process of the tests has open."""

import gc
import os


def descriptors() -> set[str]:
    """Numbers of what is open, without what other tests have left to the collector."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))
