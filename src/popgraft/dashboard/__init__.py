"""What a run has done, as pages to look at. It reads the run folder and nothing else."""

from popgraft.dashboard.data import RunData
from popgraft.dashboard.figure import Figure
from popgraft.dashboard.section import Section, View
from popgraft.dashboard.tables import as_html

__all__ = ["Figure", "RunData", "Section", "View", "as_html"]
