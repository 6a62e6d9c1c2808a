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


def parameter_table(plan: TransferPlan, epochs: int) -> Table:
    """One row per parameter that trains in at least one epoch: name, shape, number of values, first epoch.

    Args:
        plan: of the network.
        epochs: of the run, at least 1; -1 for no limit, of which the first epoch is shown.
    """
    shown = Table(title="parameters that train", title_justify="left")
    for name in ("parameter", "shape", "values", "from epoch"):
        shown.add_column(name, justify="left" if name in ("parameter", "shape") else "right", overflow="fold")
    first: dict[str, int] = {}
    for epoch in range(1 if plan.static else max(1, epochs)):
        for name in plan.trainable(epoch):
            first.setdefault(name, epoch + 1)
    for name, parameter in plan.network.named_parameters():
        if name in first:
            shape = " × ".join(map(str, parameter.shape)) or "1"
            shown.add_row(name, shape, f"{parameter.numel():,}", f"{first[name]}")
    return shown
