"""A*-PO: `python -m experiments.a_star_po`."""
