"""What the config.json of an InternVL says of its patch embedder, as constructor arguments."""

from typing import Any

from mmframe.errors import UserError


def embedder_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes, pixel shuffle and positions, for the defaults of the official classes where a key is missing.

    Raises:
        UserError: tiles of another edge than the stored positions.
    """
    vision = config["vision_config"]
    image_size = vision["image_size"]
    tile = config.get("force_image_size") or image_size
    if tile != image_size:
        raise UserError(
            f"config.json: force_image_size={tile} and vision_config.image_size={image_size} differ; "
            "tiles of the edge that the positions were stored for are supported"
        )
    return dict(
        hidden_size=config["llm_config"]["hidden_size"],
        image_size=image_size,
        patch_size=vision["patch_size"],
        channels=vision["hidden_size"],
        downsample=config.get("downsample_ratio", 0.5),
        shuffle_version=config.get("ps_version", "v1"),
    )
