"""Infrastructure of runs: command line, workdir, config, setup, records, figures."""
