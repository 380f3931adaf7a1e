"""A disk of a limited size, for tests: `io.open` ends writes as the system does on a full disk."""

import errno
import io
import os


class Disk:
    """Counts the bytes that are written below a folder, and refuses those beyond a size.

    Args:
        folder: The folder.
        monkeypatch: Replaces `io.open`, through which pathlib and zipfile write.
    """

    def __init__(self, folder, monkeypatch):
        self.written, self.size, self.ends = 0, None, []
        opened = io.open

        def limited(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **how):
            if how or isinstance(file, int) or not set(mode) & set("wax+") or not str(file).startswith(str(folder)):
                return opened(file, mode, buffering, encoding, errors, newline, **how)
            raw = _File(file, mode.replace("b", "").replace("t", ""))
            raw.disk = self
            stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return stream if "b" in mode else io.TextIOWrapper(stream, encoding, errors, newline)

        monkeypatch.setattr(io, "open", limited)


class _File(io.FileIO):
    def write(self, content):
        disk, content = self.disk, bytes(content)
        room = len(content) if disk.size is None else disk.size - disk.written
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n = super().write(content[:room])
        disk.written += n
        return n

    def close(self):
        if not self.closed and self.disk.ends[-1:] != [self.disk.written]:
            self.disk.ends.append(self.disk.written)
        super().close()
