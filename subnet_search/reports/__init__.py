"""Reports: one HTML page about a run or a study, or about two of them side by side."""
