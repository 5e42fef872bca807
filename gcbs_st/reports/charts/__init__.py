"""Log histories, measurements and embeddings in, PNG pictures out; needs the extra `report`."""
