"""Data sets of edits on disk and on the hub: the row, the layouts, reading them, looking at them."""
