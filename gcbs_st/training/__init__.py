"""Puts rows, embeddings, planners, batches and losses together in front of the host's trainers."""
