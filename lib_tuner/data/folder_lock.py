"""The lock of a data folder: a file of its side folder that one program at a time holds open and locked."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..disk import take_lock

FILE, TRIES = "lock", 10
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_UNABLE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what some network disks say


def locked(folder: Path, side: Path) -> int:
    """The descriptor of the lock, held until it is closed. Raises ValueError where another program has it or the disk has no locks, OSError where it cannot be made."""
    for _ in range(TRIES):
        descriptor = os.open(side / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            take_lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise ValueError(f"{folder} is being edited by another program; end it there, or wait until it is done.") from None
            if error.errno in _UNABLE:
                raise ValueError(f"{side} is on a disk that cannot lock files ({error.strerror}), so two programs could write at once; copy the folder to another disk.") from None
            raise
        if is_held(descriptor, side):  # somebody may have deleted it in between; then another program could lock a new one
            return descriptor
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "its lock is another file each time that it is looked at")


def is_held(descriptor: int, side: Path) -> bool:
    """Whether the lock is still the one that others would find."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(side / FILE))
    except OSError:  # it was deleted, or the disk is gone
        return False
