"""Two names of one file system that change places at once, where the system can do that."""

import ctypes
import errno
import os
import sys
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are those of this process
_SWAP = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> bool:
    """Let each of two paths that exist name what the other named; at no moment is either missing.

    Returns:
        Whether it was done; not where the system or the file system has no such thing.

    Raises:
        OSError: The system refused for another reason.
    """
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        failed = (
            library.renamex_np(first, second, _SWAP)
            if sys.platform == "darwin"
            else library.renameat2(_HERE, first, _HERE, second, _SWAP)
        )
    except AttributeError:  # an older C library
        return False
    code = ctypes.get_errno()
    if failed and code not in _CANNOT:
        raise OSError(code, os.strerror(code), str(one), None, str(other))
    return not failed
