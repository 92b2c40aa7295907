"""The source files of suite ``mini8``: eight tasks, and three sets that only the pretraining sees.

Every source is an ``.npz`` with ``x_train, y_train, x_test, y_test`` (uint8 pixels), made from the public data set that
is named; its sha256 pins it. Licences are those of the data (see NOTICE).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Source:
    """A labelled image set: file stem, sha256, classes in label order, caption templates, licence, origin."""

    file: str
    sha256: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    licence: str
    origin: str


TASKS: Mapping[str, Source] = {
    "mnist": Source(
        "mnist",
        "0a311f167d288cbadb74e11ceeaddf2b1548979e09a06191a289757ce50a458b",
        DIGITS,
        ("a handwritten digit {}", "a scan of the digit {}", "mnist digit {}"),
        "CC-BY-SA-3.0",
        "MNIST, Yann LeCun and Corinna Cortes; images from github.com/rasbt/mnist-pngs",
    ),
    "fashion_mnist": Source(
        "fashion_mnist",
        "9a94808ba75d720437ce62f29a76e6270a7ececa5d7cd392bd355d713fe13f93",
        (
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
        ("a photo of a {}", "a grey picture of a {}", "clothing: {}"),
        "MIT",
        "Fashion-MNIST, Zalando SE; images from github.com/Sentdex/nnfs_book",
    ),
    "kmnist": Source(
        "kmnist",
        "3c6dce87193dc7edbf48fd995a60c6b6f298b50ceaf9feb42a1311db0c5be6ab",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        ("the japanese hiragana {}", "an old kana character {}", "kuzushiji {}"),
        "CC-BY-SA-4.0",
        "KMNIST Dataset, created by CODH, adapted from the Kuzushiji Dataset (NIJL and others), doi:10.20676/00000341",
    ),
    "bangla_digits": Source(
        "cmater_bangla_digits",
        "bd0fb967f7aec62842bcc4c8bfe2cb22f5846305f6094a102843c9d3a54af912",
        DIGITS,
        ("the bangla digit {}", "a bengali numeral {}", "bangla number {}"),
        "Apache-2.0",
        "CMATERdb 3.1.1, Jadavpur University; github.com/prabhuomkar/CMATERdb",
    ),
    "devanagari_digits": Source(
        "cmater_devanagari_digits",
        "6f3c8be89758b32e1b06bb78c1c75e78a522c89540cf42da46036e1a2dcf632d",
        DIGITS,
        ("the devanagari digit {}", "a hindi numeral {}", "devanagari number {}"),
        "Apache-2.0",
        "CMATERdb 3.2.1, Jadavpur University; github.com/prabhuomkar/CMATERdb",
    ),
    "blood_cells": Source(
        "bccd_blood_cells",
        "f28fe1a05a9994d7010ffbca7c839f4e88bdb9d3d54208f3c5513daa71425b61",
        ("red blood cell", "white blood cell", "platelet"),
        ("a microscope image of a {}", "a blood smear with a {}", "{}"),
        "MIT",
        "BCCD Dataset; crops of the annotated cells from github.com/Shenggan/BCCD_Dataset",
    ),
    "quick_draw": Source(
        "quickdraw3",
        "ff99601f988b3624fce28ba12cea9e618c688ae2e48586e85e9e1b7964d73fc4",
        ("cat", "rainbow", "train"),
        ("a quick drawing of a {}", "a doodle of a {}", "sketch: {}"),
        "CC-BY-4.0",
        "The Quick, Draw! Dataset, Google; bitmaps from github.com/CodingTrain/Toy-Neural-Network-JS (MIT)",
    ),
    "pneumonia": Source(
        "pneumonia_mnist",
        "e895de0e2d77d640ff15bed9e06112b9ac92c1f18a0afeae3296d4a55bbc68fe",
        ("normal lungs", "pneumonia"),
        ("a chest x-ray with {}", "an x-ray showing {}", "{}"),
        "CC-BY-4.0",
        "PneumoniaMNIST of MedMNIST v2; class-balanced subset from github.com/aksufatih/snn-medmnist",
    ),
}

PRETRAINING_ONLY: Mapping[str, Source] = {
    "sign_language_digits": Source(
        "sign_language_digits",
        "79f3b52caa7bf03f6c5eb6194be77b301cdf4688a85723d90331b696ede95fe5",
        DIGITS,
        ("a hand signing the digit {}", "hand sign {}", "sign language {}"),
        "Apache-2.0",
        "github.com/ardamavi/Sign-Language-Digits-Dataset",
    ),
    "eurosat": Source(
        "eurosat",
        "734c164d5482a4fd65c809f590846cec81306ecc2ef3f58dd66647ff6ce39d5c",
        (
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
        ("a satellite photo of {}", "{} seen from space", "aerial view: {}"),
        "MIT",
        "EuroSAT, Helber et al.; github.com/phelber/EuroSAT",
    ),
    "omniglot_alphabets": Source(
        "omniglot_alphabets",
        "90d220bcab157489f85ebce57efbe010cae6027df272ccb23f3ad1a4deb380c7",
        ("balinese", "aramaic", "greek", "katakana", "korean", "latin", "sanskrit", "tagalog"),
        ("a {} letter", "a character of the {} alphabet", "handwritten {}"),
        "MIT",
        "Omniglot, Lake et al.; github.com/brendenlake/omniglot",
    ),
}
