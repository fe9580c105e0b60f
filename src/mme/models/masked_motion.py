"""The masked motion model and its loss (Sun et al. 2023, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mme.config import ClipParams, ModelParams, PretrainParams
from mme.models.encoder import (
    VideoEncoder,
    build_blocks,
    gather_tokens,
    init_weights,
    position_table,
    run_blocks,
    token_places,
)
from mme.targets.base import objective_targets, target_weights
from mme.targets.grid import TargetSpec


class MaskedMotionModel(nn.Module):
    """An asymmetric masked autoencoder that predicts the targets of an objective, motion in the first place.

    The encoder sees the visible tokens only. A light decoder sees them and a learned mask token at each hidden place.
    Linear heads, one per target, read the hidden places; they are unbounded, as their targets are.

    Axes: B clips, N tokens per clip, V visible, M hidden; D channels of the encoder, E of the decoder.

    Args:
        model: size of the encoder.
        clip: frames and size of a clip.
        pretrain: objective, parameters of its targets, size of the decoder.

    Attributes:
        spec: geometry of the tokens.
        targets: targets of the objective.
        weights: factor of each target's loss.
    """

    positions: Tensor

    def __init__(self, model: ModelParams, clip: ClipParams, pretrain: PretrainParams) -> None:
        super().__init__()
        self.spec = TargetSpec.from_params(clip, model, pretrain)
        self.targets = objective_targets(pretrain.objective)
        self.weights = target_weights(self.targets, pretrain.weights)

        # Encoder: a plain ViT over the visible tokens.
        self.encoder = VideoEncoder(model, clip, pretrain.drop_path)
        self.norm = nn.LayerNorm(model.dim)

        # Decoder: all tokens, hidden ones as the mask token plus their position.
        self.decoder_embed = nn.Linear(model.dim, pretrain.decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(pretrain.decoder_dim))
        table = position_table(self.encoder.grid, pretrain.decoder_dim, model.positions)
        self.register_buffer("positions", table, persistent=False)
        self.decoder_blocks = build_blocks(pretrain.decoder_depth, pretrain.decoder_dim, pretrain.decoder_heads)
        self.decoder_norm = nn.LayerNorm(pretrain.decoder_dim)

        # Heads: the target alone says what one token predicts.
        self.shapes = {target.name: target.shape(self.spec) for target in self.targets}
        self.heads = nn.ModuleDict(
            {name: nn.Linear(pretrain.decoder_dim, math.prod(shape)) for name, shape in self.shapes.items()}
        )

        for part in (self.decoder_embed, self.decoder_blocks, self.heads):
            init_weights(part)
        for head in self.heads.children():
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=0.01)  # the first guess is the mean of the targets, not noise
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tubelets: Float[Tensor, "B V P"], hidden: Bool[Tensor, "B N"]) -> dict[str, Tensor]:
        """Predict the targets of the hidden tokens.

        Args:
            tubelets: normalised pixels of the visible tokens, of `mme.models.encoder.token_input`.
            hidden: ``True`` = hidden, the same number M in each row.

        Returns:
            Prediction of each target, [B, M, *shape], hidden tokens in order.
        """
        visible = self.forward_encoder(tubelets, hidden)  # (B, V, D)
        decoded = self.forward_decoder(visible, hidden)  # (B, M, E)
        return self.forward_heads(decoded)

    def forward_encoder(self, tubelets: Float[Tensor, "B V P"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B V D"]:
        """Encode the visible tokens."""
        encoded: Tensor = self.norm(self.encoder.forward_tubelets(tubelets, hidden))
        return encoded

    def forward_decoder(self, visible: Float[Tensor, "B V D"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B M E"]:
        """Decode visible tokens and mask tokens together; keep the hidden ones."""
        embedded = self.decoder_embed(visible)  # (B, V, E)
        tokens = self.mask_token.to(embedded.dtype).expand(*hidden.shape, -1)  # (B, N, E)
        places = token_places(~hidden, visible.shape[1])[..., None].expand_as(embedded)
        tokens = tokens.scatter(1, places, embedded) + self.positions
        tokens = run_blocks(self.decoder_blocks, tokens, self.encoder.gradient_checkpointing)
        return self.decoder_norm(gather_tokens(tokens, hidden, hidden.shape[1] - visible.shape[1]))  # type: ignore[no-any-return]

    def forward_heads(self, decoded: Float[Tensor, "B M E"]) -> dict[str, Tensor]:
        """Apply the head of each target."""
        return {name: self.heads[name](decoded).unflatten(-1, shape) for name, shape in self.shapes.items()}

    def forward_loss(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Mean squared error of each target, and their weighted sum ``loss``.

        Args:
            predictions: of `forward`.
            targets: standardised values ``[B, M, *shape]`` and validity ``[B, M, *V]`` of each target.
        """
        losses = {
            f"{name}_loss": masked_mse(predicted.float(), *targets[name]) for name, predicted in predictions.items()
        }
        total = torch.stack([self.weights[name] * losses[f"{name}_loss"] for name in predictions]).sum()
        return {"loss": total, **losses}


def masked_mse(
    predicted: Float[Tensor, "B M *S"], target: Float[Tensor, "B M *S"], valid: Bool[Tensor, "B M *V"]
) -> Float[Tensor, ""]:
    """Mean squared error over valid entries.

    Args:
        predicted: predictions for the hidden tokens.
        target: their targets; invalid entries may hold any value, not-a-number included.
        valid: mask whose axes are the first ones of ``predicted``.

    Returns:
        Sum of squared errors over valid entries divided by their number: invalid entries count in neither.
        Zero (with a gradient of zero) where nothing is valid.
    """
    weights = valid.reshape(valid.shape + (1,) * (predicted.ndim - valid.ndim)).expand_as(predicted)
    errors = (predicted - target).where(weights, predicted.new_zeros(()))  # where() stops the gradient of NaN targets
    return errors.square().sum() / weights.sum().clamp(min=1)
