"""The encoder with a classification head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers import AttentionPoolLatent  # type: ignore[attr-defined]
from torch import Tensor, nn

from mme.config import ClipParams, ModelParams, Pooling
from mme.models.encoder import VideoEncoder, sinusoid


class MotionClassifier(nn.Module):
    """Encoder over all tokens, pooling, LayerNorm, linear head.

    Args:
        model: size of the encoder.
        clip: frames and size of a clip.
        num_classes: K, at least 2.
        drop_path: of the encoder.
        pool: how the tokens become the features of a clip.

            - ``mean``: their mean (Sun et al. 2023, section 4.1), F = D; the order in time is lost.
            - ``time``: the mean of each time step of each snippet, normalised, side by side, F = s * t * D.
            - ``attentive``: one block of cross-attention with a learned query (Bardes et al. 2024), F = D. Tokens get
              the position of their snippet where there are several.
    """

    snippet_positions: Tensor

    def __init__(
        self,
        model: ModelParams,
        clip: ClipParams,
        num_classes: int,
        drop_path: float = 0.0,
        pool: Pooling = "mean",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: {num_classes}; a classifier needs at least two labels")
        self.pool = pool
        self.encoder = VideoEncoder(model, clip, drop_path)
        if pool == "attentive":
            self.attention = AttentionPoolLatent(model.dim, num_heads=model.num_heads, mlp_ratio=model.mlp_ratio)
            # One snippet needs no position, and models without snippets had none.
            positions = sinusoid(torch.arange(clip.snippets), model.dim) * (clip.snippets > 1)
            self.register_buffer("snippet_positions", positions[:, None], persistent=False)  # (s, 1, D)
        self.norm = nn.LayerNorm(model.dim)
        num_features = model.dim * (clip.snippets * self.encoder.grid[0] if pool == "time" else 1)
        self.head = nn.Linear(num_features, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the layers in timm's form, for its layer-wise learning rates: embedding, each block, norm and head."""
        return {"stem": r"^encoder\.embed", "blocks": r"^encoder\.blocks\.(\d+)", "head": r"^attention|^norm|^head"}

    def features(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B F"]:
        """Pooled, normalised features of a clip."""
        return self.pool_tokens(encode_snippets(self.encoder, clip))

    def pool_tokens(self, tokens: Float[Tensor, "B s N D"]) -> Float[Tensor, "B F"]:
        """Pool and normalise the encoder's tokens."""
        if self.pool == "attentive":
            pooled = self.attention((tokens + self.snippet_positions).flatten(1, 2))  # (B, D)
        elif self.pool == "time":
            pooled = time_steps(tokens, self.encoder)  # (B, S, D)
        else:
            pooled = tokens.mean(dim=(1, 2))  # (B, D)
        features: Tensor = self.norm(pooled).flatten(1)  # (B, F)
        return features

    def forward(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B K"]:
        """Logits of a batch of normalised clips."""
        logits: Tensor = self.head(self.features(clip))
        return logits


def encode_snippets(encoder: VideoEncoder, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B s N D"]:
    """Encode each snippet of a clip by itself: as many frames as the encoder takes, one snippet after the other."""
    frames = encoder.grid[0] * encoder.tubelet_frames
    snippets = clip.unflatten(2, (-1, frames)).transpose(1, 2)  # (B, s, 3, frames, H, W)
    tokens: Tensor = encoder(snippets.flatten(0, 1)).unflatten(0, snippets.shape[:2])
    return tokens


def time_steps(tokens: Float[Tensor, "B s N D"], encoder: VideoEncoder) -> Float[Tensor, "B S D"]:
    """Mean of the tokens of each time step of each snippet, S = s * t of them, in order."""
    steps: Tensor = tokens.unflatten(2, (encoder.grid[0], -1)).mean(dim=3).flatten(1, 2)
    return steps
