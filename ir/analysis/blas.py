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
    """Hold numpy's and scipy's linear algebra to one thread."""
    import scipy.linalg  # noqa: F401  # has a library of its own, and only those that are loaded are held
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

    with threadpool_limits(limits=1, user_api="blas"):
        yield
