"""Plans, embeddings and texts of a run in, one HTML page of what trains together out."""
