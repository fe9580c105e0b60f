"""The masked motion model (Sun et al. 2023, section 3): from what is visible to the motion of what is hidden."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mme.config import CELLS_PER_PATCH_SIDE, ClipParams, ModelParams, PretrainParams
from mme.models.encoder import VideoEncoder, build_blocks, gather_tokens, init_weights, position_table, run_blocks
from mme.targets.hog import NUM_BINS

CELLS_PER_TOKEN = CELLS_PER_PATCH_SIDE**2


def target_shapes(params: PretrainParams, model: ModelParams) -> dict[str, tuple[int, ...]]:
    """What is predicted for one token, by the objective.

    ``position`` [C, L, 2], ``shape`` [C, L or 1, 9], ``pixel`` [3 * tubelet_frames * patch_size**2].
    """
    position = (CELLS_PER_TOKEN, params.length, 2)
    hog = (CELLS_PER_TOKEN, params.length if params.hog_steps == "all" else 1, NUM_BINS)
    if params.objective == "mme":
        return {"position": position, "shape": hog}
    if params.objective == "trajectory":
        return {"position": position}
    if params.objective == "hog":
        return {"shape": hog}
    return {"pixel": (3 * model.tubelet_frames * model.patch_size**2,)}


class MotionModel(nn.Module):
    """An asymmetric masked autoencoder whose output is motion.

    The encoder sees the visible tokens; a light decoder sees them and one learned token for each hidden place; linear
    heads, which are unbounded as their targets are, read the hidden places.
    """

    positions: Tensor

    def __init__(self, model: ModelParams, clip: ClipParams, params: PretrainParams) -> None:
        super().__init__()
        self.encoder = VideoEncoder(model, clip, params.drop_path)
        self.norm = nn.LayerNorm(model.dim)
        self.decoder_embed = nn.Linear(model.dim, params.decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(params.decoder_dim))
        table = position_table(self.encoder.grid, params.decoder_dim, model.positions)
        self.register_buffer("positions", table, persistent=False)
        self.decoder_blocks = build_blocks(params.decoder_depth, params.decoder_dim, params.decoder_heads)
        self.decoder_norm = nn.LayerNorm(params.decoder_dim)
        self.target_shapes = target_shapes(params, model)
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(params.decoder_dim, int(torch.Size(shape).numel()))
                for name, shape in self.target_shapes.items()
            }
        )
        for part in (self.decoder_embed, self.decoder_blocks, self.heads):
            init_weights(part)
        for head in self.heads.children():
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=0.01)  # the first guess is the mean of the targets, not noise
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, clip: Float[Tensor, "B 3 T H W"], hidden: Bool[Tensor, "B N"]) -> dict[str, Tensor]:
        """Predict the targets of the hidden tokens.

        Args:
            clip: normalised pixels.
            hidden: ``True`` = hidden, the same number M in each row.

        Returns:
            For each target its prediction [B, M, *target_shape], hidden tokens in order.
        """
        visible = self.forward_encoder(clip, hidden)
        decoded = self.forward_decoder(visible, hidden)
        return self.forward_heads(decoded)

    def forward_encoder(self, clip: Float[Tensor, "B 3 T H W"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B V D"]:
        """Encode the visible tokens."""
        encoded: Tensor = self.norm(self.encoder(clip, hidden))
        return encoded

    def forward_decoder(self, visible: Float[Tensor, "B V D"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B M E"]:
        """Put mask tokens where tokens are hidden, decode all, keep the hidden ones."""
        embedded = self.decoder_embed(visible)  # (B, V, E)
        tokens = self.mask_token.to(embedded.dtype).expand(*hidden.shape, -1).clone()  # (B, N, E)
        tokens[~hidden] = embedded.flatten(0, 1)
        tokens = tokens + self.positions
        tokens = run_blocks(self.decoder_blocks, tokens, self.encoder.gradient_checkpointing)
        return self.decoder_norm(gather_tokens(tokens, hidden))  # type: ignore[no-any-return]

    def forward_heads(self, decoded: Float[Tensor, "B M E"]) -> dict[str, Tensor]:
        """Linear heads, one a target."""
        return {name: self.heads[name](decoded).unflatten(-1, shape) for name, shape in self.target_shapes.items()}
