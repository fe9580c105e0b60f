"""Conversion between this project's folders and checkpoints of other frameworks; keys are in `mme.models.bridges`.

A *model folder* holds a classifier (`mme.models.checkpoints`). A *pretrained folder* holds an encoder with its final
norm: ``model.safetensors`` and a ``config.json`` with ``model``, ``clip`` and ``fps``, as in ``models/pretrain``.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mme.config import ClipParams, ModelParams
from mme.config.model import IMAGENET_MEAN, IMAGENET_STD
from mme.models.bridges import encoder_from_hf, encoder_to_hf, model_from_pth, renamed
from mme.models.checkpoints import (
    CONFIG_FILE,
    FOLDER_FORMAT,
    WEIGHTS_FILE,
    FolderConfig,
    State,
    ViewsConfig,
    check_keys,
    load_folder,
    read_state,
    save_folder,
)
from mme.models.classifier import MotionClassifier
from mme.system.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from transformers import VideoMAEConfig

HEAD_DIM = 64
"""Channels of an attention head in every published ViT of VideoMAE and MME."""

KINETICS_FPS, SOMETHING_FPS = 30.0, 12.0
"""Frames per second of the data sets that published checkpoints were trained on."""

SOMETHING_CLASSES = 174

HF_TYPE = "videomae"
_HF_SIZES = {
    "patch_size": "patch_size",
    "tubelet_frames": "tubelet_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
"""Parameters of the section ``model`` and their names in transformers' configuration."""

_BACKBONE = "videomae."
_PRETRAINING_ONLY = ("encoder_to_decoder", "mask_token", "decoder")


@dataclass(frozen=True)
class ConversionOptions:
    """Settings that a checkpoint of another framework does not contain.

    Attributes:
        stride_frames: frames, at ``fps``, from one frame of a clip to the next.
        fps: frames per second that a clip counts in; None = of the data set that the number of classes is of.
        segments, crops: views that are averaged.
        num_frames, size, num_heads: for ``.pth`` files only; None = heads of 64 channels each.
        labels: for a finetuned ``.pth`` file, in the order of its head.
    """

    stride_frames: int = 4
    fps: float | None = None
    segments: int = 1
    crops: int = 1
    num_frames: int = 16
    size: int = 224
    num_heads: int | None = None
    labels: tuple[str, ...] | None = None

    def rate(self, num_labels: int) -> float:
        """Return the frames per second of a checkpoint with so many labels (0: pretrained only)."""
        if self.fps is not None:
            return self.fps
        return SOMETHING_FPS if num_labels == SOMETHING_CLASSES else KINETICS_FPS

    def clip(self, num_frames: int, size: int) -> ClipParams:
        """Return a clip normalised as VideoMAE's."""
        return ClipParams(
            num_frames=num_frames,
            stride_frames=self.stride_frames,
            sampling="stride",
            size=size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )


@dataclass(frozen=True)
class Checkpoint:
    """Weights and how to build their model.

    Attributes:
        state: weights ``encoder.*`` and ``norm.*``; of a classifier also ``head.*``.
        model, clip: sections that build the network.
        labels: labels of a classifier; empty if it is pretrained only.
    """

    state: State
    model: ModelParams
    clip: ClipParams
    labels: tuple[str, ...] = ()


def convert(source: Path, target: Path, options: ConversionOptions) -> str:
    """Convert a checkpoint; its content decides the direction.

    A ``.pth`` file of VideoMAE or MME, and a folder saved by transformers, become a model folder (if finetuned) or a
    pretrained folder; a folder of this project becomes one for transformers.

    Returns:
        Description of the result, to print.

    Raises:
        ValueError: ``source`` is none of these or damaged, keys are missing or unexpected (all are listed), or the
            other side does not have this network.
    """
    if source.is_file():
        return save_checkpoint(target, from_pth(source, options), options, str(source))
    config = read_json(source / CONFIG_FILE)
    if config.get("model_type") == HF_TYPE:
        return save_checkpoint(target, from_hf(source, options), options, str(source))
    if "model" in config and "clip" in config:
        return to_hf(source, target)
    raise ValueError(f"{source / CONFIG_FILE}: neither a folder of mme nor of transformers' VideoMAE")


def read_pth(path: Path) -> State:
    """Read the state dict of a ``.pth`` file, itself or under ``model`` or ``module``; no code in it is executed.

    Raises:
        ValueError: ``torch.load(weights_only=True)`` cannot read it, or it holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: cannot be read as weights alone: {first}") from error
    # Training scripts save the weights beside optimiser and epoch, under one of two names.
    for name in ("model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no state dict, neither itself nor under 'model' or 'module'")
    return {str(key): value.float() for key, value in content.items()}  # half-precision files too


def from_pth(path: Path, options: ConversionOptions) -> Checkpoint:
    """Read a ``.pth`` file of VideoMAE or MME."""
    foreign = read_pth(path)
    state, finetuned = model_from_pth(foreign, str(path))

    # The file has no configuration: sizes follow from the shapes of its weights.
    conv = next(value for key, value in foreign.items() if key.endswith("patch_embed.proj.weight"))  # [D, 3, t, p, p]
    if conv.ndim != 5 or conv.shape[1] != 3 or conv.shape[3] != conv.shape[4]:
        raise ValueError(f"{path}: patch_embed.proj.weight has shape {list(conv.shape)}, not [D, 3, t, p, p]")
    dim, _, tubelet_frames, patch_size, _ = conv.shape
    model = ModelParams(
        patch_size=patch_size,
        tubelet_frames=tubelet_frames,
        dim=dim,
        depth=sum(key.endswith("attn.qkv.weight") for key in state),
        num_heads=options.num_heads or max(1, dim // HEAD_DIM),
        mlp_ratio=state["encoder.blocks.0.mlp.fc1.weight"].shape[0] / dim,
        positions="flat",
    )
    clip = options.clip(options.num_frames, options.size)
    if not finetuned:
        return Checkpoint(state, model, clip)

    num_classes = state["head.weight"].shape[0]
    if options.labels is None or len(options.labels) != num_classes:
        found = "none" if options.labels is None else len(options.labels)
        raise ValueError(f"{path}: its head has {num_classes} classes, labels given: {found}")
    return Checkpoint(state, model, clip, options.labels)


def from_hf(folder: Path, options: ConversionOptions) -> Checkpoint:
    """Read a folder saved by transformers: ``VideoMAEModel``, ``...ForPreTraining`` or ``...Classification``."""
    config, foreign = read_hf(folder)

    # The final norm has other names with and without a classifier, so it is taken apart from the encoder.
    backbone = {key.removeprefix(_BACKBONE): value for key, value in foreign.items() if key.startswith(_BACKBONE)}
    norm = {kind: backbone.pop(f"layernorm.{kind}", None) for kind in ("weight", "bias")}
    encoder = encoder_from_hf(backbone, config.num_hidden_layers, str(folder))
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    model = params_of_hf(config, str(folder))
    clip = options.clip(config.num_frames, int(str(config.image_size)))

    if "classifier.weight" in foreign:
        if "fc_norm.weight" not in foreign:
            raise ValueError(f"{folder}: use_mean_pooling is false; mme pools all tokens")
        state |= renamed(foreign, {"fc_norm": "norm", "classifier": "head"})
        return Checkpoint(state, model, clip, tuple(str(config.id2label[i]) for i in range(len(config.id2label))))

    # Without a final norm (use_mean_pooling) finetuning starts from a new one, as in transformers.
    state["norm.weight"] = torch.ones(model.dim) if norm["weight"] is None else norm["weight"]
    state["norm.bias"] = torch.zeros(model.dim) if norm["bias"] is None else norm["bias"]
    return Checkpoint(state, model, clip)


def read_hf(folder: Path) -> tuple[VideoMAEConfig, State]:
    """Read configuration and state of a folder saved by transformers, the backbone's keys with ``videomae.``.

    Raises:
        ValueError: its architecture is another one, or weights lack keys or have others; all are listed.
    """
    transformers = _transformers()
    config = transformers.VideoMAEConfig.from_pretrained(folder)
    (name,) = config.architectures or ("none",)
    if name not in ("VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"):
        raise ValueError(f"{folder}: its architecture is {name}, which has no counterpart here")
    try:
        model, info = getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be loaded by transformers: {error}") from error
    check_keys(folder, info["missing_keys"], info["unexpected_keys"])

    # VideoMAEModel is the backbone itself; the other two hold it under `videomae.`.
    prefix = _BACKBONE if name == "VideoMAEModel" else ""
    state = {prefix + key: value.detach() for key, value in model.state_dict().items()}
    return config, {key: value for key, value in state.items() if key.split(".")[0] not in _PRETRAINING_ONLY}


def params_of_hf(config: VideoMAEConfig, source: str) -> ModelParams:
    """Translate a transformers configuration to the section ``model``.

    Raises:
        ValueError: it describes a network that `VideoEncoder` does not cover.
    """
    needed = {"hidden_act": "gelu", "num_channels": 3}
    faults = [
        f"{name}: {getattr(config, name)!r}, must be {wanted!r}"
        for name, wanted in needed.items()
        if getattr(config, name) != wanted
    ]
    faults += [
        f"{name}: {getattr(config, name)!r}, must be one number"
        for name in ("image_size", "patch_size")
        if not isinstance(getattr(config, name), int)
    ]
    if faults:
        raise ValueError(f"{source}: " + "; ".join(faults))
    sizes = {ours: getattr(config, theirs) for ours, theirs in _HF_SIZES.items()}
    return ModelParams(**sizes, mlp_ratio=config.intermediate_size / config.hidden_size, positions="flat")


def read_folder(folder: Path) -> Checkpoint:
    """Read a model folder or a pretrained folder."""
    raw = read_json(folder / CONFIG_FILE)
    if "labels" in raw:
        classifier, config = load_folder(folder)
        return Checkpoint(classifier.state_dict(), config.model, config.clip, config.labels)
    return Checkpoint(read_state(folder / WEIGHTS_FILE), ModelParams(**raw["model"]), ClipParams(**raw["clip"]))


def to_hf(folder: Path, target: Path) -> str:
    """Write a folder as ``VideoMAEForVideoClassification`` or, if it is pretrained only, as ``VideoMAEModel``.

    ``VideoMAEForPreTraining`` loads the latter as well, with a new decoder.

    Raises:
        ValueError: ``model.positions`` is ``axes``, which VideoMAE does not have, or the folder is damaged.
    """
    transformers = _transformers()
    ours = read_folder(folder)
    state, model, labels = ours.state, ours.model, ours.labels
    if model.positions != "flat":
        raise ValueError(f"{folder}: model.positions is {model.positions!r}; VideoMAE has 'flat' only")
    conv_shape = (model.dim, 3, model.tubelet_frames, model.patch_size, model.patch_size)
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    theirs = encoder_to_hf(encoder, model.depth, conv_shape)

    # The norm before the head is `fc_norm` there if tokens are pooled, else `layernorm`.
    hf_config = transformers.VideoMAEConfig(
        **{theirs: getattr(model, ours) for ours, theirs in _HF_SIZES.items()},
        image_size=ours.clip.size,
        num_frames=ours.clip.num_frames,
        intermediate_size=round(model.dim * model.mlp_ratio),
        layer_norm_eps=1e-5,
        use_mean_pooling=bool(labels),
    )
    if labels:
        hf_config.id2label = dict(enumerate(labels))
        hf_config.label2id = {label: i for i, label in enumerate(labels)}
        theirs = {_BACKBONE + key: value for key, value in theirs.items()}
        theirs |= renamed(state, {"norm": "fc_norm", "head": "classifier"})
        network: Any = transformers.VideoMAEForVideoClassification(hf_config)
    else:
        theirs |= renamed(state, {"norm": "layernorm"})
        network = transformers.VideoMAEModel(hf_config)
    # Strict, so that a key that was forgotten is an error and not a random weight.
    network.load_state_dict(theirs)
    with atomic_path(target) as temporary:
        network.save_pretrained(temporary)
    return f"{type(network).__name__} of transformers in {target}"


def save_checkpoint(target: Path, checkpoint: Checkpoint, options: ConversionOptions, source: str) -> str:
    """Write a model folder or, without labels, a pretrained folder; return its description."""
    model, clip, labels = checkpoint.model, checkpoint.clip, checkpoint.labels
    fps = options.rate(len(labels))
    if labels:
        classifier = MotionClassifier(model, clip, len(labels))
        classifier.load_state_dict(checkpoint.state)
        config = FolderConfig(
            format=FOLDER_FORMAT,
            name=target.name,
            model=model,
            clip=clip,
            fps=fps,
            views=ViewsConfig(segments=options.segments, crops=3 if options.crops == 3 else 1),
            labels=labels,
            provenance={"source": source},
            metrics={},
        )
        save_folder(target, classifier, config)
        return f"model folder with {len(labels)} labels, for {fps:g} frames per second, in {target}"

    with atomic_path(target) as temporary:
        temporary.mkdir()
        save_file({name: value.contiguous() for name, value in checkpoint.state.items()}, temporary / WEIGHTS_FILE)
        sections = {"model": model.model_dump(mode="json"), "clip": clip.model_dump(mode="json")}
        write_json(temporary / CONFIG_FILE, {**sections, "fps": fps, "source": source})
    return f"pretrained encoder ({model.depth} blocks of {model.dim} channels) in {target}"


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ValueError("converting to or from transformers needs it: pip install 'mme[bridges]'") from error
    return transformers
