"""The rules that eliminate, one short function each: the reason, or None where the item stays."""
