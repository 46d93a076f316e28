"""Board files and their kernel tables, named by recipes; the format is docs/lut-format.md."""
