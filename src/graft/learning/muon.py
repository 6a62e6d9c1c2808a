"""Muon for networks with a head and with biases: timm's optimizer, which updates vectors and here the head by AdamW."""

from typing import Any

import timm.optim

from graft.transfer.groups import NO_DECAY
from graft.transfer.stages import HEAD


class Muon(timm.optim.Muon):
    """Orthogonalised momentum for the hidden matrices and convolutions, AdamW for the head, biases and normalisation.

    The head stays with AdamW because the orthogonalisation is meant for matrices between hidden layers (Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon). Learning rates are those of AdamW, to whose size of an update
    Muon's is scaled (Liu et al. 2025). The arguments are those of `timm.optim.Muon`.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        name = str(param_group.get("name", "")).removesuffix(NO_DECAY)
        param_group.setdefault("use_fallback", name == HEAD)
        super().add_param_group(param_group)
