"""Predictions of finished runs: alone, test-time augmented and together, each image exactly once.

member    what a run folder holds to predict with
images    which photographs there are, and (digests) the sha256 of each; csv_names: those of a list
views     the test-time augmentations, as pure functions of a batch
blocks    logits on disk: 256 rows of a member and a view a file, named by all that determines their bytes
compute   files -> pixels -> logits of a batch, the same bits wherever it runs
run       the computation in this process; `orchestrate.predict` does the same on Ray
columns   logits -> probabilities of views, members and ensemble, in tables on disk
write     predictions.parquet, scores.json and submissions
plan      what is to be done, settled before torch is imported
work      a plan's blocks: what is missing is computed, what is there is proven and gathered
record    what scores.json says besides the scores
evaluate  the whole of an evaluation, or of a prediction

Importing this package imports neither torch nor ray.
"""
