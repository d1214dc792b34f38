"""The contents page: one file per recipe word, holding the function of that name, a few calls into a room.

A step is handed the run and its options as keywords; the signature is what a recipe may say. In a dry run scores are
made up and nothing is read, so that shapes, sizes and mistakes are known before any weight is.
"""
