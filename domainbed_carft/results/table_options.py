"""What the tables of ``carft collect`` show: its options as an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from domainbed_carft.errors import CarftError
from domainbed_carft.results import measures
from domainbed_carft.results.cells import DOMAINBED, ERROR_KINDS, ErrorKind
from domainbed_carft.results.columns import DEFAULT_COLUMNS
from domainbed_carft.text import unknown


@dataclass(frozen=True)
class TableOptions:
    """What tables show, as the options of ``carft collect``.

    ``columns``: names of `measures.NAMES`; ``error``: what stands behind the means;
    ``one_setting``: whether tables of one choice for all targets follow those of a choice for each.
    """

    columns: Sequence[str] = DEFAULT_COLUMNS
    error: ErrorKind = DOMAINBED
    one_setting: bool = False


DEFAULT_OPTIONS = TableOptions()


def by_name(
    columns: Sequence[str] = DEFAULT_COLUMNS,
    error: str = DOMAINBED.name,
    one_setting: bool = False,
) -> TableOptions:
    """The options of tables by their names, as of ``carft collect``.

    Raises CarftError if no column or kind of error has the name.
    """
    measures.check_names(columns)
    if error not in ERROR_KINDS:
        raise CarftError(unknown("kind of error", error, ERROR_KINDS))
    return TableOptions(columns=columns, error=ERROR_KINDS[error], one_setting=one_setting)
