"""What learns, knowing nothing of data, runs or Ray.

build    timm models by name: build, preprocessing, head, freezing
weights  pretrained weights and files, with a gate on how much of the backbone they cover
optim    parameter groups, optimiser, lr(step), the optimiser's state as named tensors
loss     cross-entropy with mixed labels and smoothing
ema      moving average of the weights
convolution  faster gradients of depthwise and pointwise convolutions on a CPU
"""
