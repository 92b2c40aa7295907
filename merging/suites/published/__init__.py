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
from merging.suites.published.table import NAMES, DataSet, PublishedSuite, find, is_published

__all__ = [
    "DATA",
    "FOLDER_VARIABLE",
    "MARK",
    "NAMES",
    "WEIGHTS",
    "DataSet",
    "PublishedSuite",
    "data_folder",
    "find",
    "hub_folder",
    "is_published",
    "load",
    "missing",
    "model_folder",
    "write_suite",
]
