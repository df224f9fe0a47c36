"""Q#, a value model that guides a frozen reference: `python -m experiments.q_sharp`."""
