"""Masks for given boxes: the stages of `pipeline masks`, and the page that reviews them."""
