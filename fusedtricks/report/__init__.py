"""What a run leaves for the reader: learning curves and tables."""

from fusedtricks.report.curves import draw_curves
from fusedtricks.report.table import format_results

__all__ = ["draw_curves", "format_results"]
