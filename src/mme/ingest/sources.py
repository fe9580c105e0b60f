"""Sources of videos: a list, a folder of class folders, or a public data set."""

from __future__ import annotations

from collections.abc import Callable

from mme.config import IngestParams
from mme.ingest.layouts.csv_list import list_csv
from mme.ingest.layouts.folder import list_folder
from mme.ingest.layouts.hmdb51 import list_hmdb51
from mme.ingest.layouts.kinetics import list_kinetics
from mme.ingest.layouts.something import list_something_v2
from mme.ingest.layouts.ucf101 import list_ucf101
from mme.ingest.listing import Listing

LAYOUTS: dict[str, Callable[[IngestParams], Listing]] = {
    "motion-primitives": list_csv,
    "csv": list_csv,
    "folder": list_folder,
    "ucf101": list_ucf101,
    "hmdb51": list_hmdb51,
    "something-something-v2": list_something_v2,
    "kinetics": list_kinetics,
}
"""Functions that list the videos of a source, by the values of ``ingest.source``."""


def list_source(params: IngestParams) -> Listing:
    """List the videos of the source that ``params`` names; no video is opened.

    Raises:
        ValueError: the source is missing, has no video, or its list is wrong; the message names file and line.
    """
    if not params.root.is_dir():
        raise ValueError(f"{params.root}: not a folder (ingest.root)")
    listing = LAYOUTS[params.source](params)
    if not listing.files:
        missing = f", {len(listing.missing)} are missing" if listing.missing else ""
        raise ValueError(f"{params.root}: no video (ingest.root); {len(listing.ignored)} other files{missing}")
    for file in listing.files:
        try:
            file.path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{params.root}: the name {file.path!r} is not UTF-8") from error
    files = sorted(listing.files, key=lambda file: (file.path, file.span_s or ()))
    return Listing(files, sorted(listing.ignored), listing.missing, listing.unused, listing.splits_training)
