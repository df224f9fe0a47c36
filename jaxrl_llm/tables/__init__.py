"""Published numbers with their sources, and tables that compare ours to them."""
