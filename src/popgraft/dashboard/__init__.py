"""What a run has done, as pages to look at. It reads the run folder and nothing else."""
