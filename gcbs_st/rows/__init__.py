"""What is trained on: datasets by name, their text columns, and row ids that travel with the batches.

May import: nothing of ours.
"""
