"""Published suites: experts and data of the hub by name, fetched once and read as any suite file is."""

from merging.suites.published.files import (
    DATA,
    FOLDER_VARIABLE,
    MARK,
    WEIGHTS,
    data_folder,
    hub_folder,
    load,
    missing,
    model_folder,
    write_suite,
)
from merging.suites.published.numbers import FAMILY, NUMBERS, gains
from merging.suites.published.table import NAMES, SIZES, DataSet, PublishedSuite, find, is_published

__all__ = [
    "DATA",
    "FAMILY",
    "FOLDER_VARIABLE",
    "MARK",
    "NAMES",
    "NUMBERS",
    "SIZES",
    "WEIGHTS",
    "DataSet",
    "PublishedSuite",
    "data_folder",
    "find",
    "gains",
    "hub_folder",
    "is_published",
    "load",
    "missing",
    "model_folder",
    "write_suite",
]
