"""Outputs: nothing but a regular file is replaced, links stay links, what killed runs left is cleaned."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bounds.types import InputError
from merging import files


def content(path):
    return lambda file: file.write(path)


def test_a_link_stays_a_link_and_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    for name, target in (("link", "real"), ("dangling", "made")):
        files.write(tmp_path / name, content(b"new"))
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target).read_bytes() == b"new"


def node(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only root makes device nodes")
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # a private null device
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.mkdir()


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_regular_file_is_never_replaced(kind, linked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    node(kind, Path("out"))
    path = Path("out")
    if linked:
        path = Path("link")
        path.symlink_to("out")
    before = os.lstat("out").st_mode
    for attempt in (lambda: files.check_destination(path), lambda: files.write(path, content(b"x"))):
        with pytest.raises(InputError, match=f"got a {kind}"):
            attempt()
    assert os.lstat("out").st_mode == before
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "link"}


def test_two_outputs_of_one_file_and_an_output_that_is_an_input_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    files.check_outputs({"--out": tmp_path / "b", "--json": tmp_path / "a", "--mapped": None})
    with pytest.raises(InputError, match=r"--json .*expected another file than --out; got the same"):
        files.check_outputs({"--out": tmp_path / "a", "--json": tmp_path / "link"})
    with pytest.raises(InputError, match="expected another file than --merged"):
        files.check_outputs({"--out": tmp_path / "link"}, {"--merged": tmp_path / "a"})


def test_leftovers_of_killed_runs_are_cleaned_and_those_of_living_ones_are_not(tmp_path):
    """One child is killed while it writes, another still writes: it says so, and waits for its standard input."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(files.__file__).parents[1])!r})
from merging.files import replacing
with replacing("out") as temporary:
    print(temporary.name, flush=True)
    sys.stdin.read()
"""
    children = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=-1, stdout=-1, text=True) for _ in range(2)
    ]
    names = [child.stdout.readline().strip() for child in children if child.stdout]
    assert all((tmp_path / name).exists() for name in names)
    children[0].kill()
    children[0].communicate()
    (tmp_path / ".out.mine").write_bytes(b"not ours")
    files.write(tmp_path / "out", content(b"x"))
    assert [(tmp_path / name).exists() for name in names] == [False, True]
    children[1].communicate("")
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out.mine"}


def test_the_longest_names_are_written(tmp_path):
    files.write(tmp_path / ("n" * 255), content(b"x"))
    assert [p.name for p in tmp_path.iterdir()] == ["n" * 255]
    with pytest.raises(InputError, match="File name too long"):
        files.write(tmp_path / ("n" * 256), content(b"x"))


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "out").write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        files.write(tmp_path / "out", fail)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_package_itself_is_no_place_for_outputs():
    with pytest.raises(InputError, match="a place of your own"):
        files.check_destination(Path(files.__file__))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "none" / "deep"):
        with pytest.raises(InputError, match="a folder that can be made and written"):
            files.check_folder(folder, "output")
    files.check_folder(tmp_path / "none" / "deep", "output", parents=True)
    (tmp_path / "there").mkdir()
    os.mkfifo(tmp_path / "there" / "report.json")
    with pytest.raises(InputError, match="got a pipe"):
        files.check_folder(tmp_path / "there", "output", ["report.json"])
