"""Photographs: from files on a disk, or packs of them, to batches of tensors.

What there is      files      bytes of a folder or of a pack: all that the others know of where they lie
                   listing    files of a folder tree, with what their folders say; csv_list: the same from a CSV list
                   inspect    what is recorded of one file; decode: bytes -> pixels, or an error
                   facts      that of all files, on all cores, remembered between runs
                   near       perceptual hashes, near-duplicates
In a pack          pack       reading one; pack_list: its listing; pack_cache: those of s3:// and gs:// on this machine
                   pack_write making one; pack_source: what goes into it; pack_shard: its files
What is used       manifest   the table of a run's photographs; rules: what it refuses and what it notes
                   split      a validation split carved out of train
                   scan       every finding, for a report
The stream         order      which image stands where, as pure functions of (seed, epoch, position)
                   augment    crops, flips and colours, by policy; mix: mixup and cutmix
                   loader     batches in the order of requests; pool: its processes; cache: decoded images in memory
A set to try       demo       drawn mini-sports: demo_scenes (pen and surfaces), demo_sports (the drawings),
                              demo_defects (what --dirty plants)
"""
