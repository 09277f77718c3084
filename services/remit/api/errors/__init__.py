"""Generated from protos/remit/api/errors by `make protos`; never edited."""
