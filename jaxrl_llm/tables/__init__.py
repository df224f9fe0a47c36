"""Published numbers with addresses, and tables of ours beside them."""
