"""What is wrong with a machine, a store, a set of photographs or a run, each by a measurement, with its cure.

check                  one thing that was looked at
machine, ports, place   versions, GPUs, limits; whether Ray could start; what the store allows and how fast it is
photographs            the findings of a scan, with cures
patient                a run at its newest commit, ready to be measured
history                what the run left: memory that ran out, skipped steps
scores                 recorded against measured again: evaluation mode, normalisation
gradients, rate        one step's gradients; short trials of learning rates from the run's start
layers, labels         batch norm's counters and the EMA's lag; labels that the run itself contradicts
run                    all of a run, in that order

Nothing is changed: of a run nothing is written, of a store only a probe that is deleted again. Ray is never imported here.
"""
