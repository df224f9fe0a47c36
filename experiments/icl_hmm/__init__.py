"""Hidden Markov models in context: `python -m experiments.icl_hmm`."""
