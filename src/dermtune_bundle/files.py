"""Write files whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp


@contextmanager
def atomic_path(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it, on any failure remove it.

    Who reads `path` sees the old file or the whole new one. Missing folders are made. The temporary name
    ends in `path`'s suffixes, because many writers choose their format by it.

    Args:
        path: the file to write.
        new: whether there must be no such file yet; of several writers one succeeds.

    Raises:
        FileExistsError: `new`, and there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_default_mode())
        _sync(temporary)
        if new:
            path.hardlink_to(temporary)
            temporary.unlink()
        else:
            temporary.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if os.name != "nt":  # Windows can't sync a folder
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _default_mode() -> int:
    """The mode that open() would have given; mkstemp gives 0600, which a team's shared folder can't read."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
