"""What a run leaves for the reader: learning curves, tables and pictures of layers."""

from fusedtricks.report.curves import draw_curves
from fusedtricks.report.filters import draw_filters
from fusedtricks.report.monitor import draw_histograms, draw_monitor
from fusedtricks.report.table import format_results

__all__ = ["draw_curves", "draw_filters", "draw_histograms", "draw_monitor", "format_results"]
