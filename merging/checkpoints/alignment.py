"""Names of a file made those of a model: prefixes, order, old spellings, vocabularies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from bounds.types import Params, refuse

Shape: TypeAlias = Sequence[int]
Change: TypeAlias = tuple[str, str]
"""(prefix in the file, prefix in the model): the one is taken off a name, the other put before the rest."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch.compile and sharded training leave behind, anywhere in a name."""
_LEGACY = {"gamma": "weight", "beta": "bias"}
"""How TensorFlow, and BERT's first files, call the parameters of a layer normalisation."""
_TABLES, _HEADS = ("embed", "wte", "shared"), ("lm_head", "predictions", "decoder", "embed_out")
_PLACES = ("position", "pos_embed", "token_type")
"""Words in the last parts of names: of tensors with a row for every token, and of tables of something else."""
_SHOWN = 3


@dataclass(frozen=True)
class Aligned:
    """Tensors of a file under the names of a model, in the model's order.

    ``renamed`` says what was renamed, in a sentence without its stop, or is empty; ``unused`` are the names of the file
    that the model has no use for; ``shorter`` are those (with ``common``) whose tensors have fewer rows than the model.
    """

    weights: dict[str, Tensor]
    renamed: str = ""
    unused: tuple[str, ...] = ()
    shorter: tuple[str, ...] = ()


def align(
    expected: Mapping[str, torch.Size],
    weights: Mapping[str, Tensor],
    what: str,
    *,
    optional: frozenset[str] = frozenset(),
    common: bool = False,
) -> Aligned:
    """Find the tensors of a model among those of a file, by names and shapes.

    One change of prefixes is looked for that lets the most names and shapes fit: a prefix of the file's names taken
    off (``module.``, ``model.visual.``), one of the model's put on (``bert.``), or one in place of the other. Names
    that fit as they are need none. Order does not matter. Tensors are handed on as they are: not copied, not converted.

    Args:
        expected: name -> shape of the model's tensors.
        weights: tensors under the names of the file.
        what: the file, for messages.
        optional: names that may be missing, or have another shape, such as those of a head: they are left out.
        common: whether embeddings with another number of rows (vocabularies of different length) keep the rows that
            file and model both have, the first ones: the vocabularies must agree on them. See :func:`with_base_rows`.

    Raises:
        InputError: names missing, shapes that do not fit, more layers of a kind than the model has, or two sets of
            tensors of the file that fit equally well.
    """
    named, spelled = _respelled(expected, weights)
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    change = find_change(expected, shapes, what)
    found = matches(expected, shapes, change)
    _check_missing(set(expected) - set(found) - optional, weights, what)
    result, shorter = {}, []
    for name in (name for name in expected if name in found):
        value, shape = named[found[name]], tuple(expected[name])
        if value.shape != shape and name in optional:
            continue
        if value.shape != shape:
            _check_vocabulary(name, shape, value, what, common)
            value = value[: shape[0]]
            shorter += [name] * (len(value) < shape[0])
        result[name] = value
    used = {found[name] for name in result}
    extra = {name: shape for name, shape in shapes.items() if name not in found.values()}
    _check_depth(expected, extra, change, what)
    unused = tuple(old for old, name in zip(weights, named, strict=True) if name not in used)
    count = sum(found[name] != name for name in result)
    said = [said for said in (described(change, count) if count else "", spelled) if said]
    return Aligned(result, " and ".join(said), unused, tuple(shorter))


def with_base_rows(base: Params, weights: Params) -> dict[str, Tensor]:
    """Return an expert's tensors in the shapes of the base: rows that it lacks are the base's, so that τ is 0 there."""
    return {
        name: torch.cat([value, base[name][len(value) :].to(value.dtype)])
        if value.ndim and len(value) < len(base[name])
        else value
        for name, value in weights.items()
    }


def _respelled(expected: Mapping[str, Shape], weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file, in its order, without old spellings that the model does not use, and what changed.

    Names that would become one stay as they are.
    """
    parts = {part for name in expected for part in name.split(".")}
    wrappers = [part for part in _WRAPPERS if part not in parts]
    legacy = {} if parts & _LEGACY.keys() else _LEGACY
    new = {}
    for name in weights:
        *path, last = (part for part in name.split(".") if part not in wrappers)
        new[name] = ".".join([*path, legacy.get(last, last)])
    twice = Counter(new.values())
    new = {name: to if twice[to] == 1 else name for name, to in new.items()}
    gone = [set(name.split(".")) - set(to.split(".")) for name, to in new.items() if name != to]
    old = sorted(set().union(*gone))
    words = [f"{part!r} as {legacy[part]!r}" if part in legacy else f"no {part!r}" for part in old]
    said = f"{len(gone)} name{'s' * (len(gone) != 1)} with {', '.join(words)}" if gone else ""
    return {new[name]: value for name, value in weights.items()}, said


def find_change(expected: Mapping[str, Shape], shapes: Mapping[str, Shape], what: str) -> Change:
    """Return the change of prefixes that lets the most names of a file fit, with their shapes.

    Every pair of equal shape and last parts votes for the change that makes the one the other. Among equals none
    comes before the shortest.

    Raises:
        InputError: the model fits whole in two ways, neither of them as the names are.
    """
    votes: Counter[Change] = Counter(
        _between(name, other) for name, others in _alike(expected, shapes) for other in others
    )
    if not votes:
        return "", ""
    most = max(votes.values())
    best = sorted((change for change, count in votes.items() if count == most), key=lambda c: (len(c[0] + c[1]), c))
    rivals = [old for old, new in best if new == best[0][1]]
    if len(rivals) > 1 and best[0] != ("", ""):
        shown = " and ".join(repr(old) for old in rivals[:_SHOWN])
        cure = "keep one of them with mergebound convert FILE --prefix PREFIX --to OUT.safetensors"
        refuse(what, expected="one set of tensors that fits the model", got=f"several, under {shown}", cure=cure)
    return best[0]


def _alike(expected: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> Iterator[tuple[str, list[str]]]:
    """Yield every name of the model with those of the file that have its shape and its last parts."""
    by_end: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in shapes.items():
        for end in _ends(name):
            by_end.setdefault((end, tuple(shape)), []).append(name)
    for name, shape in expected.items():
        end = next((e for e in _ends(name) if (e, tuple(shape)) in by_end), None)
        if end is not None:
            yield name, by_end[end, tuple(shape)]


def _ends(name: str) -> Iterator[str]:
    """Yield the ends of a name at its dots, the longest first."""
    while name:
        yield name
        name = name.partition(".")[2]


def _between(name: str, other: str) -> Change:
    """Return the change that turns ``other`` into ``name``: what stands before their longest common end, at a dot."""
    end = next((e for e in _ends(name) if other == e or other.endswith(f".{e}")), "")
    return other[: len(other) - len(end)], name[: len(name) - len(end)]


def matches(expected: Mapping[str, Shape], shapes: Mapping[str, Shape], change: Change) -> dict[str, str]:
    """Return name of the model -> name of the file under a change of prefixes.

    Names outside the modules that the change finds may also fit as they are (a projection beside a renamed tower).
    """
    old, new = change
    found = {
        name: old + name[len(new) :] for name in expected if name.startswith(new) and old + name[len(new) :] in shapes
    }
    modules = {name.partition(".")[0] for name in found}
    for name, shape in expected.items():
        outside = name not in found and name.partition(".")[0] not in modules
        if outside and tuple(shapes.get(name, ())) == tuple(shape) and name in shapes:
            found[name] = name
    return found


def described(change: Change, count: int) -> str:
    """Return a sentence on a change of prefixes."""
    old, new = change
    names = f"{count} name{'s' * (count != 1)}"
    if old and new:
        return f"{names} with the prefix {new!r} in place of {old!r}"
    return f"{names} without the prefix {old!r}" if old else f"{names} with the prefix {new!r} added"


def _check_missing(missing: set[str], weights: Mapping[str, Tensor], what: str) -> None:
    if missing:
        shown = f"{len(missing)} missing, such as {', '.join(sorted(missing)[:_SHOWN])}"
        held = f"the file has {len(weights)} tensors, such as {', '.join(list(weights)[:_SHOWN])}"
        cure = "use weights of the base's own architecture"
        refuse(what, expected="the names of the model", got=f"{shown} ({held})", cure=cure)


def _check_depth(expected: Mapping[str, Shape], extra: Mapping[str, Shape], change: Change, what: str) -> None:
    """Refuse a file of a deeper model: its other tensors hold a numbered module with all that one of the model has."""
    old, new = change
    ours = _numbered(expected)
    theirs = _numbered({new + name[len(old) :]: shape for name, shape in extra.items() if name.startswith(old)})
    for parent, modules in theirs.items():
        for number, tensors in modules.items():
            if any(same.items() <= tensors.items() for same in ours.get(parent, {}).values()):
                got = f"a module {parent}{number} more in the file"
                cure = "use weights of the base's own architecture"
                refuse(what, expected=f"the layers of the model, {len(ours[parent])}", got=got, cure=cure)


def _numbered(shapes: Mapping[str, Shape]) -> dict[str, dict[str, dict[str, tuple[int, ...]]]]:
    """Return parent -> number -> name within -> shape, for the outermost number of every name."""
    found: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), None)
        if at is not None:
            parent = "".join(f"{part}." for part in parts[:at])
            found.setdefault(parent, {}).setdefault(parts[at], {})[".".join(parts[at + 1 :])] = tuple(shape)
    return found


def _check_vocabulary(name: str, shape: tuple[int, ...], value: Tensor, what: str, common: bool) -> None:
    """Refuse a shape that does not fit, unless it is a vocabulary's and the common rows were asked for."""
    end = ".".join(name.split(".")[-2:])
    words = (*_TABLES, *_HEADS) if value.ndim > 1 else _HEADS
    table = any(word in end for word in words) and not any(word in end for word in _PLACES)
    rows = table and value.ndim == len(shape) > 0 and value.shape[1:] == shape[1:]
    if not rows:
        cure = "use weights of the base's own architecture"
        refuse(f"{what}, {name}", expected=f"shape {list(shape)}", got=list(value.shape), cure=cure)
    if not common:
        cure = "set vocabulary: common to merge the first rows, which both have, or resize one of the models"
        refuse(f"{what}, {name}", expected=f"{shape[0]} rows, as in the base", got=f"{len(value)} rows", cure=cure)
