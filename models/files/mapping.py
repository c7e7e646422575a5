"""Parts of memory-mapped files."""

import mmap

_LARGE = 1 << 22  # bytes


def release(mapped: mmap.mmap, start: int, nbytes: int) -> None:
    """Unmap the pages of a large part that was copied: otherwise a file read tensor by tensor would
    count as this process's memory in the end. They stay in the system's cache.
    """
    if nbytes >= _LARGE and hasattr(mmap, "MADV_DONTNEED"):
        first = start - start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, start + nbytes - first)
