"""A plain ViT over video tubelets that can look at a subset of its tokens."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mme.config import ClipParams, ModelParams
from mme.video.colour import BLACK, CHROMA_SPAN, CHROMA_ZERO, LUMA_WEIGHTS, WHITE


def model_input(frames: UInt8[Tensor, "B T H W 3"], clip: ClipParams) -> Float[Tensor, "B 3 T H W"]:
    """Normalise a batch of clips: less ``clip.mean``, over ``clip.std``, both of values from 0 to 1."""
    # Channels apart and in place: half the time of (frames.float() - mean) / std.
    pixels = frames.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    # Mean and deviation on the scale of 8-bit levels, so that the pixels need no division by 255.
    mean, std = (
        255 * torch.tensor(values, device=frames.device)[:, None, None, None] for values in (clip.mean, clip.std)
    )  # (3, 1, 1, 1) each
    return pixels.sub_(mean).div_(std)  # (B, 3, T, H, W)


def token_input(
    luma: UInt8[Tensor, "B T H W"],
    chroma: UInt8[Tensor, "B T 2 H/2 W/2"],
    chosen: Bool[Tensor, "B N"],
    count: int,
    clip: ClipParams,
    model: ModelParams,
) -> Float[Tensor, "B {count} P"]:
    """Normalise the pixels of some tokens, from the planes of the normal form; the others cost nothing.

    What comes out is `VideoEncoder.patchify` of `model_input`, within one grey level of RGB that is rounded.

    Args:
        luma: brightness of the frames that the model sees.
        chroma: their planes of colour.
        chosen: tokens, in (time, y, x) order.
        count: their number, the same in each row.
        clip: mean and deviation of pixels.
        model: size of a token.

    Returns:
        Values of each token in (channel, frame, y, x) order.
    """
    p, s = model.tubelet_frames, model.patch_size
    batch, frames, height, width = luma.shape
    rows, columns = height // s, width // s

    # Cut into tubelets and keep the chosen ones.
    place = token_places(chosen, count).flatten()  # (B * M)
    clip_number = torch.arange(batch, device=luma.device).repeat_interleave(count, output_size=len(place))
    token = (clip_number, place // (rows * columns), place // columns % rows, place % columns)
    cut = luma.view(batch, frames // p, p, rows, s, columns, s)
    y = cut.permute(0, 1, 3, 5, 2, 4, 6)[token].float()  # (B * M, p, s, s)
    cut = chroma.view(batch, frames // p, p, 2, rows, s // 2, columns, s // 2)
    uv = cut.permute(0, 1, 4, 6, 3, 2, 5, 7)[token].float()  # (B * M, 2, p, s/2, s/2)

    # RGB is linear in the planes, and normalised pixels are linear in RGB; one matrix does both.
    mean, std = pixel_moments(clip.mean, clip.std, luma.device)  # (3) each
    matrix, offset = rgb_matrix(luma.device)
    matrix, offset = matrix / (255 * std[:, None]), (offset / 255 - mean) / std
    flat = (len(place), 2, -1)
    colour = (matrix[:, 1:] @ uv.reshape(flat) + offset[:, None]).view(-1, 3, p, s // 2, 1, s // 2, 1)
    per_channel = (3, 1, 1, 1, 1, 1)
    pixels = torch.addcmul(
        colour, y.view(-1, 1, p, s // 2, 2, s // 2, 2), matrix[:, 0].view(per_channel)
    )  # (B * M, 3, p, s/2, 2, s/2, 2): a value of colour covers four pixels
    black, white = (-mean / std).view(per_channel), ((1 - mean) / std).view(per_channel)
    return pixels.clamp_(black, white).view(batch, count, 3 * p * s * s)


@functools.cache
def pixel_moments(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Return mean and deviation of pixels as tensors; making them anew would let the host wait for the device."""
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


@functools.cache
def rgb_matrix(device: torch.device) -> tuple[Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
    """Return matrix and offset from BT.709 planes (y, u, v) in limited range to RGB from 0 to 255."""
    red, green, blue = LUMA_WEIGHTS
    to_red, to_blue = 2 * (1 - red), 2 * (1 - blue)  # of v and u, in units of brightness
    light, colour = 255 / (WHITE - BLACK), 255 / CHROMA_SPAN
    matrix = torch.tensor(
        [
            [light, 0.0, colour * to_red],
            [light, -colour * to_blue * blue / green, -colour * to_red * red / green],
            [light, colour * to_blue, 0.0],
        ],
        device=device,
    )
    zero = torch.tensor([BLACK, CHROMA_ZERO, CHROMA_ZERO], dtype=torch.float32, device=device)
    return matrix, -matrix @ zero


def rgb_of(luma: UInt8[Tensor, "*B H W"], chroma: UInt8[Tensor, "*B 2 H/2 W/2"]) -> UInt8[Tensor, "*B H W 3"]:
    """Convert planes of the normal form to RGB, for pictures."""
    matrix, offset = rgb_matrix(luma.device)
    wide = chroma.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)  # (*B, 2, H, W)
    planes = torch.cat([luma.unsqueeze(-3), wide], dim=-3).movedim(-3, -1).float()  # (*B, H, W, 3)
    return (planes @ matrix.T + offset).round_().clamp_(0, 255).byte()


def sinusoid(positions: Int[Tensor, " N"], dim: int) -> Float[Tensor, "N dim"]:
    """Return the sine-cosine embedding of scalar positions (Vaswani et al. 2017): sines at even channels."""
    # In double precision: the angles of long clips lose digits in single precision.
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)  # (dim / 2)
    angles = positions.double()[:, None] * frequencies[None, :]  # (N, dim / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def position_table(grid: tuple[int, int, int], dim: int, kind: str) -> Float[Tensor, "N dim"]:
    """Return fixed positions of the tokens of ``grid`` = (time, height, width), in (time, y, x) order.

    ``flat`` counts the tokens (one axis, as the published ViT-B models do); ``axes`` gives a share of the channels to
    each axis: half to y and x each less a quarter for time, so that neighbours in space are near in every row.
    """
    frames, height, width = grid
    if kind == "flat":
        return sinusoid(torch.arange(frames * height * width), dim)

    # Channels per axis are even, because each frequency takes a sine and a cosine.
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
    return torch.cat(parts, dim=1)  # (N, dim)


def init_weights(module: nn.Module) -> None:
    """Draw linear layers from Xavier's uniform distribution (Glorot & Bengio 2010), with zero biases."""
    # With PyTorch's default the small model never leaves its initial plateau.
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def build_blocks(depth: int, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> nn.ModuleList:
    """Build timm's pre-norm transformer blocks; drop path rises linearly to ``drop_path`` at the last one."""
    # On the CPU whatever the default device is: the rates are Python numbers.
    rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
    return nn.ModuleList(
        Block(dim, num_heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=nn.LayerNorm) for rate in rates
    )


def run_blocks(blocks: nn.ModuleList, tokens: Float[Tensor, "B N D"], recompute: bool) -> Float[Tensor, "B N D"]:
    """Run tokens through all blocks; ``recompute`` keeps only each block's input for the backward pass."""
    for block in blocks:
        # Without gradients there is no backward pass to save memory for.
        if recompute and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, use_reentrant=False)
        else:
            tokens = block(tokens)
    return tokens


def token_places(chosen: Bool[Tensor, "B N"], count: int) -> Int64[Tensor, "B {count}"]:
    """Return the places of the chosen tokens of each clip, in order.

    Args:
        chosen: mask of tokens.
        count: its true entries, the same number in each row. It is given because a device that had to report it would
            make the host wait.
    """
    return chosen.nonzero_static(size=len(chosen) * count)[:, 1].view(len(chosen), count)


def gather_tokens(
    tokens: Float[Tensor, "B N D"], chosen: Bool[Tensor, "B N"], count: int
) -> Float[Tensor, "B {count} D"]:
    """Return the chosen tokens of each clip, in order; see `token_places`."""
    return tokens.take_along_dim(token_places(chosen, count)[..., None], dim=1)


class VideoEncoder(nn.Module):
    """Tubelet embedding, fixed positions, transformer blocks.

    A token covers ``tubelet_frames x patch_size x patch_size`` pixels; tokens are in (time, y, x) order. Only visible
    tokens are embedded, so that hidden ones neither leak nor cost time.

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

        # A linear layer over flat tubelets equals the usual strided convolution, and takes visible tubelets alone.
        self.embed = nn.Linear(3 * model.tubelet_frames * model.patch_size**2, model.dim)
        # Not part of checkpoints: the table follows from the sizes.
        self.register_buffer("positions", position_table(self.grid, model.dim, model.positions), persistent=False)
        self.blocks = build_blocks(model.depth, model.dim, model.num_heads, model.mlp_ratio, drop_path)
        init_weights(self)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a whole clip."""
        frames, height, width = self.grid
        return frames * height * width

    def patchify(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B N P"]:
        """Cut a clip into flat tubelets; the values of a tubelet are in (channel, frame, y, x) order."""
        batch, channels = clip.shape[:2]
        frames, height, width = self.grid
        p, s = self.tubelet_frames, self.patch_size
        if clip.shape[2:] != (frames * p, height * s, width * s):
            raise ValueError(
                f"clip of {tuple(clip.shape[2:])} (frames, height, width); the model takes "
                f"{(frames * p, height * s, width * s)}"
            )
        # Split each axis into token and place within the token, then bring the token axes to the front.
        cut = clip.reshape(batch, channels, frames, p, height, s, width, s)  # (B, 3, t, p, h, s, w, s)
        return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # (B, N, 3*p*s*s)

    def forward(
        self, clip: Float[Tensor, "B 3 T H W"], hidden: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B V D"]:
        """Encode the visible tokens.

        Args:
            clip: normalised pixels.
            hidden: ``True`` = hidden, the same number in each row; None = every token is visible.

        Returns:
            The last block's output for the visible tokens, in order, without a final norm.
        """
        tubelets = self.patchify(clip)  # (B, N, P)
        if hidden is not None:
            tubelets = gather_tokens(tubelets, ~hidden, self.num_tokens - int(hidden[0].sum()))
        return self.forward_tubelets(tubelets, hidden)

    def forward_tubelets(
        self, tubelets: Float[Tensor, "B V P"], hidden: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B V D"]:
        """Encode the visible tokens, given their normalised pixels; otherwise as `forward`."""
        # With 75 % hidden, attention among the visible tokens costs a sixteenth.
        positions = self.positions.expand(tubelets.shape[0], -1, -1)  # (B, N, D)
        if hidden is not None:
            positions = gather_tokens(positions, ~hidden, tubelets.shape[1])
        tokens: Tensor = self.embed(tubelets) + positions  # (B, V, D)
        return run_blocks(self.blocks, tokens, self.gradient_checkpointing)
