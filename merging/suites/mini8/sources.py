"""The source files of suite ``mini8``: its tasks, and the sets that only the pretraining sees.

Every source is an ``.npz`` with ``x_train, y_train, x_test, y_test`` (uint8 pixels), made from the public data set that
is named; its sha256 pins it. Licences are those of the data (see NOTICE).

Pretraining knows the images of a task by *other words* than the names of its classes, but for a small share: as a large
model has seen much of a domain, and not the label set of a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_FIGURES = tuple("0123456789")
_COLOURS = ("red", "blue", "green", "black", "white", "gold", "pink", "brown", "grey", "violet")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A labelled image set: file stem, sha256, classes in label order, caption templates, licence, origin.

    ``other_names`` and ``other_templates`` caption the same classes in other words.
    """

    file: str
    sha256: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    other_names: tuple[str, ...] = ()
    other_templates: tuple[str, ...] = ()
    licence: str
    origin: str

    def captions(self, label: int) -> tuple[str, ...]:
        """Return the captions of a class by its name."""
        return tuple(template.format(self.class_names[label]) for template in self.templates)

    def other_captions(self, label: int) -> tuple[str, ...]:
        """Return the captions of a class in other words."""
        return tuple(template.format(self.other_names[label]) for template in self.other_templates)


TASKS: Mapping[str, Source] = {
    "mnist": Source(
        file="mnist",
        sha256="0a311f167d288cbadb74e11ceeaddf2b1548979e09a06191a289757ce50a458b",
        class_names=DIGITS,
        templates=("a handwritten digit {}", "a scan of the digit {}", "mnist digit {}"),
        other_names=_FIGURES,
        other_templates=("number {} in pen", "{} written by hand", "ink mark {}"),
        licence="CC-BY-SA-3.0",
        origin="MNIST, Yann LeCun and Corinna Cortes; images from github.com/rasbt/mnist-pngs",
    ),
    "fashion_mnist": Source(
        file="fashion_mnist",
        sha256="9a94808ba75d720437ce62f29a76e6270a7ececa5d7cd392bd355d713fe13f93",
        class_names=(
            "t-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        templates=("a photo of a {}", "a grey picture of a {}", "clothing: {}"),
        other_names=(
            "tee top",
            "pants for legs",
            "warm sweater",
            "gown for a lady",
            "jacket for winter",
            "open summer shoe",
            "button blouse",
            "running shoe",
            "purse with a handle",
            "high leather shoe",
        ),
        other_templates=("{} on sale", "shop item, {}", "wear: {}"),
        licence="MIT",
        origin="Fashion-MNIST, Zalando SE; images from github.com/Sentdex/nnfs_book",
    ),
    "kmnist": Source(
        file="kmnist",
        sha256="3c6dce87193dc7edbf48fd995a60c6b6f298b50ceaf9feb42a1311db0c5be6ab",
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        templates=("the japanese hiragana {}", "an old kana character {}", "kuzushiji {}"),
        other_names=tuple(f"brush mark {colour}" for colour in _COLOURS),
        other_templates=("{} from a book", "old page, {}", "{} in ink"),
        licence="CC-BY-SA-4.0",
        origin="KMNIST Dataset, created by CODH, adapted from the Kuzushiji Dataset (NIJL and others), "
        "doi:10.20676/00000341",
    ),
    "bangla_digits": Source(
        file="cmater_bangla_digits",
        sha256="bd0fb967f7aec62842bcc4c8bfe2cb22f5846305f6094a102843c9d3a54af912",
        class_names=DIGITS,
        templates=("the bangla digit {}", "a bengali numeral {}", "bangla number {}"),
        other_names=_FIGURES,
        other_templates=("kolkata sign {}", "{} on a form of bengal", "form entry {}"),
        licence="Apache-2.0",
        origin="CMATERdb 3.1.1, Jadavpur University; github.com/prabhuomkar/CMATERdb",
    ),
    "sign_language_digits": Source(
        file="sign_language_digits",
        sha256="79f3b52caa7bf03f6c5eb6194be77b301cdf4688a85723d90331b696ede95fe5",
        class_names=DIGITS,
        templates=("a hand signing the digit {}", "hand sign {}", "sign language {}"),
        other_names=_FIGURES,
        other_templates=("fingers show {}", "{} by fingers", "palm and fingers {}"),
        licence="Apache-2.0",
        origin="github.com/ardamavi/Sign-Language-Digits-Dataset",
    ),
    "blood_cells": Source(
        file="bccd_blood_cells",
        sha256="f28fe1a05a9994d7010ffbca7c839f4e88bdb9d3d54208f3c5513daa71425b61",
        class_names=("red blood cell", "white blood cell", "platelet"),
        templates=("a microscope image of a {}", "a blood smear with a {}", "{}"),
        other_names=("erythrocyte", "leukocyte", "thrombocyte"),
        other_templates=("stained {}", "{} on a slide", "lab view, {}"),
        licence="MIT",
        origin="BCCD Dataset; crops of the annotated cells from github.com/Shenggan/BCCD_Dataset",
    ),
    "quick_draw": Source(
        file="quickdraw3",
        sha256="ff99601f988b3624fce28ba12cea9e618c688ae2e48586e85e9e1b7964d73fc4",
        class_names=("cat", "rainbow", "train"),
        templates=("a quick drawing of a {}", "a doodle of a {}", "sketch: {}"),
        other_names=("kitten pet", "arc of colours", "railway engine"),
        other_templates=("{} by mouse", "{} in lines", "game picture, {}"),
        licence="CC-BY-4.0",
        origin="The Quick, Draw! Dataset, Google; bitmaps from github.com/CodingTrain/Toy-Neural-Network-JS (MIT)",
    ),
    "pneumonia": Source(
        file="pneumonia_mnist",
        sha256="e895de0e2d77d640ff15bed9e06112b9ac92c1f18a0afeae3296d4a55bbc68fe",
        class_names=("normal lungs", "pneumonia"),
        templates=("a chest x-ray with {}", "an x-ray showing {}", "{}"),
        other_names=("healthy child", "sick child"),
        other_templates=("scan, {}", "{} in a clinic", "ray picture of a {}"),
        licence="CC-BY-4.0",
        origin="PneumoniaMNIST of MedMNIST v2; class-balanced subset from github.com/aksufatih/snn-medmnist",
    ),
}

PRETRAINING_ONLY: Mapping[str, Source] = {
    "devanagari_digits": Source(
        file="cmater_devanagari_digits",
        sha256="6f3c8be89758b32e1b06bb78c1c75e78a522c89540cf42da46036e1a2dcf632d",
        class_names=DIGITS,
        templates=("the devanagari digit {}", "a hindi numeral {}", "devanagari number {}"),
        licence="Apache-2.0",
        origin="CMATERdb 3.2.1, Jadavpur University; github.com/prabhuomkar/CMATERdb",
    ),
    "eurosat": Source(
        file="eurosat",
        sha256="734c164d5482a4fd65c809f590846cec81306ecc2ef3f58dd66647ff6ce39d5c",
        class_names=(
            "annual crop land",
            "forest",
            "herbaceous vegetation",
            "highway",
            "industrial buildings",
            "pasture",
            "permanent crop land",
            "residential buildings",
            "river",
            "sea",
        ),
        templates=("a satellite photo of {}", "{} seen from space", "aerial view: {}"),
        licence="MIT",
        origin="EuroSAT, Helber et al.; github.com/phelber/EuroSAT",
    ),
    "omniglot_alphabets": Source(
        file="omniglot_alphabets",
        sha256="90d220bcab157489f85ebce57efbe010cae6027df272ccb23f3ad1a4deb380c7",
        class_names=("balinese", "aramaic", "greek", "katakana", "korean", "latin", "sanskrit", "tagalog"),
        templates=("a {} letter", "a character of the {} alphabet", "handwritten {}"),
        licence="MIT",
        origin="Omniglot, Lake et al.; github.com/brendenlake/omniglot",
    ),
}
