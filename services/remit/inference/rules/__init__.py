"""The rules of the engine `builtin-rules`: pure functions from text to plans and back to text.

`clauses` cuts a task into parts; `arithmetic`, `time`, `files` and `search` each recognise their
kind of part; `offers` finds an offered tool that can do it, by its JSON Schema; `results` reads
what a tool answered; `plan` puts them together. Nothing here does I/O or keeps state.
"""
