"""What every run needs: command line, workdir, config, setup, records, figures."""
