"""What is trained on: datasets by name, their text columns, and ids that travel with the batches.

In: datasets as users hand them over. Out: `TrainingPart`s, and row ids beside the features of a batch.
May import: nothing of ours.
"""
