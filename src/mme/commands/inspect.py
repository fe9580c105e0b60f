"""`mme inspect`: see what the targets make of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mme.config import load_params
from mme.system.files import atomic_path

Video = Annotated[Path, typer.Argument(help="A video file.")]
Model = Annotated[
    Path | None, typer.Option(help="Folder of the stage pretrain, such as models/pretrain; its predictions are drawn.")
]
Start = Annotated[int | None, typer.Option(min=0, help="Frame the picture is of; the liveliest if not given.")]
First = Annotated[int, typer.Option(min=0, help="First frame that is read.")]
Frames = Annotated[int, typer.Option(min=2, help="How many frames are read.")]
Output = Annotated[Path, typer.Option(help="Folder for NAME.png and NAME.mp4.")]


def inspect(
    video: Video,
    model: Model = None,
    start: Start = None,
    first: First = 0,
    frames: Frames = 96,
    output: Output = Path("reports/inspect"),
) -> None:
    """Draw a video's tracks, camera motion, validity, HOG and mask: a picture and an animation.

    The video is brought to the normal form and tracked as params.yaml says.
    """
    from mme.video.codec import write_video
    from mme.viz.drawing import encode_png
    from mme.viz.inspection import Inspection, Pretrained, animation, needed_frames, picture

    params = load_params()
    pretrained = None if model is None else Pretrained.load(model)
    inspection = Inspection.of(video, params, first, frames)
    chosen = start - first if start is not None else inspection.liveliest(needed_frames(params, pretrained))
    if not 0 <= chosen <= len(inspection.frames) - needed_frames(params, pretrained):
        raise ValueError(f"{video}: no clip and its tracks can start at frame {start} of those that were read")
    sheet = picture(inspection, params, chosen, pretrained)
    moving = animation(inspection, params.pretrain.length)
    still, film = output / f"{video.stem}.png", output / f"{video.stem}.mp4"
    with atomic_path(still) as temporary:
        temporary.write_bytes(encode_png(sheet))
    write_video(film, moving, inspection.fps, crf=20, gop_frames=12)
    typer.echo(f"{inspection.facts(chosen, params.pretrain.length)}\n{still}\n{film}")
