"""Results on disk -> statistics, tables, figures, a report. Imports no torch."""
