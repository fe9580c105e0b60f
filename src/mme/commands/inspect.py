"""`mme inspect`: draw the targets of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mme.config import load_params
from mme.system.files import atomic_path

VideoArgument = Annotated[Path, typer.Argument(help="A video file.")]
ModelOption = Annotated[
    Path | None, typer.Option(help="Folder of a pretrained model, such as models/pretrain; draws its predictions.")
]
StartOption = Annotated[
    int | None, typer.Option(min=0, help="Frame of the picture; default: the frame with most motion.")
]
FirstOption = Annotated[int, typer.Option(min=0, help="First frame to read.")]
FramesOption = Annotated[int, typer.Option(min=2, help="Number of frames to read.")]
OutputOption = Annotated[Path, typer.Option(help="Folder for NAME.png and NAME.mp4.")]


def inspect_command(
    video: VideoArgument,
    model: ModelOption = None,
    start: StartOption = None,
    first: FirstOption = 0,
    frames: FramesOption = 96,
    output: OutputOption = Path("reports/inspect"),
) -> None:
    """Draw a video's tracks, camera motion, validity, HOG and mask: a picture and an animation.

    The video is brought to the normal form and tracked with the values of params.yaml; frames count at its rate, or at
    that of the model.
    """
    from mme.video.codec import write_video
    from mme.viz.drawing import encode_png
    from mme.viz.inspection import Inspection, Pretrained, animation, needed_frames, picture

    params = load_params()
    pretrained = None if model is None else Pretrained.load(model)
    fps = params.dataset(params.pretrain.data)[1].fps if pretrained is None else pretrained.fps
    inspection = Inspection.of(video, params, fps, first, frames)
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
