"""Report of a grid: table and plots, made of the CSVs alone."""

from __future__ import annotations

from pathlib import Path

from mmframe.ablate.collect import COLUMNS, CURVE_COLUMNS, CURVES, RESULTS, read_csv
from mmframe.ablate.table import Table, markdown
from mmframe.cli.run_dir import write_atomically
from mmframe.errors import UserError


def write_report(where: Path) -> list[Path]:
    """Writes report.md, curves.png and deltas.png beside the CSVs.

    Args:
        where: The folder of a grid's results, or its results.csv.

    Returns:
        The files written.

    Raises:
        UserError: no results there.
    """
    source = where / RESULTS if where.is_dir() else where
    rows = read_csv(source, COLUMNS)
    if not rows:
        raise UserError(f"{source}: holds no results")
    folder = source.parent
    report = folder / "report.md"
    write_atomically(report, markdown(rows))
    table, written = Table(rows), [report]
    from mmframe.ablate.plots import draw_curves, draw_deltas  # matplotlib is slow to load

    if (folder / CURVES).is_file() and (curves := read_csv(folder / CURVES, CURVE_COLUMNS)):
        draw_curves(folder / "curves.png", curves, table)
        written.append(folder / "curves.png")
    if table.metrics and len(table.variants) > 1:
        draw_deltas(folder / "deltas.png", table)
        written.append(folder / "deltas.png")
    return written
