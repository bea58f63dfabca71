"""A laboratory: which supervision from boxes gives which masks, on crops of generated scenes.

A small network sees a crop around each box, with margins drawn at random so that the box cannot be
guessed, and learns from the project's own losses. Rows differ in the supervision alone: the same
seed gives the same start, the same crops and the same order to every row, so differences are
paired. In the data's way: `scenes` renders and keeps them, `crops` cuts, `network` and
`supervision` learn, `experiment` trains and measures one row, `table` compares.

    python -m benchmarks.mask_lab run --output lab     # resumes; --rows, --seeds, --minutes
    python -m benchmarks.mask_lab table --output lab   # markdown
    python -m benchmarks.mask_lab links --output lab   # how often each source's links are right
    python -m benchmarks.mask_lab picture --output lab --file gain.png
"""
