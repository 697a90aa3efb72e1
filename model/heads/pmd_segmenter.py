"""A mask decoder for frozen vision transformers. Only torch and transformers are needed: an exported model
carries a copy of this file, since transformers has no such class.

After the description of PMT (Cavagnero et al. 2026, https://arxiv.org/abs/2603.25398): maps of several layers of a
frozen backbone are added up, queries join their tokens through a few blocks, and masks are products of queries and
enlarged tokens. In training a query sees, at first, only the tokens inside of the mask that was predicted for it
before; this fades block by block. Here the fading is a factor and not a lot that is drawn, so that a step depends
on nothing random.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import ModelOutput

FINEST_PX = 4
"""Masks have about this stride"""
TOKENS_PX = 16
"""Maps of several strides are brought to the one nearest to it"""
WHOLE = 1_000_000
"""The end of training, in parts of which progress is counted"""


class PlainMaskConfig(PretrainedConfig):
    """Configuration: the backbone's, the classes, and the sizes of the decoder."""

    model_type = "plain_mask_decoder"
    sub_configs = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config=None,
        strides=(),
        num_queries=100,
        hidden_size=256,
        num_layers=4,
        num_heads=8,
        mlp_ratio=4,
        **kwargs,
    ):
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.strides = list(strides)
        self.num_queries = num_queries
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        super().__init__(**kwargs)


@dataclass
class PlainMaskOutput(ModelOutput):
    """Of the last block as transformers' post-processing takes it, and of all."""

    class_queries_logits: torch.FloatTensor | None = None
    """[B, Q, C + 1]"""
    masks_queries_logits: torch.FloatTensor | None = None
    """[B, Q, h, w]"""
    all_classes: tuple[torch.FloatTensor, ...] | None = None
    """Before the first and after every block"""
    all_embeddings: tuple[torch.FloatTensor, ...] | None = None
    """[B, Q, D] each; masks are their products with `all_pixels`"""
    all_pixels: tuple[torch.FloatTensor, ...] | None = None
    """[B, D, h, w] each"""


class Enlarge(nn.Module):
    """A map [B, D, h, w] made twice as large."""

    def __init__(self, size):
        super().__init__()
        self.up = nn.ConvTranspose2d(size, size, 2, stride=2)
        self.smooth = nn.Conv2d(size, size, 3, padding=1, groups=size)
        self.norm = nn.GroupNorm(1, size)

    def forward(self, x):
        return self.norm(self.smooth(F.gelu(self.up(x))))


class Block(nn.Module):
    """A pre-norm transformer block over queries and tokens; tokens know where they are by rotation."""

    def __init__(self, size, heads, ratio):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(
            nn.Linear(size, ratio * size), nn.GELU(), nn.Linear(ratio * size, size)
        )

    def forward(self, x, angles, bias):
        """x [B, Q + N, D]; angles [N, D / heads / 2]; bias of the attention or None."""
        batch, length, size = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        query, key = rotated(query, angles), rotated(key, angles)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, size))
        return x + self.mlp(self.norm2(x))


def rotated(x, angles):
    """x [B, heads, Q + N, d] with its last N rows rotated by angles [N, d / 2]."""
    number = angles.shape[0]
    rest, tokens = x[:, :, :-number], x[:, :, -number:]
    first, second = tokens.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return torch.cat([rest, turned], dim=2)


def token_angles(height, width, half, device):
    """[height x width, half] for rotary positions: one half of them by row, the other by column."""
    number = max(1, half // 2)
    speeds = math.pi * 2.0 ** torch.linspace(0, 5, number, device=device)
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    by_row = (rows[:, None] * speeds)[:, None].expand(height, width, number)
    by_column = (columns[:, None] * speeds)[None].expand(height, width, number)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    return F.pad(angles, (0, half - angles.shape[1]))


class PlainMaskDecoder(PreTrainedModel):
    """Queries and tokens of a backbone in the same blocks."""

    config_class = PlainMaskConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        size = config.hidden_size
        self.place = min(
            range(len(config.strides)),
            key=lambda i: (abs(config.strides[i] - TOKENS_PX), config.strides[i]),
        )
        doublings = max(0, round(math.log2(config.strides[self.place] / FINEST_PX)))
        channels = self.backbone.channels
        self.laterals = nn.ModuleList([nn.Linear(number, size) for number in channels])
        self.lateral_norms = nn.ModuleList([nn.LayerNorm(number) for number in channels])
        self.queries = nn.Parameter(torch.zeros(config.num_queries, size))
        self.register_buffer("progress", torch.tensor(WHOLE))
        self.blocks = nn.ModuleList(
            [Block(size, config.num_heads, config.mlp_ratio) for _ in range(config.num_layers)]
        )
        # Not `norm`: transformers takes the weights of a backbone's for those of that name.
        self.query_norm = nn.LayerNorm(size)
        self.classes = nn.Linear(size, config.num_labels + 1)
        self.embed = nn.Sequential(
            nn.Linear(size, size),
            nn.GELU(),
            nn.Linear(size, size),
            nn.GELU(),
            nn.Linear(size, size),
        )
        self.enlarge = nn.Sequential(*[Enlarge(size) for _ in range(doublings)])
        self.post_init()

    def forward(self, pixel_values, every_layer=False, **kwargs):
        """pixel_values float [B, 3, H, W], normalised.

        every_layer: what each block predicts, not the last one alone.
        """
        tokens, shape = self.tokens(pixel_values)
        batch = tokens.shape[0]
        x = torch.cat([self.queries.to(tokens.dtype).expand(batch, -1, -1), tokens], dim=1)
        half = self.config.hidden_size // self.config.num_heads // 2
        angles = token_angles(*shape, half, x.device)
        found = []
        for number, block in enumerate(self.blocks):
            strength = self.strength(number)
            bias = None
            if every_layer or strength > 0:
                found.append(self.predict(x, shape))
            if strength > 0:
                bias = self.bias(found[-1], shape, strength)
            x = block(x, angles, bias)
        found.append(self.predict(x, shape))
        classes, embeddings, pixels = zip(*found, strict=True)
        if every_layer:
            return PlainMaskOutput(None, None, classes, embeddings, pixels)
        masks = torch.einsum("bqd,bdhw->bqhw", embeddings[-1], pixels[-1])
        return PlainMaskOutput(classes[-1], masks)

    def tokens(self, pixel_values):
        """Sum of the backbone's maps as tokens [B, N, D], and (height, width) of their grid."""
        maps = self.backbone(pixel_values).feature_maps
        shape = maps[self.place].shape[-2:]
        total = 0
        for feature_map, norm, lateral in zip(maps, self.lateral_norms, self.laterals, strict=True):
            if feature_map.shape[-2:] != shape:
                feature_map = F.interpolate(feature_map, size=shape, mode="bilinear")
            total = total + lateral(norm(feature_map.flatten(2).transpose(1, 2)))
        return total, shape

    def predict(self, x, shape):
        """Classes [B, Q, C + 1], mask embeddings [B, Q, D] and pixels [B, D, h, w]."""
        x = self.query_norm(x)
        number = self.queries.shape[0]
        pixels = x[:, number:].transpose(1, 2).unflatten(2, shape)
        own = x[:, :number]
        return self.classes(own), self.embed(own), self.enlarge(pixels)

    def strength(self, number):
        """How far block `number` keeps queries inside of their masks: 1 at the start of training, 0 at its
        end; earlier blocks let go first."""
        blocks = len(self.blocks)
        start, end = number / (blocks + 1), (number + 2) / (blocks + 1)
        done = float(self.progress) / WHOLE
        return min(1.0, max(0.0, (end - done) / (end - start)))

    @torch.no_grad()
    def bias(self, found, shape, strength):
        """[B, 1, Q + N, Q + N]: what is added to the attention of queries to tokens outside their masks."""
        _, embeddings, pixels = found
        masks = torch.einsum("bqd,bdhw->bqhw", embeddings, pixels)
        inside = F.interpolate(masks.float(), size=shape, mode="bilinear").flatten(2) > 0
        inside |= ~inside.any(dim=2, keepdim=True)  # a query without a mask sees everything
        weight = math.log(max(1.0 - strength, 1e-4))
        number, length = inside.shape[1], inside.shape[1] + inside.shape[2]
        bias = torch.zeros(len(inside), 1, length, length, dtype=pixels.dtype, device=pixels.device)
        bias[:, 0, :number, number:] = torch.where(inside, 0.0, weight).to(bias.dtype)
        return bias


PlainMaskConfig.register_for_auto_class()
PlainMaskDecoder.register_for_auto_class("AutoModelForImageSegmentation")
