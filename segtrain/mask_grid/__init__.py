"""The grid that masks live on: one cell is four pixels."""
