"""Between our folders and other frameworks' checkpoints: the state goes through `mme.models.bridges`, the rest is here.

A *model folder* holds a classifier (`mme.models.checkpoints`), a *pretrained folder* an encoder with its final norm:
``model.safetensors`` and a ``config.json`` with the sections ``model`` and ``clip``, as ``models/pretrain`` has it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mme.config import ClipParams, ModelParams
from mme.models.bridges import KeysError, State, encoder_from_hf, encoder_to_hf, model_from_pth
from mme.models.checkpoints import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    FolderConfig,
    ViewsConfig,
    load_folder,
    save_folder,
)
from mme.models.classifier import MotionClassifier
from mme.system.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from transformers import VideoMAEConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD_DIM = 64
"""Channels of an attention head in every published ViT of VideoMAE and MME."""

HF_TYPE = "videomae"
_BACKBONE = "videomae."
_PRETRAINING_ONLY = ("encoder_to_decoder", "mask_token", "decoder")


@dataclass(frozen=True)
class Given:
    """What a foreign checkpoint does not tell.

    Attributes:
        stride_frames: raw frames from one frame of a clip to the next.
        segments, crops: views that are averaged.
        num_frames, size, num_heads: of ``.pth`` files only; heads of None are of 64 channels each.
        labels: of a finetuned ``.pth`` file, in the order of its head.
    """

    stride_frames: int = 4
    segments: int = 1
    crops: int = 1
    num_frames: int = 16
    size: int = 224
    num_heads: int | None = None
    labels: tuple[str, ...] | None = None

    def clip(self, num_frames: int, size: int) -> ClipParams:
        """A clip as VideoMAE normalises it."""
        return ClipParams(
            num_frames=num_frames,
            stride_frames=self.stride_frames,
            sampling="stride",
            size=size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )


def convert(source: Path, target: Path, given: Given) -> str:
    """Convert a checkpoint; what it is follows from what it holds.

    A ``.pth`` file of VideoMAE or MME, and a folder that transformers saved, become a model folder (if finetuned) or a
    pretrained folder; a folder of ours becomes one that transformers loads.

    Returns:
        What was written, for people.

    Raises:
        ValueError: ``source`` is none of these, is damaged, lacks a key or has one too many (all are listed), or is
            a network that the other side does not have.
    """
    if source.is_file():
        return from_pth(source, target, given)
    config = read_json(source / CONFIG_FILE)
    if config.get("model_type") == HF_TYPE:
        return from_hf(source, target, given)
    if "model" in config and "clip" in config:
        return to_hf(source, target)
    raise ValueError(f"{source / CONFIG_FILE}: neither a folder of ours nor transformers' VideoMAE")


def read_pth(path: Path) -> State:
    """The state dict of a ``.pth`` file, itself or under ``model`` or ``module``; nothing in the file is executed.

    Raises:
        ValueError: it is not a file that ``torch.load(weights_only=True)`` reads, or holds no state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: cannot be read as weights alone: {first}") from error
    for name in ("model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no state dict, neither itself nor under 'model' or 'module'")
    return {str(key): value.float() for key, value in content.items()}


def from_pth(path: Path, target: Path, given: Given) -> str:
    """Convert a ``.pth`` file of VideoMAE or MME."""
    foreign = read_pth(path)
    state, finetuned = model_from_pth(foreign, str(path))
    conv = next(value for key, value in foreign.items() if key.endswith("patch_embed.proj.weight"))
    if conv.ndim != 5 or conv.shape[1] != 3 or conv.shape[3] != conv.shape[4]:
        raise ValueError(f"{path}: patch_embed.proj.weight has shape {list(conv.shape)}, not [D, 3, t, p, p]")
    dim = conv.shape[0]
    model = ModelParams(
        patch_size=conv.shape[3],
        tubelet_frames=conv.shape[2],
        dim=dim,
        depth=sum(key.endswith("attn.qkv.weight") for key in state),
        num_heads=given.num_heads or max(1, dim // HEAD_DIM),
        mlp_ratio=state["encoder.blocks.0.mlp.fc1.weight"].shape[0] / dim,
        positions="flat",
    )
    clip = given.clip(given.num_frames, given.size)
    if not finetuned:
        return write_pretrained(target, state, model, clip, str(path))
    num_classes = state["head.weight"].shape[0]
    if given.labels is None or len(given.labels) != num_classes:
        found = "none" if given.labels is None else len(given.labels)
        raise ValueError(f"{path}: its head has {num_classes} classes, labels given: {found}")
    return write_classifier(target, state, (model, clip, given.labels), given, str(path))


def from_hf(folder: Path, target: Path, given: Given) -> str:
    """Convert a folder that transformers saved: ``VideoMAEModel``, ``...ForPreTraining`` or ``...Classification``."""
    config, foreign = read_hf(folder)
    backbone = {key.removeprefix(_BACKBONE): value for key, value in foreign.items() if key.startswith(_BACKBONE)}
    backbone = backbone or dict(foreign)
    norm = {kind: backbone.pop(f"layernorm.{kind}", None) for kind in ("weight", "bias")}
    encoder = encoder_from_hf(backbone, config.num_hidden_layers, str(folder))
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    model, clip = params_of_hf(config, str(folder)), given.clip(config.num_frames, int(str(config.image_size)))
    if "classifier.weight" in foreign:
        if "fc_norm.weight" not in foreign:
            raise ValueError(f"{folder}: use_mean_pooling is false; ours pools all tokens")
        state |= {f"norm.{kind}": foreign[f"fc_norm.{kind}"] for kind in ("weight", "bias")}
        state |= {f"head.{kind}": foreign[f"classifier.{kind}"] for kind in ("weight", "bias")}
        labels = tuple(str(config.id2label[index]) for index in range(len(config.id2label)))
        return write_classifier(target, state, (model, clip, labels), given, str(folder))
    # Without a final norm of its own (use_mean_pooling), finetuning starts from a new one, as transformers does.
    weight, bias = norm["weight"], norm["bias"]
    state["norm.weight"] = torch.ones(model.dim) if weight is None else weight
    state["norm.bias"] = torch.zeros(model.dim) if bias is None else bias
    return write_pretrained(target, state, model, clip, str(folder))


def read_hf(folder: Path) -> tuple[VideoMAEConfig, State]:
    """Configuration and state of a folder that transformers saved.

    Raises:
        ValueError: its architecture is another one, or its weights lack keys or have others; all are listed.
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
    if info["missing_keys"] or info["unexpected_keys"]:
        raise KeysError(str(folder), info["missing_keys"], info["unexpected_keys"])
    state = {
        key: value.detach() for key, value in model.state_dict().items() if key.split(".")[0] not in _PRETRAINING_ONLY
    }
    if name == "VideoMAEModel":
        state = {_BACKBONE + key: value.detach() for key, value in model.state_dict().items()}
    return config, state


def params_of_hf(config: VideoMAEConfig, source: str) -> ModelParams:
    """Our section ``model`` of a transformers configuration.

    Raises:
        ValueError: it describes what `VideoEncoder` cannot be.
    """
    faults = [
        f"{name}: {getattr(config, name)!r}, must be {wanted!r}"
        for name, wanted in (("hidden_act", "gelu"), ("num_channels", 3))
        if getattr(config, name) != wanted
    ]
    faults += [
        f"{name}: {getattr(config, name)!r}, must be one number"
        for name in ("image_size", "patch_size")
        if not isinstance(getattr(config, name), int)
    ]
    if faults:
        raise ValueError(f"{source}: " + "; ".join(faults))
    return ModelParams(
        patch_size=int(str(config.patch_size)),
        tubelet_frames=config.tubelet_size,
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        positions="flat",
    )


def to_hf(folder: Path, target: Path) -> str:
    """Write a folder of ours as ``VideoMAEForVideoClassification`` or, if it is pretrained only, ``VideoMAEModel``.

    The latter's folder also starts ``VideoMAEForPreTraining``, whose decoder is new then.

    Raises:
        ValueError: ``model.positions`` is ``axes``, which VideoMAE does not have, or the folder is damaged.
    """
    transformers = _transformers()
    raw = read_json(folder / CONFIG_FILE)
    if "labels" in raw:
        classifier, config = load_folder(folder)
        labels: tuple[str, ...] = config.labels
        model, clip, state = config.model, config.clip, classifier.state_dict()
    else:
        model, clip, labels = ModelParams(**raw["model"]), ClipParams(**raw["clip"]), ()
        state = _pretrained_state(folder / WEIGHTS_FILE)
    if model.positions != "flat":
        raise ValueError(f"{folder}: model.positions is {model.positions!r}; VideoMAE has 'flat' only")
    conv_shape = (model.dim, 3, model.tubelet_frames, model.patch_size, model.patch_size)
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    theirs = encoder_to_hf(encoder, model.depth, conv_shape)
    hf_config = transformers.VideoMAEConfig(**_hf_values(model, clip, labels))
    if labels:
        theirs = {_BACKBONE + key: value for key, value in theirs.items()}
        theirs |= {f"fc_norm.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}
        theirs |= {f"classifier.{kind}": state[f"head.{kind}"] for kind in ("weight", "bias")}
        network: Any = transformers.VideoMAEForVideoClassification(hf_config)
    else:
        theirs |= {f"layernorm.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}
        network = transformers.VideoMAEModel(hf_config)
    network.load_state_dict(theirs)
    with atomic_path(target) as temporary:
        network.save_pretrained(temporary)
    return f"{type(network).__name__} of transformers in {target}"


def _hf_values(model: ModelParams, clip: ClipParams, labels: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "image_size": clip.size,
        "patch_size": model.patch_size,
        "num_frames": clip.num_frames,
        "tubelet_size": model.tubelet_frames,
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": round(model.dim * model.mlp_ratio),
        "layer_norm_eps": 1e-5,
        "use_mean_pooling": bool(labels),
    }
    if labels:
        values |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return values


def _pretrained_state(path: Path) -> State:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from error


def write_pretrained(target: Path, state: State, model: ModelParams, clip: ClipParams, source: str) -> str:
    """Write a pretrained folder."""
    with atomic_path(target) as temporary:
        temporary.mkdir()
        save_file({name: value.contiguous() for name, value in state.items()}, temporary / WEIGHTS_FILE)
        sections = {"model": model.model_dump(mode="json"), "clip": clip.model_dump(mode="json")}
        write_json(temporary / CONFIG_FILE, {**sections, "source": source})
    return f"pretrained encoder ({model.depth} blocks of {model.dim} channels) in {target}"


def write_classifier(
    target: Path, state: State, parts: tuple[ModelParams, ClipParams, tuple[str, ...]], given: Given, source: str
) -> str:
    """Write a model folder."""
    model, clip, labels = parts
    crops = 3 if given.crops == 3 else 1
    config = FolderConfig(
        format=FORMAT,
        name=target.name,
        model=model,
        clip=clip,
        views=ViewsConfig(segments=given.segments, crops=crops),
        labels=labels,
        provenance={"source": source},
        metrics={},
    )
    classifier = MotionClassifier(model, clip, len(labels))
    classifier.load_state_dict(state)
    save_folder(target, classifier, config)
    return f"model folder with {len(labels)} labels in {target}"


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ValueError("converting to or from transformers needs it: pip install 'mme[bridges]'") from error
    return transformers
