"""The proof that anyone can run: a training killed again and again must end with the bytes of the unbroken one.

compare    what two finished runs must have in common
victim     one start of `sports-ray train` as a process that can be killed, and what it was doing when it died
setting    what is proved: photographs, model, workers; the command that trains
report     kills, differences, work redone, times to recover
proof      the unbroken run, then rounds of kills until the time is over

Above orchestrate and below cli, beside bench, which measures what things cost; here it is asked whether they hold. All
runs go through the command line in processes of their own: nothing of this process is part of what is proved.
"""
