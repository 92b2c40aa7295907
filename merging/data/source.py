"""What a user says of a data set: where it is, and which of its columns are the inputs and the labels."""

from __future__ import annotations

from dataclasses import dataclass

from bounds.types import refuse

LABEL = "label"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set: a file or folder (``path``), or a name that the library ``datasets`` knows (``dataset``).

    ``dataset`` may be a local folder of ``datasets.save_to_disk``, too; ``config`` is its configuration. ``split``
    chooses a split of it, the sub-folder of a folder of images, the arrays ``x_SPLIT`` of an ``.npz`` file, and of
    every other file the rows whose column ``split`` says so; None: all rows. ``text`` is a column of texts or a pair of
    them, ``image`` a column of images (in csv and json: of file names, relative to the file); ``label`` a column of
    class numbers or class names, None where there are none. ``format`` names the format of ``path`` where its suffix
    does not. ``classes`` are the class names in the order of the labels: needed where labels are names whose order is
    not the alphabet's; they name the classes where labels are numbers. ``renamed``: they do so by number alone,
    whatever names the data brings for its numbers. ``limit`` takes at most so many rows, drawn by a fixed seed.

    Raises:
        InputError: contradictions.
    """

    path: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    text: str | tuple[str, str] | None = None
    image: str | None = None
    label: str | None = LABEL
    format: str | None = None
    classes: tuple[str, ...] | None = None
    renamed: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("text", "classes"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if (self.path is None) == (self.dataset is None):
            got = "neither" if self.path is None else "both"
            refuse("data", expected="either path or dataset", got=got, cure="name the file, or the data set")
        for name in ("path", "dataset", "config", "split", "image", "label", "format"):
            if getattr(self, name) == "":
                refuse(
                    f"data {self.name}", expected=f"a {name}", got="an empty one", cure=f"name it or leave {name} out"
                )
        for name, needed in (("config", "dataset"), ("format", "path")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                cure = f"leave {name} out, or name the {needed}"
                refuse(f"data {self.name}", expected=f"{name} beside {needed} only", got=getattr(self, name), cure=cure)
        if self.limit is not None and self.limit < 1:
            refuse(f"data {self.name}", expected="a limit of at least 1 row", got=self.limit, cure="raise it")
        self._check_columns()
        self._check_classes()

    @property
    def name(self) -> str:
        """How errors call it: its path or its name."""
        return str(self.path or self.dataset)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of texts: none, one or two."""
        return () if self.text is None else (self.text,) if isinstance(self.text, str) else self.text

    def _check_columns(self) -> None:
        if self.text is not None and self.image is not None:
            cure = "keep the one that the model reads"
            refuse(f"data {self.name}", expected="either text or image", got="both", cure=cure)
        if (isinstance(self.text, tuple) and len(self.text) != 2) or not all(self.texts):
            cure = "write text: sentence, or text: [premise, hypothesis]"
            refuse(f"text of data {self.name}", expected="a column or a pair of columns", got=self.text, cure=cure)
        used = [column for column in (*self.texts, self.image, self.label) if column is not None]
        if len(set(used)) != len(used):
            twice = max(used, key=used.count)
            cure = "name another column"
            refuse(f"data {self.name}", expected="each column in one place", got=f"{twice!r} in two", cure=cure)

    def _check_classes(self) -> None:
        names = self.classes
        if names is not None and (not names or len(set(names)) != len(names)):
            got = f"{max(names, key=names.count)!r} more than once" if names else "none"
            cure = "name every class once, in the order of the labels"
            refuse(f"classes of data {self.name}", expected="distinct class names", got=got, cure=cure)
