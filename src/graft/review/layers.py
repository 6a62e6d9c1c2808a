"""The table of parameter groups: what is frozen and what trains."""

from rich.table import Table

from graft.review.board import table
from graft.transfer.plan import TransferPlan

HEADER = ("group", "tensors", "parameters", "in epoch 1", "learning rate")


def layer_table(plan: TransferPlan, title: str) -> Table:
    """One row per parameter group at the start of the run: tensors, parameters, trainable or frozen, learning rate."""
    shown = Table(title=title, title_justify="left")
    for name in HEADER:
        shown.add_column(name, justify="left" if name in ("group", "in epoch 1") else "right")
    for row in layer_rows(plan):
        shown.add_row(*row)
    return shown


def layer_markdown(plan: TransferPlan) -> str:
    """The same table for TensorBoard."""
    return table(HEADER, layer_rows(plan))


def layer_rows(plan: TransferPlan) -> list[tuple[str, ...]]:
    """The cells of the table."""
    rows: list[tuple[str, ...]] = []
    for row in plan.table():
        state = {0: "frozen", row.parameters: "trainable"}.get(row.trainable, f"{row.trainable:,} trainable")
        rate = "–" if state == "frozen" and plan.static else f"{row.lr:g}"
        rows.append((row.name, f"{row.tensors}", f"{row.parameters:,}", state, rate))
    return rows
