"""Models for others' runtimes: one file that says of itself how to use it, and that was checked before it is there.

formats.py       what there is, and which packages each needs
to_*.py          a format each: convert, and read back
description.py   what a file says of itself: preprocessing, classes, thresholds
check.py         real images through the file and through the original
write.py         convert, check, then put in place
"""
