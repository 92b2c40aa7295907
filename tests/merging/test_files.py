"""Outputs: links stay, nothing but a regular file is replaced, no two outputs are one file, nothing stale is left."""

import os
import socket
import stat
import subprocess
import sys

import pytest

from bounds.types import InputError
from merging import files
from merging.files import check_destination, check_folder, check_outputs, replacing, replacing_folder, write


def put(path, content=b"new"):
    write(path, lambda file: file.write(content))


def stale(target):
    """The temporary file of a run that is no more."""
    path = target.with_name(f".{target.name}.mergebound-{'0' * 8}")
    path.write_bytes(b"half")
    return path


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_the_file_behind_it_is_written(tmp_path, dangling):
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "real.pt", tmp_path / "out.pt"
    if not dangling:
        real.write_bytes(b"old")
    link.symlink_to(real)
    put(link)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert os.listdir(tmp_path / "elsewhere") == ["real.pt"]


def make(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif os.geteuid():
        pytest.skip("only root makes devices")
    else:  # a private copy of the null device
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


@pytest.mark.parametrize("through_a_link", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_nothing_but_a_regular_file_is_replaced(tmp_path, monkeypatch, kind, through_a_link):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = tmp_path / "x"
    make(kind, path.relative_to(tmp_path))
    before, target = os.lstat(path), path
    if through_a_link:
        target = tmp_path / "link"
        target.symlink_to(path)
    for attempt in (check_destination, put):
        with pytest.raises(InputError, match=f"got a {kind}"):
            attempt(target)
    assert os.lstat(path).st_ino == before.st_ino
    assert len(os.listdir(tmp_path)) == 1 + through_a_link


def test_what_becomes_a_pipe_meanwhile_stays_one(tmp_path):
    with pytest.raises(InputError, match="got a pipe"), replacing(tmp_path / "out.pt"):
        os.mkfifo(tmp_path / "out.pt")
    assert [p.is_fifo() for p in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, "File name too long"),
        ("none/out.pt", "a writable folder"),
        ("file/out.pt", "Not a directory"),
        ("loop", "symbolic links"),
        ("", "got a folder"),
    ],
)
def test_places_that_cannot_be_are_refused_in_one_line(tmp_path, name, message):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=message) as error:
        check_destination(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x" * 255, "任" * 85, ".hidden", "a b$(c)"])
def test_the_longest_and_oddest_names_are_written(tmp_path, name):
    put(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"new"
    assert os.listdir(tmp_path) == [name]


def test_shipped_files_are_never_an_output():
    with pytest.raises(InputError, match="a folder of the package"):
        check_destination(files._SHIPPED / "suites" / "mini8" / "files" / "clip.safetensors")


def test_permissions_of_what_is_replaced_stay(tmp_path):
    (tmp_path / "out.pt").write_bytes(b"old")
    (tmp_path / "out.pt").chmod(0o600)
    put(tmp_path / "out.pt")
    assert stat.S_IMODE((tmp_path / "out.pt").stat().st_mode) == 0o600


def test_outputs_are_places_of_their_own_and_never_an_input(tmp_path):
    one, other, link = tmp_path / "a", tmp_path / "b", tmp_path / "link"
    link.symlink_to(one)
    check_outputs({"--out": one, "--mapped": None, "--json": other}, {"--merged": tmp_path / "c"})
    for same in (one, link, tmp_path / "." / "x" / ".." / "a"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="another file than --out"):
            check_outputs({"--out": one, "--mapped": same})
        with pytest.raises(InputError, match="another file than --merged"):
            check_outputs({"--out": same}, {"--merged": one})


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/in", "gone", "no/such", "x" * 300):
        with pytest.raises(InputError, match="output"):
            check_folder(tmp_path / name, "output")
    check_folder(tmp_path / "no" / "such", "output", parents=True)
    with pytest.raises(InputError, match="output"):
        check_folder(tmp_path / "file" / "in" / "it", "output", parents=True)
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(InputError, match="got a pipe"):
        check_folder(tmp_path, "output", ["table.csv"])


def test_stale_temporary_files_of_killed_runs_are_removed_and_others_stay(tmp_path):
    target = tmp_path / "out.pt"
    left = stale(target)
    others = [stale(tmp_path / "other.pt"), tmp_path / ".out.pt.mergebound-mine", tmp_path / ".out.pt.swp"]
    for other in others:
        other.write_bytes(b"mine")
    put(target)
    assert not left.exists()
    assert all(other.exists() for other in others)


def test_the_temporary_file_of_a_living_process_stays(tmp_path):
    """A child stops in the middle of writing (it says so, then waits); another run writes; the child goes on."""
    code = (
        "import sys; from pathlib import Path; from merging.files import write\n"
        "def content(file):\n"
        "    file.write(b'child'); file.flush(); print('ready', flush=True); sys.stdin.read()\n"
        f"write(Path({str(tmp_path / 'out.pt')!r}), content)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        put(tmp_path / "out.pt")
        assert len(os.listdir(tmp_path)) == 2, "the child's temporary file is gone"
        child.communicate("")
    assert child.returncode == 0
    assert (tmp_path / "out.pt").read_bytes() == b"child"
    assert os.listdir(tmp_path) == ["out.pt"]


def test_the_temporary_file_of_a_killed_process_is_cleared(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from merging.files import write\n"
        f"write(Path({str(tmp_path / 'out.pt')!r}), lambda file: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    put(tmp_path / "out.pt")
    assert os.listdir(tmp_path) == ["out.pt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "out").write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        files.write(tmp_path / "out", fail)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path):
    for empty in (False, True):
        target = tmp_path / f"out{empty}"
        if empty:
            target.mkdir()
        with replacing_folder(target) as room:
            (room / "inner").mkdir()
            (room / "inner" / "file").write_bytes(b"new")
            assert room.parent == tmp_path
            assert not target.exists() or not os.listdir(target)
        assert (target / "inner" / "file").read_bytes() == b"new"

    def failing():
        with replacing_folder(tmp_path / "failed") as room:
            (room / "file").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert sorted(os.listdir(tmp_path)) == ["outFalse", "outTrue"]


def test_a_folder_with_something_in_it_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"old")
    with pytest.raises(InputError, match="one with mine in it"), replacing_folder(tmp_path / "out"):
        pass

    def late():
        with replacing_folder(tmp_path / "late") as room:
            (room / "file").write_bytes(b"new")
            (tmp_path / "late").mkdir()
            (tmp_path / "late" / "theirs").write_bytes(b"old")

    with pytest.raises(InputError, match="not empty"):
        late()
    assert os.listdir(tmp_path / "late") == ["theirs"]
    assert sorted(os.listdir(tmp_path)) == ["late", "out"]


def test_a_link_to_a_folder_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing_folder(tmp_path / "link") as room:
        (room / "file").write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["file"]


def test_folders_of_dead_runs_are_removed_and_of_living_ones_kept(tmp_path):
    dead = tmp_path / f".out.mergebound-{'0' * 8}"
    dead.mkdir()
    (dead / "file").write_bytes(b"half")
    with replacing_folder(tmp_path / "out") as living:
        assert not dead.exists()
        with replacing_folder(tmp_path / "out") as other:
            (other / "file").write_bytes(b"other")
            assert living.is_dir()
        (tmp_path / "out" / "file").unlink()
        (living / "file").write_bytes(b"first")
    assert (tmp_path / "out" / "file").read_bytes() == b"first"


def test_files_of_a_folder_are_for_whom_the_umask_says(tmp_path):
    old = os.umask(0o027)
    try:
        with replacing_folder(tmp_path / "out") as folder:
            (folder / "a").mkdir()
            (folder / "a" / "weights").touch(0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "out" / "a" / "weights").stat().st_mode & 0o777 == 0o640
