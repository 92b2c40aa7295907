"""The tasks of the suite: what their classes are called, and where their texts come from (NOTICE says it in full)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """One task; its texts are in ``NAME.jsonl.gz``."""

    class_names: tuple[str, ...]
    """Bare names, in the order of the labels: the zero-shot head is their embeddings."""
    licence: str
    """Of the texts."""
    origin: str
    """Where the texts come from."""


TASKS: Mapping[str, TextTask] = {
    "review_sentiment": TextTask(
        class_names=("negative", "positive"),
        licence="CC BY 4.0",
        origin="Sentiment Labelled Sentences (D. Kotzias, 2015): sentences of reviews of products, films, restaurants",
    ),
    "sms_spam": TextTask(
        class_names=("personal message from a friend", "spam advertisement"),
        licence="CC BY 4.0",
        origin="SMS Spam Collection (T. A. Almeida and J. M. Gomez Hidalgo, 2011): text messages",
    ),
    "wordnet_noun": TextTask(
        class_names=(
            "activity",
            "animal",
            "body part",
            "condition or disease",
            "food or drink",
            "language or message",
            "object or tool",
            "person",
            "place",
            "plant",
            "quality",
            "substance",
        ),
        licence="WordNet licence",
        origin="WordNet 3.1 (Princeton University, 2011): definitions of nouns, without the noun",
    ),
    "biology_process": TextTask(
        class_names=(
            "building cell structures",
            "growth and development",
            "interaction between species",
            "metabolism",
            "response to a stimulus",
            "transport of substances",
        ),
        licence="CC BY 4.0",
        origin="Gene Ontology, release 2022-07-01: definitions of biological processes",
    ),
    "factbook_topic": TextTask(
        class_names=(
            "communications and media",
            "economy",
            "geography and environment",
            "government and law",
            "history",
            "international disputes and crime",
            "military",
            "people and society",
        ),
        licence="public domain",
        origin="The World Factbook: sentences on countries",
    ),
    "changelog_kind": TextTask(
        class_names=("bug fix", "documentation", "incompatible change or removal", "new feature"),
        licence="MIT, BSD-2-Clause, BSD-3-Clause, Apache-2.0",
        origin="change logs of Sphinx, pip, Twisted, tox, setuptools, Scrapy, aiohttp, virtualenv: entries",
    ),
    "bible_genre": TextTask(
        class_names=(
            "gospel, the life of Jesus",
            "history of Israel and its kings",
            "law of Moses",
            "letter to a church",
            "poetry and wisdom",
            "prophecy",
        ),
        licence="public domain",
        origin="World English Bible: verses",
    ),
    "sotu_era": TextTask(
        class_names=(
            "early republic, before the civil war",
            "age of industry and railroads",
            "modern times, cold war and after",
        ),
        licence="public domain",
        origin="State of the Union addresses, 1790 on: sentences",
    ),
}
"""Name -> task, in the suite's order."""
