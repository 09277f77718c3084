"""Generated from protos/remit/api/inference by `make protos`; never edited."""
