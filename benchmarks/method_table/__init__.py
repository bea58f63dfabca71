"""Every method as a detector on the miniature: same start, pictures, order and budget.

A row is a bundled config, made small, with a source of depth and of masks; `segtrain`'s trainer,
evaluation and `label` do the work. All rows of a seed start from one network that has learned to
find boxes, and masks of another generator's scenes alone. In the data's way: `scenes` makes
pictures and depth, `labels` makes masks from boxes, `rows` says what differs, `training` trains and
measures, `processes` runs many at once, `table` compares.

    python -m benchmarks.method_table run --output table --budget cpu    # resumes; --rows, --seeds
    python -m benchmarks.method_table run --workers 6 --seconds 330      # on a GPU
    python -m benchmarks.method_table table --output table               # markdown

Settings are chosen with `--split choose`; the table is made from `test`, which nothing else reads.
"""
