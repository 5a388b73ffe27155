"""One thread for numpy's and scipy's linear algebra, as sessions have one: equal numbers everywhere, least CPU time.

(On two busy cores, the moments of resnet56 took 33 s of CPU time with OpenBLAS's own choice of threads, which wait by
spinning, and 6 s with one.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["one_blas_thread"]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold the linear algebra libraries loaded by now to one thread; does nothing where threadpoolctl is missing."""
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        yield
        return
    with threadpool_limits(limits=1, user_api="blas"):
        yield
