"""A folder of images: one sub-folder per class, whose sorted names are the classes."""

from __future__ import annotations

import os
from pathlib import Path

from bounds.types import refuse
from merging.data.columns import Columns, Format, listed
from merging.data.images import SUFFIXES, image_files
from merging.data.source import Source

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "calibration")
"""Names of sub-folders that are splits and not classes, where all of them are."""


def read(path: Path, source: Source) -> Columns:
    """List the images of every class in the order of their names, folders inside a class included.

    Hidden files (with a dot before) are left out, and counted in the notes like files beside the classes' folders.

    Raises:
        InputError: no folder of a class, a class without images, splits taken for classes, a file that is no image.
    """
    for column in ("text", "image"):
        if getattr(source, column) is not None:
            cure = f"leave {column} out; class names are the folders'"
            refuse(f"data {path}", expected="no columns of a folder of images", got=f"{column}", cure=cure)
    root = path / source.split if source.split else path
    if not root.is_dir():
        there = listed(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
        refuse(f"data {path}", expected=f"a folder {source.split!r}", got=f"folders {there}", cure="correct split")
    beside, hidden = [], 0
    names = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            hidden += 1
        elif entry.is_dir():
            names.append(entry.name)
        else:
            beside.append(entry.name)
    _check_layout(root, names, beside)
    files, labels = [], []
    for name in names:
        images, ignored = _images(root / name)
        files += images
        labels += [name] * len(images)
        hidden += ignored
    notes = []
    if hidden:
        notes.append(f"data {root}: {hidden} hidden file{'s' * (hidden > 1)} left out")
    if beside:
        notes.append(f"data {root}: not in a class's folder and left out: {listed(beside)}")
    return Columns(
        inputs=image_files(files),
        labels=labels if source.label is not None else None,
        where=lambda row: f"image {files[row]}",
        files=tuple(files),
        names=source.classes or tuple(names),
        root=root,
        notes=tuple(notes),
    )


def _check_layout(root: Path, names: list[str], beside: list[str]) -> None:
    what, cure = f"data {root}", "put the images of each class into a folder with its name"
    loose = [name for name in beside if name.lower().endswith(SUFFIXES)]
    if not names or loose:
        got = f"images without a class, such as {loose[0]}" if loose else "no folders in it"
        refuse(what, expected="a folder per class", got=got, cure=cure)
    if all(name.lower() in SPLITS for name in names):
        cure = f"choose one with split: {names[0]}"
        refuse(what, expected="a folder per class", got=f"folders of splits: {listed(names)}", cure=cure)


def _images(folder: Path) -> tuple[list[Path], int]:
    """Return the images of a class, and how many hidden files there are."""
    found, hidden = [], 0
    for place, inner, files in os.walk(folder, onerror=_raise, followlinks=True):
        hidden += sum(name.startswith(".") for name in (*inner, *files))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [Path(place, name) for name in files if not name.startswith(".")]
    for path in found:
        if path.suffix.lower() not in SUFFIXES:
            cure = "take the file out of the class's folder"
            refuse(f"data {path}", expected=f"an image ({', '.join(SUFFIXES)})", got=path.name, cure=cure)
    if not found:
        refuse(f"data {folder}", expected="images of this class", got="none", cure="take the folder out, or fill it")
    return sorted(found), hidden


def _raise(error: OSError) -> None:
    raise error


def _recognised(path: Path) -> bool:
    return path.is_dir()


FORMATS = {"images": Format((), read, _recognised)}
