"""Scores: sums until the end, then fractions with their intervals.

tally        accuracy and loss of batches during training, as exact integer sums
rows         what each image of a table of probabilities tells; the table may lie on disk
multiclass   accuracy, loss, confusion, per class, confused pairs, worst mistakes
breakdown    accuracy by class frequency and by groups of classes
calibrate    reliability, expected calibration error, temperature
compare      paired test and intervals of two predictors on the same images
merge        averages of members, and weights fitted on validation predictions
multilabel   scores where a photograph shows several classes; thresholds fitted on validation
evaluate     all of the above for one evaluation, ready for JSON; evaluate_multilabel of several classes a photograph
main_score   the score that chooses
progress     the curve of a run's evaluations: best epoch, plateaus, segments
"""
