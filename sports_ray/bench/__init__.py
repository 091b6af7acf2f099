"""What sports-ray costs on this machine, next to what it replaces, measured in turns in one run.

figure      one measured value with its bound, and the turns that keep a noisy machine fair
photos      the photographs that a bench reads: the user's, or a drawn set
train       the whole training path against a bare loop (bare) and timm's training script (timm_script)
loader      the stream of images against timm's loader, per core
predict     the prediction path against a bare loop (predict_bare) and timm's validation script; scoring (scoring)
checkpoint  what a commit costs the training that goes on beside it
start       how long until something happens
tune        what Ray Tune adds to the runs of a sweep (tune_alone trains them without it)

Above orchestrate and below cli: nothing imports it but `sports-ray bench`. Times vary with the machine and with whoever
else uses it; ratios of turns taken side by side hardly do, so the promises are ratios.
"""
