"""Rows on the CLIP weights and the data sets of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from domainbed_carft.clips import backbone, openai
from domainbed_carft.data.picture_files import refuse_truncated_files
from domainbed_carft.doctor import Finding
from domainbed_carft.errors import CarftError
from domainbed_carft.preflight.prepared_job import RehearsedJob
from domainbed_carft.preflight.rows import failed_row, passed_row
from domainbed_carft.sweep.data_checks import DataVerdict
from domainbed_carft.text import quantity

SECTION = "weights and data"
DECODED_PICTURES = 50  # of each data set
_SEED = 0
_MOST_NAMED = 3  # pictures that cannot be decoded

_GET_DATA = "carft data verify says more; carft data download or copy the set"
_GET_WEIGHTS = "copy the file there, or let a machine with a network download it once"


def weights_row(name: str) -> Finding:
    """Whether a CLIP is found, and its digest is the published one; downloads it if it is not."""
    label = f"CLIP {name}"
    try:
        facts = backbone.clip_facts(name, backbone.preprocessing(name))
    except CarftError as error:
        return failed_row(SECTION, label, str(error), _GET_WEIGHTS)

    is_published = name in openai.PUBLISHED
    published = ", as published" if is_published else "; nothing is published to compare with"
    return passed_row(SECTION, label, f"SHA-256 {facts.digest}{published}", digest=facts.digest)


def verdict_rows(verdicts: Sequence[DataVerdict]) -> Iterator[Finding]:
    """A row for each data set: its edition, or why jobs would refuse it."""
    for verdict in verdicts:
        name = f"data {verdict.dataset}".rstrip()
        problem = verdict.broken or verdict.missing
        if problem:
            yield failed_row(SECTION, name, problem, _GET_DATA)
        else:
            yield passed_row(
                SECTION, name, verdict.description.removeprefix(f"{verdict.dataset}: ")
            )


def decoding_row(prepared: RehearsedJob, count: int = DECODED_PICTURES) -> Finding:
    """Whether random pictures of a data set can be decoded, without a remainder."""
    sizes = [len(environment) for environment in prepared.job.dataset]
    random_state = np.random.RandomState(_SEED)
    chosen = random_state.choice(sum(sizes), min(count, sum(sizes)), replace=False)
    ends = np.cumsum(sizes)

    problems: list[str] = []
    with refuse_truncated_files():
        for position in sorted(chosen):
            number = int(np.searchsorted(ends, position, side="right"))
            in_environment = int(position - (ends[number] - sizes[number]))
            try:
                prepared.job.dataset[number][in_environment]
            except (OSError, CarftError) as error:
                problems.append(" ".join(str(error).split()))

    name = f"pictures {Path(prepared.job.args.dataset).name}"
    decoded = f"{quantity(len(chosen), 'random picture')} decoded"
    if not problems:
        return passed_row(SECTION, name, decoded)
    detail = f"{len(problems)} of {decoded}: {'; '.join(problems[:_MOST_NAMED])}"
    return failed_row(SECTION, name, detail, "carft data verify --decode lists all such files")
