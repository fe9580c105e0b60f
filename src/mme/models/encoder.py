"""A plain ViT over video tubelets that can look at a subset of its tokens."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt8
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mme.config import ClipParams, ModelParams


def model_input(frames: UInt8[Tensor, "B T H W 3"], clip: ClipParams) -> Float[Tensor, "B 3 T H W"]:
    """Normalise a batch of clips."""
    # Channels apart and in place: half the time of (frames.float() - mean) / std.
    pixels = frames.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = (
        255 * torch.tensor(values, device=frames.device)[:, None, None, None] for values in (clip.mean, clip.std)
    )
    return pixels.sub_(mean).div_(std)


def sinusoid(positions: Int[Tensor, " N"], dim: int) -> Float[Tensor, "N dim"]:
    """Sine-cosine embedding of scalar positions (Vaswani et al. 2017): sines at even, cosines at odd channels."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions.double()[:, None] * frequencies[None, :]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def position_table(grid: tuple[int, int, int], dim: int, kind: str) -> Float[Tensor, "N dim"]:
    """Fixed positions of the tokens of ``grid`` = (time, height, width), in (time, y, x) order.

    ``flat`` counts the tokens (one axis, as the published ViT-B models do); ``axes`` gives a share of the channels to
    each axis: half to y and x each less a quarter for time, so that neighbours in space are near in every row.
    """
    frames, height, width = grid
    if kind == "flat":
        return sinusoid(torch.arange(frames * height * width), dim)
    time_dim = dim // 4 // 2 * 2
    x_dim = (dim - time_dim) // 2 // 2 * 2
    parts = [
        sinusoid(axis.flatten(), size)
        for axis, size in zip(
            torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"),
            (time_dim, dim - time_dim - x_dim, x_dim),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=1)


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform linear layers: with PyTorch's default the small model never leaves its initial plateau."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def build_blocks(depth: int, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> nn.ModuleList:
    """Timm's pre-norm transformer blocks; drop path rises linearly to ``drop_path`` at the last one."""
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    return nn.ModuleList(
        Block(dim, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=nn.LayerNorm) for rate in rates
    )


def run_blocks(blocks: nn.ModuleList, tokens: Float[Tensor, "B N D"], recompute: bool) -> Float[Tensor, "B N D"]:
    """Tokens through all blocks; ``recompute`` keeps only each block's input for the backward pass."""
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, use_reentrant=False)
        else:
            tokens = block(tokens)
    return tokens


def gather_tokens(tokens: Float[Tensor, "B N D"], chosen: Bool[Tensor, "B N"]) -> Float[Tensor, "B M D"]:
    """The chosen tokens of each clip, in order; every row of ``chosen`` holds the same number of true entries."""
    return tokens[chosen].view(tokens.shape[0], -1, tokens.shape[-1])


class VideoEncoder(nn.Module):
    """Tubelet embedding, fixed positions, transformer blocks.

    A token covers ``tubelet_frames x patch_size x patch_size``; tokens stand in (time, y, x) order. Only tokens that
    are looked at are embedded, so that nothing hidden can leak and nothing hidden costs time.

    Attributes:
        gradient_checkpointing: compute the blocks' activations anew in the backward pass instead of keeping them.
    """

    positions: Tensor

    def __init__(self, model: ModelParams, clip: ClipParams, drop_path: float = 0.0) -> None:
        super().__init__()
        self.patch_size, self.tubelet_frames = model.patch_size, model.tubelet_frames
        side = clip.size // model.patch_size
        self.grid = (clip.num_frames // model.tubelet_frames, side, side)
        self.gradient_checkpointing = False
        self.embed = nn.Linear(3 * model.tubelet_frames * model.patch_size**2, model.dim)
        self.register_buffer("positions", position_table(self.grid, model.dim, model.positions), persistent=False)
        self.blocks = build_blocks(model.depth, model.dim, model.num_heads, model.mlp_ratio, drop_path)
        init_weights(self)

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole clip."""
        frames, height, width = self.grid
        return frames * height * width

    def patchify(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B N P"]:
        """Cut a clip into flat tubelets; a tubelet's values stand in (channel, frame, y, x) order."""
        batch, channels = clip.shape[:2]
        frames, height, width = self.grid
        p, s = self.tubelet_frames, self.patch_size
        if clip.shape[2:] != (frames * p, height * s, width * s):
            raise ValueError(
                f"clip of {tuple(clip.shape[2:])} (frames, height, width); the model takes "
                f"{(frames * p, height * s, width * s)}"
            )
        cut = clip.reshape(batch, channels, frames, p, height, s, width, s)
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # (B, N, 3*p*s*s)

    def forward(
        self, clip: Float[Tensor, "B 3 T H W"], hidden: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B V D"]:
        """Encode the visible tokens.

        Args:
            clip: normalised pixels.
            hidden: ``True`` = hidden, the same number in each row; ``None`` looks at every token.

        Returns:
            The last block's output for the visible tokens, in order, without a final norm.
        """
        tubelets = self.patchify(clip)
        positions = self.positions.expand(clip.shape[0], -1, -1)
        if hidden is not None:
            tubelets, positions = gather_tokens(tubelets, ~hidden), gather_tokens(positions, ~hidden)
        tokens: Tensor = self.embed(tubelets) + positions  # (B, V, D)
        return run_blocks(self.blocks, tokens, self.gradient_checkpointing)
