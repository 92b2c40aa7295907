"""Drawn characters for the pretraining: thousands of shapes with captions, made from fonts that matplotlib ships."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSans-Oblique.ttf")
SIDE = 32


def draw(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Draw characters at random in size, place, angle and colours.

    Returns:
        Images uint8 [count, 32, 32, 3], and the characters' Unicode names in small letters.
    """
    random = np.random.default_rng(seed)
    files = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name for name in FONTS]
    characters = [_characters(file) for file in files]
    images, names = [], []
    for _ in range(count):
        font = int(random.integers(len(files)))
        character = characters[font][random.integers(len(characters[font]))]
        images.append(_image(character, files[font], random))
        names.append(unicodedata.name(character).lower())
    return np.stack(images), names


def _characters(font: Path) -> list[str]:
    """Return what a font can draw that has a name: letters, numbers, punctuation and symbols."""
    known = sorted(map(chr, FT2Font(str(font)).get_charmap()))
    return [c for c in known if c > " " and unicodedata.name(c, "") and unicodedata.category(c)[0] in "LNPS"]


def _image(character: str, font: Path, random: np.random.Generator) -> np.ndarray:
    canvas = Image.new("L", (2 * SIDE, 2 * SIDE), 0)
    place = (SIDE + int(random.integers(-4, 5)), SIDE + int(random.integers(-4, 5)))
    letter = ImageFont.truetype(str(font), int(random.integers(16, 30)))
    ImageDraw.Draw(canvas).text(place, character, fill=255, font=letter, anchor="mm")
    turned = canvas.rotate(float(random.uniform(-20, 20)), resample=Image.Resampling.BILINEAR)
    middle = turned.crop((SIDE // 2, SIDE // 2, 3 * SIDE // 2, 3 * SIDE // 2))
    ink = np.asarray(middle, dtype=np.float32)[..., None] / 255
    foreground = random.uniform(0, 1, 3) if random.random() < 0.4 else np.full(3, random.uniform(0.6, 1))
    background = random.uniform(0, 1, 3) if random.random() < 0.4 else np.zeros(3)
    return np.asarray(255 * (ink * foreground + (1 - ink) * background), dtype=np.uint8)
