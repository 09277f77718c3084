"""Generated from protos/remit/api by `make protos`; never edited."""
