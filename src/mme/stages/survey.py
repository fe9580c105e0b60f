"""Stage ``survey``: write what ``ingest`` will read, with digests, for DVC to compare.

``data/sources/SOURCE/ingest.jsonl`` is the table of the section ``ingest``, ``ingest-NAME.jsonl`` that of a data set of
``datasets``, where SOURCE is its ``source``. The stage runs each time, as only a look at the source can tell whether it
has changed; what it costs then is one look at each file's size and time. The motion primitives, an output of DVC, have
a stage of their own that runs only after them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

from mme.config import IngestParams, load_params
from mme.config.data import SourceLayout
from mme.config.paths import MOTION_PRIMITIVES, SOURCES_FOLDER, WORK_FOLDER, project_folder
from mme.ingest.survey import Digests, survey
from mme.system.errors import one_line_errors
from mme.system.files import write_text

PRIMITIVES = "motion-primitives"


def main(*sources: str) -> None:
    """Run the stage in the current folder.

    A source that cannot be listed has no table, so that DVC stops before the stage that needs it.

    Args:
        sources: values of ``ingest.source``; all but the motion primitives if none is given.

    Raises:
        ValueError: none of the sources can be listed; the message names file and line.
    """
    params = load_params()
    wanted = sources or tuple(source for source in get_args(SourceLayout) if source != PRIMITIVES)
    sections = {"ingest": params.ingest, **{f"ingest-{name}": section for name, section in params.datasets.items()}}
    chosen = {name: section for name, section in sections.items() if section.source in wanted}
    for source in wanted:
        names = "".join(f"{name}\n" for name, section in chosen.items() if section.source == source)
        write_text(SOURCES_FOLDER / source / "sections.txt", names)  # DVC warns of an empty folder

    # That of the project also in the copies of `dvc exp run --temp`: the source lies outside of them, as a rule.
    digests = Digests(project_folder() / WORK_FOLDER / "survey.sqlite", params.runtime.num_workers)
    errors: dict[str, ValueError] = {}
    for name, section in chosen.items():
        try:
            _check_primitives(name, section)
            write_text(SOURCES_FOLDER / section.source / f"{name}.jsonl", survey(section, digests))
        except ValueError as error:
            errors[name] = error
    if errors and len(errors) == len(chosen):
        raise ValueError("\n".join(map(str, errors.values())))
    for name, fault in errors.items():
        print(f"error: {name}: {fault}", file=sys.stderr)


def _check_primitives(name: str, section: IngestParams) -> None:
    """Check that the motion primitives are those of the stage ``synthesize``, the only ones whose changes DVC sees."""
    if section.source == PRIMITIVES and Path(section.root) != MOTION_PRIMITIVES:
        raise ValueError(
            f"{section.root}: the root of {name} with source {PRIMITIVES!r} must be {MOTION_PRIMITIVES}; for a copy"
            " elsewhere set source=csv and list_file=list.csv"
        )


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
