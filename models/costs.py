"""What a ViT costs: floating-point operations of a forward pass, and the memory that training keeps of an image."""

from models.vit import ViTConfig


def flops_by_part(config: ViTConfig) -> dict[str, int]:
    """Of the matrix products of one image's forward pass (a multiply-add counts as 2)."""
    t, d = config.tokens, config.width
    rows = (config.depth - 1) * t + (t if config.pooling == "avg" else 1)  # the last block: the class token alone
    return {
        "patch embedding": 2 * (t - 1) * 3 * config.patch_size**2 * d,
        "key, value": 4 * config.depth * t * d * d,
        "query, projection": 4 * rows * d * d,
        "scores, weighted sum": 4 * rows * t * d,
        "MLP": 4 * rows * d * config.mlp_width,
        "head": 2 * d * config.num_classes,
    }


def flops_per_image(config: ViTConfig) -> int:
    return sum(flops_by_part(config).values())


def activation_bytes(config: ViTConfig, precision: str, fused: bool, recompute: bool = False) -> int:
    """What one image keeps for the backward pass; an upper estimate.

    In fp32 four bytes a number. In 16 bits (AMP O1) layer_norm and softmax compute in fp32, the residual is promoted
    to fp32, and each product keeps a 16-bit cast of its input. Fused attention, used with 16 bits, keeps no weights.
    """
    block = block_bytes(config, precision, fused)
    first_and_last = 4 * (4 * config.tokens * config.width + 3 * config.image_size**2)  # there the class token alone
    if recompute:
        return 4 * config.depth * config.tokens * config.width + block + first_and_last
    return (config.depth - 1) * block + first_and_last


def block_bytes(config: ViTConfig, precision: str, fused: bool) -> int:
    """What a block keeps of one image, its input included."""
    t, d, m = config.tokens, config.width, config.mlp_width
    masks = t * m + t * d if config.dropout else 0  # a byte a number
    weights = config.heads * t * t
    if precision == "fp32":
        # input, its norm, q, k, v, output; input, its norm; before and after GELU
        return 4 * (weights + 8 * t * d + 2 * t * m) + masks
    if fused:
        attention = 4 * config.heads * t  # a sum for each query
    else:
        attention = 6 * weights  # softmax in fp32, its 16-bit cast
    # two residuals in fp32; the casts of the norms for q, k, v and fc1; q, k, v, output
    return attention + 8 * t * d + 2 * (8 * t * d + 2 * t * m) + masks
