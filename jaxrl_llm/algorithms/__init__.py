"""One file per paper: config, loss and train step."""
