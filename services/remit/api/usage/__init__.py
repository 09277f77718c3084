"""Generated from protos/remit/api/usage by `make protos`; never edited."""
