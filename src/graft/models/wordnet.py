"""WordNet ids of ImageNet's classes, from timm (`pip install 'graft-vision[timm]'`)."""

from functools import cache

CLASSES = 1000


@cache
def wordnet_ids(classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The WordNet id of each class, e.g. "n02123045"; None for other classes than ImageNet's, or without timm.

    Args:
        classes: names by class index, as torchvision's or timm's weights give them.
    """
    if len(classes) != CLASSES:
        return None
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        return None
    from torchvision.models import SqueezeNet1_1_Weights  # all weights for ImageNet have the same names

    info = ImageNetInfo()
    torchvision_names = tuple(SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])
    timm_names = tuple(info.index_to_description(index) for index in range(CLASSES))
    return tuple(info.label_names()) if classes in (torchvision_names, timm_names) else None
