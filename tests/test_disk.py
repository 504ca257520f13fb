import errno

import pytest

from popgraft.disk import reason, room, write_atomic


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError("power failure")

    for act in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(act, fail)
            with pytest.raises(OSError, match="power failure"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_says_how_much_is_free(tmp_path):
    full, missing = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.ENOENT, "No such file or directory")
    assert reason(full) == "no space left on device"
    assert reason(full, tmp_path / "not" / "there") == (
        f"no space left on device; {room(tmp_path)}: make room, or use another disk"
    )
    assert reason(missing, tmp_path) == "no such file or directory"
    assert reason(OSError("Odd")) == "odd"
    assert room(tmp_path).endswith(" MB are free there")
