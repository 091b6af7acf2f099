"""A run and an evaluation as one page that a person reads, and the evidence in a photograph as heat.

It reads what lies on disk and needs no part of the engine: `read_run` and `read_evaluation` turn folders into records,
`run_part` and `evaluation_part` turn records into sections, `page` puts them into one file that asks the network for
nothing. Charts are records too (`charts`), painted twice: as SVG that follows the reader's light or dark (`svg`), and by
matplotlib as PNG for slides (`png`).
"""
