"""What is frozen and what is trained, as a table."""

from rich.table import Table

from graft.transfer.plan import TransferPlan


def layer_table(plan: TransferPlan, title: str) -> Table:
    """One row a parameter group at the start of the run: tensors, parameters, trainable or frozen, learning rate."""
    table = Table(title=title, title_justify="left")
    for name in ("group", "tensors", "parameters", "in epoch 1", "learning rate"):
        table.add_column(name, justify="left" if name in ("group", "in epoch 1") else "right")
    for row in plan.table():
        state = {0: "frozen", row.parameters: "trainable"}.get(row.trainable, f"{row.trainable:,} trainable")
        rate = "–" if state == "frozen" and plan.static else f"{row.lr:g}"
        table.add_row(row.name, f"{row.tensors}", f"{row.parameters:,}", state, rate)
    return table
