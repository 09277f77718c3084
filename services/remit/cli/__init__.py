"""The `remit` command: one file a noun, each loaded only when it is asked for.

It owns what a person sees: words, tables, exit codes. It decides nothing that a service decides.
"""
