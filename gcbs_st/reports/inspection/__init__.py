"""A run, a checkpoint or files in, one HTML page of what trains together out."""
