"""What may change: a network as ordered stages, freeze policies over them, one learning rate per group."""

from graft.transfer.freeze import Policy
from graft.transfer.plan import TransferPlan, plan_transfer
from graft.transfer.stages import Stage, stages_of

__all__ = ["Policy", "Stage", "TransferPlan", "plan_transfer", "stages_of"]
