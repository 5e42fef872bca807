"""What is trained on: datasets by name, their text columns, and ids that travel with the batches. Imports nothing of ours."""
