"""The encoder with a classification head."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mme.config import ClipParams, ModelParams
from mme.models.encoder import VideoEncoder


class MotionClassifier(nn.Module):
    """Encoder over all tokens, mean pooling, LayerNorm, linear head (Sun et al. 2023, section 4.1)."""

    def __init__(self, model: ModelParams, clip: ClipParams, num_classes: int, drop_path: float = 0.0) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: {num_classes}; a classifier needs at least two labels")
        self.encoder = VideoEncoder(model, clip, drop_path)
        self.norm = nn.LayerNorm(model.dim)
        self.head = nn.Linear(model.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the layers in timm's form, for its layer-wise learning rates: embedding, each block, norm and head."""
        return {"stem": r"^encoder\.embed", "blocks": r"^encoder\.blocks\.(\d+)", "head": r"^norm|^head"}

    def features(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B D"]:
        """Mean-pooled, normalised features of a clip."""
        pooled: Tensor = self.norm(self.encoder(clip).mean(dim=1))
        return pooled

    def forward(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B K"]:
        """Logits of a batch of normalised clips."""
        logits: Tensor = self.head(self.features(clip))
        return logits
