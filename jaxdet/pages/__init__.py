"""Pages to open in a browser: a report on a run, a look at a data set."""
